"""What one session could do to another, to the order of commands, and to memory: found by review."""

from __future__ import annotations

from itertools import pairwise

import pytest

from target.iscsi import limits
from target.iscsi.constants import Opcode, TaskFunction
from target.iscsi.ports import Done, Response
from target.iscsi.window import serial_less
from tests.support.initiator import READ_10, WRITE_10, Initiator, Reply, cdb_10
from tests.support.memory_target import MemoryNexus
from tests.target.iscsi.conftest import Bench

FLUSH = bytes((0x35,)) + bytes(15)
READ_12 = 0xA8


def read_pdu(initiator: Initiator, lba: int, blocks: int, **fields: object) -> bytes:
    """One READ(10), encoded; takes the next CmdSN."""
    cdb = cdb_10(READ_10, lba, blocks).ljust(16, b"\0")
    pdu = initiator.encode(
        Opcode.SCSI_COMMAND,
        **{"flags": 0xC1, "itt": initiator.next_itt(), "edtl": blocks * 512, "cdb": cdb, **fields},  # type: ignore[arg-type]
    )
    initiator.cmd_sn += 1
    return pdu


def write_pdu(initiator: Initiator, blocks: int, data: bytes = b"", **fields: object) -> bytes:
    cdb = cdb_10(WRITE_10, 0, blocks).ljust(16, b"\0")
    pdu = initiator.encode(
        Opcode.SCSI_COMMAND, data,
        **{"flags": 0xA1, "itt": initiator.next_itt(), "edtl": blocks * 512, "cdb": cdb, **fields},  # type: ignore[arg-type]
    )  # fmt: skip
    initiator.cmd_sn += 1
    return pdu


def start_write(initiator: Initiator, lun: int = 0) -> Reply:
    """A WRITE that has its R2T and no data yet."""
    (r2t,) = initiator.link.send(write_pdu(initiator, 8, lun=lun))
    assert r2t.opcode is Opcode.R2T
    return r2t


# --- late answers


def test_late_answers_that_do_not_fit_the_output_at_once_all_go_out(bench: Bench, session: Initiator) -> None:
    """Reads that waited for a flush end together, more than one output buffer of them; the transport is woken once."""
    session.link.core.wake = lambda: None
    length = 256 * 1024
    for _ in range(12):
        session.link.send(
            session.encode(
                Opcode.SCSI_COMMAND, flags=0xC1, itt=session.next_itt(), edtl=length, cdb=FLUSH
            )
        )
        session.cmd_sn += 1
    waiting, bench.disk.later = bench.disk.later, []
    for _tag, done in waiting:
        done(Response(reader=lambda offset, view: None, length=length))
    session.link.collect()
    assert sum(len(reply.data) for reply in session.link.take()) == 12 * length


# --- the window


def test_reads_put_aside_count_against_the_window(
    bench: Bench, session: Initiator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reads that wait for a flush: MaxCmdSN never goes back, whatever came between them in the same batch."""
    execute = MemoryNexus.execute

    def later(
        self: MemoryNexus, lun: int, cdb: bytes, attribute: int, data: memoryview, tag: int, done: Done
    ) -> Response | None:
        return execute(self, lun, FLUSH if cdb[0] == READ_12 else cdb, attribute, data, tag, done)

    monkeypatch.setattr(MemoryNexus, "execute", later)
    wire = b""
    for _ in range(10):
        for _ in range(10):
            wire += read_pdu(session, 0, 1, cdb=bytes((READ_12,)) + bytes(15))
        wire += read_pdu(session, 0, 1)
    shown = [reply.max_cmd_sn for reply in session.link.send(wire)]
    shown.append(session.link.core.session.window.max_cmd_sn)
    assert not any(serial_less(after, before) for before, after in pairwise(shown))
    assert len(bench.disk.later) == 100


def test_an_ordered_command_waits_for_reads_that_were_put_aside(bench: Bench, session: Initiator) -> None:
    bench.disk.bad_offset = -1  # no fast read: put aside
    wire = read_pdu(session, 0, 1) + write_pdu(session, 1, b"n" * 512, flags=0xA2)
    replies = session.link.send(wire)
    assert [reply.data for reply in replies if reply.opcode is Opcode.DATA_IN] == [bytes(512)]


# --- memory


def test_immediate_data_does_not_lift_the_limit_on_gathered_data(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "SESSION_DATA_BYTES", 1 << 20)
    session = bench.logged_in()
    blocks = 2048  # 1 MiB
    first = b"i" * 512
    for _ in range(40):
        session.link.send(write_pdu(session, blocks, first))
    target_session = session.link.core.session
    assert target_session.data_bytes <= (2 << 20) + 40 * limits.FIRST_BURST_BYTES


# --- other sessions


def reset(session: Initiator, function: int, lun: int = 0) -> Reply:
    return session.numbered(Opcode.TASK_MANAGEMENT_REQUEST, flags=0x80 | function, lun=lun)[-1]


@pytest.mark.parametrize(
    "function",
    [TaskFunction.LOGICAL_UNIT_RESET, TaskFunction.CLEAR_TASK_SET, TaskFunction.TARGET_WARM_RESET],
)
def test_a_reset_answers_the_writes_of_other_sessions_that_it_ends(
    bench: Bench, session: Initiator, function: int
) -> None:
    """TAS=1: without a status the other host would wait until its own timeout."""
    other = bench.logged_in(isid=b"\x80\0\0\0\0\2")
    r2t = start_write(other)
    assert reset(session, function).response == 0
    (answer,) = other.link.take()
    assert (answer.opcode, answer.itt, answer.status) == (Opcode.SCSI_RESPONSE, r2t.itt, 0x40)


def test_data_for_a_write_that_another_session_ended_is_dropped(bench: Bench, session: Initiator) -> None:
    """Also while the answer waits for room in the output: the command must not run a second time, without data."""
    other = bench.logged_in(isid=b"\x80\0\0\0\0\2")
    r2t = start_write(other)
    other.link.core.emit = other.link.core.waiting.append  # type: ignore[method-assign]
    reset(session, TaskFunction.LOGICAL_UNIT_RESET)
    del bench.disk.seen[:]
    other.link.core.received(len_of(other, r2t), 0.0)
    assert bench.disk.seen == []
    assert not any(bench.disk.data[:4096])


def len_of(other: Initiator, r2t: Reply) -> int:
    """Puts the answer to an R2T into the target's receive buffer; its length."""
    pdu = other.encode(Opcode.DATA_OUT, b"x" * 4096, itt=r2t.itt, ttt=r2t.ttt, data_sn=0, buffer_offset=0)
    other.link.core.receive_buffer()[: len(pdu)] = pdu
    return len(pdu)


def test_connection_reinstatement_gives_back_the_places_of_answers_that_never_went_out(
    bench: Bench, session: Initiator
) -> None:
    old = session.link.core
    old.output.used = old.output.size  # the network takes nothing
    wire = read_pdu(session, 0, 1, cdb=bytes((0x00,)) + bytes(15), edtl=0, flags=0x81)
    old.receive_buffer()[: len(wire)] = wire
    old.wake = lambda: None
    old.received(len(wire), 0.0)
    assert old.session.window.outstanding == 1
    again = bench.initiator()
    again.tsih = session.tsih
    assert again.login().status_class == 0
    assert (old.session.window.outstanding, old.session.tasks) == (0, {})
