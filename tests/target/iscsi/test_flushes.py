"""SYNCHRONIZE CACHEs that come together wait together, and task management finds each of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from target.iscsi import limits
from target.iscsi.constants import FINAL, Opcode, ScsiStatus
from tests.support.initiator import Initiator, Link, Reply, make_host
from tests.support.memory_target import MemoryDirectory
from tests.target.iscsi.conftest import Bench

SYNCHRONIZE_CACHE_10, SYNCHRONIZE_CACHE_16 = 0x35, 0x91
IMMED = 0x02
DIGESTS = {"HeaderDigest": "CRC32C", "DataDigest": "CRC32C"}
Waiters = list[tuple[Callable[[BaseException | None], None], bool]]


@pytest.fixture
def waiters(bench: Bench) -> Waiters:
    bench.disk.flushers = []
    return bench.disk.flushers


def flush(initiator: Initiator, code: int = SYNCHRONIZE_CACHE_10, flags: int = 0, **fields: Any) -> list[Reply]:
    cdb = bytes((code, flags)).ljust(16, b"\0")
    return initiator.numbered(Opcode.SCSI_COMMAND, flags=FINAL | 1, edtl=0, cdb=cdb, **fields)


def together(initiator: Initiator, count: int) -> list[Reply]:
    """So many in one piece of the wire."""
    wire = b""
    for _ in range(count):
        cdb = bytes((SYNCHRONIZE_CACHE_10,)).ljust(16, b"\0")
        wire += initiator.encode(Opcode.SCSI_COMMAND, flags=FINAL | 1, itt=initiator.next_itt(), edtl=0, cdb=cdb)
        initiator.cmd_sn += 1
    return initiator.link.send(wire)


def told(bench: Bench, initiator: Initiator, error: BaseException | None = None) -> list[Reply]:
    bench.disk.flushed(error)
    initiator.link.collect()
    return initiator.link.take()


def open_window(reply: Reply) -> int:
    return int(reply.max_cmd_sn - reply.exp_cmd_sn + 1)


@pytest.mark.parametrize("code", [SYNCHRONIZE_CACHE_10, SYNCHRONIZE_CACHE_16])
@pytest.mark.parametrize("keys", [{}, DIGESTS])
def test_a_flush_is_answered_when_all_is_durable(
    bench: Bench, waiters: Waiters, code: int, keys: dict[str, str]
) -> None:
    initiator = bench.logged_in(keys=keys)
    assert flush(initiator, code) == []
    (reply,) = told(bench, initiator)
    assert (reply.opcode, reply.itt, reply.status, reply.flags) == (Opcode.SCSI_RESPONSE, initiator.itt, 0, FINAL)
    assert open_window(reply) == limits.COMMAND_WINDOW
    assert initiator.write(0, bytes(512)).status == 0, "StatSN and CmdSN go on as they should"
    assert bench.disk.later == [], "none of it went by the book"


def test_those_that_come_together_ask_once(bench: Bench, waiters: Waiters) -> None:
    initiator = bench.logged_in()
    first = initiator.itt + 1
    assert together(initiator, 40) == []
    assert len(waiters) == 1
    replies = told(bench, initiator)
    assert [reply.itt for reply in replies] == list(range(first, first + 40))
    numbers = [reply.stat_sn for reply in replies]
    assert numbers == list(range(numbers[0], numbers[0] + 40))
    assert open_window(replies[-1]) == limits.COMMAND_WINDOW
    assert initiator.link.core.session.counters.others >= 40


def test_nothing_to_wait_for_is_answered_at_once(bench: Bench, waiters: Waiters) -> None:
    initiator = bench.logged_in()
    bench.disk.durable = True
    assert [reply.status for reply in together(initiator, 3)] == [0, 0, 0]
    assert waiters == []
    assert initiator.link.core.session.window.outstanding == 0


def test_a_whole_window_of_them_and_no_more(bench: Bench, waiters: Waiters) -> None:
    initiator = bench.logged_in()
    assert together(initiator, limits.COMMAND_WINDOW) == []
    assert len(bench.disk.later) == 1, "one that would shut the window goes by the book"
    assert len(told(bench, initiator)) == limits.COMMAND_WINDOW - 1


def test_others_pass_and_they_count_against_the_window(bench: Bench, waiters: Waiters) -> None:
    initiator = bench.logged_in()
    for _ in range(5):
        assert flush(initiator) == []
    outcome = initiator.write(50, bytes(512))
    assert outcome.status == 0
    assert open_window(outcome.replies[-1]) == limits.COMMAND_WINDOW - 5
    assert len(told(bench, initiator)) == 5


def test_one_that_is_not_plain_goes_by_the_book(bench: Bench, waiters: Waiters) -> None:
    initiator = bench.logged_in()
    assert flush(initiator, flags=IMMED) == []
    assert flush(initiator, lun=1 << 48) == []
    assert waiters == []
    assert [tag for tag, _ in bench.disk.later] == [initiator.itt - 1, initiator.itt]


def test_an_error_is_told_by_the_device_server(bench: Bench, waiters: Waiters) -> None:
    initiator = bench.logged_in()
    assert together(initiator, 2) == []
    assert told(bench, initiator, OSError("the disk is gone")) == []
    assert [tag for tag, _ in bench.disk.later] == [initiator.itt - 1, initiator.itt]


@pytest.mark.parametrize("same_batch", [True, False])
def test_task_management_finds_them(bench: Bench, waiters: Waiters, same_batch: bool) -> None:
    initiator = bench.logged_in()
    wire = b""
    for _ in range(2):
        cdb = bytes((SYNCHRONIZE_CACHE_10,)).ljust(16, b"\0")
        wire += initiator.encode(Opcode.SCSI_COMMAND, flags=FINAL | 1, itt=initiator.next_itt(), edtl=0, cdb=cdb)
        initiator.cmd_sn += 1
    victim = initiator.itt
    if not same_batch:
        assert initiator.link.send(wire) == []
        wire = b""
    wire += initiator.encode(
        Opcode.TASK_MANAGEMENT_REQUEST, immediate=True, flags=0x81, itt=initiator.next_itt(), referenced_itt=victim,
        ref_cmd_sn=initiator.cmd_sn - 1,
    )  # fmt: skip
    (reply,) = initiator.link.send(wire)
    assert (reply.opcode, reply.response) == (Opcode.TASK_MANAGEMENT_RESPONSE, 0)
    assert [tag for tag, _ in bench.disk.later] == [victim - 1], "the other one waits on, as a task"
    assert told(bench, initiator) == [], "who is a task now is not answered twice"
    assert initiator.link.core.session.window.outstanding == 1


@pytest.mark.parametrize("function", [2, 5])
def test_a_reset_by_another_host_ends_them(bench: Bench, waiters: Waiters, function: int) -> None:
    """ABORT TASK SET is about the issuer's own."""
    initiator = bench.logged_in()
    other = bench.logged_in(name="iqn.2026-01.test.host:two")
    assert together(initiator, 2) == []
    other.request(Opcode.TASK_MANAGEMENT_REQUEST, immediate=True, flags=0x80 | function, itt=other.next_itt())
    initiator.link.collect()
    ended = initiator.link.take()
    if function == 5:
        assert [(reply.itt, reply.status) for reply in ended] == [
            (initiator.itt - 1, ScsiStatus.TASK_ABORTED), (initiator.itt, ScsiStatus.TASK_ABORTED)
        ]  # fmt: skip
        assert initiator.link.core.session.window.outstanding == 0
    else:
        assert ended == []
    assert len(told(bench, initiator)) == (0 if ended else 2)


def test_what_a_lost_connection_waits_for_gives_its_place_back(bench: Bench, waiters: Waiters) -> None:
    one = bench.logged_in(keys={"MaxConnections": "4"})
    other = one.join(Link(bench.host), 2)
    other.login()
    assert flush(one) == flush(other) == []
    other.link.core.lost("cut")
    assert [reply.itt for reply in told(bench, one)] == [other.itt - 1]
    assert one.link.core.session.window.outstanding == 0


def test_a_session_that_ends_leaves_nothing_behind(bench: Bench, waiters: Waiters) -> None:
    initiator = bench.logged_in()
    assert flush(initiator) == []
    initiator.link.core.lost("cut")
    assert told(bench, initiator) == []


def test_answers_that_have_no_room_come_when_there_is(bench: Bench, waiters: Waiters) -> None:
    initiator = bench.logged_in()
    assert together(initiator, 3) == []
    out = initiator.link.core.output
    out.used, before = out.size - 100, out.used  # as if the network took nothing
    bench.disk.durable = True
    done, _ = waiters.pop()
    link = initiator.link
    link.core.push = lambda: None
    done(None)
    assert [tag for tag, _ in bench.disk.later] == [initiator.itt - 2, initiator.itt - 1, initiator.itt]
    out.used = before


@pytest.mark.parametrize("case", ["alone", "others are about", "behind a write", "another waits"])
def test_the_disk_is_waited_for_on_the_spot_only_for_who_is_alone(bench: Bench, case: str) -> None:
    bench.disk.flushers = []
    directory = bench.directory
    assert isinstance(directory, MemoryDirectory)
    bench.host = make_host(directory, alone=lambda now: case != "others are about")
    initiator = bench.logged_in()
    if case == "behind a write":
        wire = initiator.encode(
            Opcode.SCSI_COMMAND, bytes(512), flags=FINAL | 0x21, itt=initiator.next_itt(), edtl=512,
            cdb=bytes((0x2A, 0, 0, 0, 0, 0, 0, 0, 1)).ljust(16, b"\0"),
        )  # fmt: skip
        initiator.cmd_sn += 1
        cdb = bytes((SYNCHRONIZE_CACHE_10,)).ljust(16, b"\0")
        wire += initiator.encode(Opcode.SCSI_COMMAND, flags=FINAL | 1, itt=initiator.next_itt(), edtl=0, cdb=cdb)
        assert len(initiator.link.send(wire)) == 1
    else:
        flush(initiator)
    if case == "another waits":
        flush(initiator)
    assert [here for _, here in bench.disk.flushers] == {
        "alone": [True], "others are about": [False], "behind a write": [False], "another waits": [True, False]
    }[case]  # fmt: skip
