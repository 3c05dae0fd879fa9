"""A LUN of a real volume (in memory) behind the SCSI device server."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from target.iscsi.ports import DataInFailed, Response
from target.lun_store import LunStore
from target.nexus import LogicalUnit, TargetDevice
from target.scsi.store import BlockStore, MediumError, SpaceExhausted
from tests.support.crash_device import MemoryDevice
from tests.support.manual_platform import ManualPlatform
from tests.support.scsi_host import (
    DATA_PROTECT,
    MEDIUM_ERROR,
    NOT_READY,
    TARGET,
    UNIT_ATTENTION,
    Host,
    compare_and_write,
    get_lba_status,
    information,
    inquiry,
    key_asc,
    read_16,
    sixteen,
    ten,
    unmap,
    unmap_list,
    write_16,
    write_atomic,
)
from tests.support.volumes import Workshop, checkpoint, pattern, take_snapshot
from wafl import Lun, Volume, VolumeService

MIB = 1 << 20
WRITE_SAME_16 = 0x93


def serve(volume: Volume, lun: Lun) -> Host:
    host = Host(TargetDevice(TARGET), {0: LogicalUnit(LunStore(lun, VolumeService(volume)), ManualPlatform())})
    host.ready()
    return host


def with_lun(workshop: Workshop, size: int = 4 * MIB, block: int = 512) -> tuple[Host, Volume, Lun]:
    volume = workshop.format()
    lun = volume.create_lun("lun0", size, block_bytes=block)
    return serve(volume, lun), volume, lun


def damage(volume: Volume, contents: bytes) -> None:
    """Flip a bit of the block that holds `contents`, behind the volume's back."""
    device = volume.device
    assert isinstance(device, MemoryDevice)
    at = bytes(device.image).index(contents)
    device.image[at] ^= 1


def test_a_lun_store_is_a_block_store(workshop: Workshop) -> None:
    volume = workshop.format()
    store: BlockStore = LunStore(volume.create_lun("lun0", MIB), VolumeService(volume))
    assert (store.size_bytes, store.logical_block_bytes, store.physical_block_bytes) == (MIB, 512, 4096)
    assert store.thin
    assert store.online


def test_what_is_written_is_read_back(workshop: Workshop) -> None:
    host, _, _ = with_lun(workshop)
    data = pattern(1, 3 * 4096 + 512)
    assert host.send(write_16(7, 25), data).status == 0
    assert host.read(7, 25) == data
    assert host.read(0, 7) == bytes(7 * 512)


def test_a_4kn_lun_works_in_blocks_of_4096(workshop: Workshop) -> None:
    host, _, _ = with_lun(workshop, block=4096)
    assert host.send(write_16(1, 2), pattern(1, 8192)).status == 0
    assert host.read(1, 2) == pattern(1, 8192)
    assert host.data(host.send(b"\x25"))[4:] == (4096).to_bytes(4, "big")


def test_identity_is_the_luns(workshop: Workshop) -> None:
    host, _, lun = with_lun(workshop)
    assert host.data(host.send(inquiry(0x80)))[4:] == lun.serial.encode()
    assert lun.naa in host.data(host.send(inquiry(0x83)))


def test_a_clone_has_an_identity_of_its_own_and_the_parents_bytes(workshop: Workshop) -> None:
    host, volume, _ = with_lun(workshop)
    host.send(write_16(0, 8), pattern(3, 4096))
    take_snapshot(volume, "s")
    clone = serve(volume, volume.create_lun("clone", backing=("s", "lun0")))
    host.send(write_16(0, 8), pattern(4, 4096))
    assert clone.read(0, 8) == pattern(3, 4096)
    for page in (0x80, 0x83):
        assert clone.send(inquiry(page)).data != host.send(inquiry(page)).data


def test_unmapped_blocks_of_a_clone_read_zeros_and_not_the_backing(workshop: Workshop) -> None:
    host, volume, _ = with_lun(workshop)
    host.send(write_16(0, 16), pattern(3, 8192))
    take_snapshot(volume, "s")
    clone = serve(volume, volume.create_lun("clone", backing=("s", "lun0")))
    parameters = unmap_list((4, 8))
    assert clone.send(unmap(len(parameters)), parameters).status == 0
    expected = bytearray(pattern(3, 8192))
    expected[2048:6144] = bytes(4096)
    assert clone.read(0, 16) == expected


def test_lba_status_tells_what_is_mapped(workshop: Workshop) -> None:
    host, _, _ = with_lun(workshop)
    host.send(write_16(8, 8), pattern(1, 4096))
    data = host.data(host.send(get_lba_status(0)))
    found = [
        (int.from_bytes(data[at : at + 8], "big"), int.from_bytes(data[at + 8 : at + 12], "big"), data[at + 12])
        for at in range(8, len(data), 16)
    ]
    assert found == [(0, 8, 1), (8, 8, 0), (16, 8192 - 16, 1)]


def test_write_same_of_zeros_gives_the_blocks_back(workshop: Workshop) -> None:
    host, volume, lun = with_lun(workshop)
    host.send(write_16(0, 2048), pattern(1, MIB))
    before = lun.used_bytes
    assert host.send(sixteen(WRITE_SAME_16, 0, 2048, 0x08), bytes(512)).status == 0
    volume.reclaim_now()
    assert (before, lun.used_bytes) == (MIB, 0)


def test_compare_and_write_of_one_small_block(workshop: Workshop) -> None:
    host, _, _ = with_lun(workshop)
    host.send(write_16(0, 8), pattern(1, 4096))
    old = pattern(1, 4096)
    assert host.send(compare_and_write(3, 1), old[1536:2048] + b"n" * 512).status == 0
    assert host.read(0, 8) == old[:1536] + b"n" * 512 + old[2048:]


@pytest.mark.parametrize("fast", [True, False])
def test_a_damaged_block_is_a_medium_error_at_its_lba(workshop: Workshop, fast: bool) -> None:
    host, volume, _ = with_lun(workshop)
    for block in range(4):
        host.send(write_16(8 * block, 8), pattern(block + 1, 4096))
    checkpoint(volume)
    damage(volume, pattern(3, 4096))
    out = memoryview(bytearray(16384))
    if fast:
        assert host.nexus.fast_read(0, memoryview(read_16(0, 32)), 0, 16384, out) == -1
    response = host.send(read_16(0, 32))
    assert response.reader is not None
    with pytest.raises(DataInFailed) as failed:
        response.reader(0, out)
    assert key_asc(failed.value.response) == (MEDIUM_ERROR, 0x1100)
    assert information(failed.value.response) == 16
    workshop.abandon(volume)


def test_a_full_volume_is_a_space_allocation_failure_and_reads_go_on(workshop: Workshop) -> None:
    host, _, _ = with_lun(workshop, size=64 * MIB)
    host.send(write_16(0, 8), pattern(9, 4096))
    response = Response()
    for lba in range(2048, 64 * 2048, 2048):
        response = host.send(write_16(lba, 2048), pattern(lba, MIB))
        if response.status:
            break
    assert key_asc(response) == (DATA_PROTECT, 0x2707)
    assert host.read(0, 8) == pattern(9, 4096)


def test_an_offline_lun_is_not_ready_and_comes_back(workshop: Workshop) -> None:
    host, _, lun = with_lun(workshop)
    unit = host.nexus.itls[0].lu
    lun.set_online(False)
    unit.state_changed()
    assert key_asc(host.send(read_16(0, 1)))[0] == 2
    lun.set_online(True)
    unit.state_changed()
    assert host.read(0, 1) == bytes(512)


def test_a_resize_is_seen_through_the_same_store(workshop: Workshop) -> None:
    host, volume, _ = with_lun(workshop)
    volume.resize_lun("lun0", 8 * MIB)
    host.nexus.itls[0].lu.capacity_changed()
    assert key_asc(host.send(bytes(6))) == (UNIT_ATTENTION, 0x2A09)
    assert host.send(write_16(16383, 1), b"e" * 512).status == 0
    assert host.read(16383, 1) == b"e" * 512


def test_on_a_full_volume_a_reserved_lun_writes_on_and_a_thin_one_is_told(workshop: Workshop) -> None:
    """Nothing goes offline, reads go on, and what UNMAP gives back is usable at once."""
    volume = workshop.format()
    kept, thin = volume.create_lun("kept", 2 * MIB, reserved=True), volume.create_lun("thin", 64 * MIB)
    hosts = {lun: serve(volume, lun) for lun in (kept, thin)}
    lba = 0
    while hosts[thin].send(write_16(lba, 256), pattern(lba, 256 * 512)).status == 0:
        lba += 256
    assert key_asc(hosts[thin].send(write_16(lba, 256), pattern(lba, 256 * 512))) == (DATA_PROTECT, 0x2707)
    for at in range(0, 4096, 8):
        assert hosts[kept].send(write_16(at, 8), pattern(at, 4096)).status == 0
    assert hosts[kept].read(800, 8) == pattern(800, 4096)
    assert hosts[thin].read(0, 256) == pattern(0, 256 * 512)
    assert hosts[kept].send(unmap(24), unmap_list((0, 4096))).status == 0
    assert hosts[kept].send(write_16(0, 8), pattern(1, 4096)).status == 0
    assert hosts[thin].send(unmap(24), unmap_list((0, 1024))).status == 0
    assert hosts[thin].send(write_16(lba, 256), pattern(lba, 256 * 512)).status == 0


def test_a_reserved_lun_that_waits_for_what_a_reader_holds_back_is_told_to_try_again(workshop: Workshop) -> None:
    volume = workshop.format()
    kept, thin = volume.create_lun("kept", 4 * MIB, reserved=True), volume.create_lun("thin", 64 * MIB)
    hosts = {lun: serve(volume, lun) for lun in (kept, thin)}
    for lba in range(0, 8192, 256):
        assert hosts[kept].send(write_16(lba, 256), pattern(lba, 256 * 512)).status == 0
    lba = 0
    while hosts[thin].send(write_16(lba, 256), pattern(lba, 256 * 512)).status == 0:
        lba += 256
    with volume.held():
        told = [hosts[kept].send(write_16(at, 256), pattern(at + 1, 256 * 512)) for at in range(0, 8192, 256)]
        assert {key_asc(reply) for reply in told if reply.status} == {(NOT_READY, 0x0414)}
        assert key_asc(hosts[thin].send(write_16(lba, 256), pattern(lba, 256 * 512))) == (DATA_PROTECT, 0x2707)
    for at in range(0, 8192, 256):
        assert hosts[kept].send(write_16(at, 256), pattern(at + 1, 256 * 512)).status == 0


def test_a_volume_mounted_read_only_is_write_protected_and_readable(workshop: Workshop) -> None:
    host, volume, _ = with_lun(workshop)
    host.send(write_16(0, 8), pattern(2, 4096))
    device = volume.device
    assert isinstance(device, MemoryDevice)
    checkpoint(volume)
    frozen = Volume.mount(MemoryDevice(bytearray(device.image)), read_only=True)
    host = serve(frozen, frozen.lun("lun0"))
    assert key_asc(host.send(write_16(0, 8), pattern(3, 4096))) == (DATA_PROTECT, 0x2700)
    assert not host.nexus.fast_write(0, memoryview(write_16(0, 8)), 0, memoryview(pattern(3, 4096)))
    assert host.read(0, 8) == pattern(2, 4096)


def test_errors_keep_their_reason(workshop: Workshop) -> None:
    volume = workshop.format()
    store = LunStore(volume.create_lun("lun0", 64 * MIB), VolumeService(volume))
    with pytest.raises(SpaceExhausted, match="full"):
        store.write(0, memoryview(pattern(6, 32 * MIB)))
    store.write(0, memoryview(pattern(5, 4096)))
    checkpoint(volume)
    damage(volume, pattern(5, 4096))
    with pytest.raises(MediumError, match="crc32c"):
        store.read_into(0, memoryview(bytearray(4096)))
    workshop.abandon(volume)


def test_synchronize_cache_is_good_once_the_log_is_durable(workshop: Workshop) -> None:
    async def run() -> None:
        volume = workshop.format()
        service = VolumeService(volume)
        service.start()
        host = Host(
            TargetDevice(TARGET), {0: LogicalUnit(LunStore(volume.create_lun("lun0", MIB), service), ManualPlatform())}
        )
        host.ready()
        host.send(write_16(0, 8), pattern(1, 4096))
        log = volume.core.log
        assert log is not None
        assert log.durable < log.seq
        done = asyncio.Event()
        cdb = ten(0x35, 0, 0).ljust(16, b"\0")
        late: list[tuple[int, bool]] = []

        def answered(response: Response) -> None:
            late.append((response.status, log.durable == log.seq))
            done.set()

        assert host.nexus.execute(0, cdb, 1, memoryview(b""), 77, answered) is None
        await asyncio.wait_for(done.wait(), 30)
        assert late == [(0, True)]
        await service.stop()

    asyncio.run(run())


RANGES = st.tuples(st.integers(0, 63), st.integers(1, 24))
STEPS = st.lists(st.tuples(st.sampled_from(("write", "fast", "unmap", "same", "checkpoint")), RANGES), max_size=30)


@settings(max_examples=60)
@given(steps=STEPS)
def test_commands_in_any_order_leave_what_a_plain_array_would_hold(steps: list[tuple[str, tuple[int, int]]]) -> None:
    workshop = Workshop()
    host, volume, _ = with_lun(workshop, size=96 * 512)
    model = bytearray(96 * 512)
    for number, (step, (lba, blocks)) in enumerate(steps, 1):
        start, length = lba * 512, blocks * 512
        data = pattern(number, length)
        if step == "write":
            assert host.send(write_16(lba, blocks), data).status == 0
        elif step == "fast":
            assert host.nexus.fast_write(0, memoryview(write_16(lba, blocks)), 0, memoryview(data))
        elif step == "unmap":
            parameters, data = unmap_list((lba, blocks)), bytes(length)
            assert host.send(unmap(len(parameters)), parameters).status == 0
        elif step == "same":
            data = data[:512] * blocks
            assert host.send(sixteen(WRITE_SAME_16, lba, blocks), data[:512]).status == 0
        else:
            checkpoint(volume)
            continue
        model[start : start + length] = data
    assert host.read(0, 96) == model
    out = bytearray(96 * 512)
    assert host.nexus.fast_read(0, memoryview(read_16(0, 96)), 0, len(out), memoryview(out)) == len(out)
    assert out == model
    workshop.finish()


def bad_lba(host: Host, lba: int, blocks: int) -> int:
    """What INFORMATION says of a READ that ends in a medium error."""
    response = host.send(read_16(lba, blocks))
    assert response.reader is not None
    with pytest.raises(DataInFailed) as failed:
        response.reader(0, memoryview(bytearray(blocks * 4096)))
    assert key_asc(failed.value.response) == (MEDIUM_ERROR, 0x1100)
    return information(failed.value.response)


@pytest.mark.parametrize("bad", [0, 3, 255, 256, 300])
def test_a_bad_block_costs_that_block_alone_and_a_write_over_it_heals_it(workshop: Workshop, bad: int) -> None:
    host, volume, lun = with_lun(workshop, block=4096)
    blocks = [pattern(100 + fbn, 4096) for fbn in range(400)]
    lun.write(0, b"".join(blocks))
    checkpoint(volume)
    damage(volume, blocks[bad])
    for first in (max(0, bad - 200), bad):
        # All blocks before the one that INFORMATION names are good: the host can ask for them, and for those behind.
        assert bad_lba(host, first, 400 - first) == bad
        assert host.read(first, bad - first) == b"".join(blocks[first:bad])
    assert host.read(bad + 1, 399 - bad) == b"".join(blocks[bad + 1 :])
    for lba in range(400):
        if lba != bad:
            assert host.read(lba, 1) == blocks[lba]
    assert host.send(write_16(bad, 1), pattern(7, 4096)).status == 0
    blocks[bad] = pattern(7, 4096)
    assert host.read(0, 400) == b"".join(blocks)


def test_a_bad_level_one_block_costs_its_mebibyte(workshop: Workshop) -> None:
    host, volume, lun = with_lun(workshop, block=4096)
    lun.write(0, pattern(1, 4 * MIB))
    checkpoint(volume)
    again = workshop.remount(volume)
    root = again.lun("lun0").inode.vbns[0]
    image = again.device.image  # type: ignore[attr-defined]
    leaf = int.from_bytes(image[root * 4096 + 8 : root * 4096 + 16], "little")
    image[leaf * 4096] ^= 1
    host = serve(again, again.lun("lun0"))
    assert host.read(0, 256) == pattern(1, 4 * MIB)[:MIB]
    assert host.read(512, 512) == pattern(1, 4 * MIB)[2 * MIB :]
    for lba in (256, 300, 511):
        assert bad_lba(host, lba, 1) == lba
    assert bad_lba(host, 200, 100) == 256
    image[leaf * 4096] ^= 1


def test_an_atomic_write_is_written_like_any_other(workshop: Workshop) -> None:
    host, _, _ = with_lun(workshop)
    data = pattern(1, 64 * 4096)
    assert host.send(write_atomic(2048 - 256, 512), data).status == 0
    assert host.read(2048 - 256, 512) == data


def test_an_atomic_write_without_room_is_a_space_allocation_failure(workshop: Workshop) -> None:
    volume = workshop.format()
    lun = volume.create_lun("big", 1 << 30, reserved=False)
    host = serve(volume, lun)
    asked, response = 0, host.send(write_atomic(0, 2048), b"x" * MIB)
    while response.status == 0 and asked < 1024:
        asked += 1
        response = host.send(write_atomic(asked * 2048, 2048), b"x" * MIB)
    assert key_asc(response) == (DATA_PROTECT, 0x2707)


def test_the_log_page_counts_the_luns_space_and_the_volumes(workshop: Workshop) -> None:
    host, volume, _ = with_lun(workshop)
    host.send(write_16(0, 4096), pattern(1, 2 * MIB))
    page = host.data(host.send(bytes((0x4D, 0, 0x0C, 0, 0, 0, 0, 0, 255, 0))))
    available, used = (int.from_bytes(page[at : at + 4], "big") for at in (8, 20))
    assert (available, used) == (volume.space().available // MIB, 2)
