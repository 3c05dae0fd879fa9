"""Full feature phase beside data: the window, NOP, Text, Logout, Reject, SNACK, task management, Async Message."""

from __future__ import annotations

import pytest

from target.iscsi import limits
from target.iscsi.constants import NO_TAG, Opcode, RejectReason, TaskFunction
from target.iscsi.fullfeature import HANDLERS
from target.iscsi.manage import FUNCTIONS
from target.iscsi.ports import Response
from tests.support.initiator import READ_10, WRITE_10, Initiator, Reply, cdb_10
from tests.support.memory_target import TARGET
from tests.target.iscsi.conftest import Bench

READ_ONE = cdb_10(READ_10, 0, 1).ljust(16, b"\0")
FLUSH = bytes((0x35,)) + bytes(15)


def read_one(initiator: Initiator, **fields: object) -> list[Reply]:
    return initiator.request(
        Opcode.SCSI_COMMAND, **{"flags": 0xC1, "itt": initiator.next_itt(), "edtl": 512, "cdb": READ_ONE, **fields}
    )


# --- the command window


@pytest.mark.parametrize("fast", [True, False], ids=["fast", "slow"])
@pytest.mark.parametrize("ahead", [-1, -100, limits.COMMAND_WINDOW, 1 << 30, 1 << 31], ids=str)
def test_a_command_outside_the_window_is_dropped_silently(bench: Bench, ahead: int, fast: bool) -> None:
    bench.disk.fast = fast
    initiator = bench.logged_in()
    assert read_one(initiator, cmd_sn=(initiator.cmd_sn + ahead) & 0xFFFFFFFF) == []
    assert initiator.read(0, 1).status == 0


def test_commands_that_come_early_run_in_their_order(bench: Bench, session: Initiator) -> None:
    first = session.cmd_sn
    assert read_one(session, cmd_sn=first + 2, itt=92) == []
    assert read_one(session, cmd_sn=first + 1, itt=91) == []
    replies = read_one(session, cmd_sn=first, itt=90)
    assert [r.itt for r in replies] == [90, 91, 92]
    assert replies[-1].exp_cmd_sn == first + 3


def test_early_commands_are_kept_within_a_limit(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "HELD_BYTES", 100)
    initiator = bench.logged_in()
    first = initiator.cmd_sn
    for ahead in range(1, 10):
        read_one(initiator, cmd_sn=first + ahead)
    assert initiator.link.core.session.window.early_bytes <= 100


def test_sequence_numbers_wrap(bench: Bench) -> None:
    initiator = bench.initiator()
    initiator.cmd_sn = 0xFFFFFFFE
    initiator.login()
    for n in range(5):
        (reply,) = initiator.read(0, 1).replies
        assert reply.exp_cmd_sn == (0xFFFFFFFF + n) & 0xFFFFFFFF
    bench.disk.fast = False
    assert initiator.read(0, 1).status == 0


def test_an_immediate_command_takes_no_number(session: Initiator) -> None:
    before = session.cmd_sn
    outcome = session.read(0, 1, immediate=True)
    assert outcome.status == 0
    assert outcome.replies[0].exp_cmd_sn == before
    assert session.read(0, 1).status == 0


def test_too_many_immediate_commands_are_rejected(session: Initiator) -> None:
    replies = [
        reply
        for _ in range(limits.IMMEDIATE_COMMANDS + 1)
        for reply in session.request(
            Opcode.SCSI_COMMAND, flags=0x81, itt=session.next_itt(), cdb=FLUSH, immediate=True
        )
    ]
    assert [(r.opcode, r.reason) for r in replies] == [(Opcode.REJECT, RejectReason.TOO_MANY_IMMEDIATE)]


def test_unfinished_commands_close_the_window(bench: Bench, session: Initiator) -> None:
    first = session.read(0, 1).replies[0].max_cmd_sn
    for _ in range(limits.COMMAND_WINDOW):
        session.numbered(Opcode.SCSI_COMMAND, flags=0x81, cdb=FLUSH)
    assert len(session.link.core.session.tasks) == limits.COMMAND_WINDOW
    assert read_one(session) == []  # the window is closed: dropped
    (pong,) = session.request(Opcode.NOP_OUT, itt=5000, ttt=NO_TAG, immediate=True)
    assert (pong.max_cmd_sn, pong.exp_cmd_sn) == (first, first + 1)
    for _, done in list(bench.disk.later):
        done(Response())
    answers = session.link.take()
    assert [r.max_cmd_sn for r in answers] == [first + n + 1 for n in range(limits.COMMAND_WINDOW)]


def test_a_tag_in_use_is_rejected(session: Initiator) -> None:
    session.numbered(Opcode.SCSI_COMMAND, flags=0x81, cdb=FLUSH)
    (reject,) = read_one(session, itt=session.itt)
    assert reject.reason == RejectReason.TASK_IN_PROGRESS
    session.cmd_sn += 1
    assert session.read(0, 1).status == 0


def test_a_bidirectional_command_is_rejected(session: Initiator) -> None:
    (reject,) = read_one(session, flags=0xE1)
    assert reject.reason == RejectReason.COMMAND_NOT_SUPPORTED


def test_a_command_that_finishes_later_is_answered_then(bench: Bench, session: Initiator) -> None:
    assert session.numbered(Opcode.SCSI_COMMAND, flags=0x81, cdb=FLUSH) == []
    assert session.read(0, 1).status == 0
    ((tag, done),) = bench.disk.later
    done(Response())
    (reply,) = session.link.take()
    assert (reply.itt, reply.status, tag) == (tag, 0, tag)
    done(Response())
    assert session.link.take() == []


# --- NOP, Reject, SNACK


def test_a_ping_comes_back_with_its_data(session: Initiator) -> None:
    (pong,) = session.numbered(Opcode.NOP_OUT, b"hello world", ttt=NO_TAG)
    assert (pong.opcode, pong.data, pong.itt, pong.ttt) == (Opcode.NOP_IN, b"hello world", session.itt, NO_TAG)


def test_a_ping_is_cut_to_what_the_initiator_takes(bench: Bench) -> None:
    initiator = bench.logged_in(keys={"MaxRecvDataSegmentLength": "512"})
    (pong,) = initiator.numbered(Opcode.NOP_OUT, bytes(2000), ttt=NO_TAG)
    assert len(pong.data) == 512


def test_a_nop_without_a_tag_is_not_answered(session: Initiator) -> None:
    assert session.request(Opcode.NOP_OUT, itt=NO_TAG, ttt=NO_TAG, immediate=True) == []


@pytest.mark.parametrize("opcode", sorted(set(range(0x40)) - set(HANDLERS)))
def test_an_unknown_opcode_is_rejected_with_its_header(session: Initiator, opcode: int) -> None:
    header = bytes((opcode | 0x40, 0x80)) + bytes(46)
    (reject,) = session.link.send(header)
    assert (reject.opcode, reject.reason, reject.itt) == (Opcode.REJECT, RejectReason.COMMAND_NOT_SUPPORTED, NO_TAG)
    assert reject.data == header
    assert session.read(0, 1).status == 0


def test_snack_is_rejected(session: Initiator) -> None:
    (reject,) = session.request(Opcode.SNACK_REQUEST, itt=1, ttt=NO_TAG)
    assert reject.reason == RejectReason.SNACK_REJECT


def test_a_second_login_is_rejected(session: Initiator) -> None:
    (reject,) = session.request(Opcode.LOGIN_REQUEST, immediate=True, isid=bytes(6), itt=1)
    assert reject.reason == RejectReason.PROTOCOL_ERROR


# --- Text


def send_targets(initiator: Initiator, value: str) -> list[tuple[str, str]]:
    (reply,) = initiator.numbered(Opcode.TEXT_REQUEST, f"SendTargets={value}\0".encode(), ttt=NO_TAG)
    assert (reply.opcode, reply.flags, reply.ttt) == (Opcode.TEXT_RESPONSE, 0x80, NO_TAG)
    return [tuple(item.split("=", 1)) for item in reply.data.decode().split("\0") if item]  # type: ignore[misc]


OURS = [("TargetName", TARGET), ("TargetAddress", "192.0.2.1:3260,1")]


@pytest.mark.parametrize(("value", "found"), [("All", OURS), (TARGET, OURS), ("iqn.x:other", []), ("", [])])
def test_discovery_lists_targets(bench: Bench, value: str, found: list[tuple[str, str]]) -> None:
    assert send_targets(bench.logged_in(target=None), value) == found


@pytest.mark.parametrize(("value", "found"), [("All", OURS), (TARGET, OURS), ("iqn.x:other", []), ("", OURS)])
def test_a_normal_session_learns_of_its_own_target_only(
    bench: Bench, value: str, found: list[tuple[str, str]]
) -> None:
    bench.directory.disks["iqn.x:other"] = bench.disk
    assert send_targets(bench.logged_in(), value) == found


def test_addresses_of_the_directory_come_first(bench: Bench) -> None:
    bench.directory.addresses = ["198.51.100.7:3261,1", "[2001:db8::1]:3260,1"]
    found = send_targets(bench.logged_in(target=None), "All")
    assert found[1:] == [("TargetAddress", a) for a in bench.directory.addresses]


def test_a_long_answer_comes_in_pieces(bench: Bench) -> None:
    names = [f"{TARGET}:{n:04}" for n in range(200)]
    bench.directory.disks = dict.fromkeys(names, bench.disk)
    initiator = bench.logged_in(target=None, keys={"MaxRecvDataSegmentLength": "512"})
    (reply,) = initiator.numbered(Opcode.TEXT_REQUEST, b"SendTargets=All\0", ttt=NO_TAG)
    text, pieces = reply.data, 1
    while not reply.flags & 0x80:
        assert reply.flags == 0x40
        assert len(reply.data) == 512
        fields = {"itt": initiator.itt, "ttt": reply.ttt, "immediate": True}
        (reply,) = initiator.request(Opcode.TEXT_REQUEST, **fields)
        text, pieces = text + reply.data, pieces + 1
    assert pieces > 10
    assert [t[11:] for t in text.decode().split("\0") if t.startswith("TargetName=")] == names


def test_a_request_may_come_in_pieces(bench: Bench) -> None:
    initiator = bench.logged_in(target=None)
    (reply,) = initiator.numbered(Opcode.TEXT_REQUEST, b"SendTar", flags=0x40, ttt=NO_TAG)
    assert (reply.flags, reply.data) == (0, b"")
    (reply,) = initiator.request(
        Opcode.TEXT_REQUEST, b"gets=All\0", itt=initiator.itt, ttt=reply.ttt, immediate=True
    )
    assert reply.text["TargetName"] == TARGET


@pytest.mark.parametrize(
    "data", [b"SendTargets=All", b"SendTargets\0", b"=All\0", b"\xff\xfe=1\0", b"MaxBurstLength=512\0", b"A=1\0A=1\0"]
)
def test_malformed_text_is_rejected(session: Initiator, data: bytes) -> None:
    (reject,) = session.numbered(Opcode.TEXT_REQUEST, data, ttt=NO_TAG)
    assert (reject.opcode, reject.reason) == (Opcode.REJECT, RejectReason.PROTOCOL_ERROR)
    assert send_targets(session, "") == OURS


def test_a_continuation_of_nothing_is_rejected(session: Initiator) -> None:
    (reject,) = session.numbered(Opcode.TEXT_REQUEST, b"", ttt=1234)
    assert reject.reason == RejectReason.INVALID_PDU_FIELD


def test_the_segment_length_may_be_declared_anew(session: Initiator) -> None:
    session.numbered(Opcode.TEXT_REQUEST, b"MaxRecvDataSegmentLength=1024\0", ttt=NO_TAG)
    assert max(len(r.data) for r in session.read(0, 8).replies) == 1024


def test_scsi_is_refused_in_a_discovery_session(bench: Bench) -> None:
    initiator = bench.logged_in(target=None)
    assert [r.reason for r in read_one(initiator)] == [RejectReason.PROTOCOL_ERROR]
    assert [r.reason for r in manage(initiator, 5)] == [RejectReason.PROTOCOL_ERROR]


# --- Logout


@pytest.mark.parametrize(("reason", "cid", "response"), [(0, 0, 0), (1, 1, 0), (1, 7, 1), (2, 1, 2)])
def test_logout(bench: Bench, reason: int, cid: int, response: int) -> None:
    initiator = bench.logged_in()
    (reply,) = initiator.numbered(Opcode.LOGOUT_REQUEST, flags=0x80 | reason, cid=cid)
    assert (reply.opcode, reply.response) == (Opcode.LOGOUT_RESPONSE, response)
    assert (reply.time2wait, reply.time2retain) == (2, 0)
    assert (initiator.link.closed == "logout") is (response == 0)
    initiator.link.core.lost("closed")
    assert bench.host.registry.sessions() == []


def test_what_leaves_with_a_logout_is_kept_like_every_answer(bench: Bench) -> None:
    """A command that was sent with it: its status goes out beside the answer to the logout."""
    initiator = bench.logged_in()
    before = bench.disk.answered
    initiator.numbered(Opcode.LOGOUT_REQUEST, flags=0x80)
    assert bench.disk.answered > before


def test_an_unknown_logout_reason_is_rejected(session: Initiator) -> None:
    (reject,) = session.numbered(Opcode.LOGOUT_REQUEST, flags=0x83)
    assert reject.reason == RejectReason.INVALID_PDU_FIELD


def test_management_can_ask_for_a_logout(bench: Bench, session: Initiator) -> None:
    assert bench.host.registry.request_logout(TARGET, time_s=30) == 1
    (message,) = session.link.take()
    assert (message.opcode, message.async_event, message.parameter3) == (Opcode.ASYNC_MESSAGE, 1, 30)


# --- task management


def manage(initiator: Initiator, function: int, *, lun: int = 0, referenced: int = NO_TAG) -> list[Reply]:
    return initiator.request(
        Opcode.TASK_MANAGEMENT_REQUEST, flags=0x80 | function, lun=lun, itt=initiator.next_itt(),
        referenced_itt=referenced, ref_cmd_sn=initiator.cmd_sn - 1, immediate=True,
    )  # fmt: skip


def gathering(initiator: Initiator) -> tuple[int, Reply]:
    """A WRITE that waits for its R2T to be answered."""
    cdb = cdb_10(WRITE_10, 0, 1).ljust(16, b"\0")
    (r2t,) = initiator.numbered(Opcode.SCSI_COMMAND, flags=0xA1, edtl=512, cdb=cdb)
    return initiator.itt, r2t


def test_abort_task_in_the_device_server(bench: Bench, session: Initiator) -> None:
    session.numbered(Opcode.SCSI_COMMAND, flags=0x81, cdb=FLUSH)
    ((tag, done),) = bench.disk.later
    (reply,) = manage(session, TaskFunction.ABORT_TASK, referenced=tag)
    assert (reply.opcode, reply.response) == (Opcode.TASK_MANAGEMENT_RESPONSE, 0)
    assert bench.disk.later == []
    done(Response())
    assert session.link.take() == []
    assert session.link.core.session.window.outstanding == 0


def test_abort_task_while_data_is_gathered(bench: Bench, session: Initiator) -> None:
    itt, r2t = gathering(session)
    assert manage(session, TaskFunction.ABORT_TASK, referenced=itt)[0].response == 0
    assert session.send_data(itt, r2t.ttt, 0, b"x" * 512) == []
    assert not any(bench.disk.data[:512])


def test_abort_task_that_is_over_does_not_exist(session: Initiator) -> None:
    session.read(0, 1)
    assert manage(session, TaskFunction.ABORT_TASK, referenced=session.itt)[0].response == 1


def test_abort_task_of_another_lun_does_not_exist(session: Initiator) -> None:
    itt, _ = gathering(session)
    assert manage(session, TaskFunction.ABORT_TASK, lun=1 << 48, referenced=itt)[0].response == 1


def test_abort_task_set_leaves_other_sessions_alone(bench: Bench, session: Initiator) -> None:
    other = bench.logged_in(isid=b"\x80\0\0\0\0\2")
    gathering(session)
    itt, r2t = gathering(other)
    assert manage(session, TaskFunction.ABORT_TASK_SET)[0].response == 0
    assert session.link.core.session.tasks == {}
    assert [r.status for r in other.send_data(itt, r2t.ttt, 0, b"x" * 512)] == [0]


@pytest.mark.parametrize("function", [4, 5, 6])
def test_resets_end_the_tasks_of_every_session(bench: Bench, session: Initiator, function: int) -> None:
    other = bench.logged_in(isid=b"\x80\0\0\0\0\2")
    itt, r2t = gathering(other)
    assert manage(session, function)[0].response == 0
    assert bench.disk.managed == [(function, 0)]
    assert [answer.status for answer in other.link.take()] == [0x40]
    assert other.send_data(itt, r2t.ttt, 0, b"x" * 512) == []
    assert not any(bench.disk.data[:512])
    assert other.write(0, b"y" * 512).status == 0


def test_a_cold_reset_ends_every_session_after_its_answer(bench: Bench, session: Initiator) -> None:
    other = bench.logged_in(isid=b"\x80\0\0\0\0\2")
    (reply,) = manage(session, TaskFunction.TARGET_COLD_RESET)
    assert reply.response == 0
    assert (session.link.closed, other.link.closed) == ("target cold reset", "target cold reset")


def test_a_reset_of_a_lun_that_is_not_there(session: Initiator) -> None:
    assert manage(session, TaskFunction.LOGICAL_UNIT_RESET, lun=1 << 48)[0].response == 2


@pytest.mark.parametrize("function", sorted(set(range(1, 128)) - set(FUNCTIONS))[:12])
def test_an_unknown_function_is_not_supported(session: Initiator, function: int) -> None:
    assert manage(session, function)[0].response == 5


def test_task_reassign_needs_a_higher_recovery_level(session: Initiator) -> None:
    assert manage(session, TaskFunction.TASK_REASSIGN)[0].response == 4


def test_a_reset_while_data_arrives_in_place_spoils_no_other_buffer(bench: Bench) -> None:
    """The buffer of a dropped command must not serve another while bytes are still being received into it."""
    initiator = bench.logged_in()
    other = bench.logged_in(isid=b"\x80\0\0\0\0\2")
    cdb = cdb_10(WRITE_10, 0, 512).ljust(16, b"\0")
    for one in (initiator, other):
        one.agreed.update({"ImmediateData": "No", "InitialR2T": "Yes"})
    (r2t,) = initiator.numbered(Opcode.SCSI_COMMAND, flags=0xA1, edtl=512 * 512, cdb=cdb)
    wire = initiator.encode(Opcode.DATA_OUT, b"a" * 512 * 512, itt=initiator.itt, ttt=r2t.ttt)
    initiator.link.send(wire[:1000])
    manage(other, TaskFunction.LOGICAL_UNIT_RESET)
    (r2t,) = other.numbered(Opcode.SCSI_COMMAND, flags=0xA1, edtl=512 * 512, cdb=cdb)
    half = other.encode(Opcode.DATA_OUT, b"b" * 512 * 512, itt=other.itt, ttt=r2t.ttt)
    other.link.send(half[:100000])
    initiator.link.send(wire[1000:])
    assert [r.status for r in other.link.send(half[100000:])] == [0]
    assert bytes(bench.disk.data[: 512 * 512]) == b"b" * 512 * 512
    assert initiator.read(0, 1).status == 0
