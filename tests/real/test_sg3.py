"""sg3-utils on a Linux host: what administrators and test labs type at a disk, and what the target answers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.real.conftest import check_volumes, unavailable_without
from tests.support.lund import MIB, Lund
from tests.support.netns import Namespace
from tests.support.openiscsi import OpenIscsi
from tests.support.uml import Result, UmlHost

DISK, OTHER = "/vol/vol0/disk", "/vol/vol0/other"
BLOCKS = 64 * MIB // 512
NOT_ALLOWED, UNIT_ATTENTION, INVALID_OPCODE, MISCOMPARE, OUT_OF_RANGE, CONFLICT = 5, 6, 9, 14, 22, 24
"""Exit statuses that all of these tools share."""


@dataclass(frozen=True)
class Bench:
    """A host with two LUNs; `sg` runs a tool on the first, or on what is named instead."""

    lund: Lund
    host: UmlHost
    disk: str
    other: str

    def sg(self, *argv: str, expect: int = 0) -> str:
        result: Result = self.host.run(*argv, self.disk, check=False)
        assert result.code == expect, result
        return result.text

    def generic(self, disk: str) -> str:
        """The sg node of a disk."""
        return "/dev/" + self.host.sh(f"ls /sys/block/{disk.removeprefix('/dev/')}/device/scsi_generic").out.strip()

    def status_at(self, lba: int) -> tuple[int, str]:
        """The first descriptor of GET LBA STATUS: blocks and state."""
        said = self.sg("sg_get_lba_status", f"--lba={lba}")
        found = re.search(r"LBA: 0x([0-9a-f]+)  blocks: +(\d+)  (\w+)", said)
        assert found is not None, said
        assert int(found[1], 16) == lba
        return int(found[2]), found[3]

    def contents(self, lba: int, blocks: int) -> str:
        """A checksum of what the disk holds there, past the host's cache."""
        span = f"skip={lba * 512} count={blocks * 512} iflag=direct,skip_bytes,count_bytes"
        return self.host.sh(f"dd if={self.disk} bs=1M {span} status=none | sha256sum").out.split()[0]

    def file(self, name: str, blocks: int) -> str:
        """Random bytes; their checksum."""
        script = f"dd if=/dev/urandom of=/tmp/{name} bs=512 count={blocks} status=none; sha256sum /tmp/{name}"
        return self.host.sh(script).out.split()[0]

    def fill(self, mib: int) -> None:
        self.host.sh(f"dd if=/dev/urandom of={self.disk} bs=1M count={mib} oflag=direct status=none")


@pytest.fixture(scope="module")
def logged_in(namespace: Namespace, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    unavailable_without("sg_inq", "sg_xcopy", "sg_stpg")
    directory = tmp_path_factory.mktemp("sg3")
    with Lund(namespace, directory / "state") as lund, UmlHost(namespace, directory) as host:
        lund.add_volume()
        lund.add_lun(DISK, 64 * MIB)
        lund.add_lun(OTHER, 64 * MIB, lun_id=1)
        iscsi, target = OpenIscsi(host), lund.target()
        iscsi.login(target)
        yield Bench(lund, host, iscsi.disk(target), iscsi.disk(target, 1))
        iscsi.logout(target)
    check_volumes(lund)


@pytest.fixture
def bench(logged_in: Bench) -> Bench:
    """Two empty disks."""
    logged_in.host.sh(f"blkdiscard {logged_in.disk}; blkdiscard {logged_in.other}")
    return logged_in


def test_what_a_disk_says_of_itself(bench: Bench) -> None:
    lun = bench.lund.get("luns/vol0/disk")
    assert "LAZYLUN" in bench.sg("sg_inq")
    pages = bench.sg("sg_inq", "--vpd", "--page=0", "--raw")
    for page in ("sv", "sn", "di", "ei", "mpp", "sp", "tpc", "bl", "bdc", "lbpv"):
        assert bench.sg("sg_vpd", f"--page={page}"), pages
    bench.sg("sg_vpd", "--all")
    assert lun["serial"] in bench.sg("sg_vpd", "--page=sn")
    assert lun["naa"].removeprefix("0x") in bench.sg("sg_vpd", "--page=di")
    bench.sg("sg_vpd", "--page=0xb6", expect=83)  # zoned: there is none
    capacity = bench.sg("sg_readcap", "--long")
    assert f"Number of logical blocks={BLOCKS}" in capacity
    assert "lbpme=1, lbprz=1" in capacity
    assert bench.sg("sg_luns").count("\n    000") == 2
    for tool in ("sg_turs", "sg_requests", "sg_timestamp", "sg_verify"):
        bench.sg(tool)


def test_every_command_and_its_usage_mask(bench: Bench) -> None:
    commands = bench.sg("sg_opcodes", "--mask")
    for name in ("Orwrite", "Pre-fetch(16)", "Sanitize, overwrite", "Get LBA status", "Write atomic(16)",
                 "Compare and write", "Extended copy(LID1)", "Populate token", "Write using token",
                 "Set target port groups", "Write same(16)", "Unmap"):  # fmt: skip
        assert name.lower() in commands.lower()
    assert "Command is supported" in bench.sg("sg_opcodes", "--opcode=0x9e,0x12", "--rctd")
    assert "NOT supported" in bench.sg("sg_opcodes", "--opcode=0x99")
    functions = bench.sg("sg_opcodes", "--tmf")
    for name in ("Abort task set", "Clear task set", "Logical unit reset"):
        assert name in functions
    bench.sg("sg_rep_zones", expect=INVALID_OPCODE)
    bench.sg("sg_read_block_limits", expect=INVALID_OPCODE)


def test_mode_pages_and_log_pages(bench: Bench) -> None:
    assert "Caching" in bench.sg("sg_modes", "--all")
    assert "8a 0a 00 10" in bench.sg("sg_modes", "--page=0xa")
    for descriptor_sense in (4, 0):
        contents = f"a,0a,{descriptor_sense},10,0,40,0,0,ff,ff,0,0"
        bench.sg("sg_wr_mode", "--page=0xa", f"--contents={contents}")
        assert f"8a 0a 0{descriptor_sense} 10" in bench.sg("sg_modes", "--page=0xa")
        said = bench.sg("sg_read_block_limits", "--verbose", expect=INVALID_OPCODE)
        assert ("Descriptor format" if descriptor_sense else "Fixed format") in said
    no_cache = ",".join(["8", "12", *["0"] * 18])
    bench.sg("sg_wr_mode", "--page=8", f"--contents={no_cache}", expect=NOT_ALLOWED)
    bench.fill(4)
    logs = bench.sg("sg_logs", "--all")
    assert "Used LBA mapping threshold resource count: 4" in logs


def test_provisioning(bench: Bench) -> None:
    bench.fill(4)
    assert bench.status_at(0) == (8192, "mapped")
    bench.sg("sg_unmap", "--lba=8", "--num=16", "--force")
    assert bench.status_at(0) == (8, "mapped")
    assert bench.status_at(8) == (16, "deallocated")
    zeros = bench.contents(BLOCKS - 64, 64)
    bench.sg("sg_write_same", "--16", "--lba=4096", "--num=64", "--ff", "--xferlen=512")
    assert bench.status_at(4096) == (4096, "mapped")
    assert bench.contents(4096, 64) != zeros
    unmap = ("--lba=4096", "--num=64", "--xferlen=512", "--in=/dev/zero", "--unmap")
    bench.sg("sg_write_same", "--10", *unmap)
    assert bench.status_at(4096) == (64, "deallocated")
    assert bench.contents(4096, 64) == zeros
    bench.sg("sg_write_same", "--16", "--lba=0", "--num=8", "--ndob")
    assert bench.status_at(0) == (24, "deallocated")
    bench.sg("sg_get_lba_status", f"--lba={BLOCKS}", expect=OUT_OF_RANGE)
    bench.sg("sg_unmap", "--all=0,2048", "--force")
    assert bench.status_at(0) == (BLOCKS, "deallocated")


def test_writes_of_a_special_kind(bench: Bench) -> None:
    bench.fill(1)
    bench.host.sh(f"dd if={bench.disk} of=/tmp/old bs=512 count=8 iflag=direct status=none")
    new = bench.file("new", 8)
    swap = ("sg_compare_and_write", "--in=/tmp/old", "--inw=/tmp/new", "--lba=0", "--num=8", "--xferlen=8192")
    bench.sg(*swap)
    assert bench.contents(0, 8) == new
    assert "Miscompare at byte offset" in bench.sg(*swap, expect=MISCOMPARE)
    bench.sg("sg_write_x", "--atomic=0", "--in=/tmp/new", "--lba=64", "--num=8", "--bs=512")
    assert bench.contents(64, 8) == new
    bench.sg("sg_write_verify", "--16", "--lba=128", "--num=8", "--in=/tmp/new", "--ilen=4096")
    compare = ("--count=8", "--ndo=4096")
    bench.sg("sg_verify", "--lba=128", *compare, "--in=/tmp/new")
    bench.sg("sg_verify", "--lba=128", *compare, "--in=/tmp/old", expect=MISCOMPARE)
    bench.sg("sg_write_x", "--or", "--in=/tmp/new", "--lba=1024", "--num=8", "--bs=512")
    bench.sg("sg_sync")


def test_extended_copy(bench: Bench) -> None:
    assert "Copy from block device to block device" in bench.sg("sg_copy_results", "--params")
    bench.fill(2)
    source, destination = (f"{way}={bench.generic(disk)}" for way, disk in (("if", bench.disk), ("of", bench.other)))
    bench.host.run("sg_xcopy", source, destination, "bs=512", "count=2048", "skip=1024", "seek=4096")
    same = f"cmp --bytes=1048576 --ignore-initial={1024 * 512}:{4096 * 512} {bench.disk} {bench.other}"
    bench.host.sh(f"blockdev --flushbufs {bench.disk} {bench.other}; {same}")


def test_persistent_reservations(bench: Bench) -> None:
    key = "--param-rk=123abc"
    assert "NO registered reservation keys" in bench.sg("sg_persist", "--read-keys")
    assert "Persist Through Power Loss Capable(PTPL_C): 1" in bench.sg("sg_persist", "--report-capabilities")
    bench.sg("sg_persist", "--out", "--register", "--param-sark=123abc")
    bench.sg("sg_persist", "--out", "--reserve", key, "--prout-type=5")
    assert "Write Exclusive, registrants only" in bench.sg("sg_persist", "--read-reservation")
    assert "0x123abc" in bench.sg("sg_persist", "--read-full-status")
    bench.sg("sg_persist", "--out", "--release", "--param-rk=456def", "--prout-type=5", expect=CONFLICT)
    bench.sg("sg_persist", "--out", "--release", key, "--prout-type=5")
    bench.sg("sg_persist", "--out", "--clear", key)
    assert "NO registered reservation keys" in bench.sg("sg_persist", "--read-keys")


def test_target_port_groups(bench: Bench) -> None:
    def state() -> str:
        found = re.search(r"access state : 0x(\w+)", bench.sg("sg_rtpg", "--decode"))
        assert found is not None
        return found[1]

    assert state() == "00"
    bench.sg("sg_stpg", "--active")
    assert state() == "01"
    bench.sg("sg_stpg", "--optimized")
    assert state() == "00"


def test_erasing_starting_and_resetting(bench: Bench) -> None:
    zeros = bench.contents(0, 2048)
    for erase in (("sg_sanitize", "--block"), ("sg_sanitize", "--overwrite", "--pattern=/dev/zero", "--ipl=4"),
                  ("sg_format", "--format")):  # fmt: skip
        bench.fill(2)
        assert bench.contents(0, 2048) != zeros
        bench.sg(*erase, "--quick", "--wait")
        assert bench.contents(0, 2048) == zeros
    bench.sg("sg_sanitize", "--crypto", "--quick", expect=NOT_ALLOWED)
    bench.sg("sg_start", "--stop")
    bench.sg("sg_start", "--start")
    bench.sg("sg_start", "--eject", expect=NOT_ALLOWED)
    bench.sg("sg_reset", "--device")
    assert "Bus device reset function occurred" in bench.sg("sg_turs", expect=UNIT_ATTENTION)
    bench.sg("sg_turs")
