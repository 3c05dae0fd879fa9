"""Long WRITEs that go to the medium as they come: the same bytes and answers as if they had been gathered, and nothing
of one that does not come to its end."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from target.iscsi import limits
from target.iscsi.constants import NO_TAG, Opcode, TaskFunction
from tests.support.initiator import WRITE_10, Initiator, Reply, cdb_10
from tests.support.memory_target import MemoryPlacing
from tests.target.iscsi.conftest import Bench
from tests.target.iscsi.test_data import PATTERNS
from tests.target.iscsi.test_error_recovery import DATA, LENGTH, WRITE_RULES, send_piece, start_write

SOLICITED = {"InitialR2T": "Yes", "ImmediateData": "No"}
BYTES = 1 << 20
WRITE_FAILED = (0x03, 0x0C, 0x00)


@pytest.fixture
def placing(bench: Bench) -> Iterator[Bench]:
    """A device server that takes data as it comes; afterwards it has been told of the end of each write."""
    bench.disk.placing = True
    yield bench
    assert all(each.dropped for each in bench.disk.placed)


def noise(length: int) -> bytes:
    return random.Random(length).randbytes(length)


def begin(initiator: Initiator, data: bytes) -> Reply:
    cdb = cdb_10(WRITE_10, 0, len(data) // 512).ljust(16, b"\0")
    (r2t,) = initiator.numbered(Opcode.SCSI_COMMAND, flags=0xA1, edtl=len(data), cdb=cdb)
    return r2t


def go_on(initiator: Initiator, r2t: Reply, data: bytes, first: int = 0, last: int = BYTES) -> list[Reply]:
    """Data-Out from byte `first` to `last`, of 64 KiB each."""
    wire = b""
    for at in range(first, last, 65536):
        wire += initiator.encode(
            Opcode.DATA_OUT, data[at : at + 65536], flags=0x80 if at + 65536 >= len(data) else 0, itt=r2t.itt,
            ttt=r2t.ttt, data_sn=at // 65536, buffer_offset=at,
        )  # fmt: skip
    return initiator.link.send(wire)


def nothing_is_held(initiator: Initiator) -> bool:
    session = initiator.link.core.session
    return (session.data_bytes, session.placed_bytes, session.tasks) == (0, 0, {})


@pytest.mark.parametrize("piece", [1000, 70000, 1 << 30])
@pytest.mark.parametrize("blocks", [512, 1000, 4096])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_what_is_written_is_read(placing: Bench, pattern: str, blocks: int, piece: int) -> None:
    initiator = placing.logged_in(keys=PATTERNS[pattern])
    initiator.link.piece = piece
    data = noise(blocks * 512)
    written = initiator.write(8, data)
    assert (written.status, written.overflow, written.underflow) == (0, 0, 0)
    assert initiator.read(8, blocks).data == data
    assert blocks == 512 or len(placing.disk.placed) == 1
    assert nothing_is_held(initiator)
    counters = initiator.link.core.session.counters
    assert (counters.writes, counters.written_bytes) == (1, len(data))


@pytest.mark.parametrize("name", WRITE_RULES)
def test_a_rule_of_solicited_data(placing: Bench, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As without: one answer, and never a byte on the disk if a rule was broken."""
    monkeypatch.setattr(limits, "PLACED_BYTES", LENGTH)
    rule = WRITE_RULES[name]
    initiator = placing.logged_in(keys=rule.keys)
    (r2t,) = start_write(initiator)
    replies: list[Reply] = []
    for piece in rule.pieces:
        replies += send_piece(initiator, r2t.itt, r2t.ttt, piece)
    outcome = initiator.follow(r2t.itt, b"", [r for r in replies if r.opcode is not Opcode.REJECT])
    if rule.sense is None:
        assert outcome.status == 0
        assert placing.disk.data[:LENGTH] == DATA
    else:
        assert (outcome.status, outcome.sense_code) == (2, rule.sense)
        assert not any(placing.disk.data[: 2 * LENGTH])
    assert nothing_is_held(initiator)


def test_data_in_any_order_is_gathered(placing: Bench) -> None:
    initiator = placing.logged_in(keys={**SOLICITED, "DataPDUInOrder": "No"})
    data = noise(BYTES)
    assert initiator.write(0, data).status == 0
    assert placing.disk.placed == []
    assert placing.disk.data[:BYTES] == data


def test_runs_in_another_order_are_gathered_from_there_on(placing: Bench) -> None:
    keys = {**SOLICITED, "DataSequenceInOrder": "No", "MaxOutstandingR2T": "2", "MaxBurstLength": str(BYTES // 2)}
    initiator = placing.logged_in(keys=keys)
    data = noise(BYTES)
    cdb = cdb_10(WRITE_10, 0, BYTES // 512).ljust(16, b"\0")
    asked = initiator.numbered(Opcode.SCSI_COMMAND, flags=0xA1, edtl=BYTES, cdb=cdb)
    replies = []
    for r2t in reversed(asked):
        piece = data[r2t.buffer_offset :][: r2t.desired_length]
        replies += initiator.send_data(r2t.itt, r2t.ttt, r2t.buffer_offset, piece)
    assert [reply.status for reply in replies] == [0]
    assert placing.disk.data[:BYTES] == data
    assert nothing_is_held(initiator)


@pytest.mark.parametrize("broken", ["refused at its end", "broken in the middle"])
def test_what_comes_to_stand_in_the_way_is_met_by_the_book(placing: Bench, broken: str) -> None:
    initiator = placing.logged_in(keys=SOLICITED)
    data = noise(BYTES)
    r2t = begin(initiator, data)
    assert go_on(initiator, r2t, data, 0, BYTES // 2) == []
    (put,) = placing.disk.placed
    assert put.taken == BYTES // 2
    if broken == "refused at its end":
        placing.disk.placing = False
    else:
        put.broken = True
    (reply,) = go_on(initiator, r2t, data, BYTES // 2)
    assert (reply.itt, reply.status) == (r2t.itt, 0)
    assert placing.disk.data[:BYTES] == data
    assert placing.disk.seen[-1][0] == WRITE_10, "it was executed"
    assert nothing_is_held(initiator)


def test_data_that_cannot_be_had_back_is_a_write_error(placing: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreadable(self: MemoryPlacing, view: memoryview) -> None:
        raise OSError("told to")

    monkeypatch.setattr(MemoryPlacing, "read_back", unreadable)
    initiator = placing.logged_in(keys=SOLICITED)
    data = noise(BYTES)
    r2t = begin(initiator, data)
    go_on(initiator, r2t, data, 0, BYTES // 2)
    placing.disk.placed[0].broken = True
    replies = go_on(initiator, r2t, data, BYTES // 2)
    assert initiator.follow(r2t.itt, b"", replies).sense_code == WRITE_FAILED
    assert not any(placing.disk.data[:BYTES])
    assert nothing_is_held(initiator)


@pytest.mark.parametrize("how", ["abort task", "logical unit reset", "logout of the connection", "session ends"])
def test_a_write_that_ends_before_its_data_leaves_nothing(placing: Bench, how: str) -> None:
    initiator = placing.logged_in(keys=SOLICITED)
    data = noise(BYTES)
    r2t = begin(initiator, data)
    go_on(initiator, r2t, data, 0, BYTES // 2)
    session = initiator.link.core.session
    if how == "session ends":
        session.close("told to")
    elif how == "logout of the connection":
        initiator.link.core.lost("cut")
    else:
        abort = how == "abort task"
        function = TaskFunction.ABORT_TASK if abort else TaskFunction.LOGICAL_UNIT_RESET
        replies = initiator.request(
            Opcode.TASK_MANAGEMENT_REQUEST, flags=0x80 | function, itt=initiator.next_itt(), immediate=True, lun=0,
            referenced_itt=r2t.itt if abort else NO_TAG, ref_cmd_sn=initiator.cmd_sn - 1,
        )  # fmt: skip
        assert [reply.response for reply in replies] == [0]
        go_on(initiator, r2t, data, BYTES // 2)  # it was on its way
    assert placing.disk.placed[0].dropped
    assert (session.data_bytes, session.placed_bytes) == (0, 0)
    assert not any(placing.disk.data[:BYTES])


def test_no_more_of_it_is_under_way_than_is_allowed(placing: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest waits for its first R2T, as it does for memory."""
    monkeypatch.setattr(limits, "SESSION_DATA_BYTES", 2 * BYTES)
    initiator = placing.logged_in(keys=SOLICITED)
    data = noise(BYTES)
    asked = [begin(initiator, data) for _ in range(2)]
    cdb = cdb_10(WRITE_10, 0, BYTES // 512).ljust(16, b"\0")
    assert initiator.numbered(Opcode.SCSI_COMMAND, flags=0xA1, edtl=BYTES, cdb=cdb) == []
    replies = go_on(initiator, asked[0], data)
    assert [reply.opcode for reply in replies] == [Opcode.R2T, Opcode.SCSI_RESPONSE]
    assert [reply.status for reply in go_on(initiator, asked[1], data)] == [0]
    assert [reply.status for reply in go_on(initiator, replies[0], data)] == [0]
    assert nothing_is_held(initiator)


def test_a_short_write_is_gathered(placing: Bench) -> None:
    initiator = placing.logged_in(keys=SOLICITED)
    data = noise(limits.PLACED_BYTES - 512)
    assert initiator.write(0, data).status == 0
    assert placing.disk.placed == []
