"""Whatever a host asks for, the loop does not wait for the disk: neither for data nor for pointers nor for counts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest

from target.iscsi.ports import Response
from target.lun_store import LunStore
from target.nexus import LogicalUnit, TargetDevice, lun_field
from tests.support.manual_platform import ManualPlatform
from tests.support.scsi_host import (
    TARGET,
    Host,
    compare_and_write,
    get_lba_status,
    read_16,
    sixteen,
    ten,
    unmap,
    unmap_list,
    write_16,
    write_atomic,
)
from tests.support.sleepy_device import SleepyDevice
from tests.support.volumes import MIB, Workshop, checkpoint, pattern, reclaim, take_snapshot
from wafl import Lun, Volume, VolumeService
from wafl.format import BLOCK_BYTES

LIMIT_S = 60
SIZE, COUNT = 1 << 40, 12
PLACES = [number * SIZE // COUNT // MIB * MIB + number * BLOCK_BYTES for number in range(COUNT)]
KEPT = 16
"""Blocks of data at each place."""
OLD = [pattern(number + 1, KEPT * BLOCK_BYTES) for number in range(COUNT)]
NEW = pattern(99, BLOCK_BYTES)
ZEROS = bytes(BLOCK_BYTES)
FUA, BYTES_COMPARED = 0x08, 0x02
MAPPED = (KEPT * 8 - 8).to_bytes(4, "big") + bytes(4)
"""In the descriptor of GET LBA STATUS: from the second block on."""

Ask = Callable[[int, bytes], tuple[bytes, bytes]]
"""(LBA, what lies there) -> CDB and Data-Out."""


@dataclass(frozen=True)
class Case:
    ask: Ask
    after: Callable[[bytes], bytes] = lambda old: old
    """What lies there then."""
    answer: Callable[[bytes], bytes] = lambda old: b""


def mixed(one: bytes, other: bytes) -> bytes:
    return bytes(a | b for a, b in zip(one, other, strict=True))


CASES = {
    "WRITE of a block": Case(lambda lba, _: (write_16(lba, 8), NEW), lambda old: NEW + old[4096:]),
    "WRITE of a part of a block": Case(lambda lba, _: (ten(0x2A, lba + 3, 1), NEW[:512]),
                                       lambda old: old[:1536] + NEW[:512] + old[2048:]),
    "WRITE over borders": Case(lambda lba, _: (write_16(lba + 5, 8), NEW),
                               lambda old: old[:2560] + NEW + old[6656:]),
    "READ, FUA": Case(lambda lba, _: (read_16(lba, 16, FUA), b""), answer=lambda old: old[:8192]),
    "VERIFY": Case(lambda lba, _: (ten(0x2F, lba, 32), b"")),
    "VERIFY, BYTCHK": Case(lambda lba, old: (ten(0x2F, lba, 32, BYTES_COMPARED), old[:16384])),
    "WRITE AND VERIFY": Case(lambda lba, _: (ten(0x2E, lba + 4, 4), NEW[:2048]),
                             lambda old: old[:2048] + NEW[:2048] + old[4096:]),
    "COMPARE AND WRITE": Case(lambda lba, old: (compare_and_write(lba + 1, 1), old[512:1024] + NEW[:512]),
                              lambda old: old[:512] + NEW[:512] + old[1024:]),
    "ORWRITE": Case(lambda lba, _: (sixteen(0x8B, lba, 8), NEW), lambda old: mixed(old[:4096], NEW) + old[4096:]),
    "WRITE ATOMIC": Case(lambda lba, _: (write_atomic(lba + 8, 8), NEW), lambda old: old[:4096] + NEW + old[8192:]),
    "WRITE SAME": Case(lambda lba, _: (sixteen(0x93, lba + 1, 15), NEW[:512]),
                       lambda old: old[:512] + NEW[:512] * 15 + old[8192:]),
    "WRITE SAME of zeros": Case(lambda lba, _: (sixteen(0x93, lba + 1, 15), bytes(512)),
                                lambda old: old[:512] + bytes(7680) + old[8192:]),
    "UNMAP": Case(lambda lba, _: (unmap(40), unmap_list((lba + 1, 8), (lba + 16, 16))),
                  lambda old: old[:512] + bytes(4096) + old[4608:8192] + bytes(8192) + old[16384:]),
    "GET LBA STATUS": Case(lambda lba, _: (get_lba_status(lba + 8, 24), b""), answer=lambda _: MAPPED),
}


def sleepy(workshop: Workshop, prepare: Callable[[Volume], None]) -> Volume:
    """A volume none of which is in memory but what a mount reads."""
    volume = workshop.format(64 * MIB)
    lun = volume.create_lun("disk", SIZE)
    for place, data in zip(PLACES, OLD, strict=True):
        lun.write(place, data)
    checkpoint(volume)
    prepare(volume)
    reclaim(volume)
    return workshop.mount(SleepyDevice(bytearray(volume.device.image)))  # type: ignore[attr-defined]


def plain(volume: Volume) -> None:
    """The LUN as it was written."""


def backed(volume: Volume) -> None:
    """The LUN is another one, which reads through a snapshot of it."""
    take_snapshot(volume, "base")
    volume.destroy_lun("disk")
    volume.create_lun("disk", backing=("base", "disk"))


def adopted(volume: Volume) -> None:
    """Another LUN names the same blocks, by shared pointer blocks."""
    backed(volume)
    lun = volume.lun("disk")
    while (index := lun.next_missing(0)) is not None:
        assert lun.adopt(index)
    checkpoint(volume)
    lun.detach()
    checkpoint(volume)
    twin = volume.create_lun("twin", SIZE)
    for place in PLACES:
        assert twin.share(place, lun, place, KEPT * BLOCK_BYTES)


def host_of(service: VolumeService) -> Host:
    device = TargetDevice(TARGET)
    device.when_warm = service.when_warm
    host = Host(device, {0: LogicalUnit(LunStore(service.volume.lun("disk"), service), ManualPlatform())})
    host.ready()
    return host


async def all_at_once(host: Host, commands: Sequence[tuple[bytes, bytes]]) -> list[Response]:
    """Sent together; their responses in the order of the commands, readers read."""
    tags, found = [], {}
    for cdb, data in commands:
        response = host.start(cdb, data)
        tags.append(host.tag)
        if response is not None:
            found[host.tag] = response
    async with asyncio.timeout(LIMIT_S):
        while len(found) + len(host.late) < len(tags):
            await asyncio.sleep(0)
    return [found.get(tag) or host.late[tag] for tag in tags]


@pytest.mark.parametrize("prepare", [plain, backed, adopted])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_loop_never_waits_for_the_disk(
    workshop: Workshop, case: Case, prepare: Callable[[Volume], None]
) -> None:
    volume = sleepy(workshop, prepare)
    device = volume.device
    assert isinstance(device, SleepyDevice)

    async def scene() -> list[bytes]:
        service = VolumeService(volume)
        service.start()
        host = host_of(service)
        before = dict(device.waits)
        responses = await all_at_once(host, [case.ask(at // 512, old) for at, old in zip(PLACES, OLD, strict=True)])
        assert [response.status for response in responses] == [0] * COUNT
        data = [host.data(response) for response in responses]
        assert device.waits["loop"] == before["loop"]
        # the levels of the tree, of the backing's tree, of the data: together, not each command by itself
        assert device.waits["thread"] - before["thread"] < COUNT
        assert device.asked or prepare is backed, "a new LUN has nothing that a write would change"
        await service.stop()
        return data

    answers = asyncio.run(scene())
    if case.answer(b"") == MAPPED:
        answers = [answer[16:] for answer in answers]
    assert answers == [case.answer(old) for old in OLD]
    assert contents(volume.lun("disk")) == [case.after(old) for old in OLD]


def contents(lun: Lun) -> list[bytes]:
    found = []
    for place in PLACES:
        data = bytearray(KEPT * BLOCK_BYTES)
        lun.read_into(place, memoryview(data))
        found.append(bytes(data))
    return found


def test_a_plain_write_to_cold_pointers_is_not_fast(workshop: Workshop) -> None:
    volume = sleepy(workshop, plain)

    async def scene() -> None:
        service = VolumeService(volume)
        service.start()
        host = host_of(service)
        assert isinstance(volume.device, SleepyDevice)
        before = volume.device.waits["loop"]
        cdbs = [write_16(place // 512, 8) for place in PLACES]
        buffer = memoryview(b"".join(cdbs))
        datas = [memoryview(NEW)] * COUNT
        assert not host.nexus.fast_write(lun_field(0), buffer, 0, datas[0])
        assert not host.nexus.fast_writes(lun_field(0), buffer, range(0, 16 * COUNT, 16), datas)
        assert volume.device.waits["loop"] == before
        assert volume.core.log is not None
        assert volume.core.log.fill_bytes == 0, "nothing has been done"
        await service.stop()

    asyncio.run(scene())


def test_a_long_write_happens_when_its_pointers_are_here(workshop: Workshop) -> None:
    """They are read while its data comes; if that was quicker, the write is one that waits like any other."""
    volume = sleepy(workshop, plain)

    async def scene() -> None:
        service = VolumeService(volume)
        service.start()
        host = host_of(service)
        device = volume.device
        assert isinstance(device, SleepyDevice)
        before = device.waits["loop"]
        placing = host.nexus.begin_write(lun_field(0), write_16(PLACES[1] // 512, 256).ljust(16, b"\0"), 256 * 512)
        assert placing is not None
        assert device.asked
        placing.add(memoryview(pattern(5, 256 * 512)))
        assert not host.nexus.end_write(lun_field(0), placing)
        for _ in range(8):  # level by level
            device.here |= device.coming
            if host.nexus.end_write(lun_field(0), placing):
                break
        assert device.waits["loop"] == before
        placing.drop()
        await service.stop()

    asyncio.run(scene())
    found = bytearray(256 * 512)
    volume.lun("disk").read_into(PLACES[1], memoryview(found))
    assert found == pattern(5, 256 * 512)
