"""Histories on a crash device: what was done, where each consistency point was durable, and what must be there.

A `History` drives a volume and a model side by side.  At each consistency point it notes the model as of the
freeze; `verdict` mounts what a crash may leave and says what is wrong with it:

- the volume mounts, with the generation of the last durable consistency point, or of the one under way;
- every LUN and snapshot is as the model was then, byte for byte;
- the checker finds no error;
- it can go on: a mount, a write and another consistency point work.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import ParamSpec, TypeVar

from crc32c import crc32c

from tests.support.crash_device import CrashDevice, CrashState, Leftover, MemoryDevice
from tests.support.offline_reader import Unreadable, differences
from tests.support.volume_model import ModelVolume
from tests.support.volumes import EPOCH, MIB, errors, pattern, problems
from wafl import BLOCK_BYTES, Lun, NoSpace, PlacedWrite, Step, Volume, WaflError, place_write, write_several

P = ParamSpec("P")
T = TypeVar("T")
ALL_LEFTOVERS = tuple(Leftover)


@dataclass(frozen=True, slots=True)
class Mark:
    """A consistency point: what it holds, and the records between which it became durable."""

    generation: int
    begun: int
    durable: int
    model: ModelVolume | None
    """None: made in the middle of a guest's write because space was short; it may hold any part of that write."""


@dataclass(slots=True)
class OnItsWay:
    """A long write, of which a part is on the device."""

    name: str
    offset: int
    data: bytes
    placed: PlacedWrite


def noting_relief(method: Callable[P, T]) -> Callable[P, T]:
    """For what may make consistency points of its own when space is short."""

    @functools.wraps(method)
    def noted(*args: P.args, **kwargs: P.kwargs) -> T:
        with args[0]._relief():  # type: ignore[attr-defined]
            return method(*args, **kwargs)

    return noted


@dataclass
class History:
    size_bytes: int = 4 * MIB
    device: CrashDevice = field(init=False)
    volume: Volume = field(init=False)
    model: ModelVolume = field(default_factory=ModelVolume)
    marks: list[Mark] = field(default_factory=list)
    under_way: list[OnItsWay] = field(default_factory=list)
    skip_sync: Callable[[int], bool] = lambda number: False
    """Sabotage: the number-th sync within a consistency point is left out."""

    def __post_init__(self) -> None:
        self.device = CrashDevice(self.size_bytes)
        Volume.format(self.device, name="crash", now=EPOCH)
        self.volume = Volume.mount(self.device)
        self.marks.append(Mark(self.volume.generation, 0, self.device.journal.position, self.model.copy()))
        self._seed = 0

    # -- guests

    @noting_relief
    def create(self, name: str, size_bytes: int) -> Lun:
        lun = self.volume.create_lun(name, size_bytes)
        self.model.create_lun(name, size_bytes)
        return lun

    @noting_relief
    def create_backed(self, name: str, snapshot: str, parent: str) -> Lun:
        lun = self.volume.create_lun(name, None, backing=(snapshot, parent))
        self.model.create_backed(name, snapshot, parent)
        return lun

    @contextmanager
    def _relief(self) -> Iterator[None]:
        """Notes the consistency points that the volume makes of itself, when space is short, to make room."""
        begun, before = self.device.journal.position, self.volume.generation
        try:
            yield
        finally:
            known = {mark.generation for mark in self.marks}
            for generation in range(before + 1, self.volume.generation + 1):
                if generation not in known:
                    self.marks.append(Mark(generation, begun, self.device.journal.position, None))

    @noting_relief
    def write(self, name: str, offset: int, length: int) -> None:
        self._seed += 1
        data, lun = pattern(self._seed, length), self.volume.lun(name)
        placed = place_write(lun, offset, length) if self._seed % 2 else None
        if placed is None:
            lun.write(offset, data)
        else:
            half = length // 2 // BLOCK_BYTES * BLOCK_BYTES
            placed.add(data[:half])
            placed.add(data[half:])
            placed.install()
        self.model.luns[name].write(offset, data)

    def begin_write(self, name: str, offset: int, length: int) -> OnItsWay | None:
        """None: there is no room for one."""
        placed = place_write(self.volume.lun(name), offset, length)
        if placed is None:
            return None
        self._seed += 1
        return OnItsWay(name, offset, pattern(self._seed, length), placed)

    def more_of(self, write: OnItsWay, blocks: int) -> None:
        at = write.placed.taken
        write.placed.add(write.data[at : at + blocks * BLOCK_BYTES])

    @noting_relief
    def end_write(self, write: OnItsWay) -> None:
        """The rest comes, and it happens."""
        write.placed.add(write.data[write.placed.taken :])
        try:
            write.placed.install()
        finally:
            write.placed.drop()
        self.model.luns[write.name].write(write.offset, write.data)

    @noting_relief
    def write_together(self, name: str, places: list[tuple[int, int]]) -> None:
        """Each (offset, length), none over another."""
        writes = []
        for offset, length in places:
            self._seed += 1
            writes.append((offset, pattern(self._seed, length)))
        assert write_several(self.volume.lun(name), writes)
        for offset, data in writes:
            self.model.luns[name].write(offset, data)

    @noting_relief
    def unmap(self, name: str, offset: int, length: int) -> None:
        self.volume.lun(name).unmap(offset, length)
        self.model.luns[name].unmap(offset, length)

    @noting_relief
    def share(self, name: str, offset: int, source: str, source_offset: int, length: int) -> int:
        """As much of it as one call does."""
        done = self.volume.lun(name).share(offset, self.volume.lun(source), source_offset, length)
        self.model.share(name, offset, source, source_offset, done)
        return done

    @noting_relief
    def resize(self, name: str, size_bytes: int) -> None:
        self.volume.resize_lun(name, size_bytes)
        self.model.luns[name].resize(size_bytes)

    @noting_relief
    def destroy(self, name: str) -> None:
        self.volume.destroy_lun(name)
        del self.model.luns[name]

    @noting_relief
    def delete_snapshot(self, name: str) -> None:
        self.volume.delete_snapshot(name)
        self.model.delete_snapshot(name)

    @noting_relief
    def fill(self, name: str) -> int:
        """Fill what LUN `name` misses; the number of blocks."""
        lun, filled = self.volume.lun(name), 0
        index = lun.next_missing(0)
        while index is not None:
            while (plan := lun.plan_fill(index)) is not None:
                try:
                    plan.place()
                    filled += lun.install_fill(plan, plan.read())
                finally:
                    plan.release()
            index = lun.next_missing(index + 1)
        return filled

    @noting_relief
    def adopt(self, name: str) -> None:
        """The same by pointer."""
        lun = self.volume.lun(name)
        index = lun.next_missing(0)
        while index is not None:
            lun.adopt(index)
            index = lun.next_missing(index + 1)

    @noting_relief
    def detach(self, name: str) -> None:
        self.volume.lun(name).detach()
        self.model.luns[name].backing = None

    @noting_relief
    def rename(self, old: str, new: str) -> None:
        self.volume.rename_lun(old, new)
        self.model.rename_lun(old, new)

    @noting_relief
    def rename_snapshot(self, old: str, new: str) -> None:
        self.volume.rename_snapshot(old, new)
        self.model.rename_snapshot(old, new)

    @noting_relief
    def comment(self, name: str, text: str) -> None:
        """Nothing that the model knows: but the LUN's whole entry is said again."""
        self.volume.lun(name).set_comment(text)

    @noting_relief
    def restore(self, snapshot: str, name: str | None = None) -> None:
        """Back to a snapshot, with the consistency point that is part of it."""
        begun, generation, before = self.device.journal.position, self.volume.generation, self.model.copy()
        self.volume.restore(snapshot, name)
        self.model.restore(snapshot, name)
        for relief in range(generation + 1, self.volume.generation):
            self.marks.append(Mark(relief, begun, self.device.journal.position, before))
        self.marks.append(Mark(self.volume.generation, begun, self.device.journal.position, self.model.copy()))

    # -- consistency points

    def flush(self) -> None:
        """What a host asks for; without a log it is a consistency point."""
        self.checkpoint()

    def checkpoint(self, between: Callable[[], None] | None = None, snapshot: str | None = None) -> None:
        """One consistency point; `between` is guest work that goes on meanwhile (and belongs to the next one)."""
        if snapshot is not None:
            with self._relief():
                self.volume.request_snapshot(snapshot)
            self.model.take_snapshot(snapshot)
        frozen, begun, syncs = self.model.copy(), self.device.journal.position, 0
        generation = self.volume.generation + 1
        for step in self.volume.checkpoint():
            if step is Step.SYNC:
                syncs += 1
                if not self.skip_sync(syncs):
                    self.device.sync()
            if between is not None:
                between()
        # Otherwise relief in `between` ended it and made another; `_relief` has noted both.
        if self.volume.generation == generation:
            self.marks.append(Mark(generation, begun, self.device.journal.position, frozen))

    def reclaim(self) -> None:
        for step in self.volume.reclaim():
            if step is Step.SYNC:
                self.device.sync()

    # -- the oracle

    def states(self, points: Iterable[int] | None = None, seed: int = 0) -> Iterable[CrashState]:
        """Crash states from the first durable consistency point on."""
        first = self.marks[0].durable
        chosen = sorted(points) if points is not None else range(first, self.device.journal.position + 1)
        return self.device.journal.states([point for point in chosen if point >= first], ALL_LEFTOVERS, seed)

    def some_points(self, count: int, seed: int) -> list[int]:
        """`count` places to crash, chosen at random, and every place right around a consistency point's end."""
        first, last = self.marks[0].durable, self.device.journal.position
        near = {point for mark in self.marks for point in range(mark.durable - 3, mark.durable + 1)}
        chosen = random.Random(seed).sample(range(first, last + 1), min(count, last + 1 - first))
        return sorted(point for point in {*chosen, *near} if point >= first)

    def identity(self, state: CrashState) -> Hashable:
        """Two states with the same one get the same verdict: equal bytes, and the same is expected of them.  (A fast
        checksum: in some billions of states one may be passed over.)"""
        return crc32c(state.image), tuple(sorted(self._allowed(state.point)))

    def verdict(self, state: CrashState) -> str | None:
        """What is wrong with a crash state, or None."""
        allowed = self._allowed(state.point)
        device = MemoryDevice(state.image)
        try:
            volume = Volume.mount(device)
            mark = allowed.get(volume.generation)
            if mark is None:
                return f"{state}: mounted generation {volume.generation}, expected one of {sorted(allowed)}"
            # A warning is right here: the crash may have hit one of the two copies of fsinfo.
            wrong = (differences(device, mark.model) if mark.model else []) or errors(device)
            if not wrong:
                go_on(volume)
                wrong = [f"after going on: {finding}" for finding in problems(device)]
        except (WaflError, Unreadable) as error:
            return f"{state}: {type(error).__name__}: {error}"
        return f"{state}, generation {mark.generation}: {wrong[0]}" if wrong else None

    def _allowed(self, point: int) -> dict[int, Mark]:
        """The last consistency point that was durable by `point`, and the one that was being written then."""
        durable = [mark for mark in self.marks if mark.durable <= point][-1:]
        under_way = [mark for mark in self.marks if mark.begun <= point < mark.durable]
        return {mark.generation: mark for mark in durable + under_way}


def go_on(volume: Volume) -> None:
    """A mounted crash state is a volume like any other: reclaim ends, writes (unless it is full) and consistency points
    work."""
    with suppress(NoSpace):
        volume.create_lun("after-the-crash", MIB // 4).write(4096, pattern(7, 8192))
    for steps in (volume.reclaim(), volume.checkpoint(), volume.checkpoint()):
        for step in steps:
            if step is Step.SYNC:
                volume.device.sync()
