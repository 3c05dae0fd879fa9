"""What `make bench` is to show: lund's rate over another's, or over its own at another work."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from scripts.bench.works import C_LOOP, LUND, PLAIN, TGT, TUNED, WORKS, Kind


@dataclass(frozen=True)
class Aim:
    work: str
    at_least: float
    rival: str = LUND
    other: str = ""
    """Another work, if lund is to be compared with itself."""

    @property
    def against(self) -> str:
        return self.other or self.rival


def _digests() -> Iterator[Aim]:
    for name, work in WORKS.items():
        if work.digests:
            yield from (Aim(name, 1, rival) for rival in (TGT, TUNED))


def _kinds() -> Iterator[Aim]:
    for kind, share in ((Kind.BACKED, 0.9), (Kind.CLONING, 0.8)):
        for name, work in WORKS.items():
            if work.kind is kind and not work.writes:
                yield Aim(name, share, PLAIN)


AIMS = (
    Aim("read-4k-qd32", 3, TGT),
    Aim("write-4k-qd32", 2, TGT),
    Aim("read-4k-qd1", 0.95, TGT),
    Aim("write-4k-qd1", 0.95, TGT),
    Aim("read-4k-qd1-spin", 2, TGT),
    Aim("write-4k-qd1-spin", 2, TGT),
    Aim("read-256k-qd8", 1.5, TUNED),
    Aim("read-1m-qd8", 1.5, TUNED),
    Aim("write-256k-qd8", 1.1, TUNED),
    Aim("write-1m-qd8", 2, TUNED),
    Aim("flush-4k-qd32", 1.5, TGT),
    Aim("flush-4k-qd32", 1.5, TUNED),
    Aim("read-4k-qd32-cold", 1.2, TGT),
    Aim("read-4k-qd32-cold", 1.2, TUNED),
    Aim("read-4k-qd32", 0.5, C_LOOP),
    Aim("read-1m-qd8", 0.8, C_LOOP),
    Aim("write-1m-qd8", 0.8, C_LOOP),
    Aim("read-4k-qd32-s16", 1, other="read-4k-qd32"),
    Aim("write-4k-qd32-s16", 1, other="write-4k-qd32"),
    *_digests(),
    *_kinds(),
)
NAMED = frozenset(name for aim in AIMS for name in (aim.work, aim.other) if name)
"""The works that an aim speaks of: they are run first."""
