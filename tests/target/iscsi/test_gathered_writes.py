"""WRITEs that come together are given to the device server together, and answered one by one as the book says."""

from __future__ import annotations

import pytest

from target.iscsi import hotpath
from target.iscsi.constants import FINAL, Opcode
from tests.support.initiator import READ_10, WRITE_10, Initiator, Reply, cdb_10
from tests.target.iscsi.conftest import Bench

WRITE_FLAGS, READ_FLAGS = FINAL | 0x21, FINAL | 0x41
DIGESTS = {"HeaderDigest": "CRC32C", "DataDigest": "CRC32C"}


class Batch:
    """PDUs that go out in one piece."""

    def __init__(self, initiator: Initiator) -> None:
        self.initiator, self.wire, self.count = initiator, b"", 0

    def _add(self, cdb: bytes, data: bytes = b"", **fields: int) -> None:
        one = self.initiator
        self.wire += one.encode(
            Opcode.SCSI_COMMAND, data, cdb=cdb.ljust(16, b"\0"), cmd_sn=one.cmd_sn + self.count, **fields
        )
        self.count += 1

    def write(self, lba: int, data: bytes, itt: int, lun: int = 0) -> Batch:
        flags = {"flags": WRITE_FLAGS, "edtl": len(data)}
        self._add(cdb_10(WRITE_10, lba, len(data) // 512), data, itt=itt, lun=lun, **flags)
        return self

    def read(self, lba: int, blocks: int, itt: int) -> Batch:
        self._add(cdb_10(READ_10, lba, blocks), itt=itt, lun=0, flags=READ_FLAGS, edtl=blocks * 512)
        return self

    def send(self) -> list[Reply]:
        replies = self.initiator.link.send(self.wire)
        self.initiator.cmd_sn += self.count
        return replies


def noise(number: int, length: int = 4096) -> bytes:
    return bytes((number * 7 + at) & 0xFF for at in range(length))


@pytest.mark.parametrize("fast", [True, False], ids=["fast", "refused"])
@pytest.mark.parametrize("keys", [{}, DIGESTS, {"HeaderDigest": "CRC32C"}, {"DataDigest": "CRC32C"}])
def test_each_is_answered_in_its_turn(bench: Bench, keys: dict[str, str], fast: bool) -> None:
    """Those that the fast way refuses are done by the book, each for itself."""
    bench.disk.fast = fast
    initiator = bench.logged_in(keys=keys)
    batch = Batch(initiator)
    for number in range(40):
        batch.write(number * 8, noise(number), itt=500 + number)
    replies = batch.send()
    assert [reply.itt for reply in replies] == list(range(500, 540))
    assert {(reply.opcode, reply.status) for reply in replies} == {(Opcode.SCSI_RESPONSE, 0)}
    numbers = [reply.stat_sn for reply in replies]
    assert numbers == list(range(numbers[0], numbers[0] + 40))
    assert [reply.exp_cmd_sn for reply in replies] == list(range(initiator.cmd_sn - 39, initiator.cmd_sn + 1))
    assert bench.disk.data[: 40 * 4096] == b"".join(map(noise, range(40)))
    assert bench.disk.gathered == [40]
    assert initiator.read(0, 8).data == noise(0)


def test_no_more_than_the_limit_at_a_time(bench: Bench) -> None:
    batch = Batch(bench.logged_in())
    count = hotpath.GATHERED_WRITES + 10
    for number in range(count):
        batch.write(number, noise(number, 512), itt=500 + number)
    assert len(batch.send()) == count
    assert bench.disk.gathered == [hotpath.GATHERED_WRITES, 10]


def test_order_is_kept_where_writes_and_reads_meet(bench: Bench) -> None:
    batch = Batch(bench.logged_in())
    batch.write(0, noise(1), 500).write(0, noise(2), 501).read(0, 8, 502)
    batch.write(0, noise(3), 503).write(0, noise(4), 504)
    replies = batch.send()
    assert [reply.itt for reply in replies] == [500, 501, 502, 503, 504]
    assert replies[2].data == noise(2)
    assert bench.disk.data[:4096] == noise(4)


def test_long_ones_too_but_not_one_for_another_lun(bench: Bench) -> None:
    batch = Batch(bench.logged_in())
    long = noise(9, 256 * 1024)
    batch.write(0, noise(1), 500).write(8, noise(2), 501).write(100, long, 502).write(16, noise(3), 503)
    batch.write(24, noise(4), 504, lun=1 << 48).write(32, noise(5), 505)
    replies = batch.send()
    assert [(reply.itt, reply.status) for reply in replies if reply.itt != 504] == [
        (500, 0), (501, 0), (502, 0), (503, 0), (505, 0),
    ]  # fmt: skip
    assert bench.disk.gathered == [4]
    assert bench.disk.data[100 * 512 : 100 * 512 + len(long)] == long
    assert bench.disk.data[16 * 512 : 16 * 512 + 4096] == noise(3)


@pytest.mark.parametrize("piece", [1, 1000, 4096 + 48 + 8, 9000])
def test_the_wire_may_cut_anywhere(bench: Bench, piece: int) -> None:
    initiator = bench.logged_in(keys=DIGESTS)
    initiator.link.piece = piece
    batch = Batch(initiator)
    for number in range(12):
        batch.write(number * 8, noise(number), itt=500 + number)
    assert [reply.status for reply in batch.send()] == [0] * 12
    assert bench.disk.data[: 12 * 4096] == b"".join(map(noise, range(12)))


def test_a_wrong_data_digest_fails_its_own_write_alone(bench: Bench) -> None:
    initiator = bench.logged_in(keys={"DataDigest": "CRC32C"})
    batch = Batch(initiator)
    for number in range(5):
        batch.write(number * 8, noise(number), itt=500 + number)
    size = len(batch.wire) // 5
    wire = bytearray(batch.wire)
    wire[2 * size + 60] ^= 1
    batch.wire = bytes(wire)
    replies = batch.send()
    assert {reply.itt: reply.status for reply in replies if reply.opcode is Opcode.SCSI_RESPONSE} == {
        500: 0, 501: 0, 502: 2, 503: 0, 504: 0,
    }  # fmt: skip
    assert bench.disk.data[2 * 4096 : 3 * 4096] == bytes(4096)
    assert bench.disk.data[3 * 4096 : 5 * 4096] == noise(3) + noise(4)
