"""Runs: which stretches of a read lie side by side on the volume, and that all of them are verified."""

from __future__ import annotations

from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.volumes import MIB, Workshop, checkpoint, pattern
from wafl import CorruptVolume, FileDevice, Volume
from wafl.buffers import PointerMap
from wafl.device import IOV_MAX
from wafl.format import BLOCK_BYTES, BLOCK_SHIFT, FIRST_DATA_VBN, HOLE, POINTERS, ZERO
from wafl.scattered import places_of, stretches_of
from wafl.views import split_runs

VBNS = st.integers(FIRST_DATA_VBN, 1 << 40)
MARKS = st.sampled_from([HOLE, ZERO])
STRETCHES = st.lists(
    st.one_of(
        st.lists(MARKS, min_size=1, max_size=40),
        st.builds(lambda start, blocks: list(range(start, start + blocks)), VBNS, st.integers(1, 100)),
    ),
    min_size=1,
    max_size=60,
)


def expected(vbns: list[int]) -> list[tuple[bool, int, int, int]]:
    """(data?, first vbn, blocks, position), block by block; which mark stands for a stretch of them is all the same."""
    runs: list[tuple[bool, int, int, int]] = []
    for at, vbn in enumerate(vbns):
        data = vbn >= FIRST_DATA_VBN
        if runs:
            was_data, start, blocks, begun = runs[-1]
            if data == was_data and (not data or vbn == start + blocks):
                runs[-1] = (data, start, blocks + 1, begun)
                continue
        runs.append((data, vbn if data else 0, 1, at))
    return runs


@given(STRETCHES, st.integers(0, POINTERS - 1), st.integers(1, POINTERS))
def test_runs_are_what_a_look_at_each_block_says(stretches: list[list[int]], low: int, count: int) -> None:
    vbns = [vbn for stretch in stretches for vbn in stretch][:POINTERS]
    vbns += [HOLE] * (POINTERS - len(vbns))
    high = min(low + count, POINTERS)
    data = bytearray(BLOCK_BYTES)
    data[: 8 * POINTERS] = np.array(vbns, "<u8").tobytes()
    runs = split_runs(PointerMap(data), low, high)
    told = [(vbn >= FIRST_DATA_VBN, vbn if vbn >= FIRST_DATA_VBN else 0, blocks, at) for vbn, blocks, at in runs]
    assert told == expected(vbns[low:high])


@pytest.mark.parametrize("bad", [0, 5, 31, 40, 63])
def test_a_bad_block_among_scattered_ones_is_named(workshop: Workshop, bad: int) -> None:
    """Blocks written in any order lie in any place; a hole lies between them."""
    volume = workshop.format()
    lun = volume.create_lun("disk", MIB)
    fbns = [fbn for fbn in range(64) if not 32 <= fbn < 36]
    Random(7).shuffle(fbns)
    for fbn in fbns:
        lun.write(fbn * BLOCK_BYTES, pattern(fbn + 1, BLOCK_BYTES))
    checkpoint(volume)
    piece = memoryview(bytearray(64 * BLOCK_BYTES))
    lun.read_into(0, piece)
    for fbn in range(64):
        wanted = bytes(BLOCK_BYTES) if fbn not in fbns else pattern(fbn + 1, BLOCK_BYTES)
        assert piece[fbn * BLOCK_BYTES : (fbn + 1) * BLOCK_BYTES] == wanted
    vbn = lun.read_map(0).vbns[bad]
    whole = bytearray(BLOCK_BYTES)
    volume.device.pread(vbn * BLOCK_BYTES, whole)
    damaged = bytes(whole[:100]) + bytes([whole[100] ^ 1]) + bytes(whole[101:])
    volume.device.pwrite(vbn * BLOCK_BYTES, [damaged])
    for read in (lun.read_into, lun.read_into_nowait):
        with pytest.raises(CorruptVolume) as error:
            read(0, piece)
        assert error.value.vbn == vbn
        assert f"byte {bad * BLOCK_BYTES}" in str(error.value)
    volume.device.pwrite(vbn * BLOCK_BYTES, [bytes(whole)])


@given(st.lists(st.integers(0, 40), min_size=1, max_size=60), st.booleans())
def test_what_is_read_in_the_order_of_the_volume_lands_in_its_place(vbns: list[int], joined: bool) -> None:
    """Whatever lies where, the same block twice too; marks are left to others."""
    data = bytearray(BLOCK_BYTES)
    data[: 8 * len(vbns)] = np.array(vbns, "<u8").tobytes()
    runs = split_runs(PointerMap(data), 0, len(vbns)) if joined else [(vbn, 1, at) for at, vbn in enumerate(vbns)]
    view = memoryview(bytearray(len(vbns) * BLOCK_BYTES))
    places = places_of(runs, view)
    assert [offset for offset, _ in places] == sorted(offset for offset, _ in places)
    for offset, buffers in places:
        assert len(buffers) <= IOV_MAX
        block = offset >> BLOCK_SHIFT
        for buffer in buffers:
            for at in range(0, len(buffer), BLOCK_BYTES):
                buffer[at : at + BLOCK_BYTES] = bytes([block]) * BLOCK_BYTES
                block += 1
    blocks = {
        block for offset, buffers in places
        for block in range(offset >> BLOCK_SHIFT, (offset >> BLOCK_SHIFT) + sum(map(len, buffers)) // BLOCK_BYTES)
    }  # fmt: skip
    assert blocks == {block for vbn, count in stretches_of(runs) for block in range(vbn, vbn + count)}, "asked ahead"
    read = [view[at * BLOCK_BYTES] for at in range(len(vbns))]
    assert read == [vbn if vbn >= FIRST_DATA_VBN else 0 for vbn in vbns]


def test_every_second_block_from_elsewhere_is_read_in_two_calls() -> None:
    runs = [(1000 + at if at % 2 else 9000 + at // 2, 1, at) for at in range(POINTERS)]
    assert len(places_of(runs, memoryview(bytearray(POINTERS * BLOCK_BYTES)))) == 2


def test_a_scattered_read_of_a_file_is_the_same_as_a_patient_one(tmp_path: Path) -> None:
    device = FileDevice.open(tmp_path / "volume", create_bytes=64 * MIB)
    Volume.format(device, name="vol0")
    volume = Volume.mount(device)
    lun = volume.create_lun("disk", MIB)
    order = list(range(POINTERS - 8))
    Random(1).shuffle(order)
    for fbn in order[: POINTERS // 2]:
        lun.write(fbn * BLOCK_BYTES, pattern(fbn + 1, BLOCK_BYTES))
    for fbn in range(0, POINTERS - 8, 3):
        lun.write(fbn * BLOCK_BYTES, pattern(fbn + 1000, BLOCK_BYTES))
    now, patient = memoryview(bytearray(MIB)), memoryview(bytearray(MIB))
    assert lun.read_into_nowait(0, now)
    lun.read_into(0, patient)
    assert now == patient
    volume.close()
