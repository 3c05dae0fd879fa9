"""The state machine of a volume, with what may be half done while everything else goes on.

To tests/support/volume_machine.py it adds writes whose data is on its way as long as it likes, while LUNs, snapshots
and consistency points come and go; writes that come together; and a disk that has to be waited for, whatever is asked.
A bug found here becomes a plain test in test_model_regressions.py.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import initialize, precondition, rule

from tests.support.sleepy_device import SleepyDevice
from tests.support.volume_machine import VolumeMachine, fractions, lengths, picks
from tests.support.volume_model import BLOCK, ModelLun
from tests.support.volumes import pattern
from wafl import (
    InvalidSize,
    Lun,
    NoSuchLun,
    PlacedWrite,
    Step,
    place_write,
    ready_extents,
    unmap_is_ready,
    write_several,
)
from wafl.format import MAX_HEIGHT

UNDER_WAY = 4
"""Writes on their way at once: more of them hold all the room that there is for them."""
READS_AHEAD = 12
"""Questions after which a change has all that it reads: pointers at each level, counts, both edges."""


@dataclass
class OnItsWay:
    lun: Lun
    offset: int
    data: bytes
    placed: PlacedWrite

    @property
    def missing(self) -> int:
        return len(self.data) - self.placed.taken

    def add(self, blocks: int) -> None:
        at = self.placed.taken
        self.placed.add(memoryview(self.data)[at : at + min(blocks * BLOCK, self.missing)])


class WritingMachine(VolumeMachine):
    device: SleepyDevice
    device_type = SleepyDevice

    def __init__(self) -> None:
        super().__init__()
        self.on_their_way: list[OnItsWay] = []
        self.batched = False

    @initialize(batched=st.booleans())
    def push_together(self, batched: bool) -> None:
        """As the daemon has it: what is done reaches the log before the answers leave, a batch at a time."""
        self.batched = batched
        if hasattr(self, "volume") and batched:
            self.volume.batch_log()

    def mount(self) -> None:
        super().mount()
        if self.batched:
            self.volume.batch_log()

    def teardown(self) -> None:
        if hasattr(self, "volume"):
            self.drop_all()
            assert self.volume.core.allocator.promised == 0
        super().teardown()

    def drop_all(self) -> None:
        while self.on_their_way:
            self.on_their_way.pop().placed.drop()

    @rule()
    def crash(self) -> None:
        self.volume.push_log()
        self.on_their_way.clear()
        super().crash()

    @rule()
    def close_and_mount(self) -> None:
        self.drop_all()
        super().close_and_mount()

    def model_of(self, lun: Lun) -> ModelLun | None:
        """None: it has been destroyed."""
        return next((self.model.luns[each.name] for each in self.volume.luns() if each is lun), None)

    # -- writes on their way

    def has_some_on_their_way(self) -> bool:
        return bool(self.on_their_way)

    @precondition(lambda self: self.has_luns() and len(self.on_their_way) < UNDER_WAY)
    @rule(pick=picks, fraction=fractions, blocks=st.sampled_from([1, 2, 7, 30, 64, 100]), here=st.integers(0, 100))
    def begin_a_long_write(self, pick: int, fraction: float, blocks: int, here: int) -> None:
        sizes = {name: model.size_bytes for name, model in self.model.luns.items()}
        large = sorted(name for name, size in sizes.items() if size >= blocks * BLOCK)
        if not large:
            return
        name = large[pick % len(large)]
        lun, length = self.volume.lun(name), blocks * BLOCK
        offset = int(fraction * (sizes[name] - length)) // BLOCK * BLOCK
        if (placed := place_write(lun, offset, length)) is not None:
            self.seed += 1
            self.on_their_way.append(OnItsWay(lun, offset, pattern(self.seed, length), placed))
            self.on_their_way[-1].add(here)

    @precondition(has_some_on_their_way)
    @rule(pick=picks, blocks=st.sampled_from([1, 3, 16, 64]))
    def more_of_it_comes(self, pick: int, blocks: int) -> None:
        write = self.on_their_way[pick % len(self.on_their_way)]
        write.add(blocks)
        back = memoryview(bytearray(write.placed.taken))
        write.placed.read_back(back)
        assert back == write.data[: len(back)]

    @precondition(has_some_on_their_way)
    @rule(pick=picks)
    def the_rest_comes_and_it_happens(self, pick: int) -> None:
        self.happen(self.on_their_way.pop(pick % len(self.on_their_way)))

    def happen(self, write: OnItsWay) -> None:
        while write.missing:
            write.add(16)
        model = self.model_of(write.lun)
        try:
            if model is None:
                with pytest.raises(NoSuchLun):
                    write.placed.install()
            elif write.offset + len(write.data) > model.size_bytes:
                with pytest.raises(InvalidSize):
                    write.placed.install()
            elif self.attempt_on(write.lun, write.placed.install):
                model.write(write.offset, write.data)
        finally:
            write.placed.drop()

    @precondition(lambda self: self.has_luns())
    @rule(
        pick=picks, fraction=fractions, blocks=st.sampled_from([2, 30, 100]), here=st.integers(0, 100),
        meanwhile=st.sampled_from(["nothing", "consistency point", "write", "unmap", "forget", "fill", "snapshot"]),
    )  # fmt: skip
    def something_happens_before_it(self, pick: int, fraction: float, blocks: int, here: int, meanwhile: str) -> None:
        before = len(self.on_their_way)
        self.begin_a_long_write(pick, fraction, blocks, here)
        if len(self.on_their_way) == before:
            return
        write = self.on_their_way[-1]
        model = self.model_of(write.lun)
        assert model is not None
        half = len(write.data) // 2
        if meanwhile == "consistency point":
            self.checkpoint()
        elif meanwhile == "forget":
            self.memory_is_needed_for_something_else(dirty=False)
        elif meanwhile == "write":
            self.seed += 1
            data = pattern(self.seed, half)
            if self.attempt_on(write.lun, lambda: write.lun.write(write.offset, data)):
                model.write(write.offset, data)
        elif meanwhile == "unmap":
            if self.attempt_on(write.lun, lambda: write.lun.unmap(write.offset, half)):
                model.unmap(write.offset, half)
        elif meanwhile == "fill" and self.has_backed():
            self.fill(pick, 0, 256, 0, placed=True)
        elif meanwhile == "snapshot":
            self.take_snapshot("s4")
        self.on_their_way.remove(write)
        self.happen(write)

    @precondition(has_some_on_their_way)
    @rule(pick=picks)
    def it_never_happens(self, pick: int) -> None:
        placed = self.on_their_way.pop(pick % len(self.on_their_way)).placed
        placed.drop()
        placed.drop()

    @precondition(has_some_on_their_way)
    @rule(pick=picks, count=st.integers(1, 6))
    def they_come_and_happen_during_a_consistency_point(self, pick: int, count: int) -> None:
        def guest() -> None:
            nonlocal count
            if count and self.on_their_way:
                count -= 1
                if count % 2:
                    self.more_of_it_comes(pick, 3)
                else:
                    self.the_rest_comes_and_it_happens(pick)

        self.checkpoint_with(guest)

    # -- writes that come together

    @precondition(lambda self: self.has_luns())
    @rule(
        pick=picks, neighbours=st.booleans(),
        places=st.lists(st.tuples(fractions, st.sampled_from([1, 1, 1, 4, 16])), min_size=2, max_size=16),
    )  # fmt: skip
    def write_together(self, pick: int, neighbours: bool, places: list[tuple[float, int]]) -> None:
        _, lun, model = self.pick_lun(pick)
        writes = []
        after = None
        for fraction, blocks in places:
            at = int(fraction * model.size_bytes) // BLOCK * BLOCK if after is None or not neighbours else after
            length = min(blocks * BLOCK, model.size_bytes - at)
            if length <= 0:
                break
            self.seed += 1
            writes.append((at, pattern(self.seed, length)))
            after = at + length
        done = False

        def action() -> None:
            nonlocal done
            done = write_several(lun, writes)

        if self.attempt_on(lun, action) and done:
            for at, data in writes:
                model.write(at, data)
        else:
            self.find_out_what_is_written(lun, model, writes)

    def find_out_what_is_written(self, lun: Lun, model: ModelLun, writes: list[tuple[int, bytes]]) -> None:
        """Some of them are, each block as one of them has it or as it was."""
        for at in sorted({at for offset, data in writes for at in range(offset, offset + len(data), BLOCK)}):
            length = min(BLOCK, model.size_bytes - at)
            found = bytearray(length)
            lun.read_into(at, memoryview(found))
            may_be = [data[at - offset :][:length] for offset, data in writes if offset <= at < offset + len(data)]
            assert found in [model.read(at, length), *may_be]
            model.write(at, bytes(found))

    # -- a disk that has to be waited for

    @rule(dirty=st.booleans())
    def memory_is_needed_for_something_else(self, dirty: bool) -> None:
        """All that is clean goes from the volume's memory and from the machine's."""
        if not dirty:
            self.checkpoint()
        core = self.volume.core
        core.cool()
        for _ in range(MAX_HEIGHT * len(core._queue)):  # children first
            if core._queue:
                core._evict_oldest()
        self.device.forget()

    def patiently(self, change: Callable[[], bool]) -> bool:
        """Asks until the change is done.  It never waits for the disk itself, unless it has to make room first; when it
        was not done, there is something that the disk has been asked for."""
        waits = self.device.waits
        for _ in range(READS_AHEAD):
            before, generation = waits["loop"], self.volume.generation
            done = change()
            assert waits["loop"] == before or self.volume.generation != generation, "it has waited for the disk"
            if done:
                return True
            self.the_disk_reads()
        raise AssertionError("it never has all that it reads")

    def the_disk_reads(self) -> None:
        core = self.volume.core
        assert core.cold is not None, "nobody knows what is waited for"
        core.cold = None
        self.device.here |= self.device.coming

    @precondition(lambda self: self.has_luns())
    @rule(pick=picks, fraction=fractions, length=lengths, cold=st.booleans())
    def write_without_waiting(self, pick: int, fraction: float, length: int, cold: bool) -> None:
        _, lun, model = self.pick_lun(pick)
        if cold:
            self.memory_is_needed_for_something_else(dirty=False)
        offset, length = self.place(model.size_bytes, fraction, length)
        self.seed += 1
        data = pattern(self.seed, length)
        if self.attempt_on(lun, lambda: self.patiently(lambda: lun.write(offset, data, nowait=True))):
            model.write(offset, data)

    @precondition(lambda self: self.has_luns())
    @rule(pick=picks, fraction=fractions, length=lengths, cold=st.booleans())
    def unmap_without_waiting(self, pick: int, fraction: float, length: int, cold: bool) -> None:
        _, lun, model = self.pick_lun(pick)
        if cold:
            self.memory_is_needed_for_something_else(dirty=False)
        offset, length = self.place(model.size_bytes, fraction, length)

        def change() -> bool:
            ready = unmap_is_ready(lun, offset, length)
            if ready:
                lun.unmap(offset, length)
            return ready

        if self.attempt_on(lun, lambda: self.patiently(change)):
            model.unmap(offset, length)

    @precondition(lambda self: self.has_luns())
    @rule(pick=picks, fraction=fractions)
    def extents_without_waiting(self, pick: int, fraction: float) -> None:
        """The same, as far as they go."""
        _, lun, model = self.pick_lun(pick)
        start = int(fraction * model.size_bytes) // BLOCK * BLOCK
        here = list(ready_extents(lun, start, model.size_bytes - start))
        assert here == list(lun.extents(start, model.size_bytes - start))[: len(here)]

    @rule(slices=st.sampled_from([1, 3, 1000]), cold=st.booleans())
    def reclaim_without_waiting(self, slices: int, cold: bool) -> None:
        """Whoever drives it waits for the disk when it says so."""
        if cold:
            self.memory_is_needed_for_something_else(dirty=False)
        for done, step in enumerate(self.volume.reclaim(nowait=True), 1):
            if step is Step.READ:
                self.the_disk_reads()
            if done >= slices:
                break


TestVolumeMachine = WritingMachine.TestCase
TestVolumeMachine.settings = settings(
    max_examples=int(os.environ.get("LAZYLUN_MODEL_EXAMPLES", "40")),
    stateful_step_count=int(os.environ.get("LAZYLUN_MODEL_STEPS", "40")),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
)
