"""How much of a volume a clone leaves to guests."""

from __future__ import annotations

from wafl import Lun, Volume, available_bytes

GUEST_RESERVE_PARTS = 64
GUEST_RESERVE_MAX_BYTES = 1 << 30
"""The last 1/64 of the volume, at most 1 GiB, is left to guests: a clone pauses before it."""
ROOM_BYTES = 1 << 20
"""One level-1 range: less free space than this is no room for a fill."""


def guest_reserve_bytes(volume: Volume) -> int:
    return min(volume.size_bytes // GUEST_RESERVE_PARTS, GUEST_RESERVE_MAX_BYTES)


def has_room(volume: Volume, lun: Lun, ranges: int = 1) -> bool:
    """For so many level-1 ranges at once."""
    # What a reserved LUN misses is kept back for it: filling it takes nothing from guests.
    return lun.reserved or available_bytes(volume) >= guest_reserve_bytes(volume) + ranges * ROOM_BYTES
