"""What a clone would take: blocks to copy, space needed and there, time.

`needed_bytes` is never too low for what is missing now, and counts a new pointer block wherever one may be changed:
a snapshot may hold the old one.
"""

from __future__ import annotations

from dataclasses import dataclass

from cloner.room import ROOM_BYTES, guest_reserve_bytes
from wafl import BLOCK_BYTES, Lun, Volume

OWN_BLOCKS = 16
"""What else changes: vtoc, inode file, maps."""


@dataclass(frozen=True, slots=True)
class Estimate:
    missing_blocks: int
    """To be copied, or somewhat more than that."""
    exact: bool
    """They have just been counted; else guests may have overwritten or discarded some of them unseen."""
    needed_bytes: int
    """On the volume: the blocks and the pointers to them."""
    available_bytes: int
    """What a clone of this LUN may take, with what comes back at the next consistency points: guests keep the rest."""
    fits: bool
    rate_bytes_s: float | None
    """As clones of this volume went last; None if none did."""
    seconds: float | None
    """At that rate."""


def estimate(
    volume: Volume, lun: Lun, rate_bytes_s: float | None = None, *, counted: bool = False
) -> Estimate:
    """Reads about a thousand blocks at most, whatever the size of the LUN.  `counted`: by `recount_missing`, a moment
    ago.  Raises CorruptVolume, BackingLost, OSError."""
    missing = lun.missing_blocks()
    needed = (lun.fill_blocks_at_most() + OWN_BLOCKS) * BLOCK_BYTES if missing else 0
    available = available_for(volume, lun)
    # What a reserved LUN misses is kept back for it, whatever the volume's other room.
    fits = not missing or lun.reserved or needed <= available
    seconds = missing * BLOCK_BYTES / rate_bytes_s if rate_bytes_s else None
    if not missing:
        counted, seconds = True, 0.0
    return Estimate(missing, counted, needed, available, fits, rate_bytes_s, seconds)


def fill_bytes(lun: Lun) -> int:
    """About what filling takes, of blocks that lie together, without reading anything; scattered ones take no more
    than twice as much."""
    missing = lun.missing_blocks()
    return (missing + missing // 64 + OWN_BLOCKS) * BLOCK_BYTES


def available_for(volume: Volume, lun: Lun) -> int:
    space = volume.space()
    beside = max(0, space.available + space.freeing - guest_reserve_bytes(volume) - ROOM_BYTES)
    return beside + (lun.kept_bytes if lun.reserved else 0)
