"""Reads and writes: every way that data can travel, residuals, order."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from target.iscsi import limits
from target.iscsi.constants import NO_TAG, Opcode
from tests.support.initiator import READ_10, WRITE_10, Initiator, Link, Outcome, cdb_10, make_host
from tests.support.memory_target import one_disk
from tests.target.iscsi.conftest import Bench

DIGESTS = {"HeaderDigest": "CRC32C", "DataDigest": "CRC32C"}
PATTERNS = {
    "immediate and unsolicited": {"InitialR2T": "No", "ImmediateData": "Yes"},
    "immediate only": {"InitialR2T": "Yes", "ImmediateData": "Yes"},
    "unsolicited only": {"InitialR2T": "No", "ImmediateData": "No"},
    "R2T only": {"InitialR2T": "Yes", "ImmediateData": "No"},
    "small bursts": {"MaxBurstLength": "4096", "FirstBurstLength": "1024", "MaxOutstandingR2T": "4"},
    "small PDUs": {"MaxRecvDataSegmentLength": "512"},
    "header digest": {"HeaderDigest": "CRC32C"},
    "data digest": {"DataDigest": "CRC32C"},
    "both digests": DIGESTS,
    "both digests, R2T only": {**DIGESTS, "InitialR2T": "Yes", "ImmediateData": "No"},
}


def noise(length: int) -> bytes:
    return random.Random(length).randbytes(length)


@pytest.mark.parametrize("fast", [True, False], ids=["fast", "slow"])
@pytest.mark.parametrize("blocks", [1, 17, 1000])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_what_is_written_is_read(bench: Bench, pattern: str, blocks: int, fast: bool) -> None:
    bench.disk.fast = fast
    initiator = bench.logged_in(keys=PATTERNS[pattern])
    data = noise(blocks * 512)
    written = initiator.write(5, data)
    assert (written.status, written.overflow, written.underflow) == (0, 0, 0)
    assert bench.disk.data[5 * 512 :][: len(data)] == data
    outcome = initiator.read(5, blocks)
    assert (outcome.status, outcome.overflow, outcome.underflow) == (0, 0, 0)
    assert outcome.data == data


@pytest.mark.parametrize("piece", [1, 7, 48, 1000, 70000])
def test_the_wire_may_cut_anywhere(bench: Bench, piece: int) -> None:
    initiator = bench.logged_in(keys={**DIGESTS, "FirstBurstLength": "65536"})
    initiator.link.piece = piece
    blocks = 40 if piece < 48 else 1000
    data = noise(blocks * 512)
    assert initiator.write(0, data).status == 0
    assert initiator.read(0, blocks).data == data


def test_long_data_out_goes_straight_into_its_buffer(bench: Bench) -> None:
    initiator = bench.logged_in(keys={"InitialR2T": "Yes", "ImmediateData": "No"})
    initiator.link.piece = 50000
    data = noise(2 << 20)
    assert initiator.write(0, data).status == 0
    assert bench.disk.data[: len(data)] == data


def test_while_data_out_is_awaited_little_is_received_beside_its_place(bench: Bench) -> None:
    initiator = bench.logged_in(keys={"InitialR2T": "Yes", "ImmediateData": "No"})
    core, data = initiator.link.core, noise(1 << 20)
    idle = len(core.receive_buffer())
    cdb = cdb_10(WRITE_10, 0, len(data) // 512).ljust(16, b"\0")
    wire = initiator.encode(Opcode.SCSI_COMMAND, flags=0xA1, itt=9, edtl=len(data), cmd_sn=initiator.cmd_sn, cdb=cdb)
    (r2t,) = initiator.link.send(wire)
    assert len(core.receive_buffer()) <= limits.GATHERING_RECEIVE_BYTES < idle
    passed = 0
    for data_sn, at in enumerate(range(0, len(data), 1 << 18)):
        pdu = initiator.encode(
            Opcode.DATA_OUT, data[at : at + (1 << 18)], flags=0x80 if data_sn == 3 else 0, itt=9, ttt=r2t.ttt,
            data_sn=data_sn, buffer_offset=at,
        )  # fmt: skip
        passed += min(len(core.receive_buffer()), len(pdu))
        replies = initiator.link.send(pdu)
    assert [reply.status for reply in replies] == [0]
    assert bench.disk.data[: len(data)] == data
    assert passed <= 4 * limits.GATHERING_RECEIVE_BYTES, "the rest did not go by the receive buffer"
    assert len(core.receive_buffer()) > limits.GATHERING_RECEIVE_BYTES


def test_a_read_carries_its_status_in_the_last_data_in(session: Initiator) -> None:
    (reply,) = session.read(0, 8).replies
    assert (reply.opcode, reply.flags, reply.ttt, reply.status) == (Opcode.DATA_IN, 0x81, NO_TAG, 0)


def test_a_long_read_ends_a_sequence_at_each_burst(bench: Bench) -> None:
    initiator = bench.logged_in(keys={"MaxBurstLength": "8192", "MaxRecvDataSegmentLength": "4096"})
    bench.disk.fast = False
    replies = initiator.read(0, 40).replies
    assert [r.data_sn for r in replies] == [0, 1, 2, 3, 4]
    assert [r.flags for r in replies] == [0, 0x80, 0, 0x80, 0x81]


def test_sequence_numbers_count_answers(session: Initiator) -> None:
    first = session.read(0, 1).replies[0]
    second = session.write(0, bytes(512)).replies[0]
    third = session.command(bytes(6)).replies[0]
    assert [r.stat_sn - first.stat_sn for r in (first, second, third)] == [0, 1, 2]
    assert [r.exp_cmd_sn for r in (first, second, third)] == [101, 102, 103]
    assert [r.max_cmd_sn - r.exp_cmd_sn for r in (first, second, third)] == [limits.COMMAND_WINDOW - 1] * 3


# (EDTL, bytes of the CDB) -> overflow, underflow
RESIDUALS = [(4096, 4096, 0, 0), (8192, 4096, 0, 4096), (4096, 8192, 4096, 0), (0, 4096, 4096, 0)]


@pytest.mark.parametrize(("edtl", "length", "overflow", "underflow"), RESIDUALS)
def test_residuals_of_reads(
    bench: Bench, session: Initiator, edtl: int, length: int, overflow: int, underflow: int
) -> None:
    outcome = session.command(cdb_10(READ_10, 0, length // 512), read=edtl)
    assert (outcome.status, len(outcome.data)) == (0, min(edtl, length))
    assert (outcome.overflow, outcome.underflow) == (overflow, underflow)


@pytest.mark.parametrize(("edtl", "length", "overflow", "underflow"), RESIDUALS)
def test_residuals_of_writes(
    bench: Bench, session: Initiator, edtl: int, length: int, overflow: int, underflow: int
) -> None:
    data = noise(edtl)
    outcome = session.command(cdb_10(WRITE_10, 0, length // 512), write=data)
    assert (outcome.status, outcome.overflow, outcome.underflow) == (0, overflow, underflow)
    used = min(edtl, length)
    assert bench.disk.data[:used] == data[:used]
    assert not any(bench.disk.data[used : 2 * 8192])


def test_odd_lengths_are_padded(session: Initiator) -> None:
    outcome = session.command(bytes((0x12, 0, 0, 0, 13, 0)), read=13)
    assert (len(outcome.data), outcome.underflow) == (13, 0)
    assert len(outcome.replies[0].raw) == 48 + 16


def test_an_error_carries_sense_and_the_whole_residual(session: Initiator) -> None:
    outcome = session.read(1 << 20, 8)
    assert (outcome.status, outcome.sense_code, outcome.underflow) == (2, (5, 0x21, 0), 4096)


def test_data_that_fails_in_the_middle_is_cut_and_the_command_fails(bench: Bench) -> None:
    bench.disk.bad_offset = 100000
    initiator = bench.logged_in(keys={"MaxRecvDataSegmentLength": "8192"})
    outcome = initiator.read(0, 400)
    assert (outcome.status, outcome.sense_code) == (2, (3, 0x11, 0))
    assert (len(outcome.data), outcome.underflow) == (98304, 400 * 512 - 98304)
    assert outcome.replies[-1].exp_data_sn == 12


def test_a_failing_write_takes_its_unsolicited_data_first(bench: Bench) -> None:
    initiator = bench.logged_in(keys={"ImmediateData": "No"})
    outcome = initiator.write(1 << 20, noise(400 * 512))
    assert (outcome.status, outcome.sense_code) == (2, (5, 0x21, 0))
    assert initiator.write(0, noise(512)).status == 0


def start_write(initiator: Initiator, blocks: int, *, final: bool = True, data: bytes = b"") -> tuple[int, list]:  # type: ignore[type-arg]
    itt = initiator.next_itt()
    flags = 0xA1 if final else 0x21
    cdb = cdb_10(WRITE_10, 0, blocks).ljust(16, b"\0")
    replies = initiator.request(
        Opcode.SCSI_COMMAND, data, flags=flags, itt=itt, edtl=blocks * 512, cdb=cdb
    )
    initiator.cmd_sn += 1
    return itt, replies


def outcome_of(initiator: Initiator, itt: int, replies: list) -> Outcome:  # type: ignore[type-arg]
    return initiator.follow(itt, b"", replies)


def test_r2ts_ask_for_everything_in_order_and_within_limits(bench: Bench) -> None:
    keys = {"InitialR2T": "Yes", "ImmediateData": "No", "MaxBurstLength": "4096", "MaxOutstandingR2T": "3"}
    initiator = bench.logged_in(keys=keys)
    itt, replies = start_write(initiator, 40)
    assert [(r.opcode, r.r2t_sn, r.buffer_offset, r.desired_length) for r in replies] == [
        (Opcode.R2T, n, n * 4096, 4096) for n in range(3)
    ]
    assert len({r.ttt for r in replies}) == 3
    more = initiator.send_data(itt, replies[0].ttt, 0, noise(4096))
    assert [(r.r2t_sn, r.buffer_offset) for r in more] == [(3, 12288)]


@pytest.mark.parametrize(
    ("data_sn", "offset"), [(1, 0), (7, 0), (0, 512), (0, 1 << 20), (0, 4096)], ids=str
)
def test_data_out_of_order_fails_the_command(bench: Bench, data_sn: int, offset: int) -> None:
    initiator = bench.logged_in(keys={"InitialR2T": "Yes", "ImmediateData": "No"})
    itt, (r2t,) = start_write(initiator, 8)
    replies = initiator.request(
        Opcode.DATA_OUT, noise(4096), itt=itt, ttt=r2t.ttt, data_sn=data_sn, buffer_offset=offset
    )
    outcome = outcome_of(initiator, itt, replies)
    assert (outcome.status, outcome.sense_code[0]) == (2, 0x0B)
    assert not any(bench.disk.data[:8192])
    assert initiator.write(0, noise(512)).status == 0


def test_too_little_data_for_an_r2t_fails_the_command(bench: Bench) -> None:
    initiator = bench.logged_in(keys={"InitialR2T": "Yes", "ImmediateData": "No"})
    itt, (r2t,) = start_write(initiator, 8)
    outcome = outcome_of(initiator, itt, initiator.request(Opcode.DATA_OUT, noise(512), itt=itt, ttt=r2t.ttt))
    assert (outcome.status, outcome.sense_code) == (2, (0x0B, 0x0C, 0x0D))


def test_unexpected_unsolicited_data_fails_the_command(bench: Bench) -> None:
    initiator = bench.logged_in(keys={"ImmediateData": "No"})
    itt, replies = start_write(initiator, 1, data=noise(512))
    assert outcome_of(initiator, itt, replies).sense_code == (0x0B, 0x0C, 0x0C)


def test_more_immediate_data_than_the_first_burst_fails_the_command(bench: Bench) -> None:
    initiator = bench.logged_in(keys={"FirstBurstLength": "512"})
    itt, replies = start_write(initiator, 2, data=noise(1024))
    assert outcome_of(initiator, itt, replies).sense_code == (0x0B, 0x0C, 0x0D)


def test_a_read_with_data_fails(session: Initiator) -> None:
    itt = session.next_itt()
    cdb = cdb_10(READ_10, 0, 1).ljust(16, b"\0")
    replies = session.request(Opcode.SCSI_COMMAND, noise(512), flags=0xC1, itt=itt, edtl=512, cdb=cdb)
    assert outcome_of(session, itt, replies).sense_code == (0x0B, 0x0C, 0x0C)


def test_a_tag_that_was_never_given_is_rejected(bench: Bench) -> None:
    initiator = bench.logged_in(keys={"InitialR2T": "Yes", "ImmediateData": "No"})
    itt, (r2t,) = start_write(initiator, 1)
    (reject,) = initiator.request(Opcode.DATA_OUT, noise(512), itt=itt, ttt=r2t.ttt + 1000)
    assert (reject.opcode, reject.reason) == (Opcode.REJECT, 0x09)
    assert initiator.follow(itt, noise(512), initiator.send_data(itt, r2t.ttt, 0, noise(512))).status == 0


def test_data_for_a_command_that_is_gone_is_dropped(session: Initiator) -> None:
    assert session.request(Opcode.DATA_OUT, noise(512), itt=9999, ttt=5) == []
    assert session.link.closed is None


def test_a_wrong_data_digest_on_data_out_fails_the_command(bench: Bench) -> None:
    initiator = bench.logged_in(keys={**DIGESTS, "InitialR2T": "Yes", "ImmediateData": "No"})
    itt, (r2t,) = start_write(initiator, 1)
    pdu = bytearray(initiator.encode(Opcode.DATA_OUT, noise(512), itt=itt, ttt=r2t.ttt))
    pdu[100] ^= 1
    outcome = outcome_of(initiator, itt, initiator.link.send(bytes(pdu)))
    assert outcome.sense_code == (0x0B, 0x47, 0x05)
    assert not any(bench.disk.data[:512])


@pytest.mark.parametrize("fast", [True, False], ids=["fast", "slow"])
def test_a_wrong_data_digest_on_immediate_data_fails_the_command(bench: Bench, fast: bool) -> None:
    bench.disk.fast = fast
    initiator = bench.logged_in(keys=DIGESTS)
    itt = initiator.next_itt()
    fields = {"flags": 0xA1, "itt": itt, "edtl": 512, "cdb": cdb_10(WRITE_10, 0, 1).ljust(16, b"\0")}
    pdu = bytearray(initiator.encode(Opcode.SCSI_COMMAND, noise(512), **fields))
    pdu[-1] ^= 1
    outcome = outcome_of(initiator, itt, initiator.link.send(bytes(pdu)))
    assert outcome.sense_code == (0x0B, 0x47, 0x05)
    assert not any(bench.disk.data[:512])


def test_a_wrong_header_digest_ends_the_connection(bench: Bench) -> None:
    initiator = bench.logged_in(keys=DIGESTS)
    pdu = bytearray(initiator.encode(Opcode.SCSI_COMMAND, flags=0xC1, itt=5, cdb=bytes(16)))
    pdu[20] ^= 1
    initiator.link.send(bytes(pdu))
    assert initiator.link.fault() == "header digest does not match"


def test_a_data_segment_over_the_limit_ends_the_connection(session: Initiator) -> None:
    session.link.send(session.encode(Opcode.NOP_OUT, bytes(limits.MAX_RECV_DATA_SEGMENT_BYTES + 1), itt=5))
    assert "data segment" in (session.link.fault() or "")


def test_a_cdb_may_be_extended_by_an_additional_header(bench: Bench, session: Initiator) -> None:
    pdu = bytearray(session.encode(Opcode.SCSI_COMMAND, flags=0x81, itt=7, cdb=b"\x7f" + bytes(15)))
    pdu[4] = 5
    pdu += bytes((0, 17, 1, 0)) + bytes(range(16))
    (reply,) = session.link.send(bytes(pdu))
    assert reply.status == 2
    assert bench.disk.seen == [b"\x7f" + bytes(15) + bytes(range(16))]


def test_memory_for_waiting_writes_is_bounded(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SESSION_DATA_BYTES", 128 * 1024)
    initiator = bench.logged_in(keys={"InitialR2T": "Yes", "ImmediateData": "No"})
    started = [start_write(initiator, 128) for _ in range(5)]
    asked = [bool(replies) for _, replies in started]
    assert asked == [True, True, False, False, False]
    itt, (r2t,) = started[0]
    replies = initiator.send_data(itt, r2t.ttt, 0, noise(65536))
    assert {r.opcode for r in replies} == {Opcode.R2T, Opcode.SCSI_RESPONSE}


def test_answers_wait_while_the_output_is_full(bench: Bench) -> None:
    """Many long reads at once: more than the output buffer holds, all of them right in the end."""
    initiator = bench.logged_in()
    bench.disk.data[:] = noise(len(bench.disk.data))
    wire = b""
    for n in range(12):
        cdb = cdb_10(READ_10, 0, 2048).ljust(16, b"\0")
        wire += initiator.encode(Opcode.SCSI_COMMAND, flags=0xC1, itt=1000 + n, edtl=1 << 20, cdb=cdb)
        initiator.cmd_sn += 1
    replies = initiator.link.send(wire)
    for n in range(12):
        mine = [r for r in replies if r.itt == 1000 + n]
        assert b"".join(r.data for r in mine) == bench.disk.data[: 1 << 20]
    numbers = [r.stat_sn for r in replies if r.flags & 1]
    assert numbers == list(range(numbers[0], numbers[0] + 12))


@settings(max_examples=60, deadline=None)
@given(
    fast=st.booleans(),
    keys=st.fixed_dictionaries(
        {
            "InitialR2T": st.sampled_from(["Yes", "No"]),
            "ImmediateData": st.sampled_from(["Yes", "No"]),
            "HeaderDigest": st.sampled_from(["None", "CRC32C"]),
            "DataDigest": st.sampled_from(["None", "CRC32C"]),
            "MaxRecvDataSegmentLength": st.integers(4096, 40000).map(str),
            "MaxBurstLength": st.integers(2048, 70000).map(str),
            "FirstBurstLength": st.integers(512, 70000).map(str),
            "MaxOutstandingR2T": st.integers(1, 10).map(str),
        }
    ),
    piece=st.integers(40, 100000),
    writes=st.lists(st.tuples(st.integers(0, 300), st.integers(1, 200)), max_size=6),
)
def test_any_negotiated_session_moves_data_intact(
    fast: bool, keys: dict[str, str], piece: int, writes: list[tuple[int, int]]
) -> None:
    directory, disk = one_disk(1)
    disk.fast = fast
    initiator = Initiator(Link(make_host(directory)), keys=keys)
    assert initiator.login().status_class == 0
    initiator.link.piece = piece
    model = bytearray(len(disk.data))
    for lba, blocks in writes:
        data = noise(blocks * 512 + lba)[: blocks * 512]
        assert initiator.write(lba, data).status == 0
        model[lba * 512 : lba * 512 + len(data)] = data
    assert disk.data == model
    assert initiator.read(0, 500).data == model[: 500 * 512]
    assert initiator.link.closed is None
