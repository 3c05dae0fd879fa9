"""REPORT TARGET PORT GROUPS: what multipath asks before it trusts the TPGS bits."""

from __future__ import annotations

import struct

import pytest

from tests.support.scsi_host import BAD_CDB_FIELD, RESERVE_6, Host, key_asc, one_host, two_hosts


def rtpg(form: int = 0, length: int = 4096) -> bytes:
    return struct.pack(">BB4xIxB", 0xA3, form << 5 | 0x0A, length, 0)


def groups(data: bytes) -> list[tuple[int, int, int, list[int]]]:
    """(state, supported states, group, relative target ports)"""
    found, at = [], 0
    while at < len(data):
        state, supported, group, count = struct.unpack(">BBHxxxB", data[at : at + 8])
        ports = struct.unpack(f">{count}I", data[at + 8 : at + 8 + 4 * count])
        found.append((state, supported, group, list(ports)))
        at += 8 + 4 * count
    return found


def answer(host: Host, form: int = 0) -> bytes:
    data = host.data(host.send(rtpg(form)))
    assert int.from_bytes(data[:4], "big") == len(data) - 4
    return data[4:]


def test_the_portal_group_is_active_and_optimized() -> None:
    host, _, _ = one_host()
    assert groups(answer(host)) == [(0, 1, 1, [1])]


def test_every_portal_group_is_a_target_port_group() -> None:
    host, _, _ = one_host()
    host.nexus.target_ports = (1, 7)
    assert groups(answer(host)) == [(0, 1, 1, [1]), (0, 1, 7, [7])]


def test_the_extended_form_has_a_header() -> None:
    host, _, _ = one_host()
    data = answer(host, form=1)
    assert data[:4] == bytes((0x10, 0, 0, 0))
    assert groups(data[4:]) == [(0, 1, 1, [1])]


@pytest.mark.parametrize("form", [2, 7])
def test_other_forms_are_refused(form: int) -> None:
    host, _, _ = one_host()
    assert key_asc(host.send(rtpg(form))) == BAD_CDB_FIELD


def test_a_reservation_does_not_stand_against_it() -> None:
    one, two, _, _ = two_hosts()
    one.send(RESERVE_6)
    assert two.send(rtpg()).status == 0
