"""The response fence of sessions with several connections: RFC 7143 4.2.2.3."""

from __future__ import annotations

import pytest

from target.iscsi import limits
from target.iscsi.constants import NO_TAG, Opcode, RejectReason
from target.iscsi.ports import Response
from tests.support.initiator import NAME, Initiator, Link, Reply, make_host
from tests.support.scsi_host import unit
from tests.support.scsi_target import TARGET as SCSI_TARGET
from tests.support.scsi_target import OpenDirectory
from tests.target.iscsi.conftest import Bench
from tests.target.iscsi.test_connections import (
    READ_ONE,
    SEVERAL,
    WRITE_ONE,
    Pair,
    answer_nop,
    flush,
    gathering,
    joined,
    manage,
    pair,
    pong,
)

__all__ = ["pair"]

LUN_RESET = 5
ATTENTION = Response(status=2, sense=bytes.fromhex("700006000000000a000000002903").ljust(18, b"\0"), fenced=True)


def opcodes(replies: list[Reply]) -> list[Opcode]:
    return [reply.opcode for reply in replies]


def finish(bench: Bench, number: int, response: Response) -> None:
    """The device server ends a command that it has had for a while."""
    bench.disk.later[number][1](response)


def read(initiator: Initiator) -> list[Reply]:
    return initiator.numbered(Opcode.SCSI_COMMAND, flags=0xC1, edtl=512, cdb=READ_ONE)


# --- before the fenced answer


@pytest.mark.parametrize("function", [2, 4, 5, 6, 7])
def test_the_answer_to_a_reset_waits_for_what_other_connections_sent_before(
    bench: Bench, pair: Pair, function: int
) -> None:
    one, two = pair
    gathering(one)
    gathering(two)
    assert manage(two, function) == []
    assert bench.disk.managed == [(function, 0)]
    assert one.link.core.session.tasks == {}
    answer_nop(one)
    reply, *more = two.link.take()
    assert (reply.opcode, reply.response) == (Opcode.TASK_MANAGEMENT_RESPONSE, 0)
    assert opcodes(more) == ([] if function == 7 else [Opcode.NOP_IN])
    assert (two.link.closed, one.link.closed) == (("target cold reset",) * 2 if function == 7 else (None, None))


def test_a_fenced_answer_waits_for_what_other_connections_sent_before(bench: Bench, pair: Pair) -> None:
    one, two = pair
    flush(two)
    finish(bench, 0, ATTENTION)
    assert two.link.take() == []
    answer_nop(one)
    answer, ping = two.link.take()
    assert (answer.opcode, answer.status) == (Opcode.SCSI_RESPONSE, 2)
    assert ping.opcode == Opcode.NOP_IN


def test_with_one_connection_nothing_waits(bench: Bench, session: Initiator) -> None:
    flush(session)
    finish(bench, 0, ATTENTION)
    assert opcodes(session.link.take()) == [Opcode.SCSI_RESPONSE]
    assert opcodes(manage(session, LUN_RESET)) == [Opcode.TASK_MANAGEMENT_RESPONSE]


def test_every_other_connection_is_asked(bench: Bench, pair: Pair) -> None:
    one, two = pair
    three = joined(bench, one, 3)
    assert manage(two, LUN_RESET) == []
    answer_nop(one)
    assert two.link.take() == []
    answer_nop(three)
    assert opcodes(two.link.take()) == [Opcode.TASK_MANAGEMENT_RESPONSE, Opcode.NOP_IN]


def test_a_connection_that_ends_keeps_no_answer_waiting(bench: Bench, pair: Pair) -> None:
    one, two = pair
    assert manage(two, LUN_RESET) == []
    one.link.core.lost("cable pulled")
    assert [r.response for r in two.link.take()] == [0]
    assert two.read(0, 1).status == 0


def test_the_answer_to_one_aborted_task_does_not_wait(pair: Pair) -> None:
    one, two = pair
    assert manage(two, 1, referenced_itt=flush(one))[0].response == 0


# --- after it


def test_nothing_overtakes_a_fenced_answer(bench: Bench, pair: Pair) -> None:
    """Answers that are made later wait for the fenced one to be seen, on its own connection and on the other."""
    one, two = pair
    flush(two)
    flush(one)
    flush(two)
    finish(bench, 0, ATTENTION)
    finish(bench, 1, Response())
    finish(bench, 2, Response())
    answer_nop(one)
    answer, ping = two.link.take()
    assert answer.status == 2
    assert one.link.take() == []
    assert opcodes(pong(two, ping)) == [Opcode.SCSI_RESPONSE]
    assert opcodes(one.link.take()) == [Opcode.SCSI_RESPONSE]


def test_commands_wait_while_a_fence_stands(bench: Bench, pair: Pair) -> None:
    one, two = pair
    flush(two)
    finish(bench, 0, ATTENTION)
    (ping,) = one.link.take()
    assert read(one) == read(two) == []
    assert opcodes(pong(one, ping)) == []
    answer, ping = two.link.take()
    assert answer.exp_cmd_sn == one.numbers.cmd_sn - 2
    assert opcodes(pong(two, ping)) == [Opcode.DATA_IN]
    assert opcodes(one.link.take()) == [Opcode.DATA_IN]
    assert one.read(0, 1).status == 0


def test_the_data_of_a_command_that_waits_is_kept_with_it(bench: Bench, pair: Pair) -> None:
    one, two = pair
    flush(two)
    finish(bench, 0, ATTENTION)
    (ping,) = one.link.take()
    assert one.numbered(Opcode.SCSI_COMMAND, flags=0x21, edtl=512, cdb=WRITE_ONE) == []
    assert one.request(Opcode.DATA_OUT, b"d" * 512, itt=one.itt, ttt=NO_TAG) == []
    pong(one, ping)
    _, ping = two.link.take()
    pong(two, ping)
    assert [reply.status for reply in one.link.take()] == [0]
    assert bench.disk.data[:512] == b"d" * 512


def test_a_write_that_gathers_its_data_goes_on_and_is_answered_later(bench: Bench, pair: Pair) -> None:
    one, two = pair
    r2t = gathering(one)
    flush(two)
    finish(bench, 0, ATTENTION)
    (ping,) = one.link.take()
    assert one.request(Opcode.DATA_OUT, b"w" * 512, itt=r2t.itt, ttt=r2t.ttt) == []
    assert bench.disk.data[:512] == b"w" * 512
    pong(one, ping)
    _, ping = two.link.take()
    pong(two, ping)
    assert [reply.status for reply in one.link.take()] == [0]


def test_fences_stand_one_after_the_other(bench: Bench, pair: Pair) -> None:
    one, two = pair
    flush(two)
    flush(one)
    finish(bench, 0, ATTENTION)
    finish(bench, 1, ATTENTION)
    answer_nop(one)
    first, ping = two.link.take()
    assert first.status == 2
    (ping,) = pong(two, ping)
    assert one.link.take() == []
    pong(two, ping)
    second, ping = one.link.take()
    assert second.status == 2
    pong(one, ping)
    assert two.read(0, 1).status == one.read(0, 1).status == 0


def test_a_reset_that_waits_for_a_fence_ends_what_came_before(bench: Bench, pair: Pair) -> None:
    """The commands that are held were sent before the function: it waits for them."""
    one, two = pair
    flush(two)
    finish(bench, 0, ATTENTION)
    assert read(two) == []
    assert manage(two, LUN_RESET) == []
    assert bench.disk.managed == []
    answer_nop(one)
    _, ping = two.link.take()
    (data,) = pong(two, ping)
    assert data.opcode == Opcode.DATA_IN
    assert bench.disk.managed == [(LUN_RESET, 0)]
    answer_nop(one)
    assert opcodes(two.link.take()) == [Opcode.TASK_MANAGEMENT_RESPONSE, Opcode.NOP_IN]


# --- ends and limits


def test_the_own_connection_may_end_before_its_answer(bench: Bench, pair: Pair) -> None:
    one, two = pair
    flush(two)
    finish(bench, 0, ATTENTION)
    (ping,) = one.link.take()
    assert read(one) == []
    two.link.core.lost("cable pulled")
    assert opcodes(one.link.take()) == [Opcode.DATA_IN]
    assert pong(one, ping) == []
    assert one.read(0, 1).status == 0


def test_the_own_connection_may_end_after_its_answer(bench: Bench, pair: Pair) -> None:
    one, two = pair
    flush(two)
    finish(bench, 0, ATTENTION)
    answer_nop(one)
    assert read(one) == []
    two.link.core.lost("cable pulled")
    assert opcodes(one.link.take()) == [Opcode.DATA_IN]


def test_a_connection_that_is_replaced_keeps_no_answer_waiting(bench: Bench, pair: Pair) -> None:
    one, two = pair
    assert manage(two, LUN_RESET) == []
    again = joined(bench, two, cid=one.cid)
    assert [r.response for r in two.link.take() if r.opcode is Opcode.TASK_MANAGEMENT_RESPONSE] == [0]
    assert again.link.closed is None


def test_answers_of_a_connection_that_logs_out_are_not_sent_after_it(bench: Bench, pair: Pair) -> None:
    one, two = pair
    flush(two)
    flush(one)
    finish(bench, 0, ATTENTION)
    finish(bench, 1, Response())
    (ping,) = one.link.take()
    (reply,) = one.request(Opcode.LOGOUT_REQUEST, immediate=True, flags=0x81, itt=one.next_itt(), cid=one.cid)
    assert reply.opcode == Opcode.LOGOUT_RESPONSE
    one.link.core.lost("closed")
    assert [r.status for r in two.link.take()] == [2]
    assert ping.opcode == Opcode.NOP_IN


def test_a_connection_that_never_answers_is_ended(bench: Bench, pair: Pair) -> None:
    """Though it says other things all the time: the session must not stand still for it."""
    one, two = pair
    assert manage(two, LUN_RESET) == []
    for _ in range(20):
        one.request(Opcode.NOP_OUT, immediate=True, itt=one.next_itt(), ttt=NO_TAG)
        one.link.pass_time(bench.host.nop_timeout_s / 10)
    assert one.link.fault() == "no answer to NOP-In"
    assert Opcode.TASK_MANAGEMENT_RESPONSE in opcodes(two.link.take())
    assert two.read(0, 1).status == 0


def test_answers_to_task_management_that_wait_are_limited(bench: Bench, pair: Pair) -> None:
    one, two = pair
    for _ in range(limits.FENCED_FUNCTIONS):
        assert manage(two, LUN_RESET) == []
    (reject,) = manage(two, 1)
    assert (reject.opcode, reject.reason) == (Opcode.REJECT, RejectReason.TOO_MANY_IMMEDIATE)
    assert len(bench.disk.managed) == limits.FENCED_FUNCTIONS
    answered = 0
    while answered < limits.FENCED_FUNCTIONS:
        answer_nop(one)
        reply, ping = two.link.take()
        assert (reply.opcode, reply.response) == (Opcode.TASK_MANAGEMENT_RESPONSE, 0)
        assert pong(two, ping) == []
        answered += 1
    assert two.read(0, 1).status == one.read(0, 1).status == 0


def test_the_session_ends_in_the_middle_of_a_fence(bench: Bench, pair: Pair) -> None:
    one, two = pair
    flush(two)
    finish(bench, 0, ATTENTION)
    assert bench.host.registry.disconnect(two.target) == 1
    assert one.link.closed == two.link.closed == "disconnected by management"
    assert bench.logged_in().read(0, 1).status == 0


# --- with the device server


def test_the_unit_attention_of_another_sessions_reset_is_fenced() -> None:
    """A read is on its way by one connection when the other brings the news that the logical unit was reset."""
    units = {0: unit()}
    host = make_host(OpenDirectory(units))
    settings = {"target": SCSI_TARGET, "keys": {**SEVERAL, "iSCSIProtocolLevel": "2"}}
    one = Initiator(Link(host), **settings)
    other = Initiator(Link(host), name=NAME + ":other", isid=b"\x80\0\0\0\0\7", **settings)
    for each in (one, other):
        assert each.login().status_class == 0
        assert ready(each)[0].status == 2  # power on
    two = one.join(Link(host))
    assert two.login().status_class == 0
    assert manage(other, LUN_RESET)[0].response == 0
    assert ready(two) == []
    (ping,) = ready(one)
    assert pong(one, ping) == []
    attention, ping = two.link.take()
    assert attention.data[2 + 2] & 15 == 6
    assert attention.data[2 + 12 : 2 + 14] == b"\x29\x03"
    assert one.link.take() == []
    pong(two, ping)
    assert [reply.status for reply in one.link.take()] == [0]
    assert [reply.status for reply in ready(two)] == [0]


def ready(initiator: Initiator) -> list[Reply]:
    return initiator.numbered(Opcode.SCSI_COMMAND, flags=0x81, cdb=bytes(16))
