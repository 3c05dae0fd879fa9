"""Two LUNs on a volume behind the real iSCSI core and device server, whose disk is driven by hand.

What a raw initiator does to it is done at once, in this thread; syncs and reads of the disk come when the test says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from target.lun_store import LunStore
from target.nexus import LogicalUnit, Nexus, TargetDevice
from tests.support.initiator import Initiator, Link, make_host
from tests.support.manual_platform import ManualPlatform
from tests.support.memory_target import TARGET, MemoryDirectory
from tests.support.sleepy_device import SleepyDevice
from tests.support.volumes import EPOCH
from wafl import Device, Volume, VolumeService
from wafl.service import FlushDone

TEST_UNIT_READY = bytes(6)


class ManualService(VolumeService):
    """Whoever waits for the disk waits for `sync` or `read`."""

    def __init__(self, volume: Volume) -> None:
        super().__init__(volume)
        self.flushes: list[FlushDone] = []
        self.warmers: list[Callable[[], None]] = []

    def flush(self, done: FlushDone) -> None:
        self.flushes.append(done)

    def when_durable(self, done: FlushDone, here: bool = False) -> bool:
        log = self.volume.core.log
        if log is not None and log.durable >= log.seq:
            return True
        self.flush(done)
        return False

    def when_warm(self, done: Callable[[], None]) -> bool:
        if self.volume.core.cold is None:
            return False
        self.warmers.append(done)
        return True

    def sync(self) -> None:
        self.volume.push_log()
        self.volume.sync()
        self.volume.core.synced()
        waiting, self.flushes = self.flushes, []
        for done in waiting:
            done(None)

    def read(self) -> None:
        self.volume.core.cold = None
        device = self.volume.device
        if isinstance(device, SleepyDevice):
            device.here |= device.coming
        waiting, self.warmers = self.warmers, []
        for done in waiting:
            done()


def image_of(size_bytes: int, luns: Mapping[str, bytes], snapshot: str = "", log_bytes: int | None = None) -> bytearray:
    """A volume's bytes, with these LUNs and what lies in them; the snapshot has them all."""
    device = SleepyDevice(bytearray(size_bytes))
    Volume.format(device, name="vol0", now=EPOCH, log_bytes=log_bytes)
    volume = Volume.mount(device)
    for name, data in luns.items():
        volume.create_lun(name, len(data)).write(0, data)
    if snapshot:
        volume.request_snapshot(snapshot)
    volume.commit_now()
    volume.close()
    return device.image


class WriteScene:
    """The volume of a device, mounted and served: its LUNs are LUN 0, 1 … in the order of their names."""

    def __init__(self, device: Device) -> None:
        self.volume = Volume.mount(device)
        self.volume.batch_log()
        self.service = ManualService(self.volume)
        self.target = TargetDevice(TARGET)
        self.target.before_answers = self.volume.push_log
        self.target.when_warm = self.service.when_warm
        self.target.when_durable = self.service.when_durable
        self.units = {number: self.unit(lun.name) for number, lun in enumerate(self.luns())}
        scene = self

        class Directory(MemoryDirectory):
            def open_nexus(self, initiator: str, isid: bytes, target: str, tpgt: int) -> Nexus:
                return scene.target.open_nexus(initiator, isid, scene.units)

        self.host = make_host(Directory({TARGET: None}))  # type: ignore[dict-item]

    def luns(self) -> list[Any]:
        return sorted(self.volume.luns(), key=lambda lun: lun.name)

    def unit(self, name: str) -> LogicalUnit:
        return LogicalUnit(LunStore(self.volume.lun(name), self.service), ManualPlatform())

    def initiator(self, keys: Mapping[str, str], isid: bytes = b"\x80\0\0\0\0\1", *, ready: bool = True) -> Initiator:
        """Logged in, its unit attentions taken."""
        initiator = Initiator(Link(self.host), keys=dict(keys), isid=isid)
        assert initiator.login().status_class == 0
        if ready:
            for lun in self.units:
                while initiator.command(TEST_UNIT_READY, lun=lun << 48).status:
                    pass
        return initiator

    @property
    def promised(self) -> int:
        return self.volume.core.allocator.promised

    def contents(self, name: str) -> bytes:
        lun = self.volume.lun(name)
        whole = bytearray(lun.size_bytes)
        lun.read_into(0, memoryview(whole))
        return bytes(whole)

    def fill(self, seed: int) -> None:
        """Somebody else writes to every block that is free."""
        filler = self.volume.create_lun("filler", 1 << 40, reserved=False)
        at = 0
        for blocks in (64, 1):
            data = b"%015d|" % seed * (256 * blocks)
            while self.volume.space().available >= 64 * 4096 + len(data):
                filler.write(at, data)
                at += len(data)
