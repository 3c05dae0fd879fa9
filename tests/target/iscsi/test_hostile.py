"""Bytes that no initiator would send: nothing but the protocol's own answers, bounded memory, no harm to others."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from target.iscsi import limits
from target.iscsi.constants import Opcode
from target.iscsi.errors import FormatError, TextError
from target.iscsi.framing import additional_headers
from target.iscsi.framing import encode as encode_pdu
from target.iscsi.text import format_pairs, parse_binary, parse_number, parse_pairs
from tests.support.fuzzing import assert_bounded, raw_send
from tests.support.initiator import READ_10, WRITE_10, Initiator, Link, cdb_10, make_host
from tests.support.memory_target import one_disk
from tests.target.iscsi.conftest import Bench, MakeBench

OPCODES = st.sampled_from([0x00, 0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x10])


@given(data=st.binary(max_size=4000))
def test_random_bytes_before_login_end_the_connection_or_wait(data: bytes) -> None:
    directory, _ = one_disk()
    link = Link(make_host(directory))
    link.core.wake = lambda: None
    raw_send(link, data)
    assert link.core.closing is not None or len(data) < 48 + 8192
    assert_bounded(link)


@given(header=st.binary(min_size=47, max_size=47), data=st.binary(max_size=200))
def test_any_login_request_is_answered_or_ends_the_connection(header: bytes, data: bytes) -> None:
    directory, _ = one_disk()
    link = Link(make_host(directory))
    link.core.wake = lambda: None
    pdu = bytearray(b"\x43" + header + data + bytes(-len(data) & 3))
    pdu[4:8] = len(data).to_bytes(4, "big")
    raw_send(link, bytes(pdu))
    assert_bounded(link)


@settings(max_examples=60, deadline=None)
@given(
    fast=st.booleans(),
    digests=st.booleans(),
    items=st.lists(
        st.tuples(
            OPCODES,
            st.booleans(),
            st.integers(0, 255),
            st.binary(min_size=40, max_size=40),
            st.sampled_from([0, 1, 4, 512, 4096, 9000]),
            st.booleans(),
        ),
        max_size=30,
    ),
)
def test_random_requests_in_full_feature_phase_do_no_harm(
    fast: bool, digests: bool, items: list[tuple[int, bool, int, bytes, int, bool]]
) -> None:
    directory, disk = one_disk()
    disk.fast = fast
    host = make_host(directory)
    keys = {"HeaderDigest": "CRC32C", "DataDigest": "CRC32C"} if digests else {}
    bystander = Initiator(Link(host), isid=b"\x80\0\0\0\0\7")
    bystander.login()
    initiator = Initiator(Link(host), keys=keys)
    assert initiator.login().status_class == 0
    link = initiator.link
    link.core.wake = lambda: None
    for opcode, immediate, flags, rest, length, in_order in items:
        if opcode == Opcode.TASK_MANAGEMENT_REQUEST and flags & 0x7F == 7:
            flags = 0x85  # a cold reset rightly ends the bystander's session
        header = bytearray(bytes((opcode | (0x40 if immediate else 0), flags, 0, 0)) + bytes(4) + rest)
        if in_order and link.core.full_feature:
            header[24:28] = link.core.session.window.exp_cmd_sn.to_bytes(4, "big")
            header[16:20] = bytes(3) + rest[:1]
            header[8:16] = bytes(8)
        raw_send(link, encode(initiator, bytes(header), bytes(length)))
        assert_bounded(link)
    assert bystander.read(0, 1).status == 0


def encode(initiator: Initiator, header: bytes, data: bytes) -> bytes:
    return encode_pdu(header, data, initiator.link.framing)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 1 << 32), flips=st.integers(1, 8), fast=st.booleans())
def test_a_good_conversation_with_flipped_bits_does_no_harm(seed: int, flips: int, fast: bool) -> None:
    dice = random.Random(seed)
    directory, disk = one_disk()
    disk.fast = fast
    host = make_host(directory)
    initiator = Initiator(Link(host))
    assert initiator.login().status_class == 0
    initiator.link.core.wake = lambda: None
    wire = bytearray()
    for n in range(8):
        write = dice.random() < 0.5
        cdb = cdb_10(WRITE_10 if write else READ_10, dice.randrange(1000), 2).ljust(16, b"\0")
        data = dice.randbytes(1024) if write else b""
        flags = 0xA1 if write else 0xC1
        wire += initiator.encode(Opcode.SCSI_COMMAND, data, flags=flags, itt=n + 2, edtl=1024, cdb=cdb)
        initiator.cmd_sn += 1
    for _ in range(flips):
        wire[dice.randrange(len(wire))] ^= 1 << dice.randrange(8)
    raw_send(initiator.link, bytes(wire))
    assert_bounded(initiator.link)


def test_a_peer_that_never_reads_is_not_served_without_end(bench: Bench) -> None:
    """Answers are not taken: the connection stops taking commands, and keeps what it has bounded."""
    initiator = bench.logged_in()
    core = initiator.link.core
    core.wake = lambda: None
    cdb = cdb_10(READ_10, 0, 512).ljust(16, b"\0")
    while not core.blocked:
        pdu = initiator.encode(Opcode.SCSI_COMMAND, flags=0xC1, itt=initiator.next_itt(), edtl=512 * 512, cdb=cdb)
        initiator.cmd_sn += 1
        core.receive_buffer()[: len(pdu)] = pdu
        core.received(len(pdu), 0.0)
    assert initiator.itt < 20
    assert_bounded(initiator.link)


@given(st.binary(max_size=300))
def test_any_text_is_parsed_or_refused(data: bytes) -> None:
    try:
        pairs = parse_pairs(data)
    except TextError:
        return
    assert parse_pairs(format_pairs(pairs)) == pairs


@given(st.text(max_size=60))
def test_any_number_or_binary_is_parsed_or_refused(value: str) -> None:
    for parse in (parse_number, lambda v: parse_binary(v, 1024)):
        try:
            parse(value)
        except TextError:
            continue


@given(st.binary(max_size=1020).map(lambda b: b[: len(b) & ~3]))
def test_any_additional_header_is_parsed_or_refused(data: bytes) -> None:
    try:
        parts = additional_headers(memoryview(data))
    except FormatError:
        return
    assert sum(len(value) for _, value in parts) <= len(data)


@pytest.mark.parametrize("value", ["0x", "0b", "0xg", "12", "", "0b====", "0b" + "A" * 3])
def test_damaged_binary_values_are_refused(value: str) -> None:
    with pytest.raises(TextError):
        parse_binary(value, 100)


def test_binary_values_in_each_spelling() -> None:
    assert parse_binary("0x1", 10) == b"\x01"
    assert parse_binary("0XaBcD", 10) == b"\xab\xcd"
    assert parse_binary("0bAAEC", 10) == b"\0\1\2"


def test_a_byte_now_and_then_does_not_keep_a_connection(make_bench: MakeBench) -> None:
    """What counts is whole PDUs."""
    initiator = make_bench(nop_interval_s=30, nop_timeout_s=15).logged_in()
    pdu = initiator.encode(Opcode.NOP_OUT, itt=5, immediate=True)
    for at in range(30):
        initiator.link.send(pdu[at : at + 1])
        initiator.link.pass_time(1)
    assert initiator.link.closed is None
    for at in range(30, 45):
        initiator.link.send(pdu[at : at + 1])
        initiator.link.pass_time(1)
    assert initiator.link.fault() == "no answer to NOP-In"


def test_a_byte_now_and_then_does_not_prolong_a_login(bench: Bench) -> None:
    link = Link(bench.host)
    for _ in range(int(limits.LOGIN_TIMEOUT_S)):
        link.send(b"\x43")
        link.pass_time(1)
    assert link.fault() == "login took too long"
