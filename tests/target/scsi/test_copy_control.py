"""RECEIVE COPY STATUS(LID4), COPY OPERATION ABORT, and what RECEIVE COPY RESULTS tells of a copy that failed."""

from __future__ import annotations

import struct

import pytest

from target.nexus import LogicalUnit
from tests.support.scsi_host import BAD_CDB_FIELD, Host, key_asc, platform_of, sense_of
from tests.target.scsi.test_extended_copy import BOTH, copy, copy_results, extended_copy, parameters, segment
from tests.target.scsi.test_extended_copy import pair as copy_pair
from tests.target.scsi.test_offload import COPY_ABORTED, DONE, IMMED, cdb, information, pair, token_of, write_list

IN_FOREGROUND, IN_BACKGROUND, TERMINATED = 0x11, 0x12, 0x60
WRITTEN = 6144
"""Blocks: three slices of the copier."""


def copy_status(list_id: int, length: int = 4096) -> bytes:
    return struct.pack(">BBI4xIBB", 0x84, 0x05, list_id, length, 0, 0)


def abort(list_id: int) -> bytes:
    return struct.pack(">BBI10x", 0x83, 0x1C, list_id)


def asked(host: Host, list_id: int, lun: int = 1) -> bytes:
    data = host.data(host.send(copy_status(list_id), lun=lun))
    assert int.from_bytes(data[:4], "big") == len(data) - 4
    return data


def begun(host: Host, flags: int = 0) -> None:
    """WRITE USING TOKEN of list identifier 2 onto LUN 1, none of it done yet."""
    sent = write_list(token_of(host, (0, WRITTEN)), (0, WRITTEN), flags=flags)
    answer = host.start(cdb(0x11, len(sent), 2), sent, 1)
    assert (answer is None) is not bool(flags & IMMED)


def one_slice(lu: LogicalUnit) -> None:
    platform_of(lu).step()


def unit_of(host: Host, lun: int) -> LogicalUnit:
    return host.nexus.itls[lun << 48].lu


# --- RECEIVE COPY STATUS(LID4) ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("flags", "expected"), [(0, IN_FOREGROUND), (IMMED, IN_BACKGROUND)])
def test_the_status_says_whether_somebody_waits_for_the_copy(flags: int, expected: int) -> None:
    host, _, _ = pair()
    begun(host, flags)
    assert asked(host, 2)[5] == expected
    assert int.from_bytes(asked(host, 2)[8:12], "big") > 0


def test_the_status_is_rod_token_information_without_tokens() -> None:
    host, _, _ = pair()
    token_of(host, (0, 8))
    status = asked(host, 1, lun=0)
    assert status[4:] == information(host, 1)[4 : len(status)]
    assert (len(status), status[4], status[5]) == (32, 0x10, DONE)


def test_the_status_of_an_unknown_identifier_is_refused() -> None:
    host, _, _ = pair()
    assert key_asc(host.send(copy_status(9), lun=1)) == BAD_CDB_FIELD


# --- COPY OPERATION ABORT ---------------------------------------------------------------------------------------------


def test_a_copy_in_the_background_is_aborted_where_it_is() -> None:
    host, source, destination = pair()
    begun(host, IMMED)
    one_slice(unit_of(host, 1))
    assert host.send(abort(2), lun=1).status == 0
    platform_of(unit_of(host, 1)).run()
    data = asked(host, 2)
    assert (data[5], int.from_bytes(data[16:24], "big")) == (TERMINATED, 2048)
    assert sense_of(data[32:]) == (COPY_ABORTED, 0)
    assert destination.contents(0, 1 << 20) == source.contents(0, 1 << 20)
    assert destination.contents(1 << 20, 1 << 20) == bytes(1 << 20)


def test_the_command_of_a_copy_that_is_aborted_ends_with_copy_aborted() -> None:
    host, _, _ = pair()
    begun(host)
    tag = host.tag
    assert host.send(abort(2), lun=1).status == 0
    assert key_asc(host.late[tag]) == (COPY_ABORTED, 0)
    assert asked(host, 2)[5] == TERMINATED


def test_extended_copy_is_aborted_by_its_identifier() -> None:
    host, _, destination = copy_pair()
    sent = parameters(BOTH, [segment(0, 1, WRITTEN)], list_id=7)
    host.start(extended_copy(len(sent)), sent)
    tag = host.tag
    assert host.send(abort(7)).status == 0
    assert key_asc(host.late[tag]) == (COPY_ABORTED, 0)
    platform_of(unit_of(host, 1)).run()
    assert not destination.pieces
    assert host.data(host.send(copy_results(0, 7)))[4] == 2


@pytest.mark.parametrize("list_id", [1, 2, 0x100])
def test_what_does_not_go_on_cannot_be_aborted(list_id: int) -> None:
    """1 is done, 2 never was, 100h would be 0 in one byte."""
    host, _, _ = copy_pair()
    assert copy(host, [segment(0, 1, 8)]).status == 0
    assert key_asc(host.send(abort(list_id))) == BAD_CDB_FIELD


def test_an_identifier_is_free_again_after_an_abort_by_task_management() -> None:
    host, _, _ = copy_pair()
    sent = parameters(BOTH, [segment(0, 1, WRITTEN)])
    host.start(extended_copy(len(sent)), sent)
    assert host.nexus.abort_task(0, host.tag)
    platform_of(unit_of(host, 1)).run()
    assert copy(host, [segment(0, 1, 8)]).status == 0


def test_a_reset_ends_a_copy_in_the_background() -> None:
    host, _, destination = pair()
    begun(host, IMMED)
    assert host.nexus.manage(5, 1 << 48) == 0
    platform_of(unit_of(host, 1)).run()
    assert not destination.pieces
    host.ready(1)
    assert asked(host, 2)[5] == TERMINATED


# --- RECEIVE COPY RESULTS ---------------------------------------------------------------------------------------------


def test_the_sense_of_a_segment_that_failed_is_told_once() -> None:
    host, source, _ = copy_pair()
    source.bad = {4096}
    response = copy(host, [segment(0, 1, 8), segment(0, 1, 8, at=8)])
    data = host.data(host.send(copy_results(4)))
    assert int.from_bytes(data[:4], "big") == len(data) - 4
    assert (data[56], int.from_bytes(data[58:60], "big"), data[60:]) == (2, len(response.sense), response.sense)
    assert host.data(host.send(copy_results(4))) == bytes(4)


def test_a_copy_that_went_well_has_no_failure_and_no_data() -> None:
    host, _, _ = copy_pair()
    copy(host, [segment(0, 1, 8)])
    assert host.data(host.send(copy_results(4))) == bytes(4)
    assert host.data(host.send(copy_results(1))) == bytes(4)


@pytest.mark.parametrize("action", [1, 4])
def test_results_of_an_unknown_identifier_are_refused(action: int) -> None:
    host, _, _ = copy_pair()
    assert key_asc(host.send(copy_results(action, 9))) == BAD_CDB_FIELD
