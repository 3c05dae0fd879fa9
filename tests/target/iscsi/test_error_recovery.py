"""Error recovery level 0 (RFC 7143 7): each rule that a peer can break, by name, and what follows."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from target.iscsi import limits
from target.iscsi.constants import NO_TAG, Opcode, RejectReason
from tests.support.initiator import READ_10, WRITE_10, Initiator, Reply, cdb_10
from tests.target.iscsi.conftest import Bench

DIGESTS = {"HeaderDigest": "CRC32C", "DataDigest": "CRC32C"}
SOLICITED = {"InitialR2T": "Yes", "ImmediateData": "No"}
ANY_ORDER = {**SOLICITED, "DataPDUInOrder": "No"}
UNSOLICITED = {"InitialR2T": "No", "ImmediateData": "No", "FirstBurstLength": "2048"}
CRC, AMOUNT, UNEXPECTED = (0x0B, 0x47, 0x05), (0x0B, 0x0C, 0x0D), (0x0B, 0x0C, 0x0C)
LENGTH = 4096
DATA = random.Random(1).randbytes(LENGTH)


@dataclass
class Piece:
    """One Data-Out: where it says it belongs, and how it is wrong."""

    offset: int
    length: int
    data_sn: int
    final: bool = False
    flip: bool = False


@dataclass
class Rule:
    keys: dict[str, str]
    pieces: list[Piece]
    sense: tuple[int, int, int] | None
    """None: the command succeeds."""
    rejects: list[RejectReason] = field(default_factory=list)


def whole(count: int) -> list[Piece]:
    size = LENGTH // count
    return [Piece(n * size, size, n, n == count - 1) for n in range(count)]


WRITE_RULES: dict[str, Rule] = {
    "everything in order": Rule(SOLICITED, whole(4), None),
    "unaligned pieces in order": Rule(
        SOLICITED, [Piece(0, 1001, 0), Piece(1001, 3, 1), Piece(1004, 3092, 2, True)], None
    ),
    "pieces swapped": Rule(SOLICITED, [Piece(2048, 2048, 0), Piece(0, 2048, 1, True)], AMOUNT),
    "pieces that overlap": Rule(
        SOLICITED, [Piece(0, 2048, 0), Piece(1024, 2048, 1), Piece(3072, 1024, 2, True)], AMOUNT
    ),
    "a piece twice": Rule(SOLICITED, [Piece(0, 2048, 0), Piece(0, 2048, 0), Piece(2048, 2048, 1, True)], CRC),
    "a hole": Rule(SOLICITED, [Piece(0, 1024, 0), Piece(2048, 2048, 1, True)], AMOUNT),
    "a lost piece": Rule(SOLICITED, [Piece(0, 1024, 0), Piece(2048, 2048, 2, True)], CRC),
    "DataSN does not begin at 0": Rule(SOLICITED, [Piece(0, 4096, 1, True)], CRC),
    "final too early": Rule(SOLICITED, [Piece(0, 1024, 0, True)], AMOUNT),
    "more than the R2T asked for": Rule(SOLICITED, [Piece(0, 2048, 0), Piece(2048, 4096, 1, True)], AMOUNT),
    "the final bit forgotten": Rule(SOLICITED, [Piece(0, 2048, 0), Piece(2048, 2048, 1)], None),
    "pieces in any order": Rule(
        ANY_ORDER, [Piece(3000, 1096, 0), Piece(0, 1001, 1), Piece(2000, 1000, 2), Piece(1001, 999, 3, True)], None
    ),
    "pieces in any order, one of nothing": Rule(
        ANY_ORDER, [Piece(2048, 2048, 0), Piece(4096, 0, 1), Piece(0, 2048, 2, True)], None
    ),
    "pieces in any order that overlap": Rule(
        ANY_ORDER, [Piece(2048, 2048, 0), Piece(0, 2049, 1), Piece(2049, 2047, 2, True)], AMOUNT
    ),
    "a piece in any order twice": Rule(
        ANY_ORDER, [Piece(2048, 2048, 0), Piece(2048, 2048, 1, True)], AMOUNT
    ),
    "a piece in any order beyond the run": Rule(
        ANY_ORDER, [Piece(4095, 2, 0), Piece(0, 4094, 1, True)], AMOUNT
    ),
    "a hole in any order": Rule(ANY_ORDER, [Piece(3072, 1024, 0), Piece(0, 2048, 1, True)], AMOUNT),
    "more gaps than are kept": Rule(
        ANY_ORDER,
        [Piece(2 * n, 1, n) for n in range(limits.DATA_OUT_GAPS + 1)]
        + [Piece(1000, 3096, limits.DATA_OUT_GAPS + 1, True)],
        AMOUNT,
    ),
    "nothing at all": Rule(SOLICITED, [Piece(0, 0, 0, True)], AMOUNT),
    "a damaged piece": Rule(
        {**SOLICITED, **DIGESTS}, [Piece(0, 2048, 0), Piece(2048, 2048, 1, True, flip=True)], CRC,
        [RejectReason.DATA_DIGEST_ERROR],
    ),
    "a damaged piece, the rest comes first": Rule(
        {**SOLICITED, **DIGESTS}, [Piece(0, 2048, 0, flip=True), Piece(2048, 2048, 1, True)], CRC,
        [RejectReason.DATA_DIGEST_ERROR],
    ),
}  # fmt: skip


def start_write(initiator: Initiator, data: bytes = b"", *, final: bool = True, edtl: int = LENGTH) -> list[Reply]:
    cdb = cdb_10(WRITE_10, 0, edtl // 512).ljust(16, b"\0")
    flags = 0xA1 if final else 0x21
    return initiator.numbered(Opcode.SCSI_COMMAND, data, flags=flags, edtl=edtl, cdb=cdb)


def send_piece(initiator: Initiator, itt: int, ttt: int, piece: Piece) -> list[Reply]:
    data = DATA[piece.offset :][: piece.length].ljust(piece.length, b"?")
    pdu = bytearray(
        initiator.encode(
            Opcode.DATA_OUT, data, flags=0x80 if piece.final else 0, itt=itt, ttt=ttt, data_sn=piece.data_sn,
            buffer_offset=piece.offset,
        )
    )
    if piece.flip:
        pdu[60] ^= 1
    return initiator.link.send(bytes(pdu))


@pytest.mark.parametrize("name", WRITE_RULES)
def test_a_rule_of_solicited_data(bench: Bench, name: str) -> None:
    """One answer, after the run is over, and never a byte on the disk if a rule was broken."""
    rule = WRITE_RULES[name]
    initiator = bench.logged_in(keys=rule.keys)
    (r2t,) = start_write(initiator)
    replies: list[Reply] = []
    for number, piece in enumerate(rule.pieces):
        new = send_piece(initiator, r2t.itt, r2t.ttt, piece)
        answered = [r for r in new if r.opcode is Opcode.SCSI_RESPONSE]
        assert not answered or number == len(rule.pieces) - 1
        replies += new
    rejects = [r.reason for r in replies if r.opcode is Opcode.REJECT]
    outcome = initiator.follow(r2t.itt, b"", [r for r in replies if r.opcode is not Opcode.REJECT])
    assert rejects == rule.rejects
    if rule.sense is None:
        assert outcome.status == 0
        assert bench.disk.data[:LENGTH] == DATA
    else:
        assert (outcome.status, outcome.sense_code) == (2, rule.sense)
        assert not any(bench.disk.data[: 2 * LENGTH])
    assert initiator.write(0, bytes(512)).status == 0  # the session goes on
    assert initiator.link.closed is None


# --- unsolicited data


def test_unsolicited_data_up_to_the_first_burst(bench: Bench) -> None:
    initiator = bench.logged_in(keys=UNSOLICITED)
    assert start_write(initiator, final=False) == []
    itt = initiator.itt
    assert send_piece(initiator, itt, NO_TAG, Piece(0, 1024, 0)) == []
    (r2t,) = send_piece(initiator, itt, NO_TAG, Piece(1024, 1024, 1, True))
    assert (r2t.buffer_offset, r2t.desired_length) == (2048, 2048)
    assert [r.status for r in send_piece(initiator, itt, r2t.ttt, Piece(2048, 2048, 0, True))] == [0]
    assert bench.disk.data[:LENGTH] == DATA


def test_more_unsolicited_data_than_the_first_burst_fails_the_command(bench: Bench) -> None:
    initiator = bench.logged_in(keys=UNSOLICITED)
    start_write(initiator, final=False)
    replies = send_piece(initiator, initiator.itt, NO_TAG, Piece(0, LENGTH, 0, True))
    assert initiator.follow(initiator.itt, b"", replies).sense_code == AMOUNT
    assert not any(bench.disk.data[:LENGTH])


def test_unsolicited_data_that_was_not_agreed_fails_the_command(bench: Bench) -> None:
    initiator = bench.logged_in(keys=SOLICITED)
    replies = start_write(initiator, final=False)
    assert initiator.follow(initiator.itt, b"", replies).sense_code == UNEXPECTED


def test_unsolicited_data_after_its_run_is_rejected_and_the_command_goes_on(bench: Bench) -> None:
    initiator = bench.logged_in(keys=UNSOLICITED)
    start_write(initiator, final=False)
    itt = initiator.itt
    (r2t,) = send_piece(initiator, itt, NO_TAG, Piece(0, 2048, 0, True))
    (reject,) = send_piece(initiator, itt, NO_TAG, Piece(2048, 2048, 1, True))
    assert (reject.opcode, reject.reason) == (Opcode.REJECT, RejectReason.INVALID_PDU_FIELD)
    assert [r.status for r in send_piece(initiator, itt, r2t.ttt, Piece(2048, 2048, 0, True))] == [0]
    assert bench.disk.data[:LENGTH] == DATA


def test_damaged_immediate_data_is_rejected_and_fails_the_command(bench: Bench) -> None:
    initiator = bench.logged_in(keys=DIGESTS)
    cdb = cdb_10(WRITE_10, 0, 1).ljust(16, b"\0")
    itt = initiator.next_itt()
    pdu = bytearray(
        initiator.encode(Opcode.SCSI_COMMAND, DATA[:512], flags=0xA1, itt=itt, edtl=512, cdb=cdb)
    )
    pdu[-1] ^= 1
    reject, response = initiator.link.send(bytes(pdu))
    assert (reject.opcode, reject.reason, reject.data) == (Opcode.REJECT, RejectReason.DATA_DIGEST_ERROR, pdu[:48])
    assert initiator.follow(itt, b"", [response]).sense_code == CRC
    initiator.cmd_sn += 1
    assert initiator.read(0, 1).data == bytes(512)


def test_immediate_data_longer_than_the_command_fails_it(bench: Bench, session: Initiator) -> None:
    (response,) = start_write(session, bytes(1024), edtl=512)
    assert session.follow(session.itt, b"", [response]).sense_code == AMOUNT


# --- tags


@pytest.mark.parametrize("ttt", [0, 7777, NO_TAG], ids=hex)
def test_a_transfer_tag_that_was_never_given_is_rejected(bench: Bench, ttt: int) -> None:
    initiator = bench.logged_in(keys=SOLICITED)
    (r2t,) = start_write(initiator)
    (reject,) = send_piece(initiator, r2t.itt, ttt, Piece(0, LENGTH, 0, True))
    assert reject.reason == RejectReason.INVALID_PDU_FIELD
    assert [r.status for r in send_piece(initiator, r2t.itt, r2t.ttt, Piece(0, LENGTH, 0, True))] == [0]


def test_a_transfer_tag_of_another_command_is_dropped(bench: Bench) -> None:
    initiator = bench.logged_in(keys=SOLICITED)
    (one,) = start_write(initiator)
    (two,) = start_write(initiator)
    assert send_piece(initiator, one.itt, two.ttt, Piece(0, LENGTH, 0, True)) == []
    for r2t in (one, two):
        assert [r.status for r in send_piece(initiator, r2t.itt, r2t.ttt, Piece(0, LENGTH, 0, True))] == [0]


def test_a_transfer_tag_is_good_for_one_run(bench: Bench) -> None:
    initiator = bench.logged_in(keys={**SOLICITED, "MaxBurstLength": "2048", "MaxOutstandingR2T": "1"})
    (first,) = start_write(initiator)
    (second,) = send_piece(initiator, first.itt, first.ttt, Piece(0, 2048, 0, True))
    assert second.ttt != first.ttt
    assert send_piece(initiator, first.itt, first.ttt, Piece(0, 2048, 0, True)) == []
    assert [r.status for r in send_piece(initiator, first.itt, second.ttt, Piece(2048, 2048, 0, True))] == [0]


def test_data_for_another_lun_than_its_commands_is_rejected(bench: Bench) -> None:
    initiator = bench.logged_in(keys=SOLICITED)
    (r2t,) = start_write(initiator)
    (reject,) = initiator.request(Opcode.DATA_OUT, DATA, itt=r2t.itt, ttt=r2t.ttt, lun=1 << 48)
    assert reject.reason == RejectReason.INVALID_PDU_FIELD


@pytest.mark.parametrize("immediate", [False, True])
def test_a_command_with_the_tag_of_another_is_rejected(session: Initiator, immediate: bool) -> None:
    session.numbered(Opcode.SCSI_COMMAND, flags=0x81, cdb=bytes((0x35,)) + bytes(15))
    cdb = cdb_10(READ_10, 0, 1).ljust(16, b"\0")
    (reject,) = session.request(
        Opcode.SCSI_COMMAND, flags=0xC1, itt=session.itt, edtl=512, cdb=cdb, immediate=immediate
    )
    assert (reject.opcode, reject.reason) == (Opcode.REJECT, RejectReason.TASK_IN_PROGRESS)


@pytest.mark.parametrize("kind", range(4))
def test_every_snack_is_rejected(session: Initiator, kind: int) -> None:
    """Data/R2T, Status, DataACK and R-Data SNACK need error recovery level 1."""
    (reject,) = session.request(Opcode.SNACK_REQUEST, flags=0x80 | kind, itt=1, ttt=NO_TAG)
    assert reject.reason == RejectReason.SNACK_REJECT
    assert session.read(0, 1).status == 0


# --- what ends a connection


def damaged_header(initiator: Initiator) -> bytes:
    pdu = bytearray(initiator.encode(Opcode.NOP_OUT, itt=5, immediate=True))
    pdu[30] ^= 4
    return bytes(pdu)


def too_long(initiator: Initiator) -> bytes:
    header = bytearray(initiator.encode(Opcode.NOP_OUT, itt=5, immediate=True))
    header[5:8] = (limits.MAX_RECV_DATA_SEGMENT_BYTES + 1).to_bytes(3, "big")
    return bytes(header)


def ahs_beyond_its_space(initiator: Initiator) -> bytes:
    plain = initiator.encode(Opcode.SCSI_COMMAND, flags=0x81, itt=5, cdb=bytes(16))
    header = bytearray(plain[:48])
    header[4] = 1
    return bytes(header) + b"\x00\xff\x01\x00"


ENDS: dict[str, tuple[dict[str, str], Callable[[Initiator], bytes], str]] = {
    "header digest": (DIGESTS, damaged_header, "header digest does not match"),
    "data segment too long": ({}, too_long, "data segment of 262145 bytes, 262144 are allowed"),
    "additional header": ({}, ahs_beyond_its_space, "additional header segment longer than its space"),
}


@pytest.mark.parametrize("name", ENDS)
def test_what_cannot_be_skipped_ends_the_connection(bench: Bench, name: str) -> None:
    keys, make, reason = ENDS[name]
    initiator = bench.logged_in(keys=keys)
    initiator.link.send(make(initiator))
    assert initiator.link.fault() == reason
    assert bench.host.registry.sessions() == []


@pytest.mark.parametrize("opcode", [Opcode.NOP_OUT, Opcode.TEXT_REQUEST])
def test_damaged_data_of_a_request_is_rejected(bench: Bench, opcode: Opcode) -> None:
    initiator = bench.logged_in(keys=DIGESTS)
    pdu = bytearray(initiator.encode(opcode, b"SendTargets=All\0", itt=initiator.next_itt(), ttt=NO_TAG))
    pdu[-1] ^= 0x80
    (reject,) = initiator.link.send(bytes(pdu))
    assert reject.reason == RejectReason.DATA_DIGEST_ERROR
    initiator.cmd_sn += 1
    assert initiator.read(0, 1).status == 0


@pytest.mark.parametrize("key", ["DataPDUInOrder", "DataSequenceInOrder"])
@pytest.mark.parametrize("offered", ["Yes", "No"])
def test_what_we_send_is_always_in_order(bench: Bench, key: str, offered: str) -> None:
    """Whatever is agreed (13.18, 13.19): both directions keep to it."""
    initiator = bench.logged_in(keys={key: offered, "MaxRecvDataSegmentLength": "1024", "MaxBurstLength": "2048"})
    assert initiator.agreed[key] == offered
    replies = initiator.read(0, 16).replies
    assert [(r.data_sn, r.buffer_offset) for r in replies] == [(n, n * 1024) for n in range(8)]
    initiator.agreed.update({"ImmediateData": "No", "InitialR2T": "Yes"})
    asked = [r for r in initiator.write(0, bytes(8192)).replies if r.opcode is Opcode.R2T]
    assert [r.buffer_offset for r in asked] == [0, 2048, 4096, 6144]


def test_runs_may_come_in_any_order(bench: Bench) -> None:
    """DataSequenceInOrder=No: R2Ts that are outstanding together, the last answered first."""
    keys = {**SOLICITED, "DataSequenceInOrder": "No", "MaxOutstandingR2T": "4", "MaxBurstLength": "1024"}
    initiator = bench.logged_in(keys=keys)
    asked = start_write(initiator)
    assert [r2t.buffer_offset for r2t in asked] == [0, 1024, 2048, 3072]
    replies = []
    for r2t in reversed(asked):
        replies += send_piece(initiator, r2t.itt, r2t.ttt, Piece(r2t.buffer_offset, 1024, 0, True))
    assert [reply.status for reply in replies] == [0]
    assert bench.disk.data[:LENGTH] == DATA


def test_long_pieces_in_any_order_are_received_in_place(bench: Bench) -> None:
    length = 4 * limits.DIRECT_RECEIVE_BYTES
    data = random.Random(2).randbytes(length)
    initiator = bench.logged_in(keys=ANY_ORDER)
    (r2t,) = start_write(initiator, edtl=length)
    half = length // 2
    replies = []
    for data_sn, offset in enumerate((half, 0)):
        pdu = initiator.encode(
            Opcode.DATA_OUT, data[offset : offset + half], flags=0x80 if offset == 0 else 0, itt=r2t.itt, ttt=r2t.ttt,
            data_sn=data_sn, buffer_offset=offset,
        )  # fmt: skip
        initiator.link.piece = 1000
        replies += initiator.link.send(pdu)
    assert [reply.status for reply in replies] == [0]
    assert bench.disk.data[:length] == data
