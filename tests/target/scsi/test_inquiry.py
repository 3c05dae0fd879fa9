"""INQUIRY: standard data and every VPD page."""

from __future__ import annotations

import pytest

from target.nexus import TargetDevice
from target.scsi.inquiry import VPD_PAGES
from tests.support.memory_store import MemoryStore
from tests.support.scsi_host import BAD_CDB_FIELD, TARGET, Host, inquiry, key_asc, one_host, unit


def page(number: int, store: MemoryStore | None = None) -> bytes:
    host, _, _ = one_host(store)
    return host.data(host.send(inquiry(number)))


def test_standard_data_names_vendor_product_and_revision() -> None:
    host, _, _ = one_host()
    data = host.data(host.send(inquiry()))
    assert data[8:36] == b"LAZYLUN LUN             0001"


def test_standard_data_is_a_direct_access_device_of_spc_4_with_command_queuing() -> None:
    host, _, _ = one_host()
    data = host.data(host.send(inquiry()))
    assert (data[0], data[2], data[3] & 0x0F, data[7] & 0x02) == (0, 6, 2, 2)
    assert data[4] + 5 == len(data)


def test_version_descriptors_name_sam_spc_sbc_and_iscsi() -> None:
    host, _, _ = one_host()
    data = host.data(host.send(inquiry()))
    assert data[58:66].hex() == "00a0046004c00960"


@pytest.mark.parametrize("length", [0, 5, 36, 255])
def test_data_is_cut_to_the_allocation_length(length: int) -> None:
    host, _, _ = one_host()
    assert host.send(inquiry(length=length)).length == min(length, 96)


def test_a_page_code_without_evpd_is_an_error() -> None:
    host, _, _ = one_host()
    assert key_asc(host.send(bytes.fromhex("120080000000ff"[:10] + "ff00"))) == BAD_CDB_FIELD


def test_an_unknown_vpd_page_is_an_error() -> None:
    host, _, _ = one_host()
    assert key_asc(host.send(inquiry(0xC3))) == BAD_CDB_FIELD


@pytest.mark.parametrize("number", VPD_PAGES)
def test_every_page_gives_its_code_and_length(number: int) -> None:
    data = page(number)
    assert data[1] == number
    assert int.from_bytes(data[2:4], "big") == len(data) - 4


def test_page_00_lists_the_pages_in_ascending_order() -> None:
    assert list(page(0x00)[4:]) == [0x00, 0x80, 0x83, 0x85, 0x86, 0x87, 0x88, 0x8F, 0xB0, 0xB1, 0xB2]


def test_page_80_is_the_serial_of_the_lun() -> None:
    assert page(0x80, MemoryStore(serial="ABC-1"))[4:] == b"ABC-1"


def designators(data: bytes) -> list[tuple[int, int, bytes]]:
    found, at = [], 4
    while at < len(data):
        size = data[at + 3]
        found.append((data[at], data[at + 1], data[at + 4 : at + 4 + size]))
        at += 4 + size
    return found


def test_page_83_begins_with_the_naa_of_the_lun() -> None:
    naa = bytes.fromhex("3123456789abcdef")
    assert designators(page(0x83, MemoryStore(naa=naa)))[0] == (0x01, 0x03, naa)


def test_page_83_names_the_port_and_its_group_by_number() -> None:
    found = {kind: value for _, kind, value in designators(page(0x83))}
    assert (found[0x94], found[0x95]) == (b"\0\0\0\1", b"\0\0\0\1")


def test_page_87_says_that_mode_pages_are_shared() -> None:
    assert page(0x87)[4:] == bytes.fromhex("3fff0000")


def test_page_88_names_every_port() -> None:
    host, _, _ = one_host()
    host.nexus.target_ports = (1, 2)
    data = host.data(host.send(inquiry(0x88)))[4:]
    size = 12 + int.from_bytes(data[10:12], "big")
    assert (data[2:4], data[size + 2 : size + 4]) == (b"\0\1", b"\0\2")
    assert f"{TARGET},t,0x0002".encode() in data[size:]


def test_tpgs_says_that_access_is_implicit_and_explicit() -> None:
    host, _, _ = one_host()
    assert host.data(host.send(inquiry()))[5] & 0x30 == 0x30


def test_page_85_tells_the_addresses_of_the_management() -> None:
    host, _, _ = one_host()
    assert host.data(host.send(inquiry(0x85)))[2:] == bytes(2)
    host.nexus.management_addresses = ("https://store1.example/", "ssh://store1")
    data = host.data(host.send(inquiry(0x85)))[4:]
    first = 4 + int.from_bytes(data[2:4], "big")
    assert (data[0], data[4:first].rstrip(b"\0")) == (0x41, b"https://store1.example/")
    assert (data[first], data[first + 4 :].rstrip(b"\0")) == (0x41, b"ssh://store1")
    assert first % 4 == len(data) % 4 == 0
    assert data[first - 1] == data[-1] == 0


def test_page_83_takes_a_16_byte_naa() -> None:
    naa = bytes.fromhex("6123456789abcdef0123456789abcdef")
    assert designators(page(0x83, MemoryStore(naa=naa)))[0][2] == naa


def test_page_83_names_the_target_port_and_the_target() -> None:
    found = {kind: value for _, kind, value in designators(page(0x83))}
    assert found[0x98].rstrip(b"\0") == f"{TARGET},t,0x0001".encode()
    assert found[0xA8].rstrip(b"\0") == TARGET.encode()
    assert all(len(value) % 4 == 0 for kind, value in found.items() if kind in (0x98, 0xA8))


def test_page_b0_tells_the_limits_of_a_thin_unit() -> None:
    data = page(0xB0)
    assert len(data) == 64
    assert data[4] == 1  # WSNZ
    assert data[5] == 128
    assert int.from_bytes(data[8:12], "big") == 16384
    assert int.from_bytes(data[20:24], "big") == 1 << 20
    assert int.from_bytes(data[28:32], "big") == 8
    assert int.from_bytes(data[36:44], "big") == 32768


def test_page_b0_counts_in_the_blocks_of_the_unit() -> None:
    data = page(0xB0, MemoryStore(logical_block_bytes=4096))
    assert int.from_bytes(data[8:12], "big") == 2048
    assert int.from_bytes(data[28:32], "big") == 1


def test_a_unit_that_is_not_thin_offers_no_unmap() -> None:
    data = page(0xB0, MemoryStore(thin=False))
    assert data[20:36] == bytes(16)


def test_page_b1_is_a_non_rotating_medium() -> None:
    assert page(0xB1)[4:6] == b"\0\1"


@pytest.mark.parametrize(("thin", "expected"), [(True, "0be40200"), (False, "00000000")])
def test_page_b2_claims_provisioning_only_where_it_is(thin: bool, expected: str) -> None:
    assert page(0xB2, MemoryStore(thin=thin))[4:].hex() == expected


def test_two_units_differ_in_serial_and_naa() -> None:
    units = {
        i: unit(MemoryStore(serial=f"S{i}", naa=bytes.fromhex(f"300000000000000{i}"))) for i in range(2)
    }
    host = Host(TargetDevice(TARGET), units)
    for number in (0x80, 0x83):
        assert host.send(inquiry(number), lun=0).data != host.send(inquiry(number), lun=1).data
