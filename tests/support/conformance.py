"""libiscsi's conformance suite against a real daemon: the kinds of LUN it wants, and what each test said on each.

Each kind has a volume, so a target, of its own: runs go on at once and hear nothing of each other's resets.  Most of a
run's time is the tool's own sleep.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from scripts.iscsi_score import Score, parse
from tests.support.initiators import qemu_io, url
from tests.support.lund import MIB, Lund
from tests.support.netns import Namespace

TESTS_UNDER_ALL = 230
WHOLE = "ALL.Sanitize.Reset,ALL.Sanitize.*[!t],ALL.StartStopUnit,ALL.[!S]*"
"""All of ALL, in an order: the tool takes a list from its end.  SANITIZE is last, as it leaves nothing for a clone to
copy.  Sanitize.Reset is a suite of its own, which logs in anew: with two sessions Sanitize.Reservations leaves the
RESERVE(6) of the second one behind, and the SANITIZE of Reset would meet it."""
SIZE_BYTES = 512 * MIB
"""To overwrite it takes more than the four seconds after which Sanitize.Reset looks whether that still goes on; and one
GET LBA STATUS tells of all of it, as Sanitize.BlockErase wants."""
FILLED_BYTES = 256 * MIB
CLONE_LIMIT = "512k"
"""A second: the clone outlasts everything before SANITIZE."""
RUN_LIMIT_S = 1200
"""A whole run takes two minutes, four on a machine that is busy; one that hangs takes for ever."""
AT_ONCE = 4
NAMES = ("iqn.2026-01.test.conformance:1", "iqn.2026-01.test.conformance:2")
SECRET = "longer-than-12-bytes"


@dataclass(frozen=True)
class Kind:
    """A LUN, how hosts see it, and which tests are to run on it."""

    name: str
    what: str
    tests: str = WHOLE
    block_bytes: int = 512
    reserved: bool = False
    clone: bool = False
    """Backed by a snapshot, and cloned during the run."""
    shown: tuple[str, ...] = ()
    """Properties of the LUN that are turned on."""
    user: str = ""
    """For CHAP."""

    @property
    def volume(self) -> str:
        return self.name.lower().replace(" ", "-")

    @property
    def path(self) -> str:
        return f"/vol/{self.volume}/{'clone' if self.clone else 'disk'}"


@dataclass(frozen=True)
class Run:
    """The outcome on one kind of LUN."""

    kind: Kind
    scores: list[Score]
    seconds: float

    def outcomes(self, *which: str) -> dict[str, str]:
        return {score.name: score.outcome for score in self.scores if score.outcome in which}

    @property
    def skipped(self) -> set[str]:
        return set(self.outcomes("skip"))

    @property
    def failed(self) -> set[str]:
        """A test without a verdict has failed: the tool ended in it."""
        return set(self.outcomes("fail", "none"))


NATIVE = ("native_blocks",)
THIN = Kind("thin", "thin, 512n", shown=NATIVE)
RESERVED = Kind("reserved", "space-reserved, 512n", reserved=True, shown=NATIVE)
CLONE = Kind("clone", "backed by a snapshot, in the middle of its clone, 512n", clone=True, shown=NATIVE)
LARGER = Kind("512e", "thin, 8 logical blocks in a physical one")
NATIVE_4K = Kind("4Kn", "thin, blocks of 4096 bytes", block_bytes=4096)
NOT_THIN = Kind("not thin", "shown as fully provisioned", shown=("fully_provisioned",))
REMOVABLE = Kind("removable", "a medium that can be ejected", shown=(*NATIVE, "removable"))
PROTECTED = Kind("read-only", "write-protected", "ALL.ReadOnly", shown=("write_protected",))
USERS = tuple(
    Kind(f"CHAP {number}", f"login as {user}", "ALL.iSCSI*,ALL.Inquiry", user=user, shown=NATIVE)
    for number, user in enumerate(("somebody", "0x736f6d65626f6479", "0bc29tZWJvZHk="), 1)
)
EVERY_KIND = (THIN, RESERVED, CLONE, LARGER, NATIVE_4K, NOT_THIN, REMOVABLE, PROTECTED, *USERS)

FAMILIES = ("CompareAndWrite", "ExtendedCopy", "GetLBAStatus", "OrWrite", "Unmap", "Verify16", "WriteSame*")
DATA = ",".join(f"ALL.{family}" for family in FAMILIES)
"""What the size of a block can make a difference to."""
QUICK_KINDS = (
    THIN, RESERVED, CLONE,
    replace(LARGER, tests=DATA),
    replace(NATIVE_4K, tests=f"{DATA},ALL.WriteAtomic16"),
    replace(NOT_THIN, tests="ALL.WriteSame*,ALL.GetLBAStatus,ALL.ReadCapacity16"),
    replace(REMOVABLE, tests="ALL.NoMedia,ALL.PreventAllow,ALL.StartStopUnit"),
    PROTECTED, *USERS,
)  # fmt: skip
"""Three whole runs, and of the other kinds what those three skip."""


def skipped_everywhere(runs: Iterable[Run]) -> set[str]:
    """Tests that no run did anything but skip."""
    seen: dict[str, set[str]] = {}
    for run in runs:
        for score in run.scores:
            seen.setdefault(score.name, set()).add(score.outcome)
    return {name for name, outcomes in seen.items() if outcomes == {"skip"}}


class Conformance:
    """Runs the suite inside a namespace; logs go to `directory`."""

    def __init__(self, namespace: Namespace, lund: Lund, directory: Path) -> None:
        self.namespace, self.lund, self.directory = namespace, lund, directory

    def run(self, kinds: Sequence[Kind]) -> dict[str, Run]:
        """By the kinds' names; the first ones begin first."""
        for kind in kinds:
            self._make(kind)
        with ThreadPoolExecutor(AT_ONCE) as pool:
            return {run.kind.name: run for run in pool.map(self._run, kinds)}

    def _make(self, kind: Kind) -> None:
        lund = self.lund
        lund.add_volume(kind.volume)
        disk = f"/vol/{kind.volume}/disk"
        lund.post(
            "luns", path=disk, size_bytes=SIZE_BYTES, block_bytes=kind.block_bytes, reserved=kind.reserved
        )
        if kind.clone:
            lund.map(disk, lun_id=1)
            qemu_io(self.namespace, url(lund.target(kind.volume), 1), f"write -P 7 0 {FILLED_BYTES}")
            lund.lun("clone", "create", kind.path, "-b", disk)
        lund.map(kind.path)
        answer = lund.api.patch(f"/v1/luns/{kind.path.removeprefix('/vol/')}", json=dict.fromkeys(kind.shown, True))
        assert answer.is_success, answer.text

    def _run(self, kind: Kind) -> Run:
        began = time.monotonic()
        log = self.directory / f"{kind.volume}.log"
        names = self._account(kind)
        if kind.clone:
            self.lund.lun("clone", "start", "--limit", CLONE_LIMIT, kind.path)
        disk = url(self.lund.target(kind.volume), user=kind.user, secret=SECRET)
        run_tool(self.namespace, kind.tests, disk, log, *names)
        return Run(kind, read_scores(log), time.monotonic() - began)

    def _account(self, kind: Kind) -> list[str]:
        """CHAP goes by the initiator's name, so such a run has names of its own."""
        if not kind.user:
            return []
        names = [f"{name}.{kind.volume}" for name in NAMES]
        for name in names:
            account = {"method": "chap", "user": kind.user, "secret": SECRET}
            answer = self.lund.api.put(f"/v1/iscsi/security/{name}", json=account)
            assert answer.is_success, answer.text
        return ["-i", names[0], "-I", names[1]]

    def events(self, kind: Kind) -> list[str]:
        """What has happened to the LUN, in order."""
        lines = self.lund.api.get("/v1/events").text.splitlines()
        return [event["kind"] for event in map(json.loads, lines) if event["subject"] == kind.path]


def run_tool(namespace: Namespace, tests: str, disk: str, log: Path, *options: str) -> None:
    """iscsi-test-cu with two sessions to one LUN."""
    argv = ["iscsi-test-cu", "--dataloss", "--allow-sanitize", *options, "-t", tests, "-V", disk, disk]
    with log.open("w") as out:
        namespace.run(argv, timeout_s=RUN_LIMIT_S, capture_output=False, stdout=out, stderr=subprocess.STDOUT)


def read_scores(log: Path) -> list[Score]:
    return parse(log.read_text(errors="replace"))
