"""The works: what a client is told to do, against which kind of LUN, and who is compared."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import Enum

KIB = 1024
LUND, PLAIN = "lund", "lund, plain LUN"
TGT, TUNED, NBD, LIO = "tgt", "tgt tuned", "qemu-nbd", "LIO"
C_LOOP, PYTHON_LOOP = "C loop", "Python loop"
TARGETS = (LUND, TGT, TUNED)
EVERYBODY = (*TARGETS, PYTHON_LOOP, C_LOOP)


class Kind(Enum):
    """Of the LUN that lund serves."""

    PLAIN = "plain"
    BACKED = "backed"
    """By a snapshot, with nothing of its own."""
    HALF = "half"
    """The same, and every second block is its own."""
    CLONING = "cloning"
    """The same as BACKED, and its clone runs."""


@dataclass(frozen=True)
class Work:
    name: str
    bytes: int
    depth: int
    read_percent: int = 100
    sequential: bool = False
    aged: bool = False
    """The LUN was written at random all over before, otherwise from front to back (if the work is a sequential one)."""
    flush: bool = False
    digests: bool = False
    sessions: int = 1
    kind: Kind = Kind.PLAIN
    cold: bool = False
    spin: bool = False
    libiscsi: bool = False
    host: bool = False
    """The client is fio on a Linux host in User-Mode Linux."""
    rivals: tuple[str, ...] = EVERYBODY
    group: str = ""
    """What it stands under in the report."""

    @property
    def writes(self) -> bool:
        return self.read_percent < 100

    @property
    def unit(self) -> str:
        """Long commands are told in MiB/s."""
        return "MiB/s" if self.sequential else "/s"

    def arguments(self) -> list[str]:
        """For either client."""
        words = ["--bytes", self.bytes, "--depth", self.depth, "--read-percent", self.read_percent,
                 "--sessions", self.sessions]  # fmt: skip
        flags = [("--sequential", self.sequential), ("--flush", self.flush), ("--digests", self.digests)]
        return [str(word) for word in words] + [flag for flag, wanted in flags if wanted]


SIZES = {"64k": 64 * KIB, "256k": 256 * KIB, "1m": 1024 * KIB}
WAYS = {"read": 100, "write": 0}


def _long() -> Iterator[Work]:
    for way, percent in WAYS.items():
        for size, length in SIZES.items():
            yield Work(f"{way}-{size}-qd8", length, 8, percent, sequential=True)


def _short() -> Iterator[Work]:
    for way, percent in WAYS.items():
        for depth in (1, 8, 32, 128):
            yield Work(f"{way}-4k-qd{depth}", 4096, depth, percent)
    yield Work("mix-4k-qd32", 4096, 32, 70)


def _flush() -> Iterator[Work]:
    for depth in (1, 32):
        yield Work(f"flush-4k-qd{depth}", 4096, depth, 0, flush=True)


def _sessions() -> Iterator[Work]:
    for sessions in (4, 16):
        for way, percent in WAYS.items():
            rivals = EVERYBODY if sessions == 16 else TARGETS
            yield Work(f"{way}-4k-qd32-s{sessions}", 4096, 32, percent, sessions=sessions, rivals=rivals)


def _cold() -> Iterator[Work]:
    yield Work("read-4k-qd32-cold", 4096, 32, cold=True)
    for size, length in SIZES.items():
        yield Work(f"read-{size}-qd8-cold", length, 8, sequential=True, cold=True)


def _spin() -> Iterator[Work]:
    for way, percent in WAYS.items():
        yield Work(f"{way}-4k-qd1-spin", 4096, 1, percent, spin=True, rivals=TARGETS)
    yield Work("flush-4k-qd1-spin", 4096, 1, 0, flush=True, spin=True, rivals=TARGETS)


def _digests() -> Iterator[Work]:
    for way, percent in WAYS.items():
        yield Work(f"{way}-4k-qd32-digests", 4096, 32, percent, digests=True, rivals=TARGETS)
        for size, length in SIZES.items():
            name = f"{way}-{size}-qd8-digests"
            yield Work(name, length, 8, percent, sequential=True, digests=True, rivals=TARGETS)


def _kind(kind: Kind) -> Callable[[], Iterator[Work]]:
    # What people use today for clonable images is a qcow2 overlay, served by qemu-nbd.
    rivals = (LUND, PLAIN, TGT, NBD) if kind is Kind.BACKED else (LUND, PLAIN, TGT)

    def works() -> Iterator[Work]:
        for way, percent in WAYS.items():
            yield Work(f"{way}-4k-qd32-{kind.value}", 4096, 32, percent, kind=kind, rivals=rivals)
            for size in ("256k", "1m"):
                name = f"{way}-{size}-qd8-{kind.value}"
                yield Work(name, SIZES[size], 8, percent, sequential=True, kind=kind, rivals=rivals)

    return works


def _aged() -> Iterator[Work]:
    for size, length in SIZES.items():
        yield Work(f"read-{size}-qd8-aged", length, 8, sequential=True, aged=True, rivals=TARGETS)


def _libiscsi() -> Iterator[Work]:
    # The loops are the lean client's measure.
    for way, percent in WAYS.items():
        for depth in (1, 32):
            yield Work(f"{way}-4k-qd{depth}-libiscsi", 4096, depth, percent, libiscsi=True, rivals=TARGETS)
        for size in ("256k", "1m"):
            name = f"{way}-{size}-qd8-libiscsi"
            yield Work(name, SIZES[size], 8, percent, sequential=True, libiscsi=True, rivals=TARGETS)


def _host() -> Iterator[Work]:
    rivals = (*TARGETS, LIO)
    for way, percent in WAYS.items():
        for depth in (1, 32):
            yield Work(f"{way}-4k-qd{depth}-host", 4096, depth, percent, host=True, rivals=rivals)
        yield Work(f"{way}-1m-qd8-host", SIZES["1m"], 8, percent, sequential=True, host=True, rivals=rivals)


GROUPS: dict[str, Callable[[], Iterator[Work]]] = {
    "4 KiB, random places": _short,
    "Long commands from front to back": _long,
    "Each write flushed": _flush,
    "Several sessions, depth 32 each": _sessions,
    "Out of the page cache": _cold,
    "With the portal's spin": _spin,
    "With header and data digests": _digests,
    "A LUN backed by a snapshot": _kind(Kind.BACKED),
    "A LUN whose clone runs": _kind(Kind.CLONING),
    "A backed LUN, every second block its own": _kind(Kind.HALF),
    "Long reads where random writes have been": _aged,
    "libiscsi as client": _libiscsi,
    "A Linux host (User-Mode Linux)": _host,
}
WORKS = {work.name: replace(work, group=group) for group, works in GROUPS.items() for work in works()}


def chosen(patterns: Sequence[str]) -> list[Work]:
    """The works that one of the patterns (as of a shell) names.  Raises ValueError."""
    found = {}
    for pattern in patterns:
        matches = fnmatch.filter(WORKS, pattern)
        if not matches:
            raise ValueError(f"no work is called {pattern}; there are: {', '.join(WORKS)}")
        found.update(dict.fromkeys(matches))
    return [work for name, work in WORKS.items() if name in found]
