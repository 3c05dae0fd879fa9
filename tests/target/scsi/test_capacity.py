"""READ CAPACITY, GET LBA STATUS, UNMAP, WRITE SAME."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from target.scsi.limits import MAX_UNMAP_BLOCKS, MAX_UNMAP_DESCRIPTORS, MAX_WRITE_SAME_BYTES
from tests.support.memory_store import MemoryStore
from tests.support.scsi_host import (
    BAD_CDB_FIELD,
    BAD_LBA,
    BAD_LIST_FIELD,
    BAD_LIST_LENGTH,
    BAD_OPCODE,
    Host,
    get_lba_status,
    key_asc,
    one_host,
    sixteen,
    ten,
    unmap,
    unmap_list,
)

READ_CAPACITY_10 = b"\x25"
TIB = 1 << 40


def read_capacity_16(length: int = 32) -> bytes:
    return sixteen(0x9E, 0, length, 0x10)


# --- READ CAPACITY ---


def test_read_capacity_10_gives_the_last_lba_and_block_length() -> None:
    host, _, _ = one_host()
    assert host.data(host.send(READ_CAPACITY_10)) == struct.pack(">II", 2047, 512)


@pytest.mark.parametrize(
    ("size", "expected"), [(2 * TIB, 0xFFFFFFFF), (2 * TIB - 512, 0xFFFFFFFE), (4 * TIB, 0xFFFFFFFF)]
)
def test_read_capacity_10_of_a_large_unit_says_ask_16(size: int, expected: int) -> None:
    host, _, _ = one_host(MemoryStore(size))
    assert host.data(host.send(READ_CAPACITY_10))[:4] == expected.to_bytes(4, "big")


def test_an_lba_without_pmi_is_an_error() -> None:
    host, _, _ = one_host()
    assert key_asc(host.send(bytes.fromhex("25000000000100000000"))) == BAD_CDB_FIELD


def test_read_capacity_16_of_a_thin_512e_unit() -> None:
    host, _, _ = one_host(MemoryStore(16 * TIB))
    data = host.data(host.send(read_capacity_16()))
    assert data[:16] == struct.pack(">QIBBH", 16 * TIB // 512 - 1, 512, 0, 3, 0xC000)
    assert len(data) == 32


def test_read_capacity_16_of_a_4kn_unit_has_exponent_0() -> None:
    host, _, _ = one_host(MemoryStore(logical_block_bytes=4096))
    assert host.data(host.send(read_capacity_16()))[8:14] == struct.pack(">IBB", 4096, 0, 0)


def test_read_capacity_16_of_a_reserved_unit_claims_no_provisioning() -> None:
    host, _, _ = one_host(MemoryStore(thin=False))
    assert host.data(host.send(read_capacity_16()))[14:16] == bytes(2)


@pytest.mark.parametrize("length", [0, 8, 12, 32, 100])
def test_read_capacity_16_is_cut_to_the_allocation_length(length: int) -> None:
    host, _, _ = one_host()
    assert host.send(read_capacity_16(length)).length == min(length, 32)


# --- GET LBA STATUS ---


def statuses(host: Host, lba: int = 0, length: int = 4096) -> list[tuple[int, int, int]]:
    data = host.data(host.send(get_lba_status(lba, length)))
    assert int.from_bytes(data[:4], "big") == len(data) - 4
    return [struct.unpack(">QIB", data[at : at + 13]) for at in range(8, len(data), 16)]


def test_an_empty_unit_is_one_deallocated_range() -> None:
    host, _, _ = one_host()
    assert statuses(host) == [(0, 2048, 1)]


def test_ranges_alternate_and_cover_the_unit() -> None:
    host, _, store = one_host()
    store.write(8192, memoryview(bytes(8192)))
    assert statuses(host) == [(0, 16, 1), (16, 16, 0), (32, 2016, 1)]


def test_the_first_descriptor_starts_at_the_lba_asked_for() -> None:
    host, _, store = one_host()
    store.write(8192, memoryview(bytes(8192)))
    assert statuses(host, lba=19)[0] == (19, 13, 0)


@pytest.mark.parametrize("length", [0, 8, 23, 24])
def test_at_least_one_descriptor_is_made_whatever_the_allocation_length(length: int) -> None:
    host, _, _ = one_host()
    assert host.send(get_lba_status(0, length)).length == min(length, 24)


def test_no_more_descriptors_than_fit() -> None:
    host, _, store = one_host()
    for piece in range(0, 64, 2):
        store.write(piece * 4096, memoryview(bytes(4096)))
    assert len(statuses(host, length=8 + 16 * 5)) == 5


def test_an_lba_beyond_the_end_is_out_of_range() -> None:
    host, _, _ = one_host()
    assert key_asc(host.send(get_lba_status(2048))) == BAD_LBA


def test_a_range_longer_than_the_field_is_told_in_parts() -> None:
    class Sparse(MemoryStore):
        def extents(self, offset: int, length: int, *, nowait: bool = False):  # type: ignore[no-untyped-def]
            yield offset, length, False

    host, _, _ = one_host(Sparse(16 * TIB))
    assert statuses(host) == [(0, 0xFFFFFFFF, 1)]
    assert statuses(host, lba=0xFFFFFFFF)[0][:2] == (0xFFFFFFFF, 0xFFFFFFFF)


# --- UNMAP ---


def filled() -> tuple[Host, MemoryStore]:
    host, _, store = one_host()
    store.write(0, memoryview(b"x" * store.size_bytes))
    return host, store


def send_unmap(host: Host, parameters: bytes) -> tuple[int, int] | None:
    response = host.send(unmap(len(parameters)), parameters)
    return None if response.status == 0 else key_asc(response)


def test_unmapped_ranges_read_zeros_and_give_back_whole_blocks() -> None:
    host, store = filled()
    assert send_unmap(host, unmap_list((4, 20), (100, 8))) is None
    assert store.contents(4 * 512, 20 * 512) == bytes(20 * 512)
    assert store.contents(0, 2048) == b"x" * 2048
    assert 1 not in store.pieces
    assert 0 in store.pieces


@pytest.mark.parametrize("parameters", [b"", unmap_list(), unmap_list((0, 0)), bytes(8)])
def test_unmap_of_nothing_is_good(parameters: bytes) -> None:
    host, store = filled()
    before = dict(store.pieces)
    assert send_unmap(host, parameters) is None
    assert store.pieces == before


def test_a_parameter_list_shorter_than_its_header_is_an_error() -> None:
    host, _ = filled()
    assert send_unmap(host, bytes(7)) == BAD_LIST_LENGTH


def test_a_descriptor_cut_short_is_ignored() -> None:
    host, store = filled()
    assert send_unmap(host, unmap_list((0, 8), (8, 8))[:-1]) is None
    assert 0 not in store.pieces
    assert 1 in store.pieces


def test_nothing_is_unmapped_if_one_range_is_beyond_the_end() -> None:
    host, store = filled()
    before = dict(store.pieces)
    assert send_unmap(host, unmap_list((0, 8), (2047, 2))) == BAD_LBA
    assert store.pieces == before


def test_too_many_descriptors_are_refused() -> None:
    host, _ = filled()
    assert send_unmap(host, unmap_list(*[(0, 1)] * MAX_UNMAP_DESCRIPTORS)) is None
    assert send_unmap(host, unmap_list(*[(0, 1)] * (MAX_UNMAP_DESCRIPTORS + 1))) == BAD_LIST_FIELD


def test_too_many_blocks_are_refused() -> None:
    host, _, _ = one_host(MemoryStore(2 * MAX_UNMAP_BLOCKS * 512))
    assert send_unmap(host, unmap_list((0, MAX_UNMAP_BLOCKS))) is None
    assert send_unmap(host, unmap_list((0, MAX_UNMAP_BLOCKS), (0, 1))) == BAD_LIST_FIELD


def test_anchor_is_refused() -> None:
    host, _ = filled()
    parameters = unmap_list((0, 8))
    assert key_asc(host.send(unmap(len(parameters), flags=1), parameters)) == BAD_CDB_FIELD


def test_unmap_on_a_unit_that_is_not_thin_is_an_unknown_command() -> None:
    host, _, _ = one_host(MemoryStore(thin=False))
    assert send_unmap(host, unmap_list((0, 8))) == BAD_OPCODE


@given(st.binary(max_size=80))
def test_any_parameter_list_ends_in_good_or_a_check_condition(parameters: bytes) -> None:
    host, _ = filled()
    assert host.send(unmap(len(parameters)), parameters).status in (0, 2)


# --- WRITE SAME ---

UNMAP, NDOB, ANCHOR = 0x08, 0x01, 0x10


def same_10(lba: int, blocks: int, flags: int = 0) -> bytes:
    return ten(0x41, lba, blocks, flags)


def same_16(lba: int, blocks: int, flags: int = 0) -> bytes:
    return sixteen(0x93, lba, blocks, flags)


@pytest.mark.parametrize("make", [same_10, same_16])
def test_one_block_is_written_to_all(make) -> None:  # type: ignore[no-untyped-def]
    host, _, store = one_host()
    block = bytes(range(256)) * 2
    response = host.send(make(3, 9), block)
    assert (response.status, response.wanted) == (0, 512)
    assert store.contents(3 * 512, 9 * 512) == block * 9
    assert store.contents(12 * 512, 512) == bytes(512)


def test_a_pattern_longer_than_one_piece_is_written_whole() -> None:
    host, _, store = one_host(MemoryStore(4 << 20))
    assert host.send(same_16(1, 5000), b"p" * 512).status == 0
    assert store.contents(512, 5000 * 512) == b"p" * (5000 * 512)
    assert store.contents(5001 * 512, 512) == bytes(512)


@pytest.mark.parametrize("flags", [0, UNMAP])
def test_zeros_are_deallocated(flags: int) -> None:
    host, store = filled()
    assert host.send(same_16(0, 16, flags), bytes(512)).status == 0
    assert not {0, 1} & store.pieces.keys()


def test_unmap_with_data_that_is_not_zeros_writes_it() -> None:
    host, _, store = one_host()
    assert host.send(same_16(0, 8, UNMAP), b"q" * 512).status == 0
    assert store.contents(0, 4096) == b"q" * 4096


def test_ndob_takes_no_data_and_writes_zeros() -> None:
    host, store = filled()
    assert host.send(same_16(0, 8, NDOB)).status == 0
    assert store.contents(0, 4096) == bytes(4096)


@pytest.mark.parametrize(
    "cdb", [same_16(0, 8, ANCHOR), same_16(0, 8, ANCHOR | UNMAP), same_10(0, 8, NDOB), same_10(0, 8, 4)]
)
def test_anchor_ndob_in_10_and_lbdata_are_refused(cdb: bytes) -> None:
    host, _ = filled()
    assert key_asc(host.send(cdb, bytes(512))) == BAD_CDB_FIELD


@pytest.mark.parametrize("cdb", [same_10(0, 0), same_16(0, 0), same_16(0, 0, UNMAP)])
def test_zero_blocks_are_refused_as_wsnz_says(cdb: bytes) -> None:
    host, _ = filled()
    assert key_asc(host.send(cdb, bytes(512))) == BAD_CDB_FIELD


@pytest.mark.parametrize("make", [same_10, same_16])
def test_zero_blocks_reach_to_the_end_of_a_unit_that_is_not_thin(make: Callable[[int, int], bytes]) -> None:
    size, most = 32 << 20, MAX_WRITE_SAME_BYTES // 512
    host, _, store = one_host(MemoryStore(size, thin=False))
    first = size // 512 - most
    assert host.send(make(first, 0), b"y" * 512).status == 0
    assert store.contents(first * 512, MAX_WRITE_SAME_BYTES) == b"y" * MAX_WRITE_SAME_BYTES
    assert not any(store.contents(0, first * 512))
    assert key_asc(host.send(make(first - 1, 0), bytes(512))) == BAD_CDB_FIELD
    assert key_asc(host.send(make(size // 512, 0), bytes(512))) == BAD_LBA


def test_more_blocks_than_announced_are_refused() -> None:
    host, _, _ = one_host(MemoryStore(64 << 20))
    most = MAX_WRITE_SAME_BYTES // 512
    assert host.send(same_16(0, most), bytes(512)).status == 0
    assert key_asc(host.send(same_16(0, most + 1), bytes(512))) == BAD_CDB_FIELD


def test_the_unmap_bit_on_a_unit_that_is_not_thin_is_refused() -> None:
    host, _, _ = one_host(MemoryStore(thin=False))
    assert key_asc(host.send(same_16(0, 8, UNMAP), bytes(512))) == BAD_CDB_FIELD


@pytest.mark.parametrize("data", [b"", bytes(256), bytes(1024)])
@pytest.mark.parametrize("make", [same_10, same_16])
def test_write_same_takes_exactly_one_block(make, data: bytes) -> None:  # type: ignore[no-untyped-def]
    host, store = filled()
    cdb = make(0, 8).ljust(16, b"\0")
    assert host.nexus.data_out_length(0, cdb) == 1024
    assert key_asc(host.send(cdb, data)) == BAD_CDB_FIELD
    assert store.contents(0, 512) == b"x" * 512
