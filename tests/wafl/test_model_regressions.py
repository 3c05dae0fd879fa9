"""Faults that the state machine or the crash harness found once, each as a plain test."""

from __future__ import annotations

from tests.support.volumes import MIB, Workshop, checkpoint, pattern, take_snapshot
from wafl import BLOCK_BYTES, NoSpace


def test_scattered_writes_do_not_eat_what_is_kept_back_for_consistency_points(workshop: Workshop) -> None:
    """The data run held all that guests may use; pointer blocks then came out of the reserve until none was left."""
    volume = workshop.format(8 * MIB)
    lun = volume.create_lun("a", 400 * MIB)
    reserved = volume.space().reserved
    try:
        for index in range(400):
            lun.write(index * MIB, pattern(index, BLOCK_BYTES))
            assert volume.space().free >= reserved
    except NoSpace:
        pass
    checkpoint(volume)


def test_a_snapshot_is_not_refused_for_the_space_that_the_data_run_holds(workshop: Workshop) -> None:
    """A small volume's data run is all the space there is; it counted as used."""
    volume = workshop.format(4 * MIB)
    volume.create_lun("a", MIB).write(0, pattern(1, BLOCK_BYTES))
    take_snapshot(volume, "s")
    assert [snapshot.name for snapshot in volume.snapshots()] == ["s"]


def test_filling_lowers_the_count_of_missing_blocks(workshop: Workshop) -> None:
    """A fill counted only where a composed level-1 buffer happened to be in memory."""
    volume = workshop.format()
    volume.create_lun("golden", MIB).write(0, pattern(1, 10 * BLOCK_BYTES))
    take_snapshot(volume, "s")
    clone = volume.create_lun("clone", None, backing=("s", "golden"))
    assert clone.missing_blocks() == 10
    plan = clone.plan_fill(0, 0, 4)
    assert plan is not None
    clone.install_fill(plan, plan.read())
    plan.release()
    assert clone.missing_blocks() == 6
