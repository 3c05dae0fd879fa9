"""EXTENDED COPY(LID1), RECEIVE COPY RESULTS and VPD page 8Fh."""

from __future__ import annotations

import struct

import pytest

from target.iscsi.ports import Response
from target.nexus import LogicalUnit, TargetDevice
from tests.support.memory_store import MemoryStore
from tests.support.scsi_host import (
    BAD_CDB_FIELD,
    BAD_LIST_LENGTH,
    ILLEGAL,
    RESERVE_6,
    TARGET,
    Host,
    inquiry,
    key_asc,
    one_host,
    platform_of,
    unit,
)

COPY_ABORTED = 0x0A
MIB = 1 << 20
NAAS = [bytes.fromhex(f"600000000000000000000000000000{i:02x}") for i in range(3)]


def pair(block: int = 512) -> tuple[Host, MemoryStore, MemoryStore]:
    """LUN 0 with something on it, LUN 1 empty."""
    stores = MemoryStore(4 * MIB, naa=NAAS[0]), MemoryStore(4 * MIB, block, serial="LL2", naa=NAAS[1])
    stores[0].write(0, memoryview(bytes(range(256)) * 16 * 768))
    host = Host(TargetDevice(TARGET), {i: unit(store) for i, store in enumerate(stores)})
    host.ready(0)
    host.ready(1)
    return host, *stores


def extended_copy(length: int) -> bytes:
    return struct.pack(">BB8xIBB", 0x83, 0, length, 0, 0)


def copy_results(action: int, list_id: int = 1, length: int = 1024) -> bytes:
    return struct.pack(">BBB7xIBB", 0x84, action, list_id, length, 0, 0)


def cscd(naa: bytes, kind: int = 0xE4, designator: tuple[int, int] = (1, 3)) -> bytes:
    return struct.pack(">BBHBBBB20sB3s", kind, 0, 0, *designator, 0, len(naa), naa, 0, (512).to_bytes(3, "big"))


def segment(
    source: int, destination: int, blocks: int, at: int = 0, to: int = 0, flags: int = 0, kind: int = 2
) -> bytes:
    return struct.pack(">BBHHHHHQQ", kind, flags, 24, source, destination, 0, blocks, at, to)


def parameters(
    targets: list[bytes], segments: list[bytes], list_id: int = 1, flags: int = 0, inline: int = 0
) -> bytes:
    cscds, segs = b"".join(targets), b"".join(segments)
    return struct.pack(">BBH4xII", list_id, flags, len(cscds), len(segs), inline) + cscds + segs


BOTH = [cscd(NAAS[0]), cscd(NAAS[1])]


def copy(host: Host, segments: list[bytes], targets: list[bytes] | None = None, **more: int) -> Response:
    sent = parameters(BOTH if targets is None else targets, segments, **more)
    return host.send(extended_copy(len(sent)), sent)


def test_blocks_are_copied_between_units() -> None:
    host, source, destination = pair()
    assert copy(host, [segment(0, 1, 5000, at=8, to=16)]).status == 0
    assert destination.contents(8192, 5000 * 512) == source.contents(4096, 5000 * 512)
    assert destination.contents(0, 8192) == bytes(8192)


def test_blocks_are_copied_inside_a_unit() -> None:
    host, source, _ = pair()
    assert copy(host, [segment(0, 0, 8, to=7168)]).status == 0
    assert source.contents(7168 * 512, 4096) == source.contents(0, 4096)


def test_several_segments_are_done_in_order() -> None:
    host, _, destination = pair()
    assert copy(host, [segment(0, 1, 8), segment(1, 1, 8, to=8), segment(1, 0, 8, at=8, to=8000)]).status == 0
    assert host.read(8000, 8) == destination.contents(0, 4096) == destination.contents(4096, 4096)


def test_a_unit_is_found_by_its_t10_vendor_id_too() -> None:
    host, source, destination = pair()
    targets = [cscd(NAAS[0]), cscd(b"LAZYLUN LL2", designator=(2, 1))]
    assert copy(host, [segment(0, 1, 8)], targets).status == 0
    assert destination.contents(0, 4096) == source.contents(0, 4096)


@pytest.mark.parametrize(("flags", "blocks", "length"), [(0, 16, 8192), (2, 2, 8192)])
def test_dc_says_whose_blocks_are_counted(flags: int, blocks: int, length: int) -> None:
    host, source, destination = pair(block=4096)
    assert copy(host, [segment(0, 1, blocks, flags=flags)]).status == 0
    assert destination.contents(0, length) == source.contents(0, length)
    assert destination.contents(length, 1) == b"\0"


def test_a_segment_that_is_no_whole_number_of_blocks_is_refused() -> None:
    host, _, _ = pair(block=4096)
    assert key_asc(copy(host, [segment(0, 1, 9)])) == (COPY_ABORTED, 0x260A)


def test_zeros_stay_holes() -> None:
    host, _, destination = pair()
    destination.write(0, memoryview(b"x" * 4096))
    assert copy(host, [segment(0, 1, 8, at=8000)]).status == 0
    assert not destination.pieces


def test_the_copy_is_done_in_slices_with_others_in_between() -> None:
    host, _, destination = pair()
    sent = parameters(BOTH, [segment(0, 1, 6144)])
    assert host.start(extended_copy(len(sent)), sent) is None
    mine = host.tag
    for done in range(3):
        assert len(destination.pieces) == done * 256
        assert host.send(bytes(6)).status == 0
        for lu in units_of(host):
            if platform_of(lu).calls:
                platform_of(lu).step()
    assert host.late[mine].status == 0


def units_of(host: Host) -> list[LogicalUnit]:
    return [itl.lu for itl in host.nexus.itls.values()]


def test_what_is_not_in_memory_is_waited_for_and_read_in_the_end() -> None:
    host, source, destination = pair()
    source.cold = True
    assert copy(host, [segment(0, 1, 8)]).status == 0
    assert destination.contents(0, 4096) == source.contents(0, 4096)


def test_an_aborted_copy_stops() -> None:
    host, _, destination = pair()
    sent = parameters(BOTH, [segment(0, 1, 6144)])
    host.start(extended_copy(len(sent)), sent)
    for lu in units_of(host):
        if platform_of(lu).calls:
            platform_of(lu).step()
    assert host.nexus.abort_task(0, host.tag)
    for lu in units_of(host):
        platform_of(lu).run()
    assert len(destination.pieces) == 256
    assert not host.late


def test_a_source_that_goes_back_to_a_snapshot_ends_the_copy() -> None:
    host, _, _ = pair()
    sent = parameters(BOTH, [segment(0, 1, 6144)])
    host.start(extended_copy(len(sent)), sent)
    units_of(host)[0].contents_changed(resized=False)
    assert key_asc(host.finish()) == (COPY_ABORTED, 0x2F02)


def test_no_parameters_are_good() -> None:
    host, _, _ = pair()
    assert host.send(extended_copy(0)).status == 0


@pytest.mark.parametrize("cut", [1, 28, 29, 60, 91])
def test_a_cut_list_is_a_length_error(cut: int) -> None:
    host, _, _ = pair()
    sent = parameters(BOTH, [segment(0, 1, 8)])[:-cut]
    assert key_asc(host.send(extended_copy(len(sent)), sent)) == BAD_LIST_LENGTH


@pytest.mark.parametrize(
    ("targets", "segments", "asc"),
    [
        ([cscd(NAAS[0])] * 17, [segment(0, 0, 8)], 0x2606),
        ([cscd(NAAS[0], 0xE0)], [segment(0, 0, 8)], 0x2607),
        ([cscd(NAAS[0])], [segment(0, 0, 0)] * 65, 0x2608),
        ([cscd(NAAS[0])], [segment(0, 0, 8, kind=3)], 0x2609),
        ([cscd(NAAS[0])] * 17, [segment(0, 0, 0)] * 65, 0x1A00),
    ],
)
def test_lists_are_checked(targets: list[bytes], segments: list[bytes], asc: int) -> None:
    host, _, _ = pair()
    assert key_asc(copy(host, segments, targets)) == (ILLEGAL, asc)


def test_inline_data_is_refused() -> None:
    host, _, _ = pair()
    assert key_asc(copy(host, [segment(0, 1, 8)], inline=4)) == (ILLEGAL, 0x260B)


@pytest.mark.parametrize(
    ("one", "asc"),
    [
        (segment(0, 2, 8), 0x0804),
        (segment(0, 1, 8, to=8191), 0x0000),
        (segment(0, 1, 8, at=8192), 0x0000),
    ],
)
def test_segments_that_lead_nowhere_abort_the_copy(one: bytes, asc: int) -> None:
    host, _, destination = pair()
    assert key_asc(copy(host, [one])) == (COPY_ABORTED, asc)
    assert not destination.pieces


def test_a_unit_that_this_nexus_does_not_see_is_not_reachable() -> None:
    host, _, _ = pair()
    assert key_asc(copy(host, [segment(0, 1, 8)], [cscd(NAAS[0]), cscd(NAAS[2])])) == (COPY_ABORTED, 0x0D02)


def test_write_protection_and_reservations_bind_the_copy() -> None:
    host, _, destination = pair()
    destination.read_only = True
    assert key_asc(copy(host, [segment(0, 1, 8)])) == (COPY_ABORTED, 0x0D01)
    destination.read_only = False
    other = Host(host.nexus.device, {0: units_of(host)[1]}, "iqn.host:b")
    other.ready()
    other.send(RESERVE_6)
    assert key_asc(copy(host, [segment(0, 1, 8)])) == (COPY_ABORTED, 0x0D01)


def test_an_error_in_the_middle_tells_how_many_segments_were_done() -> None:
    host, source, _ = pair()
    source.bad = {4096}
    response = copy(host, [segment(0, 1, 8), segment(0, 1, 8, at=8)])
    assert key_asc(response) == (COPY_ABORTED, 0x1100)
    assert response.sense[3:7] == b"\0\0\0\1"
    assert host.data(host.send(copy_results(0)))[4:7] == b"\2\0\1"


# --- RECEIVE COPY RESULTS ---


def test_the_outcome_is_kept_by_list_identifier() -> None:
    host, _, _ = pair()
    assert key_asc(host.send(copy_results(0, 7))) == BAD_CDB_FIELD
    copy(host, [segment(0, 1, 8)], list_id=7)
    assert host.data(host.send(copy_results(0, 7))) == bytes.fromhex("00000008 01 0001 00 00001000")


def test_a_copy_under_way_is_in_progress_and_its_identifier_taken() -> None:
    host, _, _ = pair()
    sent = parameters(BOTH, [segment(0, 1, 6144)])
    host.start(extended_copy(len(sent)), sent)
    assert host.data(host.send(copy_results(0)))[4] == 0
    assert key_asc(copy(host, [segment(0, 1, 8)])) == (ILLEGAL, 0x0016)


@pytest.mark.parametrize(("flags", "list_id"), [(0x10, 1), (0x18, 0)])
def test_nothing_is_kept_that_nobody_wants(flags: int, list_id: int) -> None:
    host, _, _ = pair()
    assert copy(host, [segment(0, 1, 8)], flags=flags, list_id=list_id).status == 0
    assert key_asc(host.send(copy_results(0, list_id))) == BAD_CDB_FIELD


def test_an_identifier_where_none_is_to_be_is_refused() -> None:
    host, _, _ = pair()
    assert key_asc(copy(host, [segment(0, 1, 8)], flags=0x18)) == (ILLEGAL, 0x2600)


def test_operating_parameters_tell_the_limits() -> None:
    host, _, _ = one_host()
    data = host.data(host.send(copy_results(3)))
    assert int.from_bytes(data[:4], "big") == len(data) - 4
    assert struct.unpack(">HHII", data[8:20]) == (16, 64, 16 * 32 + 64 * 28, 256 * MIB)
    assert data[43:] == bytes((2, 0x02, 0xE4))


def test_page_8f_names_the_commands() -> None:
    host, _, _ = one_host()
    data = host.data(host.send(inquiry(0x8F)))
    found, at = {}, 4
    while at < len(data):
        kind, length = struct.unpack(">HH", data[at : at + 4])
        found[kind] = data[at + 4 : at + 4 + length]
        assert length % 4 == 0
        at += 4 + length
    assert bytes((0x83, 4, 0, 0x10, 0x11, 0x1C)) in found[1]
    assert bytes((0x84, 6, 0, 1, 3, 4, 5, 7)) in found[1]


def test_inquiry_says_that_there_is_third_party_copy() -> None:
    host, _, _ = one_host()
    assert host.data(host.send(inquiry()))[5] & 0x08
