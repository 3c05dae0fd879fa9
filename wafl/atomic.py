"""One write that a crash leaves whole or undone: WRITE ATOMIC.

A consistency point never falls into the middle of a write, as one thread makes both.  The log does: a write that takes
several runs of blocks is several records, and a crash may keep the first alone.  So its records are held back; one is
appended as ever, several are done without, by a consistency point on the spot.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from wafl.format import BLOCK_BYTES, POINTERS

if TYPE_CHECKING:
    from wafl.lun import Lun


class HeldRecords:
    """Stands in for the log while one write places its blocks."""

    def __init__(self) -> None:
        self.writes: list[tuple[Any, ...]] = []

    def write(self, *record: Any) -> None:
        self.writes.append(record)


def write_atomic(lun: Lun, offset: int, data: memoryview) -> None:
    """`Lun.write` of whole blocks inside the LUN, all or nothing.  Raises what it raises, having changed nothing but
    for an error of the device."""
    core = lun.core
    blocks = len(data) // BLOCK_BYTES
    core.ensure_for(blocks + blocks // POINTERS + 2 + 2 * lun.inode.height, reserved=lun.reserved)
    log = core.log
    if log is None:
        lun.write(offset, data)
        return
    held = HeldRecords()
    core.log = held  # type: ignore[assignment]
    try:
        lun.place_blocks(offset // BLOCK_BYTES, data)
    finally:
        core.log = log
        core.allocator.end_exact_run()
        if len(held.writes) == 1:
            log.write(*held.writes[0])
        elif held.writes:
            log.do_without()
