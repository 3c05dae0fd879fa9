"""READs that take several Data-In: the hot path answers as the book does, byte for byte."""

from __future__ import annotations

import random

import pytest

from target.iscsi import limits
from target.iscsi.constants import FINAL, Opcode
from tests.support.initiator import READ_10, Outcome, cdb_10
from tests.target.iscsi.conftest import Bench

SEGMENTS = [512, 8192, 10000, 65536, 262144]
BURSTS = [4096, 12288, 65536, 100_000, 1 << 20]


def on_the_wire(outcome: Outcome) -> list[tuple[bytes, bytes, bytes]]:
    """Headers and data; digests have been checked.  MaxCmdSN aside: the book counts the command until its last PDU."""
    return [(reply.raw[:32], reply.raw[36:48], reply.data) for reply in outcome.replies]


def read_both_ways(bench: Bench, keys: dict[str, str], lba: int, blocks: int) -> tuple[Outcome, Outcome]:
    bench.disk.data[:] = random.Random(1).randbytes(len(bench.disk.data))
    found = []
    for fast in (True, False):
        bench.disk.fast = fast
        found.append(bench.logged_in(keys=keys).read(lba, blocks))
    wanted = bench.disk.data[lba * 512 : (lba + blocks) * 512]
    assert found[0].data == found[1].data == wanted
    return found[0], found[1]


@pytest.mark.parametrize("blocks", [17, 600, 2048])
@pytest.mark.parametrize("burst", BURSTS)
@pytest.mark.parametrize("segment", SEGMENTS)
def test_pieces_are_those_of_the_book(bench: Bench, segment: int, burst: int, blocks: int) -> None:
    keys = {"MaxRecvDataSegmentLength": str(segment), "MaxBurstLength": str(burst), "FirstBurstLength": "512"}
    hot, book = read_both_ways(bench, keys, 3, blocks)
    assert on_the_wire(hot) == on_the_wire(book)


@pytest.mark.parametrize("digests", [("CRC32C", "None"), ("None", "CRC32C"), ("CRC32C", "CRC32C")])
def test_pieces_have_their_digests(bench: Bench, digests: tuple[str, str]) -> None:
    keys = {"HeaderDigest": digests[0], "DataDigest": digests[1], "MaxRecvDataSegmentLength": "65536"}
    hot, book = read_both_ways(bench, keys, 0, 1024)
    assert on_the_wire(hot) == on_the_wire(book)


def test_a_long_read_is_done_by_the_hot_path(bench: Bench) -> None:
    initiator = bench.logged_in()
    bench.disk.seen.clear()
    assert initiator.read(0, 2048).status == 0
    assert bench.disk.seen == [], "nothing came to `execute`"


def test_one_that_no_output_buffer_holds_is_read_all_the_same(bench: Bench) -> None:
    blocks = limits.OUTPUT_BYTES // 512 + 8
    hot, book = read_both_ways(bench, {}, 1, blocks)
    assert on_the_wire(hot) == on_the_wire(book)


def test_two_that_do_not_fit_together_come_one_after_the_other(bench: Bench) -> None:
    bench.disk.data[:] = random.Random(2).randbytes(len(bench.disk.data))
    initiator = bench.logged_in()
    fields = {"flags": FINAL | 0x41, "edtl": 2048 * 512}
    wire = b"".join(
        initiator.encode(
            Opcode.SCSI_COMMAND, lun=0, itt=100 + number, cmd_sn=initiator.cmd_sn + number,
            cdb=cdb_10(READ_10, 2048 * number, 2048).ljust(16, b"\0"), **fields,
        )
        for number in range(2)
    )  # fmt: skip
    replies = initiator.link.send(wire)
    assert b"".join(reply.data for reply in replies) == bench.disk.data[: 4096 * 512]
    first, second = (reply.stat_sn for reply in replies if reply.flags & 1)
    assert second == first + 1
