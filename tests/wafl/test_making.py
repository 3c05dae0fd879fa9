"""Many LUNs made at once from one parent: all or none, whatever happens, for the price of one consistency point."""

from __future__ import annotations

from contextlib import suppress

import pytest

from tests.support.crash_device import MemoryDevice
from tests.support.crash_history import ALL_LEFTOVERS
from tests.support.crash_log import LoggedHistory
from tests.support.volumes import MIB, Workshop, checkpoint, errors, pattern, reclaim, take_snapshot
from wafl import (
    BLOCK_BYTES,
    ChainTooDeep,
    InvalidName,
    LimitReached,
    NameTaken,
    NoSpace,
    NoSuchLun,
    NoSuchSnapshot,
    ReadOnlyVolume,
    Volume,
    WaflError,
    create_luns,
)

NAMES = [f"vm{number:02}" for number in range(12)]
BACKING = ("base", "golden")


def with_golden(workshop: Workshop, size_bytes: int = 16 * MIB, *, reserved: bool = False) -> Volume:
    volume = workshop.format(size_bytes)
    volume.create_lun("golden", MIB, reserved=reserved, ostype="windows").write(0, pattern(1, 16 * BLOCK_BYTES))
    take_snapshot(volume, "base")
    return volume


def state_of(volume: Volume) -> tuple[list[str], int, int]:
    """Which LUNs there are, and how much is free and kept."""
    space = volume.space()
    return [lun.name for lun in volume.luns()], space.available, space.reserved_luns


def test_they_are_as_if_made_one_by_one(workshop: Workshop) -> None:
    volume = with_golden(workshop)
    one = volume.create_lun("one", None, backing=BACKING, ostype="linux")
    made = create_luns(volume, NAMES, BACKING, comment="many")
    assert [lun.name for lun in made] == NAMES
    assert len({value for lun in (one, *made) for value in (lun.uuid, lun.serial, lun.naa)}) == 3 * (1 + len(NAMES))
    volume = workshop.remount(volume)
    one = volume.lun("one")
    for name in NAMES:
        lun = volume.lun(name)
        assert (lun.size_bytes, lun.block_bytes, lun.ostype, lun.reserved, lun.backing, lun.comment) == (
            one.size_bytes, one.block_bytes, one.ostype, one.reserved, one.backing, "many",
        )  # fmt: skip
        assert lun.missing_blocks() == 16
        found = bytearray(BLOCK_BYTES)
        lun.read_into(0, memoryview(found))
        assert bytes(found) == pattern(1, BLOCK_BYTES)


@pytest.mark.parametrize("count", [1, 100])
@pytest.mark.parametrize("log_bytes", [0, None])
def test_any_number_is_one_consistency_point_and_no_record(
    workshop: Workshop, count: int, log_bytes: int | None
) -> None:
    volume = workshop.format(64 * MIB, log_bytes=log_bytes)
    volume.create_lun("golden", MIB, reserved=False)
    take_snapshot(volume, "base")
    generation = volume.generation
    records = volume.core.log.seq if volume.core.log is not None else None
    create_luns(volume, [f"vm{number}" for number in range(count)], BACKING)
    assert volume.generation == generation + 1
    assert not volume.dirty
    if volume.core.log is not None:
        # the one number that says that a record was done without
        assert volume.core.log.seq == (records or 0) + 1
    assert len(workshop.crash(volume).luns()) == count + 1


def test_a_crash_at_any_write_leaves_all_or_none(workshop: Workshop) -> None:
    history = LoggedHistory(size_bytes=6 * MIB)
    history.create("golden", MIB)
    history.write("golden", 0, 8 * BLOCK_BYTES)
    history.checkpoint(snapshot="base")
    history.write("golden", 0, BLOCK_BYTES)
    history.flush()
    since = history.device.journal.position
    create_luns(history.volume, NAMES, BACKING)
    history.volume.lun("golden").write(MIB // 2, pattern(7, BLOCK_BYTES))
    history.volume.lun(NAMES[3]).write(0, pattern(8, BLOCK_BYTES))
    found = set()
    for state in history.device.journal.states(range(since, history.device.journal.position + 1), ALL_LEFTOVERS, 1):
        device = MemoryDevice(state.image)
        volume = Volume.mount(device)
        names = tuple(lun.name for lun in volume.luns())
        assert names in (("golden",), ("golden", *NAMES)), state
        found.add(names)
        volume.close()
        assert errors(device) == []
    assert len(found) == 2


def test_made_one_by_one_a_crash_would_leave_some() -> None:
    history = LoggedHistory(size_bytes=6 * MIB)
    history.create("golden", MIB)
    history.checkpoint(snapshot="base")
    since = history.device.journal.position
    for name in NAMES:
        history.volume.create_lun(name, None, backing=BACKING)
    states = history.device.journal.states(range(since, history.device.journal.position + 1), ALL_LEFTOVERS, 1)
    assert len({len(Volume.mount(MemoryDevice(state.image)).luns()) for state in states}) > 2


@pytest.mark.parametrize(
    ("names", "backing", "error"),
    [
        ([*NAMES, "golden"], BACKING, NameTaken),
        ([*NAMES, NAMES[0]], BACKING, NameTaken),
        (["a", "a/b"], BACKING, NameTaken),
        ([*NAMES, "bad//name"], BACKING, InvalidName),
        ([*NAMES, "x" * 300], BACKING, InvalidName),
        (NAMES, ("none", "golden"), NoSuchSnapshot),
        (NAMES, ("base", "none"), NoSuchLun),
        ([f"n{number}" for number in range(1000)], BACKING, LimitReached),
    ],
)  # fmt: skip
def test_what_is_refused_makes_none(
    workshop: Workshop, names: list[str], backing: tuple[str, str], error: type[WaflError]
) -> None:
    volume = with_golden(workshop)
    before = state_of(volume)
    with pytest.raises(error):
        create_luns(volume, names, backing)
    assert state_of(volume)[0] == before[0]
    reclaim(volume)
    assert state_of(volume)[2] == before[2]
    create_luns(volume, NAMES, BACKING)


def test_no_names_is_nothing(workshop: Workshop) -> None:
    volume = with_golden(workshop)
    assert create_luns(volume, [], BACKING) == []
    assert not volume.dirty


def test_reserved_luns_that_do_not_fit_together_are_all_refused(workshop: Workshop) -> None:
    volume = with_golden(workshop, reserved=True)
    before = state_of(volume)
    volume.create_lun("fits", None, backing=BACKING)
    volume.destroy_lun("fits")
    with pytest.raises(NoSpace, match=r"space for 40 LUNs needs .* more than there is"):
        create_luns(volume, [f"vm{number}" for number in range(40)], BACKING)
    assert state_of(volume)[0] == before[0]
    made = create_luns(volume, NAMES[:3], BACKING)
    assert all(lun.reserved for lun in made)
    for lun in made:
        lun.write(0, pattern(3, MIB))
    assert len(create_luns(volume, [f"thin{number}" for number in range(40)], BACKING, reserved=False)) == 40


def test_an_error_in_the_middle_takes_back_the_others(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    volume = with_golden(workshop)
    checkpoint(volume)
    before, generation, log = state_of(volume), volume.generation, volume.core.log
    create = volume.files.create_lun

    def create_some(name: str, *args: object, **more: object) -> object:
        if name == NAMES[7]:
            raise NoSpace("no more")
        return create(name, *args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(volume.files, "create_lun", create_some)
    with pytest.raises(NoSpace, match="no more"):
        create_luns(volume, NAMES, BACKING)
    assert volume.core.log is log
    assert state_of(volume)[0] == before[0]
    assert volume.generation == generation
    monkeypatch.undo()
    volume.lun("golden").write(0, pattern(5, BLOCK_BYTES))
    crashed = workshop.crash(volume)
    assert [lun.name for lun in crashed.luns()] == ["golden"]
    create_luns(crashed, NAMES, BACKING)


def test_a_full_volume_makes_none_and_no_false_promise(workshop: Workshop) -> None:
    volume = with_golden(workshop, 8 * MIB)
    filler = volume.create_lun("filler", 8 * MIB, reserved=False)
    with suppress(NoSpace):
        for at in range(0, 8 * MIB, 64 << 10):
            filler.write(at, pattern(at, 64 << 10))
    with pytest.raises(NoSpace):
        create_luns(volume, NAMES, BACKING)
    assert [lun.name for lun in volume.luns()] == ["filler", "golden"]


def test_a_chain_that_is_too_deep_is_refused(workshop: Workshop) -> None:
    volume = with_golden(workshop)
    parent = "golden"
    for depth in range(16):
        snapshot = "base" if not depth else f"s{depth}"
        parent = volume.create_lun(f"l{depth}", None, backing=(snapshot, parent)).name
        take_snapshot(volume, f"s{depth + 1}")
    with pytest.raises(ChainTooDeep):
        create_luns(volume, NAMES, ("s16", parent))


def test_a_volume_that_is_only_read_makes_none(workshop: Workshop) -> None:
    volume = with_golden(workshop)
    workshop.close(volume)
    read_only = Volume.mount(volume.device, read_only=True)
    with pytest.raises(ReadOnlyVolume):
        create_luns(read_only, NAMES, BACKING)
    read_only.close()
