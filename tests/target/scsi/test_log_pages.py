"""LOG SENSE."""

from __future__ import annotations

import struct

import pytest

from tests.support.memory_store import MemoryStore
from tests.support.scsi_host import BAD_CDB_FIELD, Host, key_asc, one_host, read_16, write_16

MIB = 1 << 20


def log_sense(page: int, subpage: int = 0, flags: int = 0, pointer: int = 0, length: int = 255) -> bytes:
    return struct.pack(">BBBBxHHB", 0x4D, flags, page, subpage, pointer, length, 0)


def parameters(host: Host, page: int, pointer: int = 0) -> dict[int, bytes]:
    data = host.data(host.send(log_sense(page, pointer=pointer)))
    assert (data[0], data[1]) == (page, 0)
    assert int.from_bytes(data[2:4], "big") == len(data) - 4
    found, at = {}, 4
    while at < len(data):
        code, control, length = struct.unpack(">HBB", data[at : at + 4])
        assert control == 0x03
        found[code] = data[at + 4 : at + 4 + length]
        at += 4 + length
    return found


def test_the_pages_are_listed() -> None:
    host, _, _ = one_host()
    assert host.data(host.send(log_sense(0x00))) == bytes.fromhex("00000003 000c19")
    assert host.data(host.send(log_sense(0x00, 0xFF))) == bytes.fromhex("40ff0008 0000 00ff 0c00 1900")


def test_a_thick_unit_has_no_page_of_thin_provisioning() -> None:
    host, _, _ = one_host(MemoryStore(thin=False))
    assert host.data(host.send(log_sense(0x00))) == bytes.fromhex("00000002 0019")
    assert key_asc(host.send(log_sense(0x0C))) == BAD_CDB_FIELD


@pytest.mark.parametrize(
    "cdb", [log_sense(0x2F), log_sense(0, 5), log_sense(0x19, 1), log_sense(0, flags=1), log_sense(0x19, pointer=2)]
)
def test_what_is_not_there_is_refused(cdb: bytes) -> None:
    host, _, _ = one_host()
    assert key_asc(host.send(cdb)) == BAD_CDB_FIELD


def test_thin_provisioning_counts_what_is_used_and_what_is_left() -> None:
    store = MemoryStore(8 * MIB)
    store.write(0, memoryview(bytes(2 * MIB)))
    host, _, _ = one_host(store)
    found = parameters(host, 0x0C)
    assert found[1] == struct.pack(">IBxxx", 6, 2)
    assert found[2] == struct.pack(">IBxxx", 2, 1)
    assert list(parameters(host, 0x0C, pointer=2)) == [2]


@pytest.mark.parametrize(("block", "exponent"), [(512, 11), (4096, 8)])
def test_the_unit_of_counting_is_told_by_page_b2(block: int, exponent: int) -> None:
    host, _, _ = one_host(MemoryStore(logical_block_bytes=block))
    page = host.data(host.send(bytes((0x12, 1, 0xB2, 0, 255, 0))))
    assert page[4] == exponent


def test_statistics_count_commands_and_blocks() -> None:
    host, _, _ = one_host()
    host.send(write_16(0, 4), bytes(2048))
    host.data(host.send(read_16(0, 3)))
    host.data(host.send(read_16(0, 3)))
    assert struct.unpack(">QQQQ32x", parameters(host, 0x19)[1]) == (2, 1, 4, 6)


def test_data_is_cut_to_the_allocation_length() -> None:
    host, _, _ = one_host()
    assert host.send(log_sense(0x19, length=10)).length == 10
