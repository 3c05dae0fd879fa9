"""Growing a volume: no crash shows anything between the old size and the new one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import wafl.grow
from tests.support.crash_device import CrashDevice, Leftover, MemoryDevice
from tests.support.crash_history import History, Mark
from tests.support.crash_log import LoggedHistory
from tests.support.volumes import MIB, errors
from wafl import BLOCK_BYTES, Volume
from wafl.format import HEAD_BLOCKS, TAIL_BLOCKS

ROW = 128 * MIB
"""What one row of a map describes."""


def grow(history: History, size_bytes: int) -> None:
    """A growth and the consistency points that it makes; all of them hold the same."""
    before, begun = history.volume.generation, history.device.journal.position
    history.volume.grow(size_bytes)
    durable = history.device.journal.position
    for generation in range(before + 1, history.volume.generation + 1):
        history.marks.append(Mark(generation, begun, durable, history.model.copy()))
        if isinstance(history, LoggedHistory):
            history.frozen[generation] = len(history.changes), len(history.changes)
            history.note_flushed()


def a_growth_with_snapshots(history: History) -> None:
    history.create("a", MIB)
    history.write("a", 0, 40 * BLOCK_BYTES)
    history.checkpoint(snapshot="small")
    history.write("a", 0, 20 * BLOCK_BYTES)
    grow(history, 6 * MIB)
    history.write("a", 10 * BLOCK_BYTES, 30 * BLOCK_BYTES)
    history.checkpoint(snapshot="large")
    history.delete_snapshot("small")
    history.checkpoint()
    history.reclaim()
    history.checkpoint()
    grow(history, 7 * MIB)
    history.write("a", 0, 30 * BLOCK_BYTES)
    history.checkpoint()


def a_growth_between_flushes(history: LoggedHistory) -> None:
    history.create("a", MIB)
    history.write("a", 0, 10 * BLOCK_BYTES)
    history.flush()
    history.write("a", 5 * BLOCK_BYTES, 10 * BLOCK_BYTES)
    grow(history, 6 * MIB)
    history.write("a", 10 * BLOCK_BYTES, 100 * BLOCK_BYTES)
    history.flush()
    history.write("a", 50 * BLOCK_BYTES, BLOCK_BYTES)
    history.unmap("a", 0, 4 * BLOCK_BYTES)
    grow(history, 8 * MIB)
    history.write("a", 0, BLOCK_BYTES)
    history.flush()
    history.write("a", 20 * BLOCK_BYTES, 3 * BLOCK_BYTES)


def faults(history: History, points: range | None = None) -> Iterator[str]:
    for state in history.states(points, seed=3):
        if (verdict := history.verdict(state)) is not None:
            yield verdict


def test_a_crash_at_any_write_of_a_growth_leaves_the_old_volume_or_the_new_one() -> None:
    history = History()
    a_growth_with_snapshots(history)
    assert list(faults(history)) == []


def test_a_crash_at_any_write_around_a_growth_loses_nothing_that_was_flushed_or_acknowledged() -> None:
    history = LoggedHistory()
    a_growth_between_flushes(history)
    assert list(faults(history)) == []


def test_a_crash_while_the_maps_get_another_row_leaves_the_old_volume_or_the_new_one() -> None:
    history = LoggedHistory(size_bytes=ROW - MIB)
    history.create("a", MIB)
    history.write("a", 0, 8 * BLOCK_BYTES)
    history.checkpoint()
    first = history.device.journal.position
    grow(history, ROW + MIB)
    assert list(faults(history, range(first, history.device.journal.position + 1, 4))) == []


def test_after_a_crash_in_a_growth_the_head_ring_alone_suffices() -> None:
    history = History()
    history.create("a", MIB)
    history.write("a", 0, 8 * BLOCK_BYTES)
    history.checkpoint()
    first = history.device.journal.position
    grow(history, 6 * MIB)
    sizes = set()
    for state in history.states(range(first, history.device.journal.position + 1)):
        # Both tails, and whatever else lies in the old one's last blocks.
        for end in (4 * MIB, len(state.image)):
            state.image[end - TAIL_BLOCKS * BLOCK_BYTES : end] = bytes(TAIL_BLOCKS * BLOCK_BYTES)
        volume = Volume.mount(MemoryDevice(state.image))
        assert errors(volume.device) == [], state  # type: ignore[arg-type]
        sizes.add(volume.size_bytes)
    assert sizes == {4 * MIB, 6 * MIB}


def sabotage_sync(history: History, number: int) -> None:
    """Leave out the number-th sync of the next growth."""
    sync, syncs = history.device.sync, 0

    def maybe() -> None:
        nonlocal syncs
        syncs += 1
        if syncs != number:
            sync()

    history.device.sync = maybe  # type: ignore[method-assign]


@pytest.mark.parametrize("number", [3, 4])
def test_the_harness_catches_a_growth_without_its_syncs(number: int) -> None:
    history = History()
    history.create("a", MIB)
    history.write("a", 0, 8 * BLOCK_BYTES)
    history.checkpoint()
    sabotage_sync(history, number)
    grow(history, 6 * MIB)
    del history.device.sync  # type: ignore[method-assign]
    history.write("a", 0, MIB)
    history.checkpoint()
    assert list(faults(history))


def test_the_harness_catches_an_old_tail_that_is_wiped_too_early(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mirror must be whole at any moment: here it is looked at alone, as if the head had been lost."""

    def mirrors(history: History) -> Iterator[bool]:
        for state in history.states(range(first, history.device.journal.position + 1)):
            state.image[BLOCK_BYTES : HEAD_BLOCKS * BLOCK_BYTES] = bytes((HEAD_BLOCKS - 1) * BLOCK_BYTES)
            try:
                yield Volume.mount(MemoryDevice(state.image)).size_bytes in (4 * MIB, 6 * MIB)
            except wafl.NotAVolume:
                yield False

    change = wafl.grow._change

    def wipe_then_change(volume: Volume, geometry: wafl.grow.Geometry) -> None:
        volume.device.pwrite(volume.geometry.tail_ring * BLOCK_BYTES, [bytes(TAIL_BLOCKS * BLOCK_BYTES)])
        change(volume, geometry)

    for early in (False, True):
        history = History()
        first = history.device.journal.position
        if early:
            monkeypatch.setattr(wafl.grow, "_change", wipe_then_change)
        grow(history, 6 * MIB)
        assert all(mirrors(history)) is not early


def test_a_crash_device_that_grows_loses_what_a_lost_growth_took_with_it() -> None:
    device = CrashDevice(BLOCK_BYTES)
    device.grow(2 * BLOCK_BYTES)
    device.pwrite(BLOCK_BYTES, [b"x" * BLOCK_BYTES])
    sizes = {len(state.image) for state in device.journal.states([2], tuple(Leftover), seed=1)}
    assert sizes == {BLOCK_BYTES, 2 * BLOCK_BYTES}
