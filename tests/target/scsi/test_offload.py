"""POPULATE TOKEN, WRITE USING TOKEN, RECEIVE ROD TOKEN INFORMATION."""

from __future__ import annotations

import struct

import pytest

from target.iscsi.ports import Response
from target.nexus import LogicalUnit, TargetDevice
from target.scsi import offload, tokens
from tests.support.memory_store import MemoryStore
from tests.support.scsi_host import (
    BAD_CDB_FIELD,
    BAD_LBA,
    BAD_LIST_FIELD,
    BAD_LIST_LENGTH,
    DATA_PROTECT,
    ILLEGAL,
    TARGET,
    Host,
    inquiry,
    key_asc,
    one_host,
    platform_of,
    sanitize,
    unit,
)

MIB = 1 << 20
COPY_ABORTED = 0x0A
DEL_TKN, IMMED, RTV = 0x02, 0x01, 0x02
DONE, DONE_WITH_ERRORS, IN_BACKGROUND = 1, 2, 0x12
ZERO_TOKEN = bytes.fromhex("ffff0001 0000 01f8").ljust(512, b"\0")


def pair(block: int = 512) -> tuple[Host, MemoryStore, MemoryStore]:
    """LUN 0 with 3 MiB on it, LUN 1 empty."""
    stores = MemoryStore(4 * MIB), MemoryStore(4 * MIB, block, serial="LL2", naa=bytes.fromhex("3000000000000002"))
    stores[0].write(0, memoryview(bytes(range(256)) * 16 * 768))
    host = Host(TargetDevice(TARGET), {i: unit(store) for i, store in enumerate(stores)})
    host.ready(0)
    host.ready(1)
    return host, *stores


def cdb(action: int, length: int, list_id: int) -> bytes:
    return struct.pack(">BB4xIIBB", 0x83, action, list_id, length, 0, 0)


def listed(*ranges: tuple[int, int]) -> bytes:
    return b"".join(struct.pack(">QI4x", lba, blocks) for lba, blocks in ranges)


def populate(
    host: Host, *ranges: tuple[int, int], flags: int = 0, timeout: int = 0, kind: int = 0, list_id: int = 1
) -> Response:
    body = listed(*ranges)
    sent = struct.pack(">HBxIIxxH", 14 + len(body), flags, timeout, kind, len(body)) + body
    return host.send(cdb(0x10, len(sent), list_id), sent)


def write_list(token: bytes, *ranges: tuple[int, int], offset: int = 0, flags: int = 0) -> bytes:
    body = listed(*ranges)
    return struct.pack(">HB5xQ512s6xH", 534 + len(body), flags, offset, token, len(body)) + body


def write(host: Host, token: bytes, *ranges: tuple[int, int], lun: int = 1, list_id: int = 2, **more: int) -> Response:
    sent = write_list(token, *ranges, **more)
    return host.send(cdb(0x11, len(sent), list_id), sent, lun)


def information(host: Host, list_id: int, lun: int = 0) -> bytes:
    data = host.data(host.send(struct.pack(">BBI4xIBB", 0x84, 0x07, list_id, 4096, 0, 0), lun=lun))
    assert int.from_bytes(data[:4], "big") == len(data) - 4
    return data


def status(host: Host, list_id: int, lun: int = 1) -> tuple[int, int]:
    """(status, blocks)"""
    data = information(host, list_id, lun)
    assert data[15] == 0xF1
    return data[5] & 0x7F, int.from_bytes(data[16:24], "big")


def token_of(host: Host, *ranges: tuple[int, int], **more: int) -> bytes:
    assert populate(host, *ranges, **more).status == 0
    data = information(host, 1)
    assert int.from_bytes(data[32:36], "big") == 514
    return data[38:]


def units_of(host: Host) -> list[LogicalUnit]:
    return [itl.lu for itl in host.nexus.itls.values()]


def test_a_token_carries_ranges_to_another_unit() -> None:
    host, source, destination = pair()
    token = token_of(host, (0, 8), (16, 4000))
    assert status(host, 1, lun=0) == (DONE, 4008)
    assert write(host, token, (100, 8), (200, 4000)).status == 0
    assert destination.contents(100 * 512, 4096) == source.contents(0, 4096)
    assert destination.contents(200 * 512, 4000 * 512) == source.contents(16 * 512, 4000 * 512)
    assert status(host, 2) == (DONE, 4008)


def test_the_ranges_need_not_have_the_same_borders() -> None:
    host, source, destination = pair()
    token = token_of(host, (0, 3), (50, 5))
    assert write(host, token, (0, 1), (10, 7)).status == 0
    whole = source.contents(0, 3 * 512) + source.contents(50 * 512, 5 * 512)
    assert destination.contents(0, 512) + destination.contents(10 * 512, 7 * 512) == whole


def test_a_part_of_a_token_can_be_written() -> None:
    host, source, destination = pair()
    token = token_of(host, (0, 8), (100, 8))
    assert write(host, token, (0, 4), offset=10).status == 0
    assert destination.contents(0, 2048) == source.contents(102 * 512, 2048)


def test_a_token_is_512_bytes_that_tell_what_they_stand_for() -> None:
    host, source, _ = pair()
    token = token_of(host, (0, 16))
    assert len(token) == 512
    assert (token[:4], token[6:8]) == (bytes.fromhex("00010000"), b"\x01\xf8")
    assert token[20 + 4 : 20 + 4 + 8] == source.naa
    assert int.from_bytes(token[48:64], "big") == 8192
    assert token != token_of(host, (0, 16))


def test_what_the_ranges_hold_when_it_is_used_is_written() -> None:
    host, source, destination = pair()
    token = token_of(host, (0, 8))
    source.write(0, memoryview(b"n" * 4096))
    write(host, token, (0, 8))
    assert destination.contents(0, 4096) == b"n" * 4096


def test_another_host_can_use_it_and_nobody_else_can_guess_it() -> None:
    host, _, destination = pair()
    token = bytearray(token_of(host, (0, 8)))
    other = Host(host.nexus.device, {1: units_of(host)[1]}, "iqn.host:b")
    other.ready(1)
    assert write(other, bytes(token), (0, 8)).status == 0
    token[130] ^= 1
    assert key_asc(write(other, bytes(token), (0, 8))) == (ILLEGAL, 0x2305)
    assert destination.pieces


def test_a_token_ends_after_its_timeout_without_use() -> None:
    host, _, _ = pair()
    token = token_of(host, (0, 8), timeout=10)
    for lu in units_of(host):
        platform_of(lu).time += 9
    assert write(host, token, (0, 8)).status == 0
    for lu in units_of(host):
        platform_of(lu).time += 9
    assert write(host, token, (0, 8)).status == 0
    for lu in units_of(host):
        platform_of(lu).time += 11
    assert key_asc(write(host, token, (0, 8))) == (ILLEGAL, 0x2307)
    assert key_asc(write(host, token, (0, 8))) == (ILLEGAL, 0x2304)


def test_a_token_ends_with_the_contents_it_stands_for() -> None:
    host, _, _ = pair()
    token = token_of(host, (0, 8))
    assert host.send(sanitize(2)).status == 0
    assert key_asc(write(host, token, (0, 8))) == (ILLEGAL, 0x2306)


def test_del_tkn_deletes_it_after_use() -> None:
    host, _, _ = pair()
    token = token_of(host, (0, 8))
    assert write(host, token, (0, 8), flags=DEL_TKN).status == 0
    assert key_asc(write(host, token, (0, 8))) == (ILLEGAL, 0x2304)


@pytest.mark.parametrize(
    ("token", "asc"), [(bytes(512), 0x2301), (bytes.fromhex("00010000").ljust(512, b"\0"), 0x2304)]
)
def test_a_token_that_is_none_is_refused(token: bytes, asc: int) -> None:
    host, _, _ = pair()
    assert key_asc(write(host, token, (0, 8))) == (ILLEGAL, asc)


def test_there_is_a_limit_of_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    host, _, _ = pair()
    monkeypatch.setattr(tokens, "MAX_TOKENS", 2)
    token_of(host, (0, 8), timeout=5)
    token_of(host, (0, 8))
    assert key_asc(populate(host, (0, 8))) == (ILLEGAL, 0x550D)
    for lu in units_of(host):
        platform_of(lu).time += 6
    assert populate(host, (0, 8)).status == 0


def test_the_zero_token_unmaps() -> None:
    host, source, _ = pair()
    assert write(host, ZERO_TOKEN, (0, 16), lun=0).status == 0
    assert source.contents(0, 8192) == bytes(8192)
    assert source.contents(8192, 4) != bytes(4)
    assert status(host, 2, lun=0) == (DONE, 16)


# --- the background ---


def test_with_immed_the_copy_goes_on_and_its_outcome_can_be_asked_for() -> None:
    host, source, destination = pair()
    token = token_of(host, (0, 6144))
    assert write(host, token, (0, 6144), flags=IMMED).status == 0
    assert status(host, 2) == (IN_BACKGROUND, 0)
    assert key_asc(write(host, token, (0, 8))) == (ILLEGAL, 0x0016)
    platform_of(units_of(host)[1]).run()
    assert status(host, 2) == (DONE, 6144)
    assert destination.contents(0, 3 * MIB) == source.contents(0, 3 * MIB)


def test_a_copy_in_the_background_ends_with_the_nexus() -> None:
    host, _, destination = pair()
    token = token_of(host, (0, 6144))
    write(host, token, (0, 6144), flags=IMMED)
    unit_1 = units_of(host)[1]
    host.nexus.close()
    platform_of(unit_1).run()
    assert not destination.pieces


def test_an_error_is_told_and_kept_with_its_sense_data() -> None:
    host, source, _ = pair()
    token = token_of(host, (0, 4096))
    source.bad = {MIB}
    assert key_asc(write(host, token, (0, 4096))) == (COPY_ABORTED, 0x1100)
    assert status(host, 2) == (DONE_WITH_ERRORS, 2048)
    data = information(host, 2, lun=1)
    assert data[14] == 18
    assert (data[32 + 2], data[32 + 12]) == (COPY_ABORTED, 0x11)


def test_an_outcome_that_is_not_there_is_refused() -> None:
    host, _, _ = pair()
    assert key_asc(host.send(struct.pack(">BBI4xIBB", 0x84, 0x07, 9, 4096, 0, 0))) == BAD_CDB_FIELD


def test_old_outcomes_go(monkeypatch: pytest.MonkeyPatch) -> None:
    host, _, _ = pair()
    monkeypatch.setattr(offload, "MAX_TOKEN_OUTCOMES", 2)
    for list_id in range(3):
        populate(host, (0, 8), list_id=list_id)
    assert list(host.nexus.itls[0].token_outcomes) == [1, 2]


# --- parameters ---


@pytest.mark.parametrize(
    ("ranges", "expected"),
    [
        ([(8191, 2)], BAD_LBA),
        ([(0, 8), (4, 8)], BAD_LIST_FIELD),
        ([], BAD_LIST_FIELD),
        ([(i * 2, 1) for i in range(65)], (ILLEGAL, 0x2608)),
    ],
)
def test_ranges_are_checked(ranges: list[tuple[int, int]], expected: tuple[int, int]) -> None:
    host, _, destination = pair()
    token = token_of(host, (0, 8))
    assert key_asc(populate(host, *ranges)) == expected
    assert key_asc(write(host, token, *ranges)) == expected
    assert not destination.pieces


def test_a_token_cannot_stand_for_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offload, "MAX_TOKEN_BYTES", 4096)
    host, _, _ = pair()
    assert key_asc(populate(host, (0, 9))) == BAD_LIST_FIELD


@pytest.mark.parametrize(("flags", "timeout", "kind"), [(RTV, 0, 0x00800000), (0, 3601, 0)])
def test_another_rod_type_and_a_longer_timeout_are_refused(flags: int, timeout: int, kind: int) -> None:
    host, _, _ = pair()
    assert key_asc(populate(host, (0, 8), flags=flags, timeout=timeout, kind=kind)) == BAD_LIST_FIELD
    assert populate(host, (0, 8), flags=RTV, kind=0x00010000).status == 0


@pytest.mark.parametrize(("offset", "blocks"), [(0, 9), (8, 1), (1, 8)])
def test_no_more_than_the_token_stands_for_can_be_written(offset: int, blocks: int) -> None:
    host, _, _ = pair()
    token = token_of(host, (0, 8))
    assert key_asc(write(host, token, (0, blocks), offset=offset)) == BAD_LIST_FIELD


def test_blocks_of_another_size_must_fit() -> None:
    host, source, destination = pair(block=4096)
    token = token_of(host, (0, 12))
    assert write(host, token, (1, 1)).status == 0
    assert destination.contents(4096, 4096) == source.contents(0, 4096)
    assert key_asc(write(host, token, (0, 2))) == BAD_LIST_FIELD


def test_lists_that_are_cut_are_length_errors() -> None:
    host, _, _ = pair()
    token = token_of(host, (0, 8))
    sent = write_list(token, (0, 8))[:-1]
    assert key_asc(host.send(cdb(0x11, len(sent), 1), sent)) == BAD_LIST_LENGTH
    assert key_asc(host.send(cdb(0x10, 15, 1), bytes(15))) == BAD_LIST_LENGTH


@pytest.mark.parametrize("action", [0x10, 0x11])
def test_no_parameters_are_good(action: int) -> None:
    host, _, _ = pair()
    assert host.send(cdb(action, 0, 1)).status == 0


def test_a_write_protected_unit_is_not_written() -> None:
    host, _, destination = pair()
    token = token_of(host, (0, 8))
    destination.read_only = True
    assert key_asc(write(host, token, (0, 8))) == (DATA_PROTECT, 0x2700)


def test_page_8f_tells_the_limits_and_the_kind_of_token() -> None:
    host, _, _ = one_host()
    data = host.data(host.send(inquiry(0x8F)))
    found, at = {}, 4
    while at < len(data):
        kind, length = struct.unpack(">HH", data[at : at + 4])
        found[kind] = data[at + 4 : at + 4 + length]
        at += 4 + length
    assert bytes((0x83, 4, 0, 0x10, 0x11, 0x1C)) in found[1]
    assert struct.unpack(">6xHIIQQ", found[0]) == (64, 3600, 60, 1 << 21, 1 << 17)
    assert found[0x108][4:8] == bytes.fromhex("00010000")
    assert list(found) == sorted(found)
