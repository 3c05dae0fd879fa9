"""dm-multipath on a test host: the kernel's device mapper, udevd and multipathd, as Debian's multipath-tools has them.

What it knows: how to start them in a guest that has neither systemd nor a writable /etc, and what `multipathd show`
says.  Nothing else is told to multipathd than in CONFIGURATION: the device's name, the paths' priorities and the
checker come from what the target answers (VPD page 83h, REPORT TARGET PORT GROUPS, TEST UNIT READY).
"""

from __future__ import annotations

import shlex

from tests.support.lund import wait_until
from tests.support.openiscsi import OpenIscsi
from tests.support.uml import UmlHost

# Debian's default makes no map of a LUN that it has not been told of.  The rest is about how soon a path is given up
# and looked at again; `queue` is what the manuals of arrays ask for.
CONFIGURATION = """
defaults {
    find_multipaths no
    path_grouping_policy group_by_prio
    failback immediate
    no_path_retry queue
    polling_interval 1
    max_polling_interval 1
    fast_io_fail_tmo 1
    uxsock_timeout 30000
}
"""
# A connection is given up after two seconds without an answer.
QUICK = {"node.conn[0].timeo.noop_out_interval": "1", "node.conn[0].timeo.noop_out_timeout": "2"}
STATE_LIMIT_S = 60.0
POLL_S = 0.3
"""Each look is a process in the guest, and that is dear there."""


class Multipath:
    """One host's multipath devices."""

    def __init__(self, host: UmlHost) -> None:
        self.host = host

    def start(self) -> None:
        """Before the host logs in: udevd sees the disks as they come."""
        self.host.sh(
            "for module in dm-multipath dm-service-time overlay; do modprobe -d /run/modules $module; done;"
            "mkdir -p /run/udev /run/etc /run/etc-work;"
            "mount -t overlay overlay -o lowerdir=/etc,upperdir=/run/etc,workdir=/run/etc-work /etc;"
            "mkdir -p /etc/multipath;"
            f"echo {shlex.quote(CONFIGURATION)} >/etc/multipath.conf;"
            "/lib/systemd/systemd-udevd --daemon 2>/dev/null; /sbin/multipathd"
        )
        wait_until(lambda: self._show("daemon").startswith("pid"), STATE_LIMIT_S, "multipathd answers", poll_s=POLL_S)

    def log_in(self, target: str) -> None:
        """Over every portal the host has a cable to."""
        for portal in self.host.portals:
            OpenIscsi(self.host, portal).login(target, settings=QUICK)

    def _show(self, what: str, *more: str) -> str:
        """Nothing while it is too busy to answer."""
        answer = self.host.run("multipathd", "show", what, *more, check=False)
        return answer.out.strip() if answer.code == 0 else ""

    def devices(self) -> dict[str, dict[str, str]]:
        """Of each device by its WWID, by path (`sda`), what the device mapper makes of that: `active` or `failed`.

        A path that is not looked at yet has no WWID, and where there are no paths the answer is one word.
        """
        found: dict[str, dict[str, str]] = {}
        for line in self._show("paths", "raw", "format", "%w %d %t").splitlines():
            match line.split():
                case wwid, path, state:
                    found.setdefault(wwid, {})[path] = state
        return found

    def wait_for_device(self, serial: str) -> str:
        """The WWID of the device whose paths lead to the LUN with this serial number, one over each portal."""
        found: list[str] = []

        def complete() -> bool:
            paths = self.host.sh(f"cd /sys/block; grep -l {serial} sd*/device/vpd_pg80", check=False).out.split()
            every = {path.partition("/")[0]: "active" for path in paths}
            found[:] = [wwid for wwid, states in self.devices().items() if states == every]
            return len(every) == len(self.host.portals) and len(found) == 1

        wait_until(complete, STATE_LIMIT_S, f"one device with all paths to the LUN {serial}", poll_s=POLL_S)
        return found[0]

    def wait_for_states(self, wwid: str, wanted: dict[str, str]) -> None:
        wait_until(lambda: self.devices().get(wwid) == wanted, STATE_LIMIT_S, f"the paths are {wanted}", poll_s=POLL_S)

    def path_over(self, portal: str, wwid: str) -> str:
        """The disk that comes over this portal."""
        script = (
            f"for path in {' '.join(self.devices()[wwid])}; do\n"
            "  session=$(readlink -f /sys/block/$path/device | grep -o 'session[0-9]*' | head -n 1)\n"
            "  echo $path $(cat /sys/class/iscsi_connection/connection${session#session}:0/persistent_address)\n"
            "done"
        )
        lines = (line.split() for line in self.host.sh(script).out.splitlines())
        (path,) = (path for path, address in lines if address == portal)
        return path
