"""A Hypothesis state machine: every operation of a volume, in any order, against a plain model.

After each consistency point the device is read with the offline reader, which shares no code with the volume, and
compared with the model byte by byte; the checker must find nothing; holders and space are compared with brute
force.  It is long because Hypothesis takes the rules of a machine from one class, and nearly each needs what the others
made.  tests/wafl/test_model.py adds what may be half done at any moment, and runs it.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.support.crash_device import MemoryDevice
from tests.support.offline_reader import differences, interesting_blocks
from tests.support.space import lun_figures, snapshot_maps
from tests.support.volume_model import BLOCK, ModelLun, ModelVolume
from tests.support.volumes import EPOCH, MIB, pattern, problems, run_steps
from wafl import Lun, NameTaken, NoSpace, NoSuchLun, SnapshotBusy, Volume, WaflError, create_luns
from wafl.format import ACTIVE_MAP_INODE
from wafl.holdings import finish
from wafl.offline import Image, Root
from wafl.scan import missing_slots

VOLUME_BYTES = 8 * MIB
SECTOR = 512
LUN_NAMES = ["a", "b", "c/d", "e"]
SNAPSHOT_NAMES = ["s1", "s2", "s3", "s4"]
# Both sides of a block, of a level-1 buffer and of a level-2 buffer.
SIZES = [SECTOR, BLOCK, BLOCK + SECTOR, MIB - SECTOR, MIB, MIB + BLOCK, 2 * MIB + SECTOR, 256 * MIB, 257 * MIB + SECTOR]
LOG_BYTES = [0, 32 << 10, 128 << 10]
"""No log; one that is full all the time; one that takes some consistency points' worth."""
CHAIN_LIMIT_OF_TEST = 4
SMALL_CACHE_BYTES = 1
"""The least there is: 64 buffers, so that they are evicted all the time."""

names = st.sampled_from(LUN_NAMES)
snapshot_names = st.sampled_from(SNAPSHOT_NAMES)
sizes = st.sampled_from(SIZES)
picks = st.integers(0, 1 << 30)
fractions = st.floats(0, 1)
lengths = st.sampled_from([SECTOR, BLOCK - SECTOR, BLOCK, 3 * SECTOR, 2 * BLOCK, 5 * BLOCK + SECTOR, 40 * BLOCK, MIB])


class VolumeMachine(RuleBasedStateMachine):
    volume: Volume
    device: MemoryDevice
    device_type: type[MemoryDevice] = MemoryDevice

    @initialize(
        size=sizes, places=st.lists(st.tuples(fractions, lengths), max_size=6), clones=st.integers(0, 2),
        log_bytes=st.sampled_from(LOG_BYTES),
    )  # fmt: skip
    def format(self, size: int, places: list[tuple[float, int]], clones: int, log_bytes: int) -> None:
        """A volume that has a past already: most of what can go wrong needs a snapshot and a LUN that stands on it."""
        self.device = self.device_type(bytearray(VOLUME_BYTES))
        Volume.format(self.device, name="model", now=EPOCH, log_bytes=log_bytes)
        self.logged = log_bytes > 0
        self.mount()
        self.model = ModelVolume()
        self.durable, self.durable_generation = self.model.copy(), self.volume.generation
        self.seed = 0
        self.lingering: list[tuple[int, int, str]] = []
        self.detached: list[tuple[int, ModelLun, int]] = []
        """(consistency point that makes it durable, LUN, its backing before)"""
        if not clones:
            return
        self.create("a", size)
        for fraction, length in places:
            self.write(0, fraction, length)
        self.take_snapshot("s1")
        for name in LUN_NAMES[1 : 1 + clones]:
            self.create_backed(name, 0, 0, None)

    def teardown(self) -> None:
        if hasattr(self, "volume"):
            self.checkpoint()
            self.volume.close()
            self.compare_durable()

    # -- what the rules share

    def mount(self) -> None:
        self.volume = Volume.mount(self.device, cache_bytes=SMALL_CACHE_BYTES)

    def attempt(self, action: Callable[[], object]) -> bool:
        """Do it, unless the volume is full; then it must have changed nothing, which the comparisons will see."""
        try:
            action()
        except NoSpace:
            assert self.volume.space().available < VOLUME_BYTES // 3, "no space, with a third of the volume available"
            return False
        return True

    def attempt_on(self, lun: Lun, action: Callable[[], object]) -> bool:
        """A write or an UNMAP: it may meet a full volume only if no space is reserved for the LUN."""
        done = self.attempt(action)
        assert done or not lun.reserved, "no space for a reserved LUN"
        return done

    def attempt_reserving(self, action: Callable[[], object]) -> bool:
        """What wants space kept back may be refused on a volume that is not full; it has changed nothing either."""
        kept = sum(lun.kept_bytes for lun in self.volume.luns())
        try:
            action()
        except NoSpace:
            assert sum(lun.kept_bytes for lun in self.volume.luns()) <= kept  # less, if they were counted meanwhile
            return False
        return True

    def pick_lun(self, pick: int) -> tuple[str, Lun, ModelLun]:
        name = sorted(self.model.luns)[pick % len(self.model.luns)]
        return name, self.volume.lun(name), self.model.luns[name]

    def pick_snapshot(self, pick: int) -> str:
        found = sorted(snapshot.name for snapshot in self.model.snapshots.values())
        return found[pick % len(found)]

    def place(self, size: int, fraction: float, length: int) -> tuple[int, int]:
        """A sector-aligned range within `size`; half of the time one that begins on a block."""
        offset = int(fraction * size) // SECTOR * SECTOR
        if int(fraction * 1e6) % 2:
            offset -= offset % BLOCK
        offset = min(offset, size - SECTOR)
        return offset, min(length, size - offset)

    def pick_backed(self, pick: int) -> tuple[str, Lun, ModelLun]:
        found = sorted(name for name, lun in self.model.luns.items() if lun.backing is not None)
        name = found[pick % len(found)]
        return name, self.volume.lun(name), self.model.luns[name]

    def has_backed(self) -> bool:
        return any(lun.backing is not None for lun in self.model.luns.values())

    def has_luns(self) -> bool:
        return bool(self.model.luns)

    def has_snapshots(self) -> bool:
        return bool(self.model.snapshots)

    # -- LUNs

    @rule(name=names, size=sizes, reserved=st.booleans())
    def create(self, name: str, size: int, reserved: bool = False) -> None:
        attempt = self.attempt_reserving if reserved else self.attempt
        if name in self.model.luns:
            with pytest.raises(NameTaken):
                self.volume.create_lun(name, size)
        elif attempt(lambda: self.volume.create_lun(name, size, reserved=reserved)):
            self.model.create_lun(name, size)

    @precondition(has_luns)
    @rule(pick=picks, reserved=st.booleans())
    def set_reservation(self, pick: int, reserved: bool) -> None:
        _, lun, _ = self.pick_lun(pick)
        before = lun.reserved
        done = self.attempt_reserving(lambda: lun.set_reserved(reserved))
        assert done or (reserved and not before)
        assert lun.reserved == (reserved if done else before)

    @precondition(has_luns)
    @rule()
    def reserved_luns_can_be_written_whole(self) -> None:
        """On a copy of the volume, whatever else is in it: twice, and after a thin LUN has taken all it gets."""
        self.checkpoint()
        copy = Volume.mount(MemoryDevice(bytearray(self.device.image)))
        reserved = [lun for lun in copy.luns() if lun.reserved]
        with contextlib.suppress(NoSpace):
            thin = copy.create_lun("filler", VOLUME_BYTES)
            for at in range(0, VOLUME_BYTES, BLOCK):
                thin.write(at, pattern(at, BLOCK))
        for step in (BLOCK, 64 * BLOCK):
            for lun in reserved:
                for at in range(0, lun.size_bytes, step):
                    lun.write(at, pattern(at, min(step, lun.size_bytes - at)))
        copy.close()

    @precondition(has_snapshots)
    @rule(name=names, snapshot=picks, parent=picks, size=st.none() | sizes)
    def create_backed(self, name: str, snapshot: int, parent: int, size: int | None) -> None:
        source = self.pick_snapshot(snapshot)
        parents = sorted(self.model.snapshot(source).luns.items())
        if name in self.model.luns or not parents:
            return
        parent_name, parent_lun = parents[parent % len(parents)]
        if self.model.depth(parent_lun) >= CHAIN_LIMIT_OF_TEST:
            return
        records = {record.name: record for record in self.volume.snapshot_luns(source)}
        attempt = self.attempt_reserving if records[parent_name].reserved else self.attempt
        if attempt(lambda: self.volume.create_lun(name, size, backing=(source, parent_name))):
            self.model.create_backed(name, source, parent_name, size)

    @precondition(has_snapshots)
    @rule(chosen=st.sets(names, min_size=1), snapshot=picks, parent=picks, reserved=st.none() | st.booleans())
    def roll_out(self, chosen: set[str], snapshot: int, parent: int, reserved: bool | None) -> None:
        """Several LUNs at once: all or none, and durable with no further consistency point."""
        source = self.pick_snapshot(snapshot)
        parents = sorted(self.model.snapshot(source).luns.items())
        if not parents:
            return
        name, lun = parents[parent % len(parents)]
        if self.model.depth(lun) >= CHAIN_LIMIT_OF_TEST:
            return
        if chosen & self.model.luns.keys():
            with pytest.raises(NameTaken):
                create_luns(self.volume, sorted(chosen), (source, name), reserved=reserved)
        elif self.attempt_reserving(
            lambda: create_luns(self.volume, sorted(chosen), (source, name), reserved=reserved)
        ):
            for new in chosen:
                self.model.create_backed(new, source, name, None)
            self.restored()

    @precondition(has_luns)
    @rule(pick=picks, fraction=fractions, length=lengths)
    def write(self, pick: int, fraction: float, length: int) -> None:
        _, lun, model = self.pick_lun(pick)
        offset, length = self.place(model.size_bytes, fraction, length)
        self.seed += 1
        data = pattern(self.seed, length)
        if self.attempt_on(lun, lambda: lun.write(offset, data)):
            model.write(offset, data)

    @precondition(has_luns)
    @rule(pick=picks, fraction=fractions, length=lengths | st.just(300 * MIB))
    def unmap(self, pick: int, fraction: float, length: int) -> None:
        _, lun, model = self.pick_lun(pick)
        offset, length = self.place(model.size_bytes, fraction, length)
        if self.attempt_on(lun, lambda: lun.unmap(offset, length)):
            model.unmap(offset, length)

    @precondition(has_luns)
    @rule(pick=picks, other=picks, places=st.tuples(fractions, fractions), blocks=st.sampled_from([1, 5, 256, 600]))
    def share(self, pick: int, other: int, places: tuple[float, float], blocks: int) -> None:
        """Between two LUNs, or within one; what cannot be shared is left as it is."""
        _, lun, model = self.pick_lun(pick)
        _, source, source_model = self.pick_lun(other)
        at, start = (
            int(place * which.size_bytes) // BLOCK * BLOCK
            for place, which in zip(places, (model, source_model), strict=True)
        )
        length = min(blocks * BLOCK, model.size_bytes - at, source_model.size_bytes - start) // BLOCK * BLOCK
        done = 0

        def action() -> None:
            nonlocal done
            done = lun.share(at, source, start, length)

        if length > 0 and self.attempt(action):
            assert 0 <= done <= length
            model.write(at, source_model.read(start, done))

    @precondition(has_luns)
    @rule(pick=picks, fraction=fractions, length=lengths)
    def read(self, pick: int, fraction: float, length: int) -> None:
        _, lun, model = self.pick_lun(pick)
        offset, length = self.place(model.size_bytes, fraction, length)
        found = bytearray(length)
        lun.read_into(offset, memoryview(found))
        assert found == model.read(offset, length)

    @precondition(has_luns)
    @rule(pick=picks, fraction=fractions, length=lengths, cold=st.booleans())
    def read_without_waiting(self, pick: int, fraction: float, length: int, cold: bool) -> None:
        _, lun, model = self.pick_lun(pick)
        offset, length = self.place(model.size_bytes, fraction, length)
        self.device.cold = cold
        try:
            for _ in range(2):
                found = bytearray(length)
                if lun.read_into_nowait(offset, memoryview(found)):
                    assert found == model.read(offset, length)
        finally:
            self.device.cold = False

    @precondition(has_luns)
    @rule(pick=picks, fraction=fractions, count=st.integers(1, 4))
    def write_one_block_after_reading_it(self, pick: int, fraction: float, count: int) -> None:
        """The short path of a write: its level-1 buffer is in memory and changed already."""
        _, lun, model = self.pick_lun(pick)
        offset = int(fraction * model.size_bytes) // BLOCK * BLOCK
        for at in range(offset, offset + count * BLOCK, BLOCK):
            length = min(BLOCK, model.size_bytes - at)
            if length <= 0:
                break
            self.seed += 1
            data = pattern(self.seed, length)
            lun.read_into(at, memoryview(bytearray(length)))
            for _ in range(2):
                if self.attempt_on(lun, lambda at=at, data=data: lun.write(at, data)):  # type: ignore[misc]
                    model.write(at, data)
            found = bytearray(length)
            lun.read_into(at, memoryview(found))
            assert found == model.read(at, length)

    @precondition(has_luns)
    @rule(pick=picks, step=st.integers(1, 3))
    def scatter(self, pick: int, step: int) -> None:
        """One block here and there over a large LUN: more level-1 buffers than the cache holds."""
        _, lun, model = self.pick_lun(pick)
        for index in range(0, min(model.size_bytes // MIB, 80 * step), step):
            self.seed += 1
            data = pattern(self.seed, BLOCK)
            at = index * MIB + self.seed % 256 * BLOCK
            if not self.attempt_on(lun, lambda at=at, data=data: lun.write(at, data)):  # type: ignore[misc]
                break
            model.write(at, data)

    @precondition(has_luns)
    @rule(pick=picks, step=st.sampled_from([MIB // 4, MIB, 2 * MIB]))
    def flood(self, pick: int, step: int) -> None:
        """Write until the volume is full, or the LUN is."""
        _, lun, model = self.pick_lun(pick)
        for at in range(0, min(model.size_bytes, VOLUME_BYTES) - step + 1, step):
            self.seed += 1
            data = pattern(self.seed, step)
            if not self.attempt_on(lun, lambda at=at, data=data: lun.write(at, data)):  # type: ignore[misc]
                break
            model.write(at, data)

    @precondition(has_luns)
    @rule(pick=picks, fraction=fractions)
    def extents(self, pick: int, fraction: float) -> None:
        """In order, without gaps; what is called unmapped reads zeros."""
        _, lun, model = self.pick_lun(pick)
        start = int(fraction * model.size_bytes) // SECTOR * SECTOR
        at, unmapped = start, []
        for offset, length, mapped in lun.extents(start, model.size_bytes - start):
            assert offset == at
            assert length > 0
            at += length
            if not mapped:
                unmapped.append((offset, at))
        assert at == model.size_bytes
        for fbn, data in model.blocks.items():
            for low, high in unmapped:
                part = data[max(0, low - fbn * BLOCK) : max(0, high - fbn * BLOCK)]
                assert not any(part), f"block {fbn} is said to be unmapped"

    @precondition(has_luns)
    @rule(pick=picks, size=sizes)
    def resize(self, pick: int, size: int) -> None:
        name, _, model = self.pick_lun(pick)
        attempt = self.attempt_reserving if self.volume.lun(name).reserved else self.attempt
        if attempt(lambda: self.volume.resize_lun(name, size)):
            model.resize(size)

    @precondition(has_luns)
    @rule(pick=picks)
    def destroy(self, pick: int) -> None:
        name, _, _ = self.pick_lun(pick)
        if self.attempt(lambda: self.volume.destroy_lun(name)):
            del self.model.luns[name]

    @precondition(has_luns)
    @rule(pick=picks, new=names)
    def rename(self, pick: int, new: str) -> None:
        name, lun, _ = self.pick_lun(pick)
        before = lun.uuid, lun.serial, lun.naa
        if new in self.model.luns and new != name:
            with pytest.raises(NameTaken):
                self.volume.rename_lun(name, new)
            return
        self.volume.rename_lun(name, new)
        self.model.luns[new] = self.model.luns.pop(name)
        renamed = self.volume.lun(new)
        assert (renamed.uuid, renamed.serial, renamed.naa) == before

    # -- snapshots

    @rule(name=snapshot_names)
    def take_snapshot(self, name: str) -> None:
        if any(snapshot.name == name for snapshot in self.model.snapshots.values()):
            with pytest.raises(NameTaken):
                self.volume.request_snapshot(name)
        elif self.attempt_reserving(lambda: self.volume.request_snapshot(name)):
            self.model.take_snapshot(name)
            self.checkpoint()

    @precondition(has_snapshots)
    @rule(pick=picks)
    def delete_snapshot(self, pick: int) -> None:
        name = self.pick_snapshot(pick)
        if self.expected_holders(name):
            with pytest.raises(SnapshotBusy) as refusal:
                self.volume.delete_snapshot(name)
            assert set(refusal.value.holders) == self.expected_holders(name)
        elif self.attempt(lambda: self.volume.delete_snapshot(name)):
            self.model.delete_snapshot(name)

    @precondition(has_snapshots)
    @rule(pick=picks, new=snapshot_names)
    def rename_snapshot(self, pick: int, new: str) -> None:
        old = self.pick_snapshot(pick)
        if new != old and any(snapshot.name == new for snapshot in self.model.snapshots.values()):
            with pytest.raises(NameTaken):
                self.volume.rename_snapshot(old, new)
            return
        self.volume.rename_snapshot(old, new)
        self.model.rename_snapshot(old, new)

    # -- restoring

    @precondition(lambda self: self.model.luns and self.model.snapshots)
    @rule(pick=picks, snapshot=picks)
    def restore_lun(self, pick: int, snapshot: int) -> None:
        name, lun, model = self.pick_lun(pick)
        source = self.pick_snapshot(snapshot)
        before = lun.uuid, lun.serial, lun.naa, lun.slot, lun.comment
        found = self.model.find_in(source, model)
        if found is None:
            with pytest.raises(NoSuchLun):
                self.volume.restore(source, name)
        elif self.model.depth(found) < CHAIN_LIMIT_OF_TEST and self.attempt_reserving(
            lambda: self.volume.restore(source, name)
        ):
            self.model.restore(source, name)
            self.restored()
            assert self.volume.lun(name) is lun
            assert (lun.uuid, lun.serial, lun.naa, lun.slot, lun.comment) == before

    @precondition(has_snapshots)
    @rule(snapshot=picks)
    def restore_volume(self, snapshot: int) -> None:
        source = self.pick_snapshot(snapshot)
        depths = [self.model.depth(lun) for lun in self.model.snapshot(source).luns.values()]
        if max(depths, default=0) < CHAIN_LIMIT_OF_TEST and self.attempt_reserving(lambda: self.volume.restore(source)):
            self.model.restore(source)
            self.restored()

    def restored(self) -> None:
        """Durable with no further consistency point."""
        self.lingering.clear()
        self.durable, self.durable_generation = self.model.copy(), self.volume.generation
        self.compare_durable()
        self.compare_live()

    # -- cloning

    @precondition(has_backed)
    @rule(pick=picks, start=st.integers(0, 3), blocks=st.sampled_from([1, 7, 256]), race=st.integers(0, 4),
          placed=st.booleans())  # fmt: skip
    def fill(self, pick: int, start: int, blocks: int, race: int, placed: bool) -> None:
        """One fill; between its read and its install a guest may change things, or a consistency point come."""
        name, lun, model = self.pick_backed(pick)
        index = lun.next_missing(start)
        plan = None if index is None else lun.plan_fill(index, 0, blocks)
        if plan is None or index is None:
            return
        try:
            if placed:
                plan.place()
            data = plan.read()
            at = min(index * MIB + (self.seed % 300) * BLOCK, model.size_bytes - SECTOR)
            self.seed += 1
            if race == 1 and self.attempt_on(lun, lambda: lun.write(at, pattern(self.seed, SECTOR))):
                model.write(at, pattern(self.seed, SECTOR))
            if race == 2 and self.attempt_on(lun, lambda: lun.unmap(index * MIB, model.size_bytes - index * MIB)):
                model.unmap(index * MIB, model.size_bytes - index * MIB)
            if race == 3 and self.attempt(lambda: self.volume.resize_lun(name, SECTOR)):
                model.resize(SECTOR)
            if race == 4:
                self.checkpoint()
            self.attempt(lambda: lun.install_fill(plan, data))
        finally:
            plan.release()

    @precondition(has_backed)
    @rule(pick=picks, start=st.integers(0, 3))
    def adopt(self, pick: int, start: int) -> None:
        """The other way to fill: by pointer."""
        _, lun, _ = self.pick_backed(pick)
        index = lun.next_missing(start)
        if index is not None:
            self.attempt(lambda: lun.adopt(index, 1 + pick % 3))

    @precondition(has_backed)
    @rule(pick=picks, whole=st.booleans(), by_pointer=st.booleans())
    def detach(self, pick: int, whole: bool, by_pointer: bool) -> None:
        name, lun, model = self.pick_backed(pick)
        if whole and not self.attempt(lambda: self.fill_all(lun, by_pointer=by_pointer)):
            return
        if lun.fills_durable and not self.misses_something(lun):
            backing = lun.backing
            assert backing is not None
            assert model.backing is not None
            lun.detach()
            self.detached.append((self.volume.core.generation, model, model.backing))
            model.backing = None
            self.lingering.append((self.volume.generation + 1, backing.snapshot_id, name))
            assert self.volume.lun(name).backing is None
        else:
            with pytest.raises(WaflError):
                lun.detach()

    def fill_all(self, lun: Lun, *, by_pointer: bool) -> None:
        index = lun.next_missing(0)
        while index is not None:
            if by_pointer:
                lun.adopt(index)
            while (plan := lun.plan_fill(index)) is not None:
                try:
                    lun.install_fill(plan, plan.read())
                finally:
                    plan.release()
            index = lun.next_missing(index + 1)
        self.checkpoint()

    def misses_something(self, lun: Lun) -> bool:
        index = lun.next_missing(0)
        while index is not None:
            plan = lun.plan_fill(index)
            if plan is not None:
                plan.release()
                return True
            index = lun.next_missing(index + 1)
        return False

    # -- consistency points, crashes

    @rule()
    def checkpoint(self) -> None:
        self.checkpoint_with(lambda: None)

    def checkpoint_with(self, guest: Callable[[], None]) -> None:
        frozen, before = self.model.copy(), self.volume.generation
        run_steps(self.volume, self.volume.checkpoint(), guest)
        if self.volume.generation != before + 1:
            # A guest that found no room made the volume take another one meanwhile.
            self.checkpoint()
            return
        self.durable, self.durable_generation = frozen, before + 1
        self.compare_durable()

    @precondition(has_luns)
    @rule(pick=picks, count=st.integers(1, 6), blocks=st.sampled_from([1, 3, 64]), unmap=st.booleans())
    def checkpoint_under_load(self, pick: int, count: int, blocks: int, unmap: bool) -> None:
        """Guests go on while a consistency point is written; what they do belongs to the next one."""
        _, lun, model = self.pick_lun(pick)

        def guest() -> None:
            nonlocal count
            if count > 0:
                count -= 1
                self.seed += 1
                fraction = self.seed % 97 / 97
                offset, length = self.place(model.size_bytes, fraction, blocks * BLOCK)
                data = pattern(self.seed, length)
                if unmap and self.attempt_on(lun, lambda: lun.unmap(offset, length)):
                    model.unmap(offset, length)
                elif not unmap and self.attempt_on(lun, lambda: lun.write(offset, data)):
                    model.write(offset, data)

        self.checkpoint_with(guest)

    @rule(slices=st.sampled_from([1, 2, 5, 1000]))
    def reclaim(self, slices: int) -> None:
        """All of it, or only the beginning."""
        for done, _ in enumerate(self.volume.reclaim(), 1):
            if done >= slices:
                break

    @precondition(has_snapshots)
    @rule(pick=picks, during=st.integers(0, 4))
    def things_happen_during_a_consistency_point(self, pick: int, during: int) -> None:
        """Not only writes: snapshots go, LUNs come and go, trees are given back, blocks are filled."""

        def reclaim_some() -> None:
            for done, _ in enumerate(self.volume.reclaim(), 1):
                if done >= 2:
                    break

        def drop_something() -> None:
            self.delete_snapshot(pick)
            if self.model.luns and pick % 3 == 0:
                self.destroy(pick)

        def fill_something() -> None:
            if self.has_backed():
                self.fill(pick, 0, 7, pick % 4, pick % 2 == 0)

        def make_something() -> None:
            self.create(LUN_NAMES[pick % len(LUN_NAMES)], SIZES[pick % len(SIZES)])

        def resize_something() -> None:
            if self.model.luns:
                self.resize(pick, SIZES[self.seed % len(SIZES)])

        action = [reclaim_some, drop_something, fill_something, make_something, resize_something][during]
        left = 3

        def guest() -> None:
            nonlocal left
            if left and self.model.snapshots:
                left -= 1
                self.seed += 1
                action()

        self.checkpoint_with(guest)

    @rule()
    def crash(self) -> None:
        """The daemon is killed: with a log all is there but detaches that were on their way; without one the last
        consistency point is back, whatever was written since."""
        if not self.logged and self.volume.generation != self.durable_generation:
            self.checkpoint()
        durable = self.volume.generation
        self.device = self.device_type(bytearray(self.device.image))
        self.mount()
        if not self.logged:
            self.model = self.durable.copy()
        else:
            for generation, lun, backing in self.detached:
                if generation > durable:
                    lun.backing = backing
            self.durable, self.durable_generation = self.model.copy(), self.volume.generation
            self.compare_durable()
        self.detached.clear()
        self.lingering.clear()
        self.compare_live()

    @rule()
    def close_and_mount(self) -> None:
        self.volume.close()
        self.mount()
        self.durable, self.durable_generation = self.model.copy(), self.volume.generation
        self.compare_durable()
        assert self.volume.mount_report == []
        self.compare_live()

    # -- comparisons

    def compare_durable(self) -> None:
        assert differences(self.device, self.durable) == []
        assert [str(finding) for finding in problems(self.device)] == []

    @precondition(lambda self: hasattr(self, "volume"))
    @rule()
    def space_is_what_the_maps_say(self) -> None:
        """By brute force over the maps on the device, which are those in memory right after a consistency point."""
        self.checkpoint()
        image = Image(self.device)
        inodes = image.inodes(Root.of(image.fsinfo, "ifile_"), "inode file")
        active = image.map_bits(Root.of(inodes[ACTIVE_MAP_INODE]), "active map")
        summary = image.map_bits(Root.of(image.fsinfo, "summary_"), "summary")
        maps = snapshot_maps(image)
        space = self.volume.space()
        assert space.active == int(active.sum()) * BLOCK
        assert space.freeing == 0
        promised = self.volume.core.allocator.promised  # to what may never come to be
        assert space.free == (int((~active & ~summary)[: image.blocks].sum()) - promised) * BLOCK
        assert space.snapshots + space.volume_own == int((summary & ~active).sum()) * BLOCK
        for name, bits in maps.items():
            others = [other for other_name, other in maps.items() if other_name != name]
            alone = bits & ~active & ~np.logical_or.reduce([np.zeros_like(bits), *others])
            found = self.volume.snapshot_space(name)
            assert (found.referenced, found.reclaimable) == (int(bits.sum()) * BLOCK, int(alone.sum()) * BLOCK)
        shown = [self.volume.snapshot_space(info.name) for info in self.volume.snapshots()]
        assert finish(self.volume.snapshot_spaces()) == shown
        for names in itertools.combinations(maps, 2):
            others = [other for other_name, other in maps.items() if other_name not in names]
            together = np.logical_or.reduce([maps[name] for name in names])
            alone = together & ~active & ~np.logical_or.reduce([np.zeros_like(active), *others])
            assert finish(self.volume.reclaimable_together(names)) == int(alone.sum()) * BLOCK

    @precondition(has_luns)
    @rule(count=st.booleans())
    def what_is_kept_back_is_what_a_walk_says(self, count: bool) -> None:
        """By brute force over the trees on the device."""
        if count:
            self.reclaim(1000)
        self.checkpoint()
        figures = lun_figures(self.device)
        space = self.volume.space()
        counting = self.volume.files.reserve.counting
        assert not (count and counting and not self.volume.reclaim_pending)
        for name, found in figures.items():
            lun = self.volume.lun(name)
            assert lun.private_bytes <= found.private_blocks * BLOCK
            assert lun.kept_bytes >= found.needed * BLOCK
            assert counting or (lun.private_bytes, lun.kept_bytes) == (
                found.private_blocks * BLOCK, found.needed * BLOCK,
            )  # fmt: skip
        assert space.free == space.reserved + space.reserved_luns + space.available
        assert space.overcommitted == 0 or self.volume.reclaim_pending
        assert space.reserved_luns + space.overcommitted <= sum(lun.kept_bytes for lun in self.volume.luns())

    def compare_live(self) -> None:
        for name, model in self.model.luns.items():
            lun = self.volume.lun(name)
            assert lun.size_bytes == model.size_bytes
            for fbn in interesting_blocks(model):
                length = min(BLOCK, model.size_bytes - fbn * BLOCK)
                found = bytearray(length)
                lun.read_into(fbn * BLOCK, memoryview(found))
                assert found == model.read(fbn * BLOCK, length), f"LUN {name}, block {fbn}"

    def expected_holders(self, name: str) -> set[str]:
        """What the model says, and each detached LUN until a consistency point has made that durable."""
        number = self.volume.snapshot(name).id
        durable = self.volume.generation
        lingering = {lun for generation, held, lun in self.lingering if held == number and durable < generation}
        return lingering | {f".snapshot/{view}/{lun}" if view else lun for view, lun in self.model.holders(name)}

    @invariant()
    def the_lists_are_the_models(self) -> None:
        if not hasattr(self, "volume"):
            return
        assert {lun.name for lun in self.volume.luns()} == self.model.luns.keys()
        listed = {info.name: set(info.busy_holders) for info in self.volume.snapshots()}
        assert listed == {s.name: self.expected_holders(s.name) for s in self.model.snapshots.values()}

    @invariant()
    def missing_blocks_are_never_counted_too_low(self) -> None:
        """Progress may come late, but never says that more is done than is."""
        if not hasattr(self, "volume"):
            return
        for name, model in self.model.luns.items():
            lun = self.volume.lun(name)
            if model.backing is None:
                assert lun.missing_blocks() == 0
            elif model.size_bytes <= 4 * MIB:
                missing = sum(len(missing_slots(lun, index)) for index in range(lun.level_one_count))
                assert lun.missing_blocks() >= missing

    @precondition(has_snapshots)
    @rule(pick=picks)
    def read_in_a_snapshot(self, pick: int) -> None:
        name = self.pick_snapshot(pick)
        expected = self.model.snapshot(name).luns
        assert {record.name: record.size_bytes for record in self.volume.snapshot_luns(name)} == {
            lun: model.size_bytes for lun, model in expected.items()
        }
        for lun, model in expected.items():
            view = self.volume.snapshot_lun(name, lun)
            for fbn in list(model.blocks)[:20]:
                length = max(0, min(BLOCK, model.size_bytes - fbn * BLOCK))
                found = bytearray(length)
                view.read_into(fbn * BLOCK, memoryview(found))
                assert found == model.read(fbn * BLOCK, length)

    @invariant()
    def space_adds_up(self) -> None:
        if not hasattr(self, "volume"):
            return
        space = self.volume.space()
        promised = self.volume.core.allocator.promised * BLOCK
        parts = space.active + space.snapshots + space.volume_own + space.freeing + promised + space.free
        assert space.total == VOLUME_BYTES == parts
        assert 0 <= space.available <= space.free
