"""What a logical unit asks of the program around it: time, later turns of the loop, and memory that survives a crash.

`target.scsi` has no clock, no loop and no disk of its own.  Long work (SANITIZE, EXTENDED COPY) is cut into slices that
a platform calls one by one; what must outlive the daemon (reservations with APTPL, saved mode pages, a SANITIZE that
was not finished) is a few named values per logical unit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

SaveDone = Callable[[BaseException | None], None]


class Platform(Protocol):
    """One logical unit's view of the program.  Everything is called on the loop that owns the volume."""

    @property
    def saved(self) -> Mapping[str, bytes]:
        """The values by name, as they were when the logical unit was made."""

    def save(self, name: str, value: bytes, done: SaveDone) -> None:
        """Keep a value; `done` is called once it would survive a power cut, or with the error.  Never calls it before
        returning; values saved later are never durable earlier.  An empty value is as good as none."""

    def note(self, kind: str, what: str) -> None:
        """Something that a host did and an administrator should know of; `kind` is one word."""

    def call_later(self, delay_s: float, call: Callable[[], None]) -> None:
        """Call once, not before returning, after other things have had their turn."""

    def random_bytes(self, size: int) -> bytes:
        """That nobody can guess."""

    def now(self) -> float:
        """Seconds on a clock that only goes forward."""

    def wall_clock(self) -> float:
        """Seconds since 1970, for REPORT TIMESTAMP."""
