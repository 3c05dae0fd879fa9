"""READ, WRITE, VERIFY, COMPARE AND WRITE, ORWRITE, the cache commands."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from target.iscsi.ports import DataInFailed
from target.scsi.limits import MAX_TRANSFER_BYTES
from target.scsi.store import MediumError, SpaceExhausted
from tests.support.memory_store import MemoryStore
from tests.support.scsi_host import (
    BAD_CDB_FIELD,
    BAD_LBA,
    DATA_PROTECT,
    ILLEGAL,
    MEDIUM_ERROR,
    MISCOMPARE,
    compare_and_write,
    information,
    key_asc,
    one_host,
    read_16,
    six,
    sixteen,
    ten,
    twelve,
    write_16,
    write_atomic,
)

FUA, DPO = 0x08, 0x10
BLOCKS = 2048
Maker = Callable[[int, int], bytes]
READS: dict[str, Maker] = {
    "READ(6)": lambda lba, n: six(0x08, lba, n),
    "READ(10)": lambda lba, n: ten(0x28, lba, n),
    "READ(12)": lambda lba, n: twelve(0xA8, lba, n),
    "READ(16)": lambda lba, n: sixteen(0x88, lba, n),
}
WRITES: dict[str, Maker] = {
    "WRITE(6)": lambda lba, n: six(0x0A, lba, n),
    "WRITE(10)": lambda lba, n: ten(0x2A, lba, n),
    "WRITE(12)": lambda lba, n: twelve(0xAA, lba, n),
    "WRITE(16)": lambda lba, n: sixteen(0x8A, lba, n),
    "WRITE AND VERIFY(10)": lambda lba, n: ten(0x2E, lba, n),
    "WRITE AND VERIFY(12)": lambda lba, n: twelve(0xAE, lba, n),
    "WRITE AND VERIFY(16)": lambda lba, n: sixteen(0x8E, lba, n),
    "ORWRITE(16)": lambda lba, n: sixteen(0x8B, lba, n),
}
RANGED: dict[str, Maker] = {
    **{name: make for name, make in (READS | WRITES).items() if not name.endswith("(6)")},
    "VERIFY(10)": lambda lba, n: ten(0x2F, lba, n),
    "VERIFY(12)": lambda lba, n: twelve(0xAF, lba, n),
    "VERIFY(16)": lambda lba, n: sixteen(0x8F, lba, n),
    "SYNCHRONIZE CACHE(10)": lambda lba, n: ten(0x35, lba, n),
    "SYNCHRONIZE CACHE(16)": lambda lba, n: sixteen(0x91, lba, n),
    "PRE-FETCH(10)": lambda lba, n: ten(0x34, lba, n),
    "PRE-FETCH(16)": lambda lba, n: sixteen(0x90, lba, n),
    "COMPARE AND WRITE": compare_and_write,
}
LIMITED = ["READ(12)", "READ(16)", "WRITE(12)", "WRITE(16)", "VERIFY(16)", "WRITE AND VERIFY(16)", "ORWRITE(16)"]


def pattern(blocks: int, seed: int = 1, size: int = 512) -> bytes:
    return b"".join(bytes(((seed + i) % 255 + 1,)) * size for i in range(blocks))


@pytest.mark.parametrize("name", WRITES)
def test_what_is_written_is_in_the_store(name: str) -> None:
    host, _, store = one_host()
    data = pattern(4)
    response = host.send(WRITES[name](100, 4), data)
    assert (response.status, response.wanted) == (0, 2048)
    assert store.contents(100 * 512, 2048) == data


@pytest.mark.parametrize("name", READS)
def test_what_is_in_the_store_is_read(name: str) -> None:
    host, _, store = one_host()
    data = pattern(4)
    store.write(100 * 512, memoryview(data))
    response = host.send(READS[name](100, 4))
    assert response.length == 2048
    assert host.data(response) == data


@pytest.mark.parametrize("make", [READS["READ(6)"], WRITES["WRITE(6)"]])
def test_length_0_of_a_6_byte_cdb_means_256_blocks(make: Maker) -> None:
    host, _, _ = one_host()
    response = host.send(make(0, 0), pattern(256))
    assert response.status == 0
    assert max(response.length, response.wanted) == 256 * 512


@pytest.mark.parametrize("name", RANGED)
def test_length_0_transfers_nothing(name: str) -> None:
    host, _, _ = one_host()
    response = host.send(RANGED[name](5, 0))
    assert (response.status, response.length, response.wanted) == (0, 0, 0)


@pytest.mark.parametrize(("lba", "blocks"), [(BLOCKS, 0), (BLOCKS, 1), (BLOCKS - 1, 2), (0xFFFFFFFF, 1)])
@pytest.mark.parametrize("name", RANGED)
def test_a_range_beyond_the_end_is_refused(name: str, lba: int, blocks: int) -> None:
    host, _, _ = one_host()
    assert key_asc(host.send(RANGED[name](lba, blocks), bytes(2048))) == BAD_LBA


@pytest.mark.parametrize("name", RANGED)
def test_the_last_block_is_in_range(name: str) -> None:
    host, _, _ = one_host()
    assert host.send(RANGED[name](BLOCKS - 1, 1), bytes(1024)).status == 0


def test_a_64_bit_lba_does_not_wrap() -> None:
    host, _, _ = one_host()
    assert key_asc(host.send(read_16((1 << 64) - 1, 1))) == BAD_LBA


@pytest.mark.parametrize("name", LIMITED)
def test_a_transfer_over_the_limit_is_refused_before_any_data(name: str) -> None:
    host, _, _ = one_host(MemoryStore(64 << 20))
    cdb = RANGED[name](0, MAX_TRANSFER_BYTES // 512 + 1).ljust(16, b"\0")
    assert key_asc(host.send(cdb)) == BAD_CDB_FIELD
    assert host.nexus.data_out_length(0, cdb) == 0


@pytest.mark.parametrize("bits", [0x20, 0x40, 0x80])
@pytest.mark.parametrize("name", [n for n in RANGED if not n.startswith(("SYNC", "PRE"))])
def test_protection_information_is_refused(name: str, bits: int) -> None:
    host, _, _ = one_host()
    cdb = bytearray(RANGED[name](0, 1))
    cdb[1] |= bits
    assert key_asc(host.send(bytes(cdb), bytes(1024))) == BAD_CDB_FIELD


def test_a_4kn_unit_counts_in_4096_bytes() -> None:
    host, _, store = one_host(MemoryStore(logical_block_bytes=4096))
    data = pattern(2, size=4096)
    assert host.send(write_16(3, 2), data).status == 0
    assert store.contents(3 * 4096, 8192) == data
    assert host.read(3, 2) == data


# --- transfer lengths that do not fit ---


def test_data_out_cut_by_the_edtl_writes_the_whole_blocks_that_came() -> None:
    host, _, store = one_host()
    store.write(0, memoryview(pattern(2, seed=100)))
    response = host.send(write_16(0, 2), pattern(2)[:512])
    assert (response.status, response.wanted) == (0, 1024)
    assert store.contents(0, 1024) == pattern(1) + pattern(2, seed=100)[512:]


@pytest.mark.parametrize("opcode", [0x8A, 0x8E, 0x8B])  # WRITE, WRITE AND VERIFY, ORWRITE
@pytest.mark.parametrize("came", [200, 712])
def test_data_out_cut_within_a_block_is_an_error_and_writes_nothing(opcode: int, came: int) -> None:
    host, _, store = one_host()
    response = host.send(sixteen(opcode, 0, 2), pattern(2)[:came])
    assert key_asc(response) == (ILLEGAL, 0x0E03)
    assert response.wanted == 1024
    assert not any(store.contents(0, 1024))


def test_more_data_than_the_cdb_asks_for_is_not_written() -> None:
    host, _, store = one_host()
    response = host.send(write_16(0, 1), pattern(3))
    assert (response.status, response.wanted) == (0, 512)
    assert store.contents(512, 1024) == bytes(1024)


@pytest.mark.parametrize(("at", "length"), [(0, 200), (100, 1000), (511, 2), (512, 512), (1, 2047)])
def test_data_in_may_be_fetched_in_any_pieces(at: int, length: int) -> None:
    host, _, store = one_host()
    data = pattern(4)
    store.write(0, memoryview(data))
    assert host.data(host.send(read_16(0, 4)), at, length) == data[at : at + length]


# --- flags ---


@pytest.mark.parametrize(
    "cdb", [write_16(0, 1, FUA), read_16(0, 1, FUA), compare_and_write(0, 1, FUA), sixteen(0x8B, 0, 1, FUA)]
)
def test_fua_waits_for_durability(cdb: bytes) -> None:
    host, _, store = one_host()
    assert host.start(cdb, bytes(1024)) is None
    assert not host.late
    store.finish_flushes()
    assert host.late[host.tag].status == 0


def test_the_late_response_tells_how_much_was_wanted() -> None:
    host, _, _ = one_host()
    assert host.send(write_16(0, 2, FUA), bytes(1024)).wanted == 1024


def test_dpo_changes_nothing() -> None:
    host, _, store = one_host()
    assert host.send(write_16(0, 1, DPO), pattern(1)).status == 0
    assert not store.flushes


# --- errors of the store ---


def test_a_medium_error_names_the_lba() -> None:
    host, _, store = one_host()
    store.bad.add(8192)
    response = host.send(read_16(0, 64))
    assert response.reader is not None
    with pytest.raises(DataInFailed) as failed:
        response.reader(0, memoryview(bytearray(64 * 512)))
    assert key_asc(failed.value.response) == (MEDIUM_ERROR, 0x1100)
    assert information(failed.value.response) == 16


def test_a_medium_error_keeps_to_the_sense_format_of_the_unit() -> None:
    host, lu, store = one_host()
    store.bad.add(0)
    lu.modes.descriptor_sense = True
    response = host.send(read_16(0, 8))
    assert response.reader is not None
    with pytest.raises(DataInFailed) as failed:
        response.reader(0, memoryview(bytearray(4096)))
    assert failed.value.response.sense[0] == 0x72


def test_no_space_is_a_space_allocation_failure() -> None:
    host, _, store = one_host()
    store.full = True
    assert key_asc(host.send(write_16(0, 1), pattern(1))) == (DATA_PROTECT, 0x2707)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (SpaceExhausted("full"), (DATA_PROTECT, 0x2707)),
        (MediumError(0, "gone"), (MEDIUM_ERROR, 0x0C00)),
        (OSError(5, "I/O error"), (MEDIUM_ERROR, 0x0C00)),
    ],
)
def test_a_flush_that_fails_is_never_good(error: Exception, expected: tuple[int, int]) -> None:
    host, _, store = one_host()
    assert host.start(ten(0x35, 0, 0)) is None
    store.finish_flushes(error)
    assert key_asc(host.late[host.tag]) == expected


@pytest.mark.parametrize("name", [*WRITES, "COMPARE AND WRITE"])
def test_a_read_only_unit_is_write_protected(name: str) -> None:
    host, lu, store = one_host()
    store.read_only = True
    lu.state_changed()
    assert key_asc(host.send((WRITES | RANGED)[name](0, 1), bytes(1024))) == (DATA_PROTECT, 0x2700)


def test_a_read_only_unit_can_be_read() -> None:
    host, lu, store = one_host()
    store.read_only = True
    lu.state_changed()
    assert host.read(0, 1) == bytes(512)


# --- the cache ---


@pytest.mark.parametrize("cdb", [ten(0x35, 0, 0), sixteen(0x91, 0, 0), ten(0x35, 5, 5)])
def test_synchronize_cache_is_good_when_it_is_durable(cdb: bytes) -> None:
    host, _, store = one_host()
    assert host.start(cdb) is None
    store.finish_flushes()
    assert host.late[host.tag].status == 0


def test_synchronize_cache_immediate_answers_and_still_flushes() -> None:
    host, _, store = one_host()
    response = host.start(ten(0x35, 0, 0, 0x02))
    assert response is not None
    assert response.status == 0
    assert store.flushes


def test_stopping_the_unit_flushes_and_leaves_it_ready_for_others() -> None:
    host, _, store = one_host()
    assert host.start(bytes((0x1B, 0, 0, 0, 0, 0))) is None
    store.finish_flushes()
    assert host.late[host.tag].status == 0
    assert host.send(bytes(6)).status == 0


@pytest.mark.parametrize("start", [0x01, 0x04])
def test_starting_the_unit_or_not_flushing_answers_at_once(start: int) -> None:
    host, _, _ = one_host()
    response = host.start(bytes((0x1B, 0, 0, 0, start, 0)))
    assert response is not None
    assert response.status == 0


@pytest.mark.parametrize("start", [0x02, 0x10, 0xB0])
def test_ejecting_and_power_conditions_are_refused(start: int) -> None:
    host, _, _ = one_host()
    assert key_asc(host.send(bytes((0x1B, 0, 0, 0, start, 0)))) == BAD_CDB_FIELD


# --- VERIFY ---

VERIFIES: dict[str, Callable[[int, int, int], bytes]] = {
    "VERIFY(10)": lambda lba, n, flags: ten(0x2F, lba, n, flags),
    "VERIFY(12)": lambda lba, n, flags: twelve(0xAF, lba, n, flags),
    "VERIFY(16)": lambda lba, n, flags: sixteen(0x8F, lba, n, flags),
}
BYTCHK_1, BYTCHK_2, BYTCHK_3 = 0x02, 0x04, 0x06


@pytest.mark.parametrize("name", VERIFIES)
def test_verify_without_bytchk_takes_no_data_and_reads_the_medium(name: str) -> None:
    host, _, store = one_host()
    cdb = VERIFIES[name](0, 64, 0).ljust(16, b"\0")
    assert host.nexus.data_out_length(0, cdb) == 0
    assert host.send(cdb).status == 0
    store.bad.add(8192)
    failed = host.send(cdb)
    assert key_asc(failed) == (MEDIUM_ERROR, 0x1100)
    assert information(failed) == 16


@pytest.mark.parametrize("name", VERIFIES)
def test_verify_with_bytchk_1_compares_every_byte(name: str) -> None:
    host, _, store = one_host()
    data = pattern(4)
    store.write(0, memoryview(data))
    cdb = VERIFIES[name](0, 4, BYTCHK_1)
    assert host.send(cdb, data).status == 0
    wrong = bytearray(data)
    wrong[1300] ^= 1
    failed = host.send(cdb, bytes(wrong))
    assert key_asc(failed) == (MISCOMPARE, 0x1D00)
    assert information(failed) == 1300


def test_a_difference_beyond_the_first_piece_is_found_at_its_offset() -> None:
    host, _, _ = one_host(MemoryStore(8 << 20))
    data = bytearray(4 << 20)
    data[-1] = 1
    failed = host.send(sixteen(0x8F, 0, 8192, BYTCHK_1), bytes(data))
    assert information(failed) == len(data) - 1


@pytest.mark.parametrize("name", VERIFIES)
def test_verify_with_bytchk_3_compares_one_block_with_all(name: str) -> None:
    host, _, store = one_host()
    store.write(0, memoryview(b"z" * 2048))
    cdb = VERIFIES[name](0, 4, BYTCHK_3).ljust(16, b"\0")
    assert host.nexus.data_out_length(0, cdb) == 512
    assert host.send(cdb, b"z" * 512).status == 0
    store.write(1536, memoryview(b"y" * 512))
    failed = host.send(cdb, b"z" * 512)
    assert key_asc(failed) == (MISCOMPARE, 0x1D00)
    assert information(failed) == 1536


def test_bytchk_2_is_reserved() -> None:
    host, _, _ = one_host()
    assert key_asc(host.send(ten(0x2F, 0, 1, BYTCHK_2))) == BAD_CDB_FIELD


def test_write_and_verify_is_good_when_durable() -> None:
    host, _, store = one_host()
    assert host.start(sixteen(0x8E, 0, 1, BYTCHK_1), pattern(1)) is None
    store.finish_flushes()
    assert host.late[host.tag].status == 0


# --- COMPARE AND WRITE, ORWRITE ---


def test_compare_and_write_writes_when_equal() -> None:
    host, _, store = one_host()
    old, new = pattern(2), pattern(2, seed=50)
    store.write(512, memoryview(old))
    response = host.send(compare_and_write(1, 2), old + new)
    assert (response.status, response.wanted) == (0, 2048)
    assert store.contents(512, 1024) == new


@pytest.mark.parametrize("at", [0, 1, 511, 512, 1023])
def test_compare_and_write_names_the_first_byte_that_differs_and_writes_nothing(at: int) -> None:
    host, _, store = one_host()
    old, new = pattern(2), pattern(2, seed=50)
    store.write(0, memoryview(old))
    guess = bytearray(old)
    guess[at] ^= 0x80
    guess[-1] ^= 0x01
    failed = host.send(compare_and_write(0, 2), bytes(guess) + new)
    assert key_asc(failed) == (MISCOMPARE, 0x1D00)
    assert information(failed) == at
    assert store.contents(0, 1024) == old


def test_compare_and_write_over_the_announced_length_is_refused() -> None:
    host, _, _ = one_host()
    assert host.send(compare_and_write(0, 128), bytes(2 * 128 * 512)).status == 0
    assert key_asc(host.send(compare_and_write(0, 129), bytes(2 * 129 * 512))) == BAD_CDB_FIELD


@pytest.mark.parametrize(("blocks", "data"), [(1, 512), (1, 1536), (3, 2048), (0, 512)])
def test_compare_and_write_takes_exactly_twice_its_blocks(blocks: int, data: int) -> None:
    host, _, store = one_host()
    assert host.nexus.data_out_length(0, compare_and_write(0, blocks)) == (2 * blocks + 1) * 512
    assert key_asc(host.send(compare_and_write(0, blocks), bytes(data))) == BAD_CDB_FIELD
    assert not store.pieces


def test_orwrite_keeps_the_bits_that_were_set() -> None:
    host, _, store = one_host()
    store.write(0, memoryview(b"\x0f" * 512))
    assert host.send(sixteen(0x8B, 0, 1), b"\xf0\x00" * 256).status == 0
    assert store.contents(0, 512) == b"\xff\x0f" * 256


# --- counting ---


def test_commands_and_bytes_are_counted() -> None:
    host, lu, _ = one_host()
    host.send(write_16(0, 4), bytes(2048))
    host.read(0, 2)
    counters = lu.counters
    assert (counters.writes, counters.write_bytes, counters.reads, counters.read_bytes) == (1, 2048, 1, 1024)


# --- WRITE ATOMIC(16) ---


def test_write_atomic_writes() -> None:
    host, _, store = one_host()
    assert host.send(write_atomic(8, 16), b"a" * 8192).status == 0
    assert store.contents(4096, 8192) == b"a" * 8192


def test_write_atomic_with_fua_is_flushed_first() -> None:
    host, _, store = one_host()
    assert host.start(write_atomic(0, 8, flags=0x08), bytes(4096)) is None
    assert store.flushes


@pytest.mark.parametrize("cdb", [write_atomic(1, 8), write_atomic(8, 9), write_atomic(0, 8, boundary=8)])
def test_write_atomic_keeps_to_the_announced_alignment_and_granularity(cdb: bytes) -> None:
    host, _, store = one_host()
    assert key_asc(host.send(cdb, bytes(512 * cdb[13]))) == BAD_CDB_FIELD
    assert not store.pieces


def test_write_atomic_takes_no_more_than_announced() -> None:
    host, _, _ = one_host(MemoryStore(4 << 20))
    assert host.send(write_atomic(0, 2048), bytes(1 << 20)).status == 0
    assert key_asc(host.send(write_atomic(0, 2056), bytes(2056 * 512))) == BAD_CDB_FIELD


def test_write_atomic_of_4_kib_blocks_has_no_alignment() -> None:
    host, _, store = one_host(MemoryStore(logical_block_bytes=4096))
    assert host.send(write_atomic(1, 1), b"a" * 4096).status == 0
    assert store.contents(4096, 1) == b"a"
