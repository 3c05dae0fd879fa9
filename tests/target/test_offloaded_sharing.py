"""EXTENDED COPY, copies with tokens and WRITE SAME of a pattern on real volumes: blocks are shared, not moved."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from target.iscsi.ports import DataInFailed, Response
from target.lun_store import LunStore
from target.nexus import LogicalUnit, TargetDevice
from tests.support.manual_platform import ManualPlatform
from tests.support.scsi_host import (
    DATA_PROTECT,
    MEDIUM_ERROR,
    TARGET,
    Host,
    key_asc,
    read_16,
    sixteen,
    unmap,
    unmap_list,
)
from tests.support.volumes import Workshop, checkpoint, fill_all, pattern, take_snapshot
from tests.target.scsi import test_extended_copy as xcopy
from tests.target.scsi import test_offload as odx
from tests.wafl.test_lun import read
from tests.wafl.test_reserve import fill_up
from wafl import BLOCK_BYTES, Lun, Volume, VolumeService, references

MIB = 1 << 20
BLOCK = BLOCK_BYTES
WRITE_SAME_16 = 0x93
COPY_ABORTED = 0x0A

Copy = Callable[[Host, int, int, int, int, int], Response]
"""(host, LUN from, block there, LUN to, block there, number of blocks)"""


def serve(volume: Volume, *luns: Lun) -> Host:
    service = VolumeService(volume)
    units = {number: LogicalUnit(LunStore(lun, service), ManualPlatform()) for number, lun in enumerate(luns)}
    host = Host(TargetDevice(TARGET), units)
    for number in units:
        host.ready(number)
    return host


def by_xcopy(host: Host, source: int, at: int, destination: int, to: int, blocks: int) -> Response:
    stores = [host.nexus.itls[number].lu.store for number in sorted(host.nexus.itls)]
    targets = [xcopy.cscd(store.naa, designator=(1, 3)) for store in stores]
    return xcopy.copy(host, [xcopy.segment(source, destination, blocks, at, to)], targets)


def by_token(host: Host, source: int, at: int, destination: int, to: int, blocks: int) -> Response:
    assert source == 0
    return odx.write(host, odx.token_of(host, (at, blocks)), (to, blocks), lun=destination)


@contextmanager
def takes_no_data(volume: Volume, most: int = 64) -> Iterator[None]:
    """At most so many blocks, for pointers and counts."""
    checkpoint(volume)
    before = volume.space().active
    yield
    checkpoint(volume)
    assert volume.space().active - before <= most * BLOCK


@pytest.fixture
def volume(workshop: Workshop) -> Volume:
    volume = workshop.format(64 * MIB)
    volume.create_lun("a", 24 * MIB).write(0, pattern(1, 20 * MIB))
    volume.create_lun("b", 24 * MIB)
    return volume


@pytest.mark.parametrize("copy", [by_xcopy, by_token])
def test_a_copy_between_luns_moves_nothing(volume: Volume, copy: Copy) -> None:
    a, b = volume.lun("a"), volume.lun("b")
    host = serve(volume, a, b)
    with takes_no_data(volume):
        assert copy(host, 0, 0, 1, 2048, 20 * 2048).status == 0
    assert read(b, MIB, 20 * MIB) == pattern(1, 20 * MIB)
    a.write(0, pattern(2, MIB))
    b.write(5 * MIB, pattern(3, MIB))
    assert read(b, MIB, MIB) == pattern(1, MIB)
    assert read(a, 4 * MIB, MIB) == pattern(1, 20 * MIB)[4 * MIB : 5 * MIB]


@pytest.mark.parametrize("copy", [by_xcopy, by_token])
def test_edges_within_a_block_are_copied_and_the_rest_is_shared(volume: Volume, copy: Copy) -> None:
    a, b = volume.lun("a"), volume.lun("b")
    host = serve(volume, a, b)
    with takes_no_data(volume):
        assert copy(host, 0, 3, 1, 2048 + 3, 16 * 2048 + 6).status == 0
    expected = pattern(1, 20 * MIB)[3 * 512 : 16 * MIB + 9 * 512]
    assert read(b, MIB + 3 * 512, len(expected)) == expected
    assert read(b, MIB, 3 * 512) == bytes(3 * 512)
    assert read(b, MIB + 3 * 512 + len(expected), 4096) == bytes(4096)


def test_what_lies_differently_in_the_two_is_copied(volume: Volume) -> None:
    a, b = volume.lun("a"), volume.lun("b")
    host = serve(volume, a, b)
    assert by_xcopy(host, 0, 3, 1, 0, 4096).status == 0
    assert read(b, 0, 2 * MIB) == pattern(1, 20 * MIB)[3 * 512 : 3 * 512 + 2 * MIB]
    assert volume.files.references.inode is None


def test_ranges_of_one_lun_that_overlap_are_copied(volume: Volume) -> None:
    a = volume.lun("a")
    host = serve(volume, a)
    before = read(a, 0, 8 * MIB)
    assert by_xcopy(host, 0, 0, 0, 8, 512).status == 0
    assert read(a, BLOCK, MIB // 4) == before[: MIB // 4]


def test_a_damaged_block_is_shared_as_it_is_and_an_error_in_both(workshop: Workshop, volume: Volume) -> None:
    a, b = volume.lun("a"), volume.lun("b")
    host = serve(volume, a, b)
    vbn = a.read_map(0).vbns[7]  # type: ignore[union-attr]
    volume.device.image[vbn * BLOCK] ^= 1  # type: ignore[attr-defined]
    assert by_xcopy(host, 0, 0, 1, 0, 4096).status == 0
    for number in (0, 1):
        response = host.send(read_16(7 * 8, 8), lun=number)
        assert response.reader is not None
        with pytest.raises(DataInFailed) as failed:
            response.reader(0, memoryview(bytearray(BLOCK)))
        assert key_asc(failed.value.response) == (MEDIUM_ERROR, 0x1100)
    assert read(b, 0, 7 * BLOCK) == pattern(1, 7 * BLOCK)
    workshop.abandon(volume)


def test_where_nothing_can_be_shared_a_full_volume_says_so(workshop: Workshop) -> None:
    volume = workshop.format(8 * MIB, log_bytes=0)
    a, b = (volume.create_lun(name, 16 * MIB) for name in ("a", "b"))
    fill_up(a, BLOCK)
    failed = by_xcopy(serve(volume, a, b), 0, 0, 1, 0, 4096)
    assert key_asc(failed)[0] in (DATA_PROTECT, COPY_ABORTED)


@pytest.mark.parametrize("filled", [False, True])
def test_a_clone_in_the_middle_of_its_job_is_source_and_destination(volume: Volume, filled: bool) -> None:
    a, b = volume.lun("a"), volume.lun("b")
    take_snapshot(volume, "s")
    clone = volume.create_lun("clone", backing=("s", "a"))
    if filled:
        plan = clone.plan_fill(0)
        assert plan is not None
        clone.install_fill(plan, plan.read())
        plan.release()
    a.write(0, pattern(2, 2 * MIB))
    host = serve(volume, clone, b, a)
    assert by_xcopy(host, 0, 0, 1, 0, 4 * 2048).status == 0
    assert by_xcopy(host, 2, 0, 0, 8 * 2048, 2048).status == 0
    fill_all(clone)
    checkpoint(volume)
    clone.detach()
    checkpoint(volume)
    volume.delete_snapshot("s")
    volume.reclaim_now()
    assert read(b, 0, 4 * MIB) == pattern(1, 4 * MIB)
    expected = pattern(1, 20 * MIB)
    assert read(clone, 0, 20 * MIB) == expected[: 8 * MIB] + pattern(2, MIB) + expected[9 * MIB :]


# --- WRITE SAME -------------------------------------------------------------------------------------------------------


def write_same(host: Host, lba: int, blocks: int, block: bytes) -> int:
    return host.send(sixteen(WRITE_SAME_16, lba, blocks), block).status


def test_a_gibibyte_of_a_pattern_takes_a_handful_of_blocks(workshop: Workshop) -> None:
    volume = workshop.format(32 * MIB)
    lun = volume.create_lun("lun0", 1 << 30)
    host = serve(volume, lun)
    block = pattern(7, 512)
    before = volume.space().active
    for at in range(0, 1 << 30, 16 * MIB):
        assert write_same(host, at // 512, 16 * 2048, block) == 0
    checkpoint(volume)
    pointers = 1024 + 4 + 1  # of levels 1, 2 and 3
    assert volume.space().active - before <= (pointers + 16 + 8) * BLOCK
    for at in (0, 65 * 1024, 16 * MIB - 512, (1 << 30) - MIB):
        assert read(lun, at, 4096 if at < (1 << 30) - 4096 else 512)[:512] == block
    lun.write(MIB, bytes(BLOCK))
    assert read(lun, MIB - 512, 5120) == block + bytes(4096) + block
    volume.destroy_lun("lun0")
    volume.reclaim_now()
    assert volume.files.references.total == 0


@pytest.mark.parametrize("most", [2, 40, references.MAX_COUNT])
def test_any_range_has_the_pattern_and_nothing_beside_it(
    workshop: Workshop, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(references, "MAX_COUNT", most)
    volume = workshop.format(32 * MIB)
    lun = volume.create_lun("lun0", 8 * MIB)
    host = serve(volume, lun)
    expected = bytearray(8 * MIB)
    rng = random.Random(most)
    for number in range(25):
        block = pattern(number // 3, 512)
        lba = rng.randrange(16384)
        blocks = min(rng.choice([1, 9, 300, 5000]), 16384 - lba)
        if number % 4 == 3:
            lba -= lba % 8
        assert write_same(host, lba, blocks, block) == 0
        expected[lba * 512 : (lba + blocks) * 512] = block * blocks
    assert read(lun, 0, 8 * MIB) == expected
    checkpoint(volume)


def test_commands_in_a_row_go_on_with_the_pattern_of_the_one_before(volume: Volume) -> None:
    host = serve(volume, volume.lun("b"))
    assert write_same(host, 0, 8 * 2048, pattern(7, 512)) == 0
    with takes_no_data(volume, 12):
        assert write_same(host, 8 * 2048, 8 * 2048, pattern(7, 512)) == 0


def test_a_pattern_before_the_range_that_cannot_be_read_is_not_used(workshop: Workshop, volume: Volume) -> None:
    b = volume.lun("b")
    host = serve(volume, b)
    assert write_same(host, 0, 2048, pattern(7, 512)) == 0
    vbn = b.read_map(0).vbns[255]  # type: ignore[union-attr]
    volume.device.image[vbn * BLOCK] ^= 1  # type: ignore[attr-defined]
    assert write_same(host, 2048, 2048, pattern(7, 512)) == 0
    assert read(b, MIB, MIB) == pattern(7, 512) * 2048
    workshop.abandon(volume)


def test_unmapping_a_shared_range_gives_back_nothing_that_others_have(volume: Volume) -> None:
    a, b = volume.lun("a"), volume.lun("b")
    host = serve(volume, a, b)
    by_xcopy(host, 0, 0, 1, 0, 20 * 2048)
    parameters = unmap_list((0, 20 * 2048))
    assert host.send(unmap(len(parameters)), parameters).status == 0
    volume.reclaim_now()
    assert read(b, 0, 20 * MIB) == pattern(1, 20 * MIB)
    assert read(a, 0, 20 * MIB) == bytes(20 * MIB)
