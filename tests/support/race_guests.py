"""A small clone, prepared once and mounted as often as wanted, and all that hosts and administrators may do to it.

Hosts go through the SCSI device server on the real store.  Every act keeps the model in step; where the clone's job
must not end as completed the act says so.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable
from dataclasses import dataclass, field

from target.iscsi.ports import Response
from target.lun_store import LunStore
from target.nexus import LogicalUnit, TargetDevice
from tests.support.crash_device import MemoryDevice
from tests.support.manual_platform import ManualPlatform
from tests.support.scsi_host import TARGET, Host, compare_and_write, sixteen, unmap, unmap_list, write_16
from tests.support.volume_model import ModelLun
from tests.support.volumes import MIB, Workshop, checkpoint, pattern, reclaim, take_snapshot
from wafl import BLOCK_BYTES, Lun, Volume, VolumeService

LUN_BLOCKS = 300
LUN_BYTES = LUN_BLOCKS * BLOCK_BYTES
BLOCKS = [*range(24), 30, 32, *range(250, 262), 299]
SECTOR = 512
SECTORS = BLOCK_BYTES // SECTOR
WRITE_SAME_16, UNMAP_BIT = 0x93, 8


@functools.cache
def prepared(parent_gone: bool) -> bytes:
    """The image: golden, its snapshot base, clone on top of it, a snapshot early of both, and a donor."""
    workshop = Workshop()
    volume = workshop.format(4 * MIB)
    golden = volume.create_lun("golden", LUN_BYTES)
    for block in BLOCKS:
        golden.write(block * BLOCK_BYTES, pattern(block + 1, BLOCK_BYTES))
    take_snapshot(volume, "base")
    volume.create_lun("clone", None, backing=("base", "golden"))
    donor = volume.create_lun("donor", 64 * BLOCK_BYTES)
    donor.write(0, pattern(4321, 32 * BLOCK_BYTES))
    take_snapshot(volume, "early")
    if parent_gone:
        volume.destroy_lun("golden")
        reclaim(volume)
    checkpoint(volume)
    image = bytes(volume.device.image)  # type: ignore[attr-defined]
    workshop.finish()
    return image


@dataclass
class Scene:
    """One mounted copy of it."""

    workshop: Workshop = field(default_factory=Workshop)
    volume: Volume = field(init=False)
    clone: Lun = field(init=False)
    model: ModelLun = field(init=False)
    gone: bool = False
    """The clone has been destroyed."""
    parent_gone: bool = False
    """Only snapshots have what the clone misses."""

    def __post_init__(self) -> None:
        self.volume = self.workshop.mount(MemoryDevice(bytearray(prepared(self.parent_gone))))
        self.clone = self.volume.lun("clone")
        self.model = golden()
        service = VolumeService(self.volume)
        units = {
            number: LogicalUnit(LunStore(lun, service), ManualPlatform())
            for number, lun in enumerate((self.clone, self.volume.lun("donor")))
        }
        self.platforms = [unit.platform for unit in units.values()]
        self.host = Host(TargetDevice(TARGET), units)  # type: ignore[arg-type]
        for number in units:
            self.host.ready(number)

    def send(self, cdb: bytes, data: bytes = b"") -> Response:
        """To the clone; what the command leaves for later is done at once."""
        found = self.host.start(cdb, data)
        while found is None:
            for platform in self.platforms:
                assert isinstance(platform, ManualPlatform)
                if platform.calls:
                    platform.step()
            found = self.host.late.pop(self.host.tag, None)
        return found

    def good(self, cdb: bytes, data: bytes = b"") -> None:
        if not self.gone:
            assert self.send(cdb, data).status == 0

    def reads_right(self) -> bool:
        if self.gone:
            return True
        data = bytearray(self.model.size_bytes)
        self.clone.read_into(0, memoryview(data))
        return data == self.model.read(0, self.model.size_bytes)


def golden() -> ModelLun:
    model = ModelLun(LUN_BYTES)
    for block in BLOCKS:
        model.write(block * BLOCK_BYTES, pattern(block + 1, BLOCK_BYTES))
    return model


# -- what may be done


def write(scene: Scene, seed: int, sector: int, sectors: int) -> None:
    data = pattern(seed, sectors * SECTOR)
    scene.good(write_16(sector, sectors), data)
    scene.model.write(sector * SECTOR, data)


def clear(scene: Scene, sector: int, sectors: int) -> None:
    ranges = unmap_list((sector, sectors))
    scene.good(unmap(len(ranges)), ranges)
    # Whole blocks are given back; the parts at the ends become zeros too.
    scene.model.unmap(sector * SECTOR, sectors * SECTOR)


def write_same(scene: Scene, seed: int, sector: int, sectors: int) -> None:
    data = pattern(seed, SECTOR)
    scene.good(sixteen(WRITE_SAME_16, sector, sectors), data)
    scene.model.write(sector * SECTOR, data * sectors)


def write_same_zeros(scene: Scene, seed: int, sector: int, sectors: int) -> None:
    scene.good(sixteen(WRITE_SAME_16, sector, sectors, UNMAP_BIT), bytes(SECTOR))
    scene.model.unmap(sector * SECTOR, sectors * SECTOR)


def compare_write(scene: Scene, seed: int, sector: int, sectors: int) -> None:
    """It must find what the guest left there, whether the clone's fill was before or after."""
    data = pattern(seed, sectors * SECTOR)
    expected = scene.model.read(sector * SECTOR, sectors * SECTOR)
    scene.good(compare_and_write(sector, sectors), expected + data)
    scene.model.write(sector * SECTOR, data)


def copy_in(scene: Scene, seed: int, sector: int, sectors: int) -> None:
    """EXTENDED COPY of the donor's first blocks, from a sector that the seed chooses."""
    naas = [lun.naa for lun in (scene.clone, scene.volume.lun("donor"))]
    cscds = [
        struct.pack(">BBHBBBB20sB3s", 0xE4, 0, 0, 1, 3, 0, len(naa), naa, 0, SECTOR.to_bytes(3, "big")) for naa in naas
    ]
    at = seed % SECTORS
    segment = struct.pack(">BBHHHHHQQ", 2, 0, 24, 1, 0, 0, sectors, at, sector)
    sent = struct.pack(">BBH4xII", 1, 0, sum(map(len, cscds)), len(segment), 0) + b"".join(cscds) + segment
    scene.good(struct.pack(">BB8xIBB", 0x83, 0, len(sent), 0, 0), sent)
    donor = pattern(4321, 32 * BLOCK_BYTES)
    scene.model.write(sector * SECTOR, donor[at * SECTOR : (at + sectors) * SECTOR])


def resize(scene: Scene, sectors: int) -> None:
    """Shrunk to so many sectors, and grown again: what was cut off is zeros."""
    if not scene.gone:
        for size in (sectors * SECTOR, LUN_BYTES):
            scene.volume.resize_lun("clone", size)
    for size in (sectors * SECTOR, LUN_BYTES):
        scene.model.resize(size)


def snapshot(scene: Scene, seed: int) -> None:
    scene.volume.request_snapshot(f"taken{seed}")


def delete_snapshot(scene: Scene) -> None:
    if "early" in scene.volume.snapshot_names() and not scene.volume.snapshot("early").busy:
        scene.volume.delete_snapshot("early")


def restore(scene: Scene) -> None:
    if not scene.gone and "early" in scene.volume.snapshot_names():
        scene.volume.restore("early", "clone")
        scene.model.blocks = golden().blocks
        # Hosts are told: READ and WRITE go on after the unit attention (management does this).
        scene.host.nexus.find(0).lu.contents_changed(resized=False)  # type: ignore[union-attr]
        scene.host.ready()


def destroy(scene: Scene) -> None:
    if not scene.gone:
        scene.gone = True
        scene.volume.destroy_lun("clone")


def offline(scene: Scene) -> None:
    if not scene.gone:
        scene.clone.set_online(False)
        assert scene.send(write_16(0, 1), bytes(SECTOR)).status == 2
        scene.clone.set_online(True)


Act = Callable[[Scene], None]

# Over whole blocks, parts of blocks, holes of the backing, and the border of two level-1 ranges.
ACTS: dict[str, Act] = {
    "WRITE": lambda scene: write(scene, 70, 4 * SECTORS, 16 * SECTORS),
    "WRITE over the border of two level-1 ranges": lambda scene: write(scene, 71, 254 * SECTORS, 4 * SECTORS),
    "sub-block WRITE": lambda scene: write(scene, 72, 5 * SECTORS + 2, 3),
    "sub-block WRITE over two blocks": lambda scene: write(scene, 73, 7 * SECTORS - 3, 6),
    "UNMAP": lambda scene: clear(scene, 4 * SECTORS, 18 * SECTORS),
    "UNMAP of parts": lambda scene: clear(scene, 3 * SECTORS + 4, 15 * SECTORS + 1),
    "WRITE SAME": lambda scene: write_same(scene, 74, 5 * SECTORS + 3, 24),
    "WRITE SAME of zeros": lambda scene: write_same_zeros(scene, 0, 4 * SECTORS, 8 * SECTORS),
    "COMPARE AND WRITE": lambda scene: compare_write(scene, 75, 6 * SECTORS + 2, 4),
    "EXTENDED COPY": lambda scene: copy_in(scene, 3, 5 * SECTORS, 12 * SECTORS),
    "EXTENDED COPY of whole blocks": lambda scene: copy_in(scene, 0, 250 * SECTORS, 12 * SECTORS),
    "resize": lambda scene: resize(scene, 20 * SECTORS + 3),
    "snapshot create": lambda scene: snapshot(scene, 0),
    "snapshot delete": delete_snapshot,
    "restore": restore,
    "destroy": destroy,
    "offline": offline,
}
