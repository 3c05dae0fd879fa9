"""A block device in memory that records every write and sync, and can say what a crash may leave.

What a disk promises, and no more: everything written before a completed sync is there.  Of what was written
after it, any part may be there: writes may be lost, may have overtaken each other, and may be torn between
512-byte sectors.  Overtaking is the same as losing the earlier one, because only two writes to one sector have
an order that can be seen, and of those a page cache never brings the older one back.  `Journal.states` yields
such images; `Journal.points` is where it may crash.

`relaxed` variants exist for testing the harness itself: a sync that does nothing, writes that a sync misses.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

SECTOR = 512

Buffer = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class Write:
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Resize:
    """The device has become larger.  Lost, it takes with it what was written behind the old end."""

    size_bytes: int


@dataclass(frozen=True, slots=True)
class Sync:
    pass


Change = Write | Resize
Record = Change | Sync


class Leftover(Enum):
    """What happened to the writes that no sync covered."""

    ALL = "all there"
    NONE = "all lost"
    LAST = "only the last one there"
    SOME = "some there, earlier ones lost"
    TORN = "some there, torn between sectors"


@dataclass
class Journal:
    """What was done to a device that began as `start`."""

    start: bytes
    records: list[Record] = field(default_factory=list)

    @property
    def position(self) -> int:
        return len(self.records)

    def points(self) -> range:
        """Every place to crash: before the first record, after each."""
        return range(self.position + 1)

    def states(self, points: Sequence[int], leftovers: Sequence[Leftover], seed: int) -> Iterator[CrashState]:
        """For each of `points` (ascending) an image of each kind in `leftovers`."""
        rng = random.Random(seed)
        durable = bytearray(self.start)
        at = 0
        volatile: list[Change] = []
        for point in points:
            for record in self.records[at:point]:
                if isinstance(record, Sync):
                    for write in volatile:
                        _apply(durable, write)
                    volatile.clear()
                else:
                    volatile.append(record)
            at = point
            # With nothing volatile all kinds give one and the same image.
            for leftover in leftovers if volatile else leftovers[:1]:
                image = bytearray(durable)
                for write in _left(volatile, leftover, rng):
                    _apply(image, write)
                yield CrashState(point, leftover, image)


@dataclass(slots=True)
class CrashState:
    point: int
    """Records of the journal that the device had been given."""
    leftover: Leftover
    image: bytearray

    def __str__(self) -> str:
        return f"crash after record {self.point}, unsynced writes {self.leftover.value}"


def _apply(image: bytearray, change: Change) -> None:
    if isinstance(change, Resize):
        image.extend(bytes(change.size_bytes - len(image)))
    elif change.offset + len(change.data) <= len(image):
        image[change.offset : change.offset + len(change.data)] = change.data


def _left(volatile: list[Change], leftover: Leftover, rng: random.Random) -> list[Change]:
    return _CHOICES[leftover](volatile, rng)


def _some(volatile: list[Change], rng: random.Random) -> list[Change]:
    share = rng.random()
    return [write for write in volatile if rng.random() < share]


def _torn(volatile: list[Change], rng: random.Random) -> list[Change]:
    share = rng.random()
    kept: list[Change] = []
    for write in volatile:
        if isinstance(write, Resize):
            kept.append(write)
            continue
        for at in range(0, len(write.data), SECTOR):
            if rng.random() < share:
                kept.append(Write(write.offset + at, write.data[at : at + SECTOR]))
    return kept


_CHOICES: dict[Leftover, Callable[[list[Change], random.Random], list[Change]]] = {
    Leftover.ALL: lambda volatile, rng: volatile,
    Leftover.NONE: lambda volatile, rng: [],
    Leftover.LAST: lambda volatile, rng: volatile[-1:],
    Leftover.SOME: _some,
    Leftover.TORN: _torn,
}


class MemoryDevice:
    """A device in memory.  `wafl.Device` by shape."""

    def __init__(self, image: bytearray, *, read_only: bool = False) -> None:
        self.image = image
        self.size_bytes = len(image)
        self.read_ahead_bytes = 0
        self.read_only = read_only
        self.cold = False
        """Nothing can be read without waiting for the disk."""

    def pread(self, offset: int, view: Any) -> None:
        flat = memoryview(view).cast("B")
        if offset + len(flat) > self.size_bytes:
            raise OSError(f"read behind the end of the device: {offset} + {len(flat)}")
        flat[:] = memoryview(self.image)[offset : offset + len(flat)]

    def pread_nowait(self, offset: int, view: Any) -> bool:
        if self.cold:
            return False
        self.pread(offset, view)
        return True

    def preadv_nowait(self, places: Any) -> bool:
        for offset, buffers in places:
            for buffer in buffers:
                if not self.pread_nowait(offset, buffer):
                    return False
                offset += len(buffer)
        return True

    def pwrite(self, offset: int, buffers: Sequence[Any]) -> None:
        data = b"".join(bytes(memoryview(buffer).cast("B")) for buffer in buffers)
        if offset + len(data) > self.size_bytes:
            raise OSError(f"write behind the end of the device: {offset} + {len(data)}")
        self.image[offset : offset + len(data)] = data
        self.wrote(offset, data)

    def wrote(self, offset: int, data: bytes) -> None:
        pass

    def sync(self) -> None:
        pass

    def preallocate(self, offset: int, length: int) -> None:
        """Memory is there already."""

    def prefetch(self, offset: int, length: int) -> None:
        pass

    def begin_write_back(self, offset: int) -> None:
        """It decides by itself what a crash leaves of what was not synced."""

    def grow(self, size_bytes: int) -> None:
        if size_bytes > self.size_bytes:
            self.image.extend(bytes(size_bytes - self.size_bytes))
            self.size_bytes = size_bytes
            self.grew(size_bytes)

    def grew(self, size_bytes: int) -> None:
        pass

    def close(self) -> None:
        pass


class CrashDevice(MemoryDevice):
    """Records what it is given.  Between two records any test may look at `journal.position`."""

    def __init__(self, size_bytes: int = 0, *, image: bytes | bytearray | None = None) -> None:
        super().__init__(bytearray(size_bytes) if image is None else bytearray(image))
        self.journal = Journal(bytes(self.image))
        self.lose_syncs = False
        """Sabotage: syncs return without having done anything."""
        self.slow: Callable[[int, bytes], bool] | None = None
        """Sabotage: writes for which it is true are not covered by the next sync, only by the one after."""
        self._late: list[Write] = []

    def wrote(self, offset: int, data: bytes) -> None:
        write = Write(offset, data)
        if self.slow is not None and self.slow(offset, data):
            self._late.append(write)
        else:
            self.journal.records.append(write)

    def grew(self, size_bytes: int) -> None:
        self.journal.records.append(Resize(size_bytes))

    def sync(self) -> None:
        if not self.lose_syncs:
            self.journal.records.append(Sync())
        self.journal.records += self._late
        self._late.clear()
