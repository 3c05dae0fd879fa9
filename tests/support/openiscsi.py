"""What a Linux administrator types on a test host: `iscsiadm`, and where the disk came up."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from tests.support.uml import HostError, Result, UmlHost


@dataclass(frozen=True)
class Chap:
    """Credentials of the initiator, and of the target for mutual CHAP."""

    user: str
    secret: str
    target_user: str = ""
    target_secret: str = ""
    algorithms: str = "MD5"

    def settings(self, prefix: str) -> dict[str, str]:
        settings = {
            f"{prefix}.auth.authmethod": "CHAP",
            f"{prefix}.auth.username": self.user,
            f"{prefix}.auth.password": self.secret,
            f"{prefix}.auth.chap_algs": self.algorithms,
        }
        if self.target_user:
            settings |= {
                f"{prefix}.auth.username_in": self.target_user,
                f"{prefix}.auth.password_in": self.target_secret,
            }
        return settings


DIGESTS = {"node.conn[0].iscsi.HeaderDigest": "CRC32C", "node.conn[0].iscsi.DataDigest": "CRC32C"}


class OpenIscsi:
    """`iscsiadm` on one host against one portal."""

    def __init__(self, host: UmlHost, portal: str = "") -> None:
        self.host = host
        self.portal = portal or host.portal

    def discover(self) -> list[str]:
        """SendTargets; the target names at this portal."""
        listing = self.host.run("iscsiadm", "-m", "discovery", "-t", "sendtargets", "-p", self.portal)
        found = [line.split() for line in listing.out.splitlines()]
        return sorted({fields[1] for fields in found if fields[0].startswith(f"{self.portal}:")})

    def node(self, target: str, *options: str, check: bool = True) -> Result:
        return self.host.run("iscsiadm", "-m", "node", "-T", target, "-p", self.portal, *options, check=check)

    def configure(self, target: str, settings: dict[str, str]) -> None:
        self.node(target, "-o", "new")
        for name, value in settings.items():
            self.node(target, "-o", "update", "-n", name, "-v", value)

    def try_login(self, target: str, chap: Chap | None = None, settings: dict[str, str] | None = None) -> Result:
        """One attempt, so that a refusal comes back at once."""
        auth = chap.settings("node.session") if chap else {}
        self.configure(target, {"node.session.initial_login_retry_max": "1", **auth, **(settings or {})})
        return self.node(target, "--login", check=False)

    def login(self, target: str, chap: Chap | None = None, settings: dict[str, str] | None = None) -> None:
        result = self.try_login(target, chap, settings)
        if result.code != 0:
            raise HostError(f"{self.host.name}: {result}\n{self.host.console()[-3000:]}")

    def logout(self, target: str) -> None:
        self.node(target, "--logout")

    def rescan(self) -> None:
        self.host.run("iscsiadm", "-m", "session", "--rescan")

    def disk(self, target: str, lun: int = 0) -> str:
        """`/dev/sdX` of one LUN of the session to `target`, as soon as it can be opened."""
        script = (
            f"target={shlex.quote(target)} lun={lun}\n"
            "for try in $(seq 200); do for s in /sys/class/iscsi_session/session*; do\n"
            '  [ "$(cat $s/targetname 2>/dev/null)" = "$target" ] || continue\n'
            "  for b in $s/device/target*/*:$lun/block/sd*; do\n"
            "    d=/dev/${b##*/}\n"
            "    if [ -b $d ] && dd if=$d of=/dev/null bs=512 count=1 2>/dev/null; then echo $d; exit; fi\n"
            "  done; done; sleep 0.05; done; lsblk -S >&2; exit 1\n"
        )
        return self.host.sh(script).out.strip()

    def session_state(self, target: str) -> str:
        """The kernel's word: LOGGED_IN, FAILED, FREE."""
        script = (
            "for s in /sys/class/iscsi_session/session*; do\n"
            f'  [ "$(cat $s/targetname)" = {shlex.quote(target)} ] && cat $s/state && exit\n'
            "done; echo NONE"
        )
        return self.host.sh(script).out.strip()

    def negotiated(self, target: str) -> str:
        return self.host.run("iscsiadm", "-m", "session", "-P", "2").out
