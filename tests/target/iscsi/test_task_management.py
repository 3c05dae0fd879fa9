"""Task management beyond one command in one place: commands on their way, RFC 7144, what the device server ends."""

from __future__ import annotations

import pytest

from target.iscsi import limits
from target.iscsi.constants import NO_TAG, Opcode, RejectReason, TaskFunction
from target.iscsi.ports import Response
from tests.support.initiator import READ_10, WRITE_10, Initiator, Reply, cdb_10
from tests.target.iscsi.conftest import Bench

READ_ONE = cdb_10(READ_10, 0, 1).ljust(16, b"\0")
WRITE_ONE = cdb_10(WRITE_10, 0, 1).ljust(16, b"\0")
FLUSH = bytes((0x35,)) + bytes(15)
LEVEL_2 = {"iSCSIProtocolLevel": "2"}
OTHER_LUN = 1 << 48
COMPLETE, NO_TASK, NO_LUN, NOT_SUPPORTED, SUCCEEDED = 0, 1, 2, 5, 7


def manage(
    initiator: Initiator, function: int, *, referenced: int = NO_TAG, immediate: bool = True, **fields: int
) -> list[Reply]:
    return initiator.request(
        Opcode.TASK_MANAGEMENT_REQUEST, flags=0x80 | function, itt=initiator.next_itt(), referenced_itt=referenced,
        immediate=immediate, **fields,
    )  # fmt: skip


def read_at(initiator: Initiator, cmd_sn: int, itt: int, **fields: object) -> list[Reply]:
    more = {"flags": 0xC1, "itt": itt, "edtl": 512, "cdb": READ_ONE, "cmd_sn": cmd_sn, **fields}
    return initiator.request(Opcode.SCSI_COMMAND, **more)  # type: ignore[arg-type]


def flush(initiator: Initiator, **fields: object) -> int:
    """A command that stays in the device server; its tag."""
    initiator.numbered(Opcode.SCSI_COMMAND, flags=0x81, cdb=FLUSH, **fields)
    return initiator.itt


def gathering(initiator: Initiator) -> Reply:
    (r2t,) = initiator.numbered(Opcode.SCSI_COMMAND, flags=0xA1, edtl=512, cdb=WRITE_ONE)
    return r2t


# --- commands that have not been taken yet (RFC 7143 11.6.1 b)


def test_abort_task_of_a_command_held_for_an_early_cmd_sn(session: Initiator) -> None:
    """It counts as received and is never done; what comes after it goes on."""
    first = session.cmd_sn
    assert read_at(session, first + 1, 901) == []
    assert read_at(session, first + 2, 902) == []
    (reply,) = manage(session, 1, referenced=901, ref_cmd_sn=first + 1, cmd_sn=first + 3)
    assert reply.response == COMPLETE
    assert [r.itt for r in read_at(session, first, 900)] == [900, 902]
    session.cmd_sn = first + 3
    assert session.read(0, 1).status == 0
    assert session.link.core.session.window.early_bytes == 0


def test_abort_task_of_a_command_that_never_arrives_fills_its_place(session: Initiator) -> None:
    first = session.cmd_sn
    (reply,) = manage(session, 1, referenced=900, ref_cmd_sn=first, cmd_sn=first + 1)
    assert (reply.response, reply.exp_cmd_sn) == (COMPLETE, first)
    session.cmd_sn = first + 1
    (answer,) = session.read(0, 1).replies
    assert answer.exp_cmd_sn == first + 2
    assert read_at(session, first, 900) == []  # it comes after all: its CmdSN is used up


@pytest.mark.parametrize("ref", [-1, -5, 1, limits.COMMAND_WINDOW, 1 << 31], ids=str)
def test_abort_task_outside_the_window_or_after_itself_finds_nothing(session: Initiator, ref: int) -> None:
    ref_cmd_sn = (session.cmd_sn + ref) & 0xFFFFFFFF
    (reply,) = manage(session, 1, referenced=900, ref_cmd_sn=ref_cmd_sn, cmd_sn=session.cmd_sn + 1)
    assert reply.response == NO_TASK
    assert session.read(0, 1).status == 0


def test_abort_task_with_another_commands_cmd_sn_finds_nothing(session: Initiator) -> None:
    first = session.cmd_sn
    read_at(session, first + 1, 901)
    (reply,) = manage(session, 1, referenced=999, ref_cmd_sn=first + 1, cmd_sn=first + 2)
    assert reply.response == NO_TASK
    assert [r.itt for r in read_at(session, first, 900)] == [900, 901]


@pytest.mark.parametrize("function", [2, 4, 5])
def test_a_task_set_function_waits_for_the_commands_sent_before_it(
    bench: Bench, session: Initiator, function: int
) -> None:
    """RFC 7143 4.2.3.3 c."""
    first = session.cmd_sn
    assert manage(session, function, cmd_sn=first + 2) == []
    assert read_at(session, first + 1, 901) == []
    assert bench.disk.managed == []
    replies = read_at(session, first, 900)
    assert [r.opcode for r in replies] == [Opcode.DATA_IN, Opcode.DATA_IN, Opcode.TASK_MANAGEMENT_RESPONSE]
    assert bench.disk.managed == [(function, 0)]
    session.cmd_sn = first + 2
    assert session.read(0, 1).status == 0


def test_a_target_reset_takes_commands_on_their_way_as_received(bench: Bench, session: Initiator) -> None:
    first = session.cmd_sn
    assert read_at(session, first + 1, 901) == []
    (reply,) = manage(session, TaskFunction.TARGET_WARM_RESET, cmd_sn=first + 3)
    assert reply.response == COMPLETE
    session.cmd_sn = first + 3
    (answer,) = session.read(0, 1).replies
    assert answer.exp_cmd_sn == first + 4
    assert bench.disk.seen == []


def test_functions_that_wait_are_limited(session: Initiator) -> None:
    cmd_sn = session.cmd_sn + 1
    for _ in range(limits.IMMEDIATE_COMMANDS):
        assert manage(session, 2, cmd_sn=cmd_sn) == []
    (reject,) = manage(session, 2, cmd_sn=cmd_sn)
    assert reject.reason == RejectReason.TOO_MANY_IMMEDIATE


# --- what the device server ends by itself (PREEMPT AND ABORT)


@pytest.mark.parametrize("told", [True, False])
def test_what_the_device_server_ends_leaves_no_slot_behind(bench: Bench, session: Initiator, told: bool) -> None:
    flush(session)
    r2t = gathering(session)
    core = session.link.core.session
    (nexus,) = bench.disk.nexuses
    assert nexus.on_abort is not None
    nexus.on_abort(lambda lun: lun == 1, told)
    assert len(core.tasks) == 2  # another logical unit's
    nexus.on_abort(lambda lun: lun == 0, told)
    assert (core.tasks, core.window.outstanding) == ({}, 0)
    assert [r.status for r in session.link.take()] == ([0x40, 0x40] if told else [])
    assert session.send_data(r2t.itt, r2t.ttt, 0, bytes(512)) == []


def test_a_command_that_ends_its_own_nexus_tasks_is_answered(
    bench: Bench, session: Initiator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PREEMPT AND ABORT of one's own registration: everything but the command itself."""
    flush(session)
    (nexus,) = bench.disk.nexuses

    def execute(*args: object) -> Response:
        assert nexus.on_abort is not None
        nexus.on_abort(lambda lun: True, False)
        return Response()

    monkeypatch.setattr(nexus, "execute", execute)
    outcome = session.command(bytes(6))
    assert outcome.status == 0
    assert session.link.core.session.tasks == {}


# --- RFC 7144


@pytest.mark.parametrize("level", [None, "0", "1"])
@pytest.mark.parametrize("function", [9, 10, 11, 12])
def test_new_functions_need_protocol_level_2(bench: Bench, level: str | None, function: int) -> None:
    session = bench.logged_in(keys={"iSCSIProtocolLevel": level} if level else {})
    assert manage(session, function)[0].response == NOT_SUPPORTED
    assert bench.disk.managed == []


@pytest.mark.parametrize(("offered", "agreed"), [("0", "0"), ("1", "1"), ("2", "2"), ("31", "2"), ("32", "Reject")])
def test_the_level_is_the_lower_one(bench: Bench, offered: str, agreed: str) -> None:
    session = bench.logged_in(keys={"iSCSIProtocolLevel": offered})
    assert session.agreed["iSCSIProtocolLevel"] == agreed


@pytest.mark.parametrize("level", [1, 2])
def test_the_device_server_knows_the_level(bench: Bench, level: int) -> None:
    bench.logged_in(keys={"iSCSIProtocolLevel": str(level)})
    assert bench.disk.nexuses[0].protocol_level == level


def test_query_task(bench: Bench) -> None:
    session = bench.logged_in(keys=LEVEL_2)
    tag = flush(session)
    r2t = gathering(session)
    assert manage(session, 9, referenced=tag)[0].response == SUCCEEDED
    assert manage(session, 9, referenced=r2t.itt)[0].response == SUCCEEDED
    assert manage(session, 9, referenced=999)[0].response == COMPLETE
    assert manage(session, 9, referenced=tag, lun=OTHER_LUN)[0].response == NO_LUN
    bench.disk.later[0][1](Response())
    session.link.take()
    assert manage(session, 9, referenced=tag)[0].response == COMPLETE


def test_query_task_set(bench: Bench) -> None:
    session = bench.logged_in(keys=LEVEL_2)
    assert manage(session, 10)[0].response == COMPLETE
    flush(session)
    assert manage(session, 10)[0].response == SUCCEEDED
    assert manage(session, 10, lun=OTHER_LUN)[0].response == NO_LUN
    other = bench.logged_in(isid=b"\x80\0\0\0\0\2", keys=LEVEL_2)
    assert manage(other, 10)[0].response == COMPLETE  # another nexus' tasks are not asked for


def test_query_asynchronous_event(bench: Bench) -> None:
    session = bench.logged_in(keys=LEVEL_2)
    (reply,) = manage(session, 12)
    assert (reply.response, reply.information) == (COMPLETE, bytes(3))
    bench.disk.attention = bytes((0x16, 0x2A, 0x09))
    (reply,) = manage(session, 12)
    assert (reply.response, reply.information) == (SUCCEEDED, bytes((0x16, 0x2A, 0x09)))
    assert manage(session, 12, lun=OTHER_LUN)[0].response == NO_LUN


def test_i_t_nexus_reset_ends_this_sessions_tasks(bench: Bench) -> None:
    session = bench.logged_in(keys=LEVEL_2)
    other = bench.logged_in(isid=b"\x80\0\0\0\0\2")
    gathering(session)
    r2t = gathering(other)
    assert manage(session, 11)[0].response == COMPLETE
    assert bench.disk.managed == [(11, 0)]
    assert session.link.core.session.tasks == {}
    assert [r.status for r in other.send_data(r2t.itt, r2t.ttt, 0, bytes(512))] == [0]
    assert session.read(0, 1).status == 0
