"""Whatever a host sends, the device server answers it and stays usable."""

from __future__ import annotations

import logging

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from target.iscsi.ports import DataInFailed, Response
from target.scsi.commands import COMMANDS
from target.scsi.limits import MAX_TRANSFER_BYTES
from target.scsi.sense import Status
from target.scsi.unit import SWITCHES
from tests.support.memory_store import MemoryStore
from tests.support.scsi_host import Host, one_host, read_16

RANDOM = st.binary(min_size=0, max_size=16)


@st.composite
def plausible(draw: st.DrawFn) -> bytes:
    """A known command, most of its bytes small or zero."""
    command = draw(st.sampled_from(COMMANDS))
    small = st.one_of(st.just(0), st.integers(0, 16), st.integers(0, 255))
    body = bytearray(draw(st.lists(small, min_size=15, max_size=15)))
    if command.cdb.service_action is not None:
        body[0] = command.cdb.service_action | draw(st.sampled_from((0, 0, 0x20)))
    return bytes((command.cdb.opcode, *body))


CDB = st.one_of(RANDOM, plausible())
DATA = st.one_of(st.just(b""), st.binary(max_size=64), st.sampled_from((bytes(512), b"\1" * 1024, bytes(4096))))
LUN = st.sampled_from((0, 0, 0, 1, 300))
STORE = st.builds(
    MemoryStore, st.sampled_from((1 << 20, 4096)), st.sampled_from((512, 4096)), thin=st.booleans()
)

SAVED = st.sampled_from(({}, {}, *({name: b"1"} for name in SWITCHES)))


@st.composite
def with_parameters(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """A command that takes a parameter list, and one that is mostly zeros and small numbers, its lengths often true."""
    command = draw(st.sampled_from([c for c in COMMANDS if "parameter_list_length" in c.cdb.names]))
    small = st.one_of(st.just(0), st.just(0), st.integers(0, 32), st.integers(0, 255))
    body = bytes(draw(st.lists(small, max_size=700)))
    lengths = (b"", b"\0\0\0\x20", (len(body) + 2).to_bytes(2, "big"), bytes.fromhex("01000020 00000000 0000001c"))
    head = draw(st.sampled_from(lengths))
    parameters = head + body
    at = 7 if command.cdb.length == 10 else {0x5F: 5}.get(command.cdb.opcode, 10)
    size = 4 if command.cdb.opcode in (0x5F, 0x83) else 2
    cdb = bytearray(command.cdb.length)
    cdb[0], cdb[1] = command.cdb.opcode, command.cdb.service_action or draw(st.sampled_from((0, 0x10, 0x11)))
    if command.cdb.opcode == 0x5F:
        cdb[2] = draw(st.sampled_from((0, 1, 8)))
    if command.cdb.length == 6:
        parameters = parameters[:255]
        cdb[4] = len(parameters)
    else:
        cdb[at : at + size] = len(parameters).to_bytes(size, "big")
    return bytes(cdb), parameters


def check(host: Host, response: Response) -> None:
    assert response.status in list(Status)
    assert (response.status == Status.CHECK_CONDITION) == bool(response.sense)
    assert response.wanted >= 0
    if response.reader is None:
        assert response.length == len(response.data)
        return
    assert response.length <= MAX_TRANSFER_BYTES
    failure: DataInFailed | None = None
    try:
        response.reader(0, memoryview(bytearray(response.length)))
    except DataInFailed as failed:
        failure = failed
    assert failure is None or failure.response.status == Status.CHECK_CONDITION


class NoInternalFailure(logging.Handler):
    """Fails the test if the nexus had to catch an exception of our own."""

    def __enter__(self) -> None:
        logging.getLogger("target.nexus").addHandler(self)

    def __exit__(self, *_: object) -> None:
        logging.getLogger("target.nexus").removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        pytest.fail(record.getMessage() + "\n" + str(record.exc_info))


@settings(max_examples=600, deadline=None)
@given(store=STORE, saved=SAVED, commands=st.lists(st.tuples(CDB, DATA, LUN), max_size=8))
def test_any_command_ends_in_one_response(
    store: MemoryStore, saved: dict[str, bytes], commands: list[tuple[bytes, bytes, int]]
) -> None:
    host, _, _ = one_host(store, **saved)
    with NoInternalFailure():
        for cdb, data, lun in commands:
            check(host, host.send(cdb, data, lun))
            assert not host.nexus.tasks


@settings(max_examples=300, deadline=None)
@given(commands=st.lists(with_parameters(), min_size=1, max_size=4))
def test_any_parameter_list_ends_in_one_response(commands: list[tuple[bytes, bytes]]) -> None:
    host, _, _ = one_host()
    with NoInternalFailure():
        for cdb, parameters in commands:
            check(host, host.send(cdb, parameters))
            assert not host.nexus.tasks


@settings(max_examples=300, deadline=None)
@given(cdb=CDB, lun=st.integers(0, (1 << 64) - 1) | st.just(0))
def test_the_length_of_data_out_is_always_told_and_bounded(cdb: bytes, lun: int) -> None:
    host, _, _ = one_host()
    assert 0 <= host.nexus.data_out_length(lun, cdb) <= MAX_TRANSFER_BYTES


@settings(max_examples=300, deadline=None)
@given(cdb=CDB, data=DATA)
def test_a_store_that_fails_everywhere_gives_check_conditions_only(cdb: bytes, data: bytes) -> None:
    host, _, store = one_host()
    store.full = True
    store.bad = set(range(0, store.size_bytes, 4096))
    with NoInternalFailure():
        check(host, host.send(cdb, data))


@settings(max_examples=300, deadline=None)
@given(cdb=CDB, data=DATA)
def test_what_fails_writes_nothing(cdb: bytes, data: bytes) -> None:
    host, _, store = one_host()
    store.write(0, memoryview(b"k" * 8192))
    before = {n: bytes(p) for n, p in store.pieces.items()}
    if host.send(cdb, data).status != Status.GOOD:
        assert {n: bytes(p) for n, p in store.pieces.items()} == before


@settings(max_examples=300, deadline=None)
@given(
    raw=st.binary(min_size=16, max_size=16),
    edtl=st.sampled_from((0, 512, 4096, 5000)),
    opcode=st.sampled_from((0x28, 0x88, 0x2A, 0x8A)),
    small=st.booleans(),
)
def test_the_fast_path_agrees_with_the_router(raw: bytes, edtl: int, opcode: int, small: bool) -> None:
    cdb = bytes((opcode,)) + (bytes(8) if small else raw[1:9]) + raw[9:]
    host, _, store = one_host()
    store.write(0, memoryview(bytes(range(256)) * 64))
    buf = memoryview(bytes(32) + cdb)
    if opcode in (0x28, 0x88):
        out = bytearray(8192)
        if host.nexus.fast_read(0, buf, 32, edtl, memoryview(out)) >= 0:
            assert host.data(host.send(cdb)) == bytes(out[:edtl])
    else:
        data = b"w" * edtl
        slow, _, other = one_host()
        other.write(0, memoryview(bytes(range(256)) * 64))
        if host.nexus.fast_write(0, buf, 32, memoryview(data)):
            response = slow.send(cdb, data)
            assert (response.status, response.wanted) == (0, edtl)
            assert store.pieces == other.pieces


def test_a_fault_of_our_own_ends_one_command_and_not_the_session(monkeypatch: pytest.MonkeyPatch) -> None:
    host, _, store = one_host()

    def broken(_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(store, "flush", broken)
    response = host.start(bytes((0x35, *bytes(9))))
    assert response is not None
    assert response.sense[2] == 4
    assert host.send(read_16(0, 1)).status == 0
