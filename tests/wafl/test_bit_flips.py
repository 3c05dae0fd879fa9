"""One flipped bit anywhere in the metadata: reported or harmless, never a wrong byte, never an unnamed error, and no
more reads than a whole volume asks for.

FLIPS flips a tool; LAZYLUN_FLIPS in the environment makes it more.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice

import pytest

from tests.support.crash_device import MemoryDevice
from tests.support.volumes import EPOCH, checkpoint, pattern, take_snapshot
from tests.wafl.test_lun import read
from wafl import BLOCK_BYTES, Scrub, Volume, WaflError, buffers
from wafl.check import Severity, check
from wafl.format import FIRST_DATA_VBN, INODE, SNAPSHOT_ENTRY, EntryState, InodeType
from wafl.offline import Image, Root
from wafl.repair import repair
from wafl.salvage import Salvage

KIB = 1 << 10
FLIPS = int(os.environ.get("LAZYLUN_FLIPS", "500"))
READS = 5000
"""A tool that reads more blocks than this of a volume of 512 goes round in circles."""
LUN_BYTES = 64 * KIB

Contents = dict[str, bytes]


class CountingDevice(MemoryDevice):
    reads = 0

    def pread(self, offset: int, view: memoryview | bytearray) -> None:
        self.reads += 1
        assert self.reads < READS, "it reads and reads"
        super().pread(offset, view)


@dataclass(frozen=True)
class Subject:
    image: bytes
    contents: Contents
    """LUN, or SNAPSHOT/LUN -> its bytes."""
    trees: list[int]
    """Metadata blocks that a tree reaches."""
    copies: list[int]
    """Labels and fsinfo."""
    log: list[int]


def build() -> MemoryDevice:
    device = MemoryDevice(bytearray(2 << 20))
    Volume.format(device, name="vol0", now=EPOCH, log_bytes=256 * KIB)
    volume = Volume.mount(device)
    golden = volume.create_lun("golden", LUN_BYTES)
    golden.write(0, pattern(1, 5 * BLOCK_BYTES))
    take_snapshot(volume, "base")
    clone = volume.create_lun("clone", None, backing=("base", "golden"))
    clone.write(BLOCK_BYTES + 512, pattern(2, BLOCK_BYTES))
    golden.write(0, pattern(3, 2 * BLOCK_BYTES))
    odd = volume.create_lun("odd", 2 * LUN_BYTES)
    odd.write(0, pattern(4, 6 * BLOCK_BYTES))
    volume.create_lun("dead", LUN_BYTES).write(0, pattern(5, 2 * BLOCK_BYTES))
    take_snapshot(volume, "going")
    volume.resize_lun("odd", LUN_BYTES + 512)
    odd.unmap(0, LUN_BYTES + 512)  # a graveyard
    odd.write(8 * BLOCK_BYTES, pattern(6, BLOCK_BYTES))
    volume.destroy_lun("dead")
    volume.delete_snapshot("going")
    checkpoint(volume)
    # What the log alone has.
    golden.write(9 * BLOCK_BYTES, pattern(7, BLOCK_BYTES))
    odd.write(9 * BLOCK_BYTES, pattern(8, BLOCK_BYTES))
    return device


def contents_of(volume: Volume) -> Contents:
    found = {lun.name: read(lun, 0, lun.size_bytes) for lun in volume.luns()}
    for snapshot in volume.snapshots():
        for lun in volume.snapshot_luns(snapshot.name):
            view = volume.snapshot_lun(snapshot.name, lun.name)
            found[f"{snapshot.name}/{lun.name}"] = read(view, 0, view.size_bytes)  # type: ignore[arg-type]
    return found


def tree_blocks(image: Image) -> Iterator[int]:
    """Metadata blocks: all but the data of LUNs and of what was one."""
    fsinfo = image.fsinfo
    roots = [(Root.of(fsinfo, f"{name}_"), True) for name in ("summary", "snapshot_table", "ifile")]
    entries = [entry for _, entry in image.records(SNAPSHOT_ENTRY, roots[1][0], "") if entry["state"]]
    ifiles = [roots[2][0]] + [Root.of(e, "ifile_") for e in entries if e["state"] == EntryState.LIVE]
    roots += [(ifile, True) for ifile in ifiles[1:]]
    for ifile in ifiles:
        for _, inode in image.records(INODE, ifile, ""):
            if inode["type"]:
                roots.append((Root.of(inode), inode["type"] not in (InodeType.LUN, InodeType.ZOMBIE)))
    for root, table in roots:
        for node in image.walk(root, ""):
            yield node.vbn
            if table and node.level == 1:
                yield from node.vbns[node.vbns >= FIRST_DATA_VBN].tolist()


@pytest.fixture(scope="module")
def subject() -> Subject:
    image = bytes(build().image)
    offline = Image(MemoryDevice(bytearray(image)))
    geometry = offline.geometry
    copies = [*range(9), *range(geometry.tail_ring, geometry.blocks)]
    log = list(range(geometry.nvlog_start, geometry.nvlog_start + geometry.nvlog_blocks))
    whole = contents_of(Volume.mount(MemoryDevice(bytearray(image))))
    return Subject(image, whole, sorted(set(tree_blocks(offline))), copies, log)


def flips(subject: Subject, vbns: list[int], seed: int) -> Iterator[tuple[int, CountingDevice]]:
    """(vbn, device): every block in turn, another bit each time."""
    rng = random.Random(seed)
    for turn in range(FLIPS):
        vbn = vbns[turn % len(vbns)]
        device = CountingDevice(bytearray(subject.image))
        device.image[vbn * BLOCK_BYTES + rng.randrange(BLOCK_BYTES)] ^= 1 << rng.randrange(8)
        yield vbn, device


def compare(volume: Volume, wanted: Contents) -> None:
    """Every block is right or an error; no LUN is missing without one."""
    with suppress(WaflError, OSError):
        assert {lun.name for lun in volume.luns()} == {name for name in wanted if "/" not in name}
    for name, expected in wanted.items():
        with suppress(WaflError, OSError):
            snapshot, _, lun = name.rpartition("/")
            view = volume.snapshot_lun(snapshot, lun) if snapshot else volume.lun(lun)
            assert view.size_bytes == len(expected)
            block = memoryview(bytearray(BLOCK_BYTES))
            for at in range(0, len(expected), BLOCK_BYTES):
                piece = block[: min(BLOCK_BYTES, len(expected) - at)]
                try:
                    view.read_into(at, piece)
                except (WaflError, OSError):
                    continue
                assert piece == expected[at : at + BLOCK_BYTES], f"{name}, byte {at}"


def test_a_mounted_volume_reads_right_or_says_so(subject: Subject) -> None:
    for _, device in flips(subject, subject.trees + subject.copies, 1):
        with suppress(WaflError, OSError):
            volume = Volume.mount(device, cache_bytes=1 << 20)
            device.reads = 0
            compare(volume, subject.contents)
            with suppress(WaflError, OSError):
                volume.reclaim_now()
            compare(volume, subject.contents)


def test_a_flip_in_the_log_costs_no_more_than_what_was_not_flushed(subject: Subject) -> None:
    before = {name: bytes(data) for name, data in subject.contents.items()}
    for name in ("golden", "odd"):
        before[name] = before[name][: 9 * BLOCK_BYTES] + bytes(BLOCK_BYTES) + before[name][10 * BLOCK_BYTES :]
    half = before | {"golden": subject.contents["golden"]}
    for _, device in flips(subject, subject.log, 2):
        with suppress(WaflError, OSError):
            volume = Volume.mount(device, cache_bytes=1 << 20)
            device.reads = 0
            assert contents_of(volume) in (subject.contents, half, before)


def test_the_checker_reports_every_flip_in_a_tree(subject: Subject) -> None:
    for vbn, device in flips(subject, subject.trees + subject.copies[:1] + subject.copies[-1:], 3):
        findings = check(device)
        assert [found for found in findings if found.severity > Severity.NOTE], vbn


def test_the_scrub_reports_every_flip(subject: Subject) -> None:
    volume = Volume.mount(CountingDevice(bytearray(subject.image)), read_only=True)
    device: CountingDevice = volume.device  # type: ignore[assignment]
    rng = random.Random(4)
    places = subject.trees + subject.copies
    for turn in range(FLIPS):
        vbn = places[turn % len(places)]
        at, bit = vbn * BLOCK_BYTES + rng.randrange(BLOCK_BYTES), 1 << rng.randrange(8)
        device.reads, device.image[at] = 0, device.image[at] ^ bit
        done = Scrub(volume)
        while (part := done.plan()) is not None:
            part.read()
            part.release()
        assert done.bad_count, vbn
        device.image[at] ^= bit


def logless(contents: Contents) -> Contents:
    """What salvage, which reads no log, can find."""
    found = dict(contents)
    for name in ("golden", "odd"):
        found[name] = found[name][: 9 * BLOCK_BYTES] + bytes(BLOCK_BYTES) + found[name][10 * BLOCK_BYTES :]
    return found


def test_salvage_never_copies_a_wrong_byte(subject: Subject) -> None:
    wanted = logless(subject.contents)
    newest = Image(MemoryDevice(bytearray(subject.image))).fsinfo["generation"]
    for _, device in flips(subject, subject.trees + subject.copies, 5):
        found = Salvage(device)
        for lun in found.luns():
            expected = wanted.get(f"{lun.snapshot}/{lun.name}" if lun.snapshot else lun.name)
            # An older consistency point has the LUN as it was then.
            if lun.root is None or expected is None or (not lun.snapshot and lun.generation != newest):
                continue
            fd = os.memfd_create("copy")
            with suppress(WaflError):
                os.ftruncate(fd, lun.size_bytes)
                done = found.copy_to(lun, fd)
                copied = os.pread(fd, lun.size_bytes, 0)
                for offset, length in done.lost:
                    expected = expected[:offset] + bytes(length) + expected[offset + length :]
                assert copied == expected, lun.path
            os.close(fd)



def test_repair_makes_it_good_or_refuses(subject: Subject) -> None:
    # Without records in the log, or it refuses every time.
    mounted = Volume.mount(MemoryDevice(bytearray(subject.image)))
    mounted.close()
    image = bytes(mounted.device.image)  # type: ignore[attr-defined]
    closed = Subject(image, subject.contents, sorted(set(tree_blocks(Image(MemoryDevice(bytearray(image)))))), [], [])
    for _, device in islice(flips(closed, closed.trees + subject.copies, 6), 0, None, 8):
        with suppress(WaflError, OSError):
            repair(device)
            device.reads = 0
            compare(Volume.mount(device), subject.contents)


class Anything(int):
    """A checksum that fits every pointer."""

    def __ne__(self, other: object) -> bool:
        return False

    __hash__ = int.__hash__


def test_the_harness_catches_pointer_blocks_that_nobody_verifies(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buffers, "crc32c", lambda data: Anything(0))
    with pytest.raises(Exception):  # noqa: B017, PT011  # a wrong byte, or an error that has no name
        test_a_mounted_volume_reads_right_or_says_so(subject)
