"""Persistent reservations that reach further: APTPL, SPEC_I_PT, ALL_TG_PT, REGISTER AND MOVE."""

from __future__ import annotations

import struct

import pytest

from target.iscsi.ports import Response
from target.nexus import LogicalUnit, TargetDevice
from target.scsi.reservation import PersistentType, Reservations
from tests.support.memory_store import MemoryStore
from tests.support.scsi_host import (
    BAD_LIST_FIELD,
    BAD_LIST_LENGTH,
    MEDIUM_ERROR,
    TARGET,
    Host,
    key_asc,
    one_host,
    platform_of,
    reserve_in,
    reserve_out,
    reserve_out_list,
    two_hosts,
    unit,
    write_16,
)

CONFLICT = 0x18
REGISTER, RESERVE, RELEASE, CLEAR, PREEMPT, PREEMPT_AND_ABORT, REGISTER_AND_IGNORE, MOVE = range(8)
SPEC_I_PT, ALL_TG_PT, APTPL = 0x08, 0x04, 0x01
WE, WE_AR = PersistentType.WRITE_EXCLUSIVE, PersistentType.WRITE_EXCLUSIVE_ALL_REGISTRANTS
ISID = b"\x80abcde"


def transport_id(name: str, isid: bytes = ISID) -> bytes:
    text = f"{name},i,0x{isid.hex()}".encode() + b"\0"
    text += bytes(-len(text) % 4)
    return struct.pack(">BxH", 0x45, len(text)) + text


def out(host: Host, action: int, key: int = 0, new: int = 0, kind: int = 0, flags: int = 0) -> int:
    return host.send(reserve_out(action, kind), reserve_out_list(key, new, flags)).status


def register_for(host: Host, *ids: bytes, key: int = 0, new: int = 7, action: int = REGISTER) -> Response:
    listed = b"".join(ids)
    parameters = reserve_out_list(key, new, SPEC_I_PT) + struct.pack(">I", len(listed)) + listed
    return host.send(reserve_out(action, length=len(parameters)), parameters)


def move(host: Host, key: int, new: int, to: bytes, flags: int = 0, port: int = 1) -> Response:
    parameters = struct.pack(">QQxBHI", key, new, flags, port, len(to)) + to
    return host.send(reserve_out(MOVE, length=len(parameters)), parameters)


def keys(host: Host) -> list[int]:
    data = host.data(host.send(reserve_in(0)))
    return [key for (key,) in struct.iter_unpack(">Q", data[8:])]


def restarted(lu: LogicalUnit, *names: str) -> list[Host]:
    """The daemon came back with what was saved."""
    again = unit(**platform_of(lu).saved)
    device = TargetDevice(TARGET)
    hosts = [Host(device, {0: again}, name) for name in names]
    for host in hosts:
        host.ready()
    return hosts


def write_status(host: Host) -> int:
    return host.send(write_16(0, 1), bytes(512)).status


# --- APTPL ---


def test_with_aptpl_a_reservation_survives_a_restart() -> None:
    one, _, lu, _ = two_hosts()
    assert out(one, REGISTER, new=0xAA, flags=APTPL) == 0
    assert out(one, RESERVE, 0xAA, kind=WE) == 0
    a, b = restarted(lu, "iqn.host:a", "iqn.host:b")
    assert keys(b) == [0xAA]
    assert write_status(a) == 0
    assert write_status(b) == CONFLICT


def test_an_all_registrants_reservation_survives_too() -> None:
    one, two, lu, _ = two_hosts()
    out(one, REGISTER, new=1, flags=APTPL)
    out(two, REGISTER, new=2, flags=APTPL)
    out(two, RESERVE, 2, kind=WE_AR)
    a, c = restarted(lu, "iqn.host:a", "iqn.host:c")
    assert write_status(a) == 0
    assert write_status(c) == CONFLICT


def test_without_aptpl_nothing_survives() -> None:
    one, _, lu, _ = two_hosts()
    out(one, REGISTER, new=0xAA)
    out(one, RESERVE, 0xAA, kind=WE)
    (b,) = restarted(lu, "iqn.host:b")
    assert keys(b) == []
    assert write_status(b) == 0


def test_the_last_registration_decides_about_all() -> None:
    one, two, lu, _ = two_hosts()
    out(one, REGISTER, new=1, flags=APTPL)
    assert one.data(one.send(reserve_in(2)))[3] & 0x01
    out(two, REGISTER, new=2)
    assert not one.data(one.send(reserve_in(2)))[3] & 0x01
    (b,) = restarted(lu, "iqn.host:b")
    assert keys(b) == []


@pytest.mark.parametrize(
    ("action", "key", "new"), [(CLEAR, 2, 0), (PREEMPT, 2, 1), (REGISTER, 2, 0), (PREEMPT_AND_ABORT, 2, 1)]
)
def test_every_change_is_kept(action: int, key: int, new: int) -> None:
    one, two, lu, _ = two_hosts()
    out(one, REGISTER, new=1, flags=APTPL)
    out(two, REGISTER, new=2, flags=APTPL)
    assert out(two, action, key, new, kind=WE if action in (PREEMPT, PREEMPT_AND_ABORT) else 0, flags=APTPL) == 0
    (b,) = restarted(lu, "iqn.host:b")
    two.ready()
    assert keys(b) == keys(two)


def test_good_status_waits_until_it_is_durable() -> None:
    one, _, lu, _ = two_hosts()
    assert one.start(reserve_out(REGISTER), reserve_out_list(0, 1, APTPL)) is None
    assert not one.late
    platform_of(lu).finish_saves()
    assert one.late[one.tag].status == 0


def test_what_could_not_be_kept_is_not_good() -> None:
    one, _, lu, _ = two_hosts()
    one.start(reserve_out(REGISTER), reserve_out_list(0, 1, APTPL))
    platform_of(lu).finish_saves(OSError("disk full"))
    assert key_asc(one.late[one.tag]) == (MEDIUM_ERROR, 0x0C00)


def test_a_failed_write_is_made_good_by_the_next_change() -> None:
    one, _, lu, _ = two_hosts()
    out(one, REGISTER, new=1, flags=APTPL)
    one.start(reserve_out(CLEAR), reserve_out_list(1))
    platform_of(lu).finish_saves(OSError("disk full"))
    out(one, REGISTER, new=2)
    (b,) = restarted(lu, "iqn.host:b")
    assert keys(b) == []


def test_what_is_kept_reads_back_the_same() -> None:
    one, two, lu, _ = two_hosts()
    out(one, REGISTER, new=1, flags=APTPL | ALL_TG_PT)
    out(two, REGISTER, new=2, flags=APTPL)
    out(two, RESERVE, 2, kind=WE)
    kept = lu.reservations.encode()
    assert Reservations(kept).encode() == kept


# --- SPEC_I_PT and ALL_TG_PT ---


def test_spec_i_pt_registers_other_initiator_ports() -> None:
    one, two, _, _ = two_hosts()
    assert register_for(one, transport_id("iqn.host:b"), transport_id("iqn.host:c", b"123456")).status == 0
    assert keys(one) == [7, 7, 7]
    assert out(two, RESERVE, 7, kind=WE) == 0


@pytest.mark.parametrize(
    "wrong",
    [
        transport_id("iqn.host:b")[:-4],
        b"\x05" + transport_id("iqn.host:b")[1:],
        b"\x06" + transport_id("iqn.host:b")[1:],
        transport_id("iqn.host:b", b"12345"),
        transport_id(""),
        bytes(4),
    ],
)
def test_a_bad_transport_id_registers_nobody(wrong: bytes) -> None:
    one, _, _, _ = two_hosts()
    assert register_for(one, transport_id("iqn.host:c"), wrong).status == 2
    assert keys(one) == []


def test_the_list_of_transport_ids_must_fill_the_parameters() -> None:
    one, _, _, _ = two_hosts()
    parameters = reserve_out_list(0, 1, SPEC_I_PT) + struct.pack(">I", 100) + transport_id("iqn.host:b")
    response = one.send(reserve_out(REGISTER, length=len(parameters)), parameters)
    assert key_asc(response) == BAD_LIST_LENGTH


def test_spec_i_pt_is_for_a_nexus_that_is_not_registered_and_for_register_only() -> None:
    one, _, _, _ = two_hosts()
    assert key_asc(register_for(one, transport_id("iqn.host:b"), action=REGISTER_AND_IGNORE)) == BAD_LIST_FIELD
    out(one, REGISTER, new=1)
    assert key_asc(register_for(one, transport_id("iqn.host:b"), key=1)) == BAD_LIST_FIELD


def test_all_tg_pt_registers_at_every_port() -> None:
    one, _, lu, _ = two_hosts()
    one.nexus.target_ports = (1, 2)
    assert out(one, REGISTER, new=5, flags=ALL_TG_PT) == 0
    assert {who.target_port for who in lu.reservations.keys} == {1, 2}
    data = one.data(one.send(reserve_in(3)))
    assert data[20] & 0x02


def test_capabilities_say_what_there_is() -> None:
    host, _, _ = one_host(MemoryStore())
    assert host.data(host.send(reserve_in(2)))[2] == 0x0D


# --- REGISTER AND MOVE ---


def test_move_gives_the_reservation_to_another_port() -> None:
    one, two, _, _ = two_hosts()
    out(one, REGISTER, new=1)
    out(one, RESERVE, 1, kind=WE)
    assert move(one, 1, 9, transport_id("iqn.host:b")).status == 0
    assert keys(one) == [1, 9]
    assert write_status(one) == CONFLICT
    assert write_status(two) == 0


def test_move_can_unregister_the_mover_and_be_kept() -> None:
    one, _, lu, _ = two_hosts()
    out(one, REGISTER, new=1)
    out(one, RESERVE, 1, kind=WE)
    assert move(one, 1, 9, transport_id("iqn.host:b"), flags=0x02 | APTPL).status == 0
    a, b = restarted(lu, "iqn.host:a", "iqn.host:b")
    assert keys(a) == [9]
    assert (write_status(a), write_status(b)) == (CONFLICT, 0)


def test_only_the_holder_of_a_reservation_can_move_it() -> None:
    one, two, _, _ = two_hosts()
    out(one, REGISTER, new=1)
    assert move(one, 1, 9, transport_id("iqn.host:b")).status == CONFLICT
    out(one, RESERVE, 1, kind=WE)
    out(two, REGISTER, new=2)
    assert move(two, 2, 9, transport_id("iqn.host:c")).status == CONFLICT
    assert move(one, 3, 9, transport_id("iqn.host:b")).status == CONFLICT


def test_a_reservation_of_all_registrants_cannot_be_moved() -> None:
    one, _, _, _ = two_hosts()
    out(one, REGISTER, new=1)
    out(one, RESERVE, 1, kind=WE_AR)
    assert move(one, 1, 9, transport_id("iqn.host:b")).status == CONFLICT


@pytest.mark.parametrize(("new", "name", "port"), [(0, "iqn.host:b", 1), (9, "iqn.host:a", 1), (9, "iqn.host:b", 2)])
def test_a_move_must_lead_somewhere_else_that_is_there(new: int, name: str, port: int) -> None:
    one, _, _, _ = two_hosts()
    out(one, REGISTER, new=1)
    out(one, RESERVE, 1, kind=WE)
    assert key_asc(move(one, 1, new, transport_id(name), port=port)) == BAD_LIST_FIELD
    assert keys(one) == [1]
