"""Changing a volume behind its back: blocks are rewritten, and every checksum above them is made right again."""

from __future__ import annotations

from crc32c import crc32c

from tests.support.crash_device import MemoryDevice
from tests.support.volumes import EPOCH, MIB, checkpoint, pattern, take_snapshot
from wafl import BLOCK_BYTES, Volume
from wafl.format import (
    ACTIVE_MAP_INODE,
    FSINFO,
    INODE,
    SNAPSHOT_ENTRY,
    VTOC_ENTRY,
    VTOC_INODE,
    decode_text,
    seal,
)
from wafl.offline import Fields, Image, Root


def make_volume() -> MemoryDevice:
    """One that has everything: LUNs, a snapshot, a clone, a shrunk LUN's graveyard, a snapshot being deleted."""
    device = MemoryDevice(bytearray(8 * MIB))
    Volume.format(device, name="vol0", now=EPOCH)
    volume = Volume.mount(device)
    golden = volume.create_lun("golden", 3 * MIB)
    golden.write(0, pattern(1, 300 * BLOCK_BYTES))
    take_snapshot(volume, "base")
    clone = volume.create_lun("clone", None, backing=("base", "golden"))
    clone.write(5 * BLOCK_BYTES, pattern(2, BLOCK_BYTES + 512))
    take_snapshot(volume, "going")
    golden.write(0, pattern(3, 10 * BLOCK_BYTES))
    odd = volume.create_lun("odd", 2 * MIB + 512)
    odd.write(MIB, pattern(4, MIB + 512))
    checkpoint(volume)
    volume.resize_lun("odd", 512)
    volume.delete_snapshot("going")
    checkpoint(volume)
    volume.close()
    return device


class Tamper:
    """Rewrites blocks in place and makes every checksum up to fsinfo right again."""

    def __init__(self, device: MemoryDevice) -> None:
        self.device = device
        self.image = Image(device)
        self.fsinfo = dict(self.image.fsinfo)
        self.ifile = Root.of(self.fsinfo, "ifile_")

    def inode(self, number: int) -> Fields:
        return self.image.inodes(self.ifile, "")[number]

    def lun(self, name: str) -> Fields:
        entries = self.image.vtoc(Root.of(self.inode(VTOC_INODE)), "")
        return next(entry for entry in entries if decode_text(entry["name"]) == name)

    def path(self, root: Root, fbn: int) -> list[tuple[int, int]]:
        """(vbn of a pointer block, slot) from the root down to the block `fbn`."""
        found, vbn, crc = [], root.vbn, root.crc
        for level in range(root.height, 0, -1):
            slot = fbn // 256 ** (level - 1) % 256
            found.append((vbn, slot))
            raw = self.image.load(vbn, crc, "")
            assert raw is not None
            vbn = int.from_bytes(raw[slot * 8 : slot * 8 + 8], "little")
            crc = int.from_bytes(raw[2048 + slot * 4 : 2052 + slot * 4], "little")
        return [*found, (vbn, 0)]

    def block(self, vbn: int) -> bytearray:
        return bytearray(self.device.image[vbn * BLOCK_BYTES : (vbn + 1) * BLOCK_BYTES])

    def put(self, vbn: int, data: bytes) -> None:
        self.device.image[vbn * BLOCK_BYTES : (vbn + 1) * BLOCK_BYTES] = data

    def change_file(self, root: Root, offset: int, data: bytes) -> int:
        """Overwrite bytes of a file; its new root checksum."""
        path = self.path(root, offset // BLOCK_BYTES)
        at = path[-1][0]
        block = self.block(at)
        block[offset % BLOCK_BYTES : offset % BLOCK_BYTES + len(data)] = data
        return self.reseal(path, block)

    def change_pointer(self, root: Root, fbn: int, vbn: int | None = None, birth: int | None = None) -> int:
        path = self.path(root, fbn)[:-1]
        at, slot = path[-1]
        block = self.block(at)
        if vbn is not None:
            block[slot * 8 : slot * 8 + 8] = vbn.to_bytes(8, "little")
            block[2048 + slot * 4 : 2052 + slot * 4] = crc_of(self.block(vbn)).to_bytes(4, "little")
        if birth is not None:
            block[3072 + slot * 4 : 3076 + slot * 4] = birth.to_bytes(4, "little")
        return self.reseal(path, block)

    def reseal(self, path: list[tuple[int, int]], block: bytearray) -> int:
        for (vbn, _), (parent, slot) in zip(reversed(path), [*reversed(path[:-1]), (0, 0)], strict=True):
            self.put(vbn, block)
            crc = crc_of(block)
            if parent:
                block = self.block(parent)
                block[2048 + slot * 4 : 2052 + slot * 4] = crc.to_bytes(4, "little")
        return crc

    def change_inode(self, which: int, **values: int) -> None:
        fields = self.inode(which) | values
        self.fsinfo["ifile_root_crc"] = self.change_file(self.ifile, which * INODE.size, INODE.pack(**fields))
        self.write_fsinfo()

    def change_lun(self, which: str, **values: object) -> None:
        fields = self.lun(which)
        vtoc = self.inode(VTOC_INODE)
        slots = {entry["name"]: slot for slot, entry in self.image.records(VTOC_ENTRY, Root.of(vtoc), "")}
        entry = VTOC_ENTRY.pack(**fields | values)
        crc = self.change_file(Root.of(vtoc), slots[fields["name"]] * VTOC_ENTRY.size, entry)
        self.change_inode(VTOC_INODE, root_crc=crc)

    def change_map_bit(self, vbn: int) -> None:
        inode = self.inode(ACTIVE_MAP_INODE)
        byte = self.image.contents(Root.of(inode), "")[vbn // 8] ^ 1 << vbn % 8
        crc = self.change_file(Root.of(inode), vbn // 8, bytes([byte]))
        self.change_inode(ACTIVE_MAP_INODE, root_crc=crc)

    def change_summary_bit(self, vbn: int) -> None:
        root = Root.of(self.fsinfo, "summary_")
        byte = self.image.contents(root, "")[vbn // 8] ^ 1 << vbn % 8
        self.fsinfo["summary_root_crc"] = self.change_file(root, vbn // 8, bytes([byte]))
        self.write_fsinfo()

    def change_snapshot(self, name: str, **values: object) -> None:
        root = Root.of(self.fsinfo, "snapshot_table_")
        for slot, entry in self.image.records(SNAPSHOT_ENTRY, root, ""):
            if decode_text(entry["name"]) == name:
                data = SNAPSHOT_ENTRY.pack(**entry | values)
                self.fsinfo["snapshot_table_root_crc"] = self.change_file(root, slot * SNAPSHOT_ENTRY.size, data)
                self.write_fsinfo()

    def write_fsinfo(self, **values: int) -> None:
        self.fsinfo |= values
        for vbn in self.image.geometry.fsinfo_vbns(self.fsinfo["generation"]):
            self.put(vbn, seal(FSINFO, **self.fsinfo | {"vbn": vbn}))
        self.image = Image(self.device)
        self.ifile = Root.of(self.fsinfo, "ifile_")

    def lun_root(self, name: str) -> tuple[int, Root]:
        number = self.lun(name)["inode"]
        return number, Root.of(self.inode(number))

    def free_vbn(self) -> int:
        """A block that nothing uses."""
        active = self.image.map_bits(Root.of(self.inode(ACTIVE_MAP_INODE)), "")
        summary = self.image.map_bits(Root.of(self.fsinfo, "summary_"), "")
        return int((~(active | summary)).nonzero()[0][0])

    def vbn_of(self, name: str, fbn: int) -> int:
        return self.path(self.lun_root(name)[1], fbn)[-1][0]


def crc_of(block: bytes | bytearray) -> int:
    return int(crc32c(block))
