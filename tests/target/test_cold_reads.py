"""A volume that is not in memory is read by a thread, pointers and data, and the loop never waits for it."""

from __future__ import annotations

import asyncio
from typing import Any

from target.iscsi.constants import Opcode
from target.lun_store import LunStore
from target.nexus import LogicalUnit, TargetDevice
from tests.support.initiator import READ_10, Initiator, Link, cdb_10, make_host
from tests.support.manual_platform import ManualPlatform
from tests.support.memory_target import TARGET, MemoryDirectory
from tests.support.sleepy_device import SleepyDevice
from tests.support.volumes import MIB, Workshop, checkpoint, pattern
from wafl import VolumeService
from wafl.format import BLOCK_BYTES

READS = 40
LIMIT_S = 60


def logged_in(volume_service: VolumeService, device: TargetDevice) -> Initiator:
    lun = volume_service.volume.lun("disk")
    unit = LogicalUnit(LunStore(lun, volume_service), ManualPlatform())

    class Directory(MemoryDirectory):
        def open_nexus(self, initiator: str, isid: bytes, target: str, tpgt: int) -> Any:
            return device.open_nexus(initiator, isid, {0: unit})

    initiator = Initiator(Link(make_host(Directory({TARGET: None}))))  # type: ignore[dict-item]
    assert initiator.login().status_class == 0
    while initiator.command(bytes(6)).status:
        pass  # unit attentions
    return initiator


def test_cold_pointers_and_cold_data_are_waited_for_in_a_thread(workshop: Workshop) -> None:
    volume = workshop.format(64 * MIB)
    lun = volume.create_lun("disk", 1 << 40)
    places = [number * (1 << 40) // READS // BLOCK_BYTES * BLOCK_BYTES for number in range(READS)]
    for number, place in enumerate(places):
        lun.write(place, pattern(number + 1, BLOCK_BYTES))
    checkpoint(volume)
    volume = workshop.mount(SleepyDevice(bytearray(volume.device.image)))  # type: ignore[attr-defined]
    sleepy = volume.device
    assert isinstance(sleepy, SleepyDevice)

    async def scene() -> bytes:
        service = VolumeService(volume)
        service.start()
        device = TargetDevice(TARGET)
        device.when_warm = service.when_warm
        initiator = logged_in(service, device)
        initiator.link.core.wake = lambda: asyncio.get_running_loop().call_soon(initiator.link.collect)
        before = sleepy.waits["loop"]
        wire = b"".join(
            initiator.encode(
                Opcode.SCSI_COMMAND, lun=0, flags=0xC1, itt=number, cmd_sn=initiator.cmd_sn + number, edtl=BLOCK_BYTES,
                cdb=cdb_10(READ_10, place // 512, 8).ljust(16, b"\0"),
            )
            for number, place in enumerate(places)
        )  # fmt: skip
        replies = initiator.link.send(wire)
        assert replies == [], "nothing of it was in memory"
        async with asyncio.timeout(LIMIT_S):
            while len(replies) < READS:
                await asyncio.sleep(0)
                replies += initiator.link.take()
        assert sleepy.waits["loop"] == before
        assert 0 < sleepy.waits["thread"] < READS, "one wait for many"
        await service.stop()
        return b"".join(reply.data for reply in sorted(replies, key=lambda reply: int(reply.itt)))

    data = asyncio.run(scene())
    assert data == b"".join(pattern(number + 1, BLOCK_BYTES) for number in range(READS))


def test_there_is_nothing_to_wait_for_when_nothing_was_cold(workshop: Workshop) -> None:
    volume = workshop.format()

    async def scene() -> None:
        service = VolumeService(volume)
        assert not service.when_warm(lambda: None), "not started"
        service.start()
        assert not service.when_warm(lambda: None)
        volume.core.prefetch(0, BLOCK_BYTES)
        done = asyncio.Event()
        assert service.when_warm(done.set)
        assert not done.is_set(), "never before returning"
        await asyncio.wait_for(done.wait(), LIMIT_S)
        await service.stop()
        volume.core.prefetch(0, BLOCK_BYTES)
        assert not service.when_warm(lambda: None), "stopped"

    asyncio.run(scene())
