"""Runs: which stretches of a read lie side by side on the volume, and that all of them are verified."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.volumes import MIB, Workshop, checkpoint, pattern
from wafl import CorruptVolume
from wafl.buffers import PointerMap
from wafl.format import BLOCK_BYTES, FIRST_DATA_VBN, HOLE, POINTERS, ZERO
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
