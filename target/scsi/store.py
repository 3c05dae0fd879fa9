"""The block store: what a logical unit needs of the thing that holds its bytes.

The SCSI side knows this interface only; `target.lun_store` adapts a wafl LUN to it and the tests use
a store in memory.  All calls run on the one thread that owns the volume and none of them awaits.
Offsets and lengths are bytes and always multiples of `logical_block_bytes`; the caller has checked
them against `size_bytes`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol


class StoreError(Exception):
    """A store could not do what was asked.  Each subclass maps to one sense code."""


class MediumError(StoreError):
    """The bytes at `offset` cannot be returned intact (checksum, backing lost, device error)."""

    def __init__(self, offset: int, reason: str) -> None:
        super().__init__(f"medium error at byte {offset}: {reason}")
        self.offset = offset


class SpaceExhausted(StoreError):
    """No space is left for new data (SBC-3 4.7: SPACE ALLOCATION FAILED WRITE PROTECT)."""


class SpaceNotYet(SpaceExhausted):
    """None just now, but soon (SBC-3 4.7: SPACE ALLOCATION IN PROGRESS): hosts try again by themselves."""


class StoreOffline(StoreError):
    """The store is not ready (LUN or volume taken offline)."""


FlushDone = Callable[[BaseException | None], None]


class BlockStore(Protocol):
    """One LUN's bytes and identity."""

    @property
    def size_bytes(self) -> int: ...

    @property
    def logical_block_bytes(self) -> int:
        """512 or 4096."""

    @property
    def physical_block_bytes(self) -> int: ...

    @property
    def online(self) -> bool: ...

    @property
    def read_only(self) -> bool: ...

    @property
    def thin(self) -> bool: ...

    @property
    def used_bytes(self) -> int:
        """Space that this store's data takes."""

    @property
    def available_bytes(self) -> int:
        """Space that new data of all stores together may still take."""

    @property
    def serial(self) -> str:
        """Unit serial number (VPD 80h); stays with the LUN for life."""

    @property
    def naa(self) -> bytes:
        """8 or 16 bytes, the first nibble 3h or 6h (VPD 83h); unique for ever."""

    @property
    def uuid_bytes(self) -> bytes: ...

    def read_into(self, offset: int, view: memoryview) -> None:
        """Fill `view`; may wait for the disk.  Raises StoreError."""

    def read_into_nowait(self, offset: int, view: memoryview) -> bool:
        """Fill `view` if no disk wait is needed, else start reading ahead and return False."""

    def write(self, offset: int, data: memoryview, nowait: bool = False) -> bool:
        """Write `data`; it is in the volume (not yet durable) on return.  False, with nothing changed, if `nowait` and
        the disk would have to be waited for: it begins to read.  Raises StoreError."""

    def read_is_ready(self, offset: int, length: int) -> bool:
        """Whether reading the range would, most likely, need no wait for the disk; if not it begins to read.  Any
        range inside the store; never raises."""

    def write_is_ready(self, offset: int, length: int) -> bool:
        """The same of writing it, in one piece or several."""

    def unmap_is_ready(self, offset: int, length: int) -> bool:
        """The same of unmapping it."""

    def share_is_ready(self, offset: int, source: BlockStore, source_offset: int, length: int) -> bool:
        """The same of one call of `share`."""

    def write_atomic(self, offset: int, data: memoryview) -> None:
        """Like `write`, and after a crash either all of it is there or none.  Whole blocks of 4096 bytes, at most
        1 MiB.  Raises StoreError."""

    def share(self, offset: int, source: BlockStore, source_offset: int, length: int) -> int:
        """Make `length` bytes at `offset` the same blocks as those of `source` at its `source_offset`, without moving
        them.  The bytes done, from the front, bounded work a call; 0 where that cannot be: the caller copies.
        Raises StoreError."""

    def unmap(self, offset: int, length: int) -> None:
        """Make the range read zeros, giving back every whole block in it.  Raises StoreError."""

    def flush(self, done: FlushDone) -> None:
        """Call `done` once everything written before is durable, or with the error.  Never calls it
        before returning."""

    def extents(self, offset: int, length: int, *, nowait: bool = False) -> Iterator[tuple[int, int, bool]]:
        """(offset, length, mapped) in order, covering the range; adjacent equal states may repeat.  With `nowait` it
        ends early, even at once, where the disk would have to be waited for: it begins to read."""
