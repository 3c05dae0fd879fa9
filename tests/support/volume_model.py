"""A plain model of a volume: what every LUN and snapshot must read, and who holds which snapshot.

It knows no blocks on disk, no maps, no consistency points but `copy()`: a test keeps one copy per consistency
point and compares the volume that comes back with the copy it must equal.  LUN bytes are kept sparsely, by
4096-byte block, so that a LUN may be larger than memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

BLOCK = 4096
ZEROS = bytes(BLOCK)


@dataclass
class ModelLun:
    size_bytes: int
    blocks: dict[int, bytes] = field(default_factory=dict)
    """Block number -> its 4096 bytes; a block that is not here is zeros."""
    backing: int | None = None
    """The key of the snapshot that holes read through."""
    identity: object = field(default_factory=object)
    """The same in all copies of one LUN."""

    def copy(self) -> ModelLun:
        return ModelLun(self.size_bytes, dict(self.blocks), self.backing, self.identity)

    def write(self, offset: int, data: bytes) -> None:
        assert offset + len(data) <= self.size_bytes
        for number, at, start, end in _pieces(offset, len(data)):
            old = self.blocks.get(number, ZEROS)
            self.blocks[number] = old[:start] + data[at : at + end - start] + old[end:]

    def unmap(self, offset: int, length: int) -> None:
        for number in [n for n in self.blocks if n * BLOCK < offset + length and (n + 1) * BLOCK > offset]:
            start = max(offset - number * BLOCK, 0)
            end = min(offset + length - number * BLOCK, BLOCK)
            old = self.blocks[number]
            self.blocks[number] = old[:start] + bytes(end - start) + old[end:]

    def read(self, offset: int, length: int) -> bytes:
        assert offset + length <= self.size_bytes
        return b"".join(self.blocks.get(n, ZEROS)[start:end] for n, _, start, end in _pieces(offset, length))

    def resize(self, size_bytes: int) -> None:
        """What is cut off is gone: growing again reads zeros."""
        if size_bytes < self.size_bytes:
            self.unmap(size_bytes, self.size_bytes - size_bytes)
            self.blocks = {n: data for n, data in self.blocks.items() if n * BLOCK < size_bytes}
        self.size_bytes = size_bytes


@dataclass
class ModelSnapshot:
    name: str
    luns: dict[str, ModelLun]


@dataclass
class ModelVolume:
    luns: dict[str, ModelLun] = field(default_factory=dict)
    snapshots: dict[int, ModelSnapshot] = field(default_factory=dict)
    next_key: int = 1

    def copy(self) -> ModelVolume:
        # A snapshot's LUNs never change, so copies may share them.
        snapshots = {key: ModelSnapshot(s.name, s.luns) for key, s in self.snapshots.items()}
        return ModelVolume({name: lun.copy() for name, lun in self.luns.items()}, snapshots, self.next_key)

    def key_of(self, name: str) -> int:
        return next(key for key, snapshot in self.snapshots.items() if snapshot.name == name)

    def snapshot(self, name: str) -> ModelSnapshot:
        return self.snapshots[self.key_of(name)]

    def create_lun(self, name: str, size_bytes: int) -> None:
        self.luns[name] = ModelLun(size_bytes)

    def create_backed(self, name: str, snapshot: str, parent: str, size_bytes: int | None = None) -> None:
        key = self.key_of(snapshot)
        lun = self.snapshots[key].luns[parent].copy()
        lun.backing, lun.identity = key, object()
        self.luns[name] = lun
        if size_bytes is not None:
            lun.resize(size_bytes)

    def rename_lun(self, old: str, new: str) -> None:
        self.luns[new] = self.luns.pop(old)

    def share(self, name: str, offset: int, source: str, source_offset: int, length: int) -> None:
        self.luns[name].write(offset, self.luns[source].read(source_offset, length))

    def take_snapshot(self, name: str) -> None:
        self.snapshots[self.next_key] = ModelSnapshot(name, {n: lun.copy() for n, lun in self.luns.items()})
        self.next_key += 1

    def rename_snapshot(self, old: str, new: str) -> None:
        self.snapshot(old).name = new

    def delete_snapshot(self, name: str) -> None:
        assert not self.holders(name)
        del self.snapshots[self.key_of(name)]

    def find_in(self, snapshot: str, lun: ModelLun) -> ModelLun | None:
        """The same LUN in a snapshot."""
        return next((other for other in self.snapshot(snapshot).luns.values() if other.identity is lun.identity), None)

    def restore(self, snapshot: str, name: str | None = None) -> None:
        """One LUN, or all of the volume."""
        if name is not None:
            found = self.find_in(snapshot, self.luns[name])
            assert found is not None
            self.luns[name] = found.copy()
        else:
            self.luns = {name: lun.copy() for name, lun in self.snapshot(snapshot).luns.items()}
        for lun in self.luns.values() if name is None else [self.luns[name]]:
            lun.backing = self.key_of(snapshot)

    def holders(self, name: str) -> set[tuple[str, str]]:
        """(snapshot, LUN) of everything that reads through snapshot `name`; snapshot "" is the active file system."""
        key = self.key_of(name)
        views = [("", self.luns), *((s.name, s.luns) for s in self.snapshots.values())]
        return {(view, lun) for view, luns in views for lun, state in luns.items() if state.backing == key}

    def depth(self, lun: ModelLun) -> int:
        """Snapshots that a read of `lun` may go through."""
        return 0 if lun.backing is None else 1 + max(
            (self.depth(other) for other in self.snapshots[lun.backing].luns.values()), default=0
        )


def _pieces(offset: int, length: int) -> Iterator[tuple[int, int, int, int]]:
    """(block number, offset within the data, start and end within the block)"""
    at = 0
    while at < length:
        number, start = divmod(offset + at, BLOCK)
        end = min(BLOCK, start + length - at)
        yield number, at, start, end
        at += end - start
