"""The power goes while a Linux host writes: what fsync has returned for is there, and the file system is whole.

The daemon's volume is on a device that keeps what is not synced in memory (tests/support/volatile_device.py), so that
SIGKILL loses it, or lets any part of it through.  The host dies with the daemon: its page cache must not help out.
`LAZYLUN_CUTS` says how often, `LAZYLUN_SEED` makes the random moments the same again.
"""

from __future__ import annotations

import contextlib
import os
import random
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import pytest

from tests.real.conftest import check_volumes
from tests.real.test_daemon_crash import wait_for_session
from tests.support import guest_writers
from tests.support.lund import MIB, Lund, wait_until
from tests.support.netns import Namespace
from tests.support.openiscsi import OpenIscsi
from tests.support.uml import GUEST_PYTHON, UmlHost

ROOT = Path(__file__).resolve().parents[2]
CUTS = int(os.environ.get("LAZYLUN_CUTS", "3"))
SEED = int(os.environ.get("LAZYLUN_SEED", random.SystemRandom().randrange(1 << 31)))
LUN = "/vol/vol0/disk"
MOUNT = "/mnt/disk"
SOURCE = Path(guest_writers.__file__).read_text()
LONGEST_S = 2.0
"""From the first fsync that has returned to the cut."""
AGAIN, START_S = 0.3, 1.5
"""How often the power goes once more while the daemon starts, and how long that takes it about."""


@dataclass
class Records:
    """What fsync has returned for, as the host told it."""

    files: dict[str, str] = field(default_factory=dict)
    blocks: dict[int, int] = field(default_factory=dict)

    def add(self, lines: list[str]) -> None:
        for line in lines:
            kind, name, value = line.split()
            if kind == "file":
                self.files[name] = value
            else:
                self.blocks[int(name)] = int(value)

    def missing(self, lines: list[str]) -> list[str]:
        """What of this is not in a listing.  A block may be a later one: it was written and not yet synced."""
        found = dict(line.split()[1:] for line in lines)
        wrong = [f"file {name}: {found.get(name)}" for name, value in self.files.items() if found.get(name) != value]
        for number, counter in self.blocks.items():
            now = found.get(str(number), "not there")
            if not now.isdigit() or int(now) < counter:
                wrong.append(f"block {number}: {now}, should be {counter} or later")
        return wrong


class Site:
    """A daemon on a volatile device and a host, which lose their power together."""

    def __init__(self, lund: Lund, host: UmlHost) -> None:
        self.lund, self.host = lund, host
        self.disk = ""
        self.records = Records()
        self.rounds = 0

    def power_up(self, **environment: str) -> None:
        """Both boot, side by side; the host logs in."""
        self.prepare_daemon(environment)
        self.lund.launch()
        self.host.start()
        self.lund.wait_until_ready()
        self.log_in()

    def prepare_daemon(self, environment: Mapping[str, str] = MappingProxyType({})) -> None:
        self.rounds += 1
        self.lund.environment["LAZYLUN_VOLATILE_SEED"] = f"{SEED} {self.rounds}"
        self.lund.environment.pop("LAZYLUN_LOSE_SYNCS", None)
        self.lund.environment |= environment

    def cut_while_starting(self, moment_s: float) -> None:
        """The power comes and goes again: the daemon may be in the middle of its replay."""
        self.prepare_daemon()
        self.lund.launch()
        time.sleep(moment_s)
        self.lund.kill()

    def log_in(self) -> None:
        iscsi = OpenIscsi(self.host)
        iscsi.login(self.lund.target())
        self.disk = iscsi.disk(self.lund.target())
        self.host.run("mkdir", "-p", MOUNT)

    def lost(self) -> list[str]:
        """What is not as it must be, after ext4 has replayed its journal."""
        self.host.run("mount", self.disk, MOUNT)
        listing = self.host.run(GUEST_PYTHON, "-c", SOURCE, "list", MOUNT).out
        self.host.run("umount", MOUNT)
        check = self.host.run("e2fsck", "-f", "-n", self.disk, check=False)
        return self.records.missing(listing.splitlines()) + ([] if check.code == 0 else [str(check)])

    def forget_files(self) -> None:
        """Room for more."""
        self.records.files.clear()
        self.host.sh(f"mount {self.disk} {MOUNT}; rm -f {MOUNT}/*-*-*; sync; umount {MOUNT}")

    def write_until_cut(self, moment_s: float) -> int:
        """The power goes `moment_s` after the first promise; how many there were."""
        self.host.run("mount", self.disk, MOUNT)
        work = self.host.follow(GUEST_PYTHON, "-c", SOURCE, "write", MOUNT, str(self.rounds))
        wait_until(lambda: bool(work.lines) or not work.running, 60, "a first fsync has returned")
        time.sleep(moment_s)
        assert work.running, work.lines[-3:]
        self.lund.kill()
        self.host.cut_power()
        self.records.add(work.lines)
        return len(work.lines)


@pytest.fixture
def site(namespace: Namespace, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Site]:
    """With an empty ext4 on the LUN, and the power on.  Its parameter says where the volume's log is."""
    separate = {"nvlog": str(tmp_path / "vol0.log")} if getattr(request, "param", "within") == "apart" else {}
    program = (sys.executable, "-m", "tests.support.volatile_lund")
    lund = Lund(namespace, tmp_path / "state", program=program, environment={"PYTHONPATH": str(ROOT)})
    host = UmlHost(namespace, tmp_path)
    site = Site(lund, host)
    with contextlib.ExitStack() as ends:
        ends.callback(lund.api.close)
        lund.launch()
        ends.callback(lund.kill)
        host.start()
        ends.callback(host.cut_power)
        lund.wait_until_ready()
        lund.post("volumes", name="vol0", size_bytes=768 * MIB, **separate)
        lund.add_lun(LUN, 256 * MIB)
        site.log_in()
        host.run("mkfs.ext4", "-q", "-F", site.disk)
        yield site


@pytest.mark.timeout(120 + 60 * CUTS)
@pytest.mark.parametrize(("site", "cuts"), [("within", CUTS), ("apart", -(-CUTS // 4))], indirect=["site"])
def test_what_was_fsynced_survives_a_power_cut(site: Site, cuts: int) -> None:
    """With the log within the volume, and on a device of its own."""
    print(f"LAZYLUN_SEED={SEED}")
    rng = random.Random(SEED)
    for number in range(1, cuts + 1):
        moment_s = rng.uniform(0, LONGEST_S)
        promises = site.write_until_cut(moment_s)
        twice = rng.random() < AGAIN
        if twice:
            site.cut_while_starting(rng.uniform(0, START_S))
        check_volumes(site.lund)
        site.power_up()
        assert site.lost() == [], f"after cut {number}, {moment_s:.3f} s after the first fsync"
        site.forget_files()
        print(f"cut {number}{' and one at the start' if twice else ''}: {moment_s:.3f} s, {promises} promises kept")


def test_the_test_sees_a_disk_that_lies_about_syncs(site: Site) -> None:
    site.lund.kill()
    site.prepare_daemon({"LAZYLUN_LOSE_SYNCS": "1", "LAZYLUN_EARLY": "0"})
    site.lund.start()
    wait_for_session(site.lund, OpenIscsi(site.host))
    site.write_until_cut(0.5)
    site.power_up()
    assert site.lost() != []
