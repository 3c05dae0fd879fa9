"""A wafl LUN as the block store that `target.scsi` asks for.

It adds nothing but names: wafl's errors become the store's, each with its own sense code.  The fast path goes past it
(`plain_read`, `plain_write`) and comes back only when the LUN raised something.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NoReturn

from target.scsi.store import BlockStore, FlushDone, MediumError, SpaceExhausted, SpaceNotYet, StoreError
from wafl import (
    BLOCK_BYTES,
    BackingLost,
    CorruptVolume,
    Lun,
    NoSpace,
    PlacedWrite,
    SpaceHeld,
    VolumeService,
    WaflError,
    place_write,
    read_is_ready,
    ready_extents,
    share_is_ready,
    unmap_is_ready,
    write_atomic,
    write_is_ready,
    write_several,
)


class LunStore:
    """`target.scsi.store.BlockStore` over one LUN of a mounted volume."""

    physical_block_bytes = BLOCK_BYTES
    thin = True
    """Every LUN takes UNMAP and tells what is mapped, a space-reserved one too (docs/decisions/0007)."""

    def __init__(self, lun: Lun, service: VolumeService) -> None:
        self.lun = lun
        self.logical_block_bytes = lun.block_bytes
        self.naa = lun.naa
        self.uuid_bytes = lun.uuid_bytes
        self.read_only = service.volume.read_only
        self._volume = service.volume
        self._flush = service.flush
        self._read_into = lun.read_into
        self._read_into_nowait = lun.read_into_nowait
        self._write = lun.write
        self.plain_read = lun.read_into_nowait
        """`read_into_nowait` with wafl's own errors: one call less for the nexus, which needs no reason then."""
        self.plain_write = lun.write
        self.plain_writes: Callable[[Sequence[tuple[int, memoryview]]], bool] = partial(write_several, lun)

    @property
    def size_bytes(self) -> int:
        return self.lun.size_bytes

    @property
    def online(self) -> bool:
        return self.lun.online

    @property
    def used_bytes(self) -> int:
        return self.lun.used_bytes

    @property
    def available_bytes(self) -> int:
        return self._volume.space().available

    @property
    def serial(self) -> str:
        return self.lun.serial

    def read_into(self, offset: int, view: memoryview) -> None:
        try:
            self._read_into(offset, view)
        except (WaflError, OSError) as error:
            fail(self._first_bad(offset, len(view)), error)

    def _first_bad(self, offset: int, length: int) -> int:
        """Where in a range that could not be read the trouble begins: the host is told the block."""
        start = offset
        end = offset + length
        while start < end:
            upto = min(end, (start // BLOCK_BYTES + 1) * BLOCK_BYTES)
            try:
                self._read_into(start, memoryview(bytearray(upto - start)))
            except (WaflError, OSError):
                return start
            start = upto
        return offset

    def read_into_nowait(self, offset: int, view: memoryview) -> bool:
        try:
            return self._read_into_nowait(offset, view)
        except (WaflError, OSError) as error:
            fail(offset, error)

    def write(self, offset: int, data: memoryview, nowait: bool = False) -> bool:
        try:
            return self._write(offset, data, nowait)
        except (WaflError, OSError) as error:
            fail(offset, error)

    def begin_write(self, offset: int, length: int) -> PlacedWrite | None:
        write_is_ready(self.lun, offset, length)  # the disk reads its pointers while the data comes
        return place_write(self.lun, offset, length)

    def end_write(self, placed: PlacedWrite) -> None:
        """It has all its data: now it happens.  Raises StoreError, also for a write of another LUN, or one that would
        have to wait for the disk."""
        if placed.lun is not self.lun:
            raise StoreError("the write was begun for another LUN")
        if not write_is_ready(self.lun, placed.offset, placed.taken):
            raise StoreError("the disk has not read its pointers yet")
        try:
            placed.install()
        except (WaflError, OSError) as error:
            fail(0, error)

    def write_atomic(self, offset: int, data: memoryview) -> None:
        try:
            write_atomic(self.lun, offset, data)
        except (WaflError, OSError) as error:
            fail(offset, error)

    def share_is_ready(self, offset: int, source: BlockStore, source_offset: int, length: int) -> bool:
        return not isinstance(source, LunStore) or share_is_ready(self.lun, offset, source.lun, source_offset, length)

    def share(self, offset: int, source: BlockStore, source_offset: int, length: int) -> int:
        if not isinstance(source, LunStore):
            return 0
        try:
            return self.lun.share(offset, source.lun, source_offset, length)
        except (WaflError, OSError) as error:
            fail(offset, error)

    def unmap(self, offset: int, length: int) -> None:
        try:
            self.lun.unmap(offset, length)
        except (WaflError, OSError) as error:
            fail(offset, error)

    def flush(self, done: FlushDone) -> None:
        self._flush(done)

    def extents(self, offset: int, length: int, *, nowait: bool = False) -> Iterator[tuple[int, int, bool]]:
        try:
            yield from (ready_extents(self.lun, offset, length) if nowait else self.lun.extents(offset, length))
        except (WaflError, OSError) as error:
            fail(offset, error)

    def read_is_ready(self, offset: int, length: int) -> bool:
        return read_is_ready(self.lun, offset, length)

    def write_is_ready(self, offset: int, length: int) -> bool:
        return write_is_ready(self.lun, offset, length)

    def unmap_is_ready(self, offset: int, length: int) -> bool:
        return unmap_is_ready(self.lun, offset, length)


def fail(offset: int, error: Exception) -> NoReturn:
    """The store's error for one of wafl's or of the device's."""
    raise store_error(offset, error) from error


def store_error(offset: int, error: Exception) -> StoreError:
    if isinstance(error, SpaceHeld):
        return SpaceNotYet(str(error))
    if isinstance(error, NoSpace):
        return SpaceExhausted(str(error))
    if isinstance(error, CorruptVolume | BackingLost | OSError):
        return MediumError(offset, str(error))
    # A failed or read-only volume, a LUN destroyed under a session: not the medium's fault.
    return StoreError(str(error))
