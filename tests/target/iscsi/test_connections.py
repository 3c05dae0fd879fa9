"""Sessions of several connections: joining, allegiance, one window, ends of one and of all."""

from __future__ import annotations

import pytest

from target.iscsi import limits
from target.iscsi.constants import NO_TAG, LoginStatus, Opcode, RejectReason
from target.iscsi.ports import Response
from tests.support.initiator import NAME, READ_10, WRITE_10, Initiator, Link, Reply, cdb_10
from tests.support.memory_target import TARGET
from tests.target.iscsi.conftest import Bench, MakeBench

FLUSH = bytes((0x35,)) + bytes(15)
READ_ONE = cdb_10(READ_10, 0, 1).ljust(16, b"\0")
WRITE_ONE = cdb_10(WRITE_10, 0, 1).ljust(16, b"\0")
SEVERAL = {"MaxConnections": "4"}


def joined(bench: Bench, leading: Initiator, cid: int = 2) -> Initiator:
    other = leading.join(Link(bench.host), cid)
    reply = other.login()
    assert (reply.status_class, reply.status_detail) == (0, 0)
    assert reply.tsih == leading.tsih
    return other


@pytest.fixture
def pair(bench: Bench) -> tuple[Initiator, Initiator]:
    one = bench.logged_in(keys=SEVERAL)
    return one, joined(bench, one)


Pair = tuple[Initiator, Initiator]


def status(reply: Reply) -> int:
    return int(reply.status_class << 8 | reply.status_detail)


def flush(initiator: Initiator) -> int:
    assert initiator.numbered(Opcode.SCSI_COMMAND, flags=0x81, cdb=FLUSH) == []
    return initiator.itt


def gathering(initiator: Initiator) -> Reply:
    (r2t,) = initiator.numbered(Opcode.SCSI_COMMAND, flags=0xA1, edtl=512, cdb=WRITE_ONE)
    return r2t


def manage(initiator: Initiator, function: int, **fields: int) -> list[Reply]:
    return initiator.request(
        Opcode.TASK_MANAGEMENT_REQUEST, flags=0x80 | function, itt=initiator.next_itt(), immediate=True, **fields
    )


def answer_nop(initiator: Initiator) -> list[Reply]:
    """A connection's part of the response fence; what comes by it then."""
    (ping,) = initiator.link.take()
    return pong(initiator, ping)


def pong(initiator: Initiator, ping: Reply) -> list[Reply]:
    assert (ping.opcode, ping.itt) == (Opcode.NOP_IN, NO_TAG)
    return initiator.request(Opcode.NOP_OUT, immediate=True, itt=NO_TAG, ttt=ping.ttt)


# --- joining


@pytest.mark.parametrize(("offered", "allowed"), [(None, 1), ("1", 1), ("2", 2), ("65535", 4)])
def test_as_many_connections_as_agreed(bench: Bench, offered: str | None, allowed: int) -> None:
    assert limits.MAX_CONNECTIONS_PER_SESSION == 4
    one = bench.logged_in(keys={"MaxConnections": offered} if offered else {})
    for cid in range(2, allowed + 1):
        joined(bench, one, cid)
    extra = one.join(Link(bench.host), 99)
    assert status(extra.login()) == LoginStatus.TOO_MANY_CONNECTIONS
    (info,) = bench.host.registry.sessions(TARGET)
    assert len(info.connections) == allowed
    assert one.read(0, 1).status == 0


def test_a_joining_login_shows_the_sessions_window(bench: Bench) -> None:
    one = bench.logged_in(keys=SEVERAL)
    for _ in range(5):
        one.read(0, 1)
    other = one.join(Link(bench.host))
    other.login_pdu(0, 1, [*other.names(), ("AuthMethod", "None")], cmd_sn=7)
    reply = other.login_pdu(1, 3, [], cmd_sn=7)
    assert (reply.exp_cmd_sn, reply.max_cmd_sn) == (one.cmd_sn, one.cmd_sn + limits.COMMAND_WINDOW - 1)


def test_a_joining_login_must_authenticate_and_be_the_same_initiator(bench: Bench) -> None:
    one = bench.logged_in(keys=SEVERAL)
    thief = one.join(Link(bench.host))
    thief.name = NAME + ":thief"
    assert status(thief.login()) == LoginStatus.SESSION_DOES_NOT_EXIST
    other_isid = one.join(Link(bench.host))
    other_isid.isid = b"\x80\0\0\0\0\x99"
    assert status(other_isid.login()) == LoginStatus.SESSION_DOES_NOT_EXIST


def test_session_keys_are_irrelevant_when_joining(bench: Bench) -> None:
    one = bench.logged_in(keys={**SEVERAL, "MaxBurstLength": "4096"})
    other = one.join(Link(bench.host))
    other.login_pdu(0, 1, [*other.names(), ("AuthMethod", "None")])
    reply = other.login_pdu(1, 3, [("MaxBurstLength", "8192"), ("HeaderDigest", "CRC32C")])
    assert (reply.text["MaxBurstLength"], reply.text["HeaderDigest"]) == ("Irrelevant", "CRC32C")
    assert other.link.core.rules.max_burst == 4096


# --- one window, allegiance


def test_commands_go_by_either_connection_and_are_answered_there(pair: Pair) -> None:
    one, two = pair
    for n in range(6):
        initiator = pair[n % 2]
        assert initiator.write(n, bytes((n,)) * 512).status == 0
        assert pair[1 - n % 2].read(n, 1).data == bytes((n,)) * 512
    assert one.link.core.session is two.link.core.session


def test_each_connection_counts_its_own_answers(pair: Pair) -> None:
    one, two = pair
    first = [i.read(0, 1).replies[0].stat_sn for i in (one, two)]
    second = [i.read(0, 1).replies[0].stat_sn for i in (one, one, two)]
    assert [second[0] - first[0], second[1] - first[0], second[2] - first[1]] == [1, 2, 1]


def test_commands_are_done_in_cmd_sn_order_across_connections(bench: Bench, pair: Pair) -> None:
    one, two = pair
    first = one.cmd_sn
    bench.disk.fast = False
    fields = {"flags": 0xA1, "edtl": 512, "cdb": WRITE_ONE}
    assert two.request(Opcode.SCSI_COMMAND, b"b" * 512, itt=702, cmd_sn=first + 1, **fields) == []
    assert one.request(Opcode.SCSI_COMMAND, b"c" * 512, itt=703, cmd_sn=first + 2, **fields) == []
    replies = one.request(Opcode.SCSI_COMMAND, b"a" * 512, itt=701, cmd_sn=first, **fields)
    assert [r.itt for r in replies] == [701, 703]
    assert [r.itt for r in two.link.take()] == [702]
    assert bench.disk.data[:512] == b"c" * 512


def test_a_cmd_sn_that_came_by_another_connection_is_dropped(pair: Pair) -> None:
    one, two = pair
    one.read(0, 1)
    assert two.request(Opcode.SCSI_COMMAND, flags=0xC1, itt=800, edtl=512, cdb=READ_ONE, cmd_sn=one.cmd_sn - 1) == []


def test_data_by_another_connection_than_its_commands_is_rejected(bench: Bench, pair: Pair) -> None:
    one, two = pair
    r2t = gathering(one)
    (reject,) = two.send_data(r2t.itt, r2t.ttt, 0, b"x" * 512)
    assert (reject.opcode, reject.reason) == (Opcode.REJECT, RejectReason.PROTOCOL_ERROR)
    assert not any(bench.disk.data[:512])
    assert [r.status for r in one.send_data(r2t.itt, r2t.ttt, 0, b"y" * 512)] == [0]


def test_a_tag_in_use_on_another_connection_is_rejected(pair: Pair) -> None:
    one, two = pair
    tag = flush(one)
    (reject,) = two.request(Opcode.SCSI_COMMAND, flags=0xC1, itt=tag, edtl=512, cdb=READ_ONE)
    assert reject.reason == RejectReason.TASK_IN_PROGRESS


def test_late_answers_go_by_the_connection_of_their_command(bench: Bench, pair: Pair) -> None:
    one, two = pair
    tags = flush(one), flush(two)
    for _, done in list(bench.disk.later):
        done(Response())
    assert [[r.itt for r in i.link.take()] for i in (one, two)] == [[tags[0]], [tags[1]]]


def test_immediate_commands_are_limited_for_each_connection(pair: Pair) -> None:
    _one, two = pair
    for initiator in pair:
        for _ in range(limits.IMMEDIATE_COMMANDS):
            fields = {"flags": 0x81, "itt": initiator.next_itt(), "cdb": FLUSH, "immediate": True}
            assert initiator.request(Opcode.SCSI_COMMAND, **fields) == []
    fields = {"flags": 0x81, "itt": two.next_itt(), "cdb": FLUSH, "immediate": True}
    assert two.request(Opcode.SCSI_COMMAND, **fields)[0].reason == RejectReason.TOO_MANY_IMMEDIATE


def test_connections_may_have_digests_of_their_own(bench: Bench) -> None:
    one = bench.logged_in(keys=SEVERAL)
    two = one.join(Link(bench.host))
    two.keys = {**one.keys, "HeaderDigest": "CRC32C", "DataDigest": "CRC32C"}
    assert two.login().status_class == 0
    assert two.write(0, b"d" * 4096).status == 0
    assert one.read(0, 8).data == b"d" * 4096


# --- task management


def test_abort_task_reaches_a_command_of_another_connection(bench: Bench, pair: Pair) -> None:
    one, two = pair
    r2t = gathering(one)
    assert manage(two, 1, referenced_itt=r2t.itt)[0].response == 0
    assert one.send_data(r2t.itt, r2t.ttt, 0, b"x" * 512) == []
    assert not any(bench.disk.data[:512])
    assert one.link.core.session.window.outstanding == 0


# --- ends


def test_a_lost_connection_ends_its_tasks_only(bench: Bench, pair: Pair) -> None:
    one, two = pair
    mine, other = flush(one), flush(two)
    gathering(two)
    two.link.core.lost("cable pulled")
    session = one.link.core.session
    assert list(session.tasks) == [mine]
    assert session.window.outstanding == 1
    assert [tag for tag, _ in bench.disk.later] == [mine]
    assert other != mine
    assert bench.disk.closed == 0
    assert one.read(0, 1).status == 0
    one.link.core.lost("cable pulled")
    assert (bench.disk.closed, bench.host.registry.sessions()) == (1, [])


def test_what_a_lost_connection_brought_early_counts_as_received(pair: Pair) -> None:
    one, two = pair
    first = one.cmd_sn
    read = {"flags": 0xC1, "edtl": 512, "cdb": READ_ONE}
    assert two.request(Opcode.SCSI_COMMAND, itt=702, cmd_sn=first + 1, **read) == []
    assert one.request(Opcode.SCSI_COMMAND, itt=703, cmd_sn=first + 2, **read) == []
    two.link.core.lost("cable pulled")
    assert [r.itt for r in one.request(Opcode.SCSI_COMMAND, itt=701, cmd_sn=first, **read)] == [701, 703]
    one.cmd_sn = first + 3
    assert one.read(0, 1).status == 0


def test_nothing_is_kept_of_what_a_lost_connection_brought_early(bench: Bench, pair: Pair) -> None:
    one, two = pair
    first = one.cmd_sn
    assert manage(two, 5, cmd_sn=first + 2) == []  # it waits for the two before it
    assert two.request(Opcode.SCSI_COMMAND, bytes(512), flags=0xA1, itt=702, edtl=512, cdb=WRITE_ONE,
                       cmd_sn=first + 1) == []  # fmt: skip
    window = one.link.core.session.window
    assert window.early_bytes
    two.link.core.lost("cable pulled")
    assert (window.early_bytes, window.functions) == (0, [])
    assert one.read(0, 1).status == 0
    assert window.exp_cmd_sn == first + 2
    assert bench.disk.managed == []


def test_a_command_lost_with_its_connection_may_be_sent_by_another(pair: Pair) -> None:
    one, two = pair
    first = one.cmd_sn
    one.cmd_sn += 1  # sent by two, lost with it
    two.link.core.lost("cable pulled")
    assert one.request(Opcode.SCSI_COMMAND, flags=0xC1, itt=702, edtl=512, cdb=READ_ONE) == []
    one.cmd_sn += 1
    replies = one.request(Opcode.SCSI_COMMAND, flags=0xC1, itt=701, edtl=512, cdb=READ_ONE, cmd_sn=first)
    assert [r.itt for r in replies] == [701, 702]


def test_connection_reinstatement_ends_the_old_ones_tasks_alone(bench: Bench, pair: Pair) -> None:
    one, two = pair
    mine = flush(one)
    flush(two)
    again = joined(bench, one, two.cid)
    assert two.link.closed == "connection reinstatement"
    session = one.link.core.session
    assert list(session.tasks) == [mine]
    assert sorted(session.connections) == [1, 2]
    assert again.read(0, 1).status == 0
    two.link.core.lost("closed")  # the old transport goes at last
    assert session.connections[2] is again.link.core


def test_session_reinstatement_ends_every_connection(bench: Bench, pair: Pair) -> None:
    new = bench.logged_in()
    assert [i.link.closed for i in pair] == ["session reinstatement"] * 2
    assert new.read(0, 1).status == 0


@pytest.mark.parametrize("by", [0, 1], ids=["itself", "another"])
def test_logout_of_one_connection(bench: Bench, pair: Pair, by: int) -> None:
    one, two = pair
    mine = flush(one)
    flush(two)
    sender = (two, one)[by]
    (reply,) = sender.numbered(Opcode.LOGOUT_REQUEST, flags=0x81, cid=two.cid)
    assert (reply.response, reply.time2retain) == (0, 0)
    assert (two.link.closed, one.link.closed) == ("logout", None)
    two.link.core.lost("closed")
    assert list(one.link.core.session.tasks) == [mine]
    assert one.read(0, 1).status == 0


def test_logout_of_a_connection_that_is_not_there(pair: Pair) -> None:
    (reply,) = pair[0].numbered(Opcode.LOGOUT_REQUEST, flags=0x81, cid=77)
    assert reply.response == 1
    assert [i.link.closed for i in pair] == [None, None]


def test_logout_for_recovery_needs_a_higher_level(pair: Pair) -> None:
    (reply,) = pair[0].numbered(Opcode.LOGOUT_REQUEST, flags=0x82, cid=2)
    assert reply.response == 2
    assert [i.link.closed for i in pair] == [None, None]


def test_logout_of_the_session_ends_every_connection(bench: Bench, pair: Pair) -> None:
    one, two = pair
    flush(two)
    flush(one)
    (reply,) = one.numbered(Opcode.LOGOUT_REQUEST, flags=0x80)
    assert reply.response == 0
    assert (one.link.core.session.tasks, bench.disk.later) == ({}, [])
    assert [i.link.closed for i in pair] == ["logout"] * 2
    one.link.core.lost("closed")
    assert (bench.host.registry.sessions(), bench.disk.closed) == ([], 1)


def test_management_ends_the_session_and_says_so_on_every_connection(bench: Bench, pair: Pair) -> None:
    assert bench.host.registry.disconnect(TARGET) == 1
    for initiator in pair:
        (message,) = initiator.link.take()
        assert (message.opcode, message.async_event, message.parameter2) == (Opcode.ASYNC_MESSAGE, 3, 2)
        assert initiator.link.closed == "disconnected by management"
    assert bench.disk.closed == 1


def test_the_others_are_told_of_a_connection_that_is_dropped(make_bench: MakeBench) -> None:
    bench = make_bench(nop_interval_s=10, nop_timeout_s=5)
    one = bench.logged_in(keys=SEVERAL)
    two = joined(bench, one)
    two.link.pass_time(10)
    two.link.pass_time(5)
    assert two.link.fault() == "no answer to NOP-In"
    (message,) = one.link.take()
    assert (message.opcode, message.async_event, message.parameter1) == (Opcode.ASYNC_MESSAGE, 2, two.cid)
    assert one.read(0, 1).status == 0
