"""Who flushes each block that it writes has the disk begin with it as soon as the write is answered."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support.volumes import EPOCH, MIB, pattern
from tests.wafl.test_service import GatedDevice
from wafl import FileDevice, Volume, VolumeService
from wafl.format import BLOCK_BYTES

SIZE = 4 * MIB


class HintedDevice(GatedDevice):
    """Notes writes and hints, by their blocks."""

    def __init__(self, image: bytearray) -> None:
        super().__init__(image)
        self.told: list[tuple[str, int]] = []

    def pwrite(self, offset: int, buffers: Sequence[Any]) -> None:
        self.told.append(("write", offset // BLOCK_BYTES))
        super().pwrite(offset, buffers)

    def begin_write_back(self, offset: int) -> None:
        assert offset % BLOCK_BYTES == 0
        self.told.append(("hint", offset // BLOCK_BYTES))


def told(*, eager: bool, blocks: int, separate: bool = False, batches: int = 1) -> list[list[tuple[str, int]]]:
    """What a served volume tells its device, and that of its log, when a host writes so many blocks, one by one, in so
    many batches."""

    async def main() -> list[list[tuple[str, int]]]:
        device, log_device = HintedDevice(bytearray(16 * MIB)), HintedDevice(bytearray(MIB)) if separate else None
        Volume.format(device, name="v", now=EPOCH)
        volume = Volume.mount(device, log_device=log_device)
        volume.batch_log()
        service = VolumeService(volume, cp_interval_s=3600.0)
        service.start()
        lun = volume.create_lun("a", SIZE)
        lun.write(0, bytes(BLOCK_BYTES))
        await service.durable()
        volume.core.eager = eager
        devices = [device] if log_device is None else [device, log_device]
        for each in devices:
            each.told.clear()
        for _ in range(batches):
            for number in range(blocks):
                lun.write(number * BLOCK_BYTES, pattern(number + 1, BLOCK_BYTES))
            volume.push_log()
            assert [what for each in devices for what, _ in each.told if what == "hint"] == [], "not before the answer"
        await asyncio.sleep(0)
        found = [list(each.told) for each in devices]
        await service.stop()
        volume.close()
        return found

    return asyncio.run(main())


def test_the_disk_begins_with_the_block_and_its_record() -> None:
    ((data, record, *hints),) = told(eager=True, blocks=1)
    assert (data[0], record[0]) == ("write", "write")
    assert hints == [("hint", data[1]), ("hint", record[1])]


def test_the_record_may_be_on_a_device_of_its_own() -> None:
    on_volume, on_log = told(eager=True, blocks=1, separate=True)
    for (what, block), *hints in (on_volume, on_log):
        assert what == "write"
        assert hints == [("hint", block)]


@pytest.mark.parametrize(("eager", "blocks", "batches"), [(False, 1, 1), (True, 2, 1), (True, 1, 2)])
def test_what_is_not_one_block_of_a_host_that_flushes_is_left_to_the_sync(
    eager: bool, blocks: int, batches: int
) -> None:
    (found,) = told(eager=eager, blocks=blocks, batches=batches)
    assert {what for what, _ in found} == {"write"}


async def one_block_written(device: HintedDevice) -> VolumeService:
    """A host that flushes each block has written one, and nothing has left yet."""
    Volume.format(device, name="v", now=EPOCH)
    volume = Volume.mount(device)
    volume.batch_log()
    service = VolumeService(volume, cp_interval_s=3600.0)
    service.start()
    lun = volume.create_lun("a", SIZE)
    await service.durable()
    volume.core.eager = True
    lun.write(0, pattern(1, BLOCK_BYTES))
    return service


def test_answers_to_reads_begin_nothing_again() -> None:
    """Each of them pushes the log, too; the block waits for its flush all the while."""

    async def main() -> None:
        device = HintedDevice(bytearray(16 * MIB))
        service = await one_block_written(device)
        volume = service.volume
        for _ in range(5):
            volume.push_log()
            await asyncio.sleep(0)
        assert [what for what, _ in device.told].count("hint") == 2, "the block and its record, once"
        await service.stop()
        volume.close()

    asyncio.run(main())


def test_a_hint_to_a_file_changes_nothing(tmp_path: Path) -> None:
    device = FileDevice.open(tmp_path / "file", create_bytes=MIB)
    device.pwrite(BLOCK_BYTES, (pattern(1, BLOCK_BYTES),))
    device.begin_write_back(BLOCK_BYTES)
    found = bytearray(BLOCK_BYTES)
    device.pread(BLOCK_BYTES, found)
    assert found == pattern(1, BLOCK_BYTES)
    device.close()
    device.begin_write_back(BLOCK_BYTES)


def test_a_volume_that_is_closed_after_a_push_is_told_nothing() -> None:
    """The hint waits for a turn of the loop; what it is about may be gone by then."""

    async def main() -> None:
        device = HintedDevice(bytearray(16 * MIB))
        service = await one_block_written(device)
        volume = service.volume
        volume.push_log()
        volume.nvlog.close()
        device.told.clear()
        await asyncio.sleep(0)
        assert device.told == []

    asyncio.run(main())
