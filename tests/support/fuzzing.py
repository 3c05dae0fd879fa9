"""What a fuzzer does to the target: functions that take any bytes and raise only when the target is wrong.

Each of `TARGETS` makes what it needs, gives the bytes to it the way a peer could, and looks at what must be so whatever
came: no exception but the protocol's own, bounded memory, answers that a parser of ours takes, others unharmed.
`scripts/fuzz.py` gives them to a coverage-guided fuzzer, `tests/target/iscsi/test_fuzz.py` runs its finds and a few
mutations of the corpus.  Inputs have a small grammar of their own, so that a mutation of one byte still reaches depth.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from target.iscsi import limits
from target.iscsi.constants import NO_TAG, Opcode, TaskFunction
from target.iscsi.errors import FormatError, TextError
from target.iscsi.framing import Framing, additional_headers, encode
from target.iscsi.keys import When
from target.iscsi.negotiation import Negotiation
from target.iscsi.ports import ChapPolicy
from target.iscsi.text import format_pairs, parse_binary, parse_list, parse_number, parse_pairs
from target.nexus import LogicalUnit
from tests.support.fuzzing_writes import writes, writes_seeds
from tests.support.initiator import Initiator, Link, cdb_10, make_host
from tests.support.memory_target import TARGET, one_disk
from tests.support.scsi_host import platform_of, unit
from tests.support.scsi_target import TARGET as SCSI_TARGET
from tests.support.scsi_target import OpenDirectory

PDU_DATA_BYTES = 2048
PDUS = 40
"""PDUs of one input at most: depth comes from the fuzzer's choice, not from length."""
BYSTANDER = b"\x80\0\0\0\0\7"


class Reader:
    """Takes an input apart; what is missing at its end is zeros."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def __bool__(self) -> bool:
        return self._at < len(self._data)

    def take(self, count: int) -> bytes:
        piece = self._data[self._at : self._at + count]
        self._at += count
        return piece.ljust(count, b"\0")

    def byte(self) -> int:
        return self.take(1)[0]


def raw_send(link: Link, data: bytes, piece: int = 1 << 20) -> None:
    """Give bytes to the target and take its answers without looking at them."""
    core, view = link.core, memoryview(data)
    while view and core.closing is None:
        buffer = core.receive_buffer()
        count = min(len(buffer), len(view), piece)
        buffer[:count] = view[:count]
        view = view[count:]
        core.received(count, link.now)
        drain(link)


def drain(link: Link) -> None:
    core = link.core
    while True:
        core.data_to_send()
        core.data_sent(kept=False)
        if not core.blocked or core.closing is not None:
            break
        core.resume(link.now)
    while core.next_event() is not None:
        pass


def assert_bounded(link: Link) -> None:
    """What one peer may make the target keep."""
    core = link.core
    assert core.rx.size <= limits.RECEIVE_BYTES
    assert core.output.used <= limits.OUTPUT_BYTES
    assert len(core.waiting) <= 2 * limits.COMMAND_WINDOW
    assert 0 <= core.immediate_outstanding <= limits.IMMEDIATE_COMMANDS
    session = getattr(core, "session", None)
    if session is not None:
        assert session.functions_waiting <= limits.FENCED_FUNCTIONS
        assert len(session.deferred) <= limits.FENCED_FUNCTIONS + 2 * limits.COMMAND_WINDOW
        window = session.window
        unfinished = sum(not task.immediate for task in session.tasks.values())
        assert session.closed or window.outstanding == unfinished <= limits.COMMAND_WINDOW
        assert window.early_bytes <= limits.HELD_BYTES
        assert len(window.functions) <= limits.IMMEDIATE_COMMANDS


# --- targets


def framing(data: bytes) -> None:
    """Where a PDU ends, its digests and additional headers; any bytes before login, in pieces of any size."""
    reader = Reader(data)
    flags, piece = reader.byte(), reader.byte() + 1
    rest = data[2:]
    rules = Framing(limits.LOGIN_DATA_SEGMENT_BYTES, bool(flags & 1), bool(flags & 2))
    if len(rest) >= limits.BHS_BYTES:
        view = memoryview(rest)
        try:
            if rules.size(view, 0) <= len(rest):
                pdu = rules.split(view, 0)
                assert len(pdu.encoded(rules)) == rules.size(view, 0)
                assert sum(len(value) for _, value in additional_headers(pdu.ahs)) <= len(pdu.ahs)
                pdu.cdb()
        except FormatError:
            pass
    directory, _ = one_disk(1)
    link = Link(make_host(directory))
    link.core.wake = lambda: None
    raw_send(link, rest, piece)
    link.core.tick(link.core.deadline)
    assert_bounded(link)


def text(data: bytes) -> None:
    """Key=value text and its values; negotiation of whatever was parsed, in every phase."""
    reader = Reader(data)
    flags = reader.byte()
    try:
        pairs = parse_pairs(data[1:])
    except TextError:
        return
    assert parse_pairs(format_pairs(pairs)) == pairs
    for _, value in pairs:
        for parse in (parse_number, parse_list, lambda v: parse_binary(v, 1024)):
            try:
                parse(value)
            except TextError:
                continue
    negotiation = Negotiation(leading=bool(flags & 1))
    negotiation.discovery = bool(flags & 2)
    for when in (When.SECURITY, When.OPERATIONAL, When.FULL_FEATURE):
        try:
            answers, _ = negotiation.receive(pairs, when)
            format_pairs(answers)
        except TextError:
            continue


POLICIES = (
    ChapPolicy(),
    ChapPolicy({"user": b"secret-of-user"}),
    ChapPolicy({"user": b"secret-of-user"}, ("target", b"secret-of-target")),
)


def login(data: bytes) -> None:
    """Login Requests with any fields and any text, one after the other, with and without CHAP."""
    reader = Reader(data)
    directory, _ = one_disk(1)
    directory.policy = directory.discovery_policy = POLICIES[reader.byte() % len(POLICIES)]
    host = make_host(directory)
    link = Link(host)
    link.core.wake = lambda: None
    for _ in range(PDUS):
        if not reader or link.core.closing is not None or link.core.full_feature:
            break
        length = int.from_bytes(reader.take(2), "big") % PDU_DATA_BYTES
        header = bytearray(reader.take(limits.BHS_BYTES))
        header[0], header[4] = Opcode.LOGIN_REQUEST | 0x40, 0
        raw_send(link, encode(bytes(header), reader.take(length)))
        assert_bounded(link)
    if directory.policy.inbound and link.core.full_feature:
        # without the secret there is no way in, but for a discovery session's own policy, which is the same
        raise AssertionError("logged in without proof")


def session(data: bytes) -> None:
    """Requests of full feature phase on two connections of one session, down to the real device server."""
    reader = Reader(data)
    flags = reader.byte()
    units = {0: unit(), 1: unit()}
    directory = OpenDirectory(units)
    host = make_host(directory)
    bystander = Initiator(Link(host), name="iqn.2026-01.test.host:two", target=SCSI_TARGET, isid=BYSTANDER)
    bystander.login()
    keys = {"MaxConnections": "2", "iSCSIProtocolLevel": "2"}
    if flags & 1:
        keys |= {"HeaderDigest": "CRC32C", "DataDigest": "CRC32C"}
    if flags & 2:
        keys |= {"InitialR2T": "Yes", "ImmediateData": "No", "MaxBurstLength": "1024"}
    if flags & 16:
        keys |= {"DataPDUInOrder": "No", "DataSequenceInOrder": "No"}
    one = Initiator(Link(host), target=SCSI_TARGET, keys=keys)
    one.login()
    two = one.join(Link(host))
    two.login()
    for initiator in (bystander, one, two):
        assert initiator.link.core.full_feature
        initiator.link.core.wake = lambda: None
    if flags & 4:
        _take_attentions(one)
    reset = False
    for _ in range(PDUS):
        if not reader:
            break
        reset = _request((one, two), reader, units) or reset
        for initiator in (bystander, one, two):
            drain(initiator.link)
            assert_bounded(initiator.link)
        if not flags & 8:
            _pass_fences(one, two)
    for each in units.values():
        _catch_up(each)
    if not reset:
        assert bystander.link.core.closing is None, bystander.link.core.closing
    for initiator in (one, two):
        initiator.link.core.lost("the input ends")
        assert_bounded(initiator.link)


def _request(connections: tuple[Initiator, Initiator], reader: Reader, units: dict[int, LogicalUnit]) -> bool:
    """One PDU of the input.  Is it a cold reset, which rightly ends every session?"""
    control = reader.byte()
    link = connections[control & 1].link
    length = int.from_bytes(reader.take(2), "big") % PDU_DATA_BYTES
    header = bytearray(reader.take(limits.BHS_BYTES))
    header[4] = 0
    core = link.core
    if control & 2 and core.full_feature:  # in its turn
        header[24:28] = core.session.window.exp_cmd_sn.to_bytes(4, "big")
    if control & 4:
        header[8:16] = bytes(8)
    if control & 8:
        tags = list(core.session.tasks)
        if tags:
            header[16:20] = tags[(control >> 4) % len(tags)].to_bytes(4, "big")
    if control & 0x80:
        for each in units.values():
            _catch_up(each)
    raw_send(link, encode(bytes(header), reader.take(length), link.core.framing))
    management = header[0] & 0x3F == Opcode.TASK_MANAGEMENT_REQUEST
    return management and header[1] & 0x7F == TaskFunction.TARGET_COLD_RESET


def _pass_fences(*connections: Initiator) -> None:
    """What a peer that follows the protocol answers to a response fence."""
    for initiator in connections:
        for tag in list(initiator.link.core.fences):
            raw_send(initiator.link, initiator.encode(Opcode.NOP_OUT, immediate=True, itt=NO_TAG, ttt=tag))
            drain(initiator.link)


def _take_attentions(initiator: Initiator) -> None:
    link = initiator.link
    for lun in (0, 1):
        for _ in range(3):
            pdu = initiator.encode(
                Opcode.SCSI_COMMAND, flags=0x81, itt=initiator.next_itt(), lun=lun << 48, cdb=bytes(16)
            )
            initiator.cmd_sn += 1
            raw_send(link, pdu)


def _catch_up(lu: LogicalUnit) -> None:
    """What was put aside goes on: flushes end, the platform has a few turns."""
    lu.store.finish_flushes()  # type: ignore[attr-defined]
    platform = platform_of(lu)
    for _ in range(8):
        platform.finish_saves()
        if platform.calls:
            platform.step()


TARGETS: dict[str, Callable[[bytes], None]] = {
    "framing": framing, "text": text, "login": login, "session": session, "writes": writes,
}  # fmt: skip


# --- the corpus


def corpus(name: str) -> Iterator[bytes]:
    """Inputs that a well-meaning initiator makes: where mutation starts."""
    yield from SEEDS[name]()


TEXTS = (
    b"InitiatorName=iqn.2026-01.test.host:one\0TargetName=%s\0SessionType=Normal\0" % TARGET.encode(),
    b"InitiatorName=iqn.2026-01.test.host:one\0SessionType=Discovery\0AuthMethod=CHAP,None\0",
    b"HeaderDigest=CRC32C,None\0DataDigest=None\0MaxConnections=4\0InitialR2T=No\0ImmediateData=Yes\0"
    b"MaxRecvDataSegmentLength=0x10000\0MaxBurstLength=262144\0FirstBurstLength=65536\0DefaultTime2Wait=2\0"
    b"DefaultTime2Retain=0\0MaxOutstandingR2T=1\0DataPDUInOrder=Yes\0DataSequenceInOrder=No\0ErrorRecoveryLevel=2\0"
    b"TaskReporting=FastAbort,RFC3720\0iSCSIProtocolLevel=2\0IFMarker=No\0X-com.example=1\0",
    b"CHAP_A=8,7,6,5\0",
    b"CHAP_N=user\0CHAP_R=0x00112233445566778899aabbccddeeff\0CHAP_I=1\0CHAP_C=0bAAECAwQFBgc=\0",
    b"SendTargets=All\0",
)


def _text_seeds() -> Iterator[bytes]:
    for flags in range(4):
        yield from (bytes((flags,)) + each for each in TEXTS)


def _login_header(flags: int, cid: int = 1) -> bytes:
    header = bytearray(48)
    header[0:2] = bytes((0x43, flags))
    header[8:14] = b"\x80\0\0\0\0\1"
    header[19], header[21], header[27] = 1, cid, 9
    return bytes(header)


def _framing_seeds() -> Iterator[bytes]:
    for flags in range(4):
        pdu = encode(_login_header(0x87), TEXTS[0], Framing(1 << 20, bool(flags & 1), bool(flags & 2)))
        yield bytes((flags, 255)) + pdu
        yield bytes((flags, 6)) + pdu[:-1] + pdu


def _login_seeds() -> Iterator[bytes]:
    def pdu(flags: int, data: bytes) -> bytes:
        return len(data).to_bytes(2, "big") + _login_header(flags) + data

    for policy in range(len(POLICIES)):
        start = bytes((policy,))
        yield start + pdu(0x87, TEXTS[0])
        yield start + pdu(0x81, TEXTS[0] + b"AuthMethod=CHAP,None\0") + pdu(0x87, TEXTS[2])
        yield start + pdu(0, TEXTS[1]) + pdu(0, TEXTS[3]) + pdu(0x81, TEXTS[4]) + pdu(0x87, TEXTS[2])
        yield start + pdu(0x44, TEXTS[0][:20]) + pdu(0x87, TEXTS[0][20:])


READS = tuple(bytes((code,)) + bytes(15) for code in (0x00, 0x03, 0x12, 0x1A, 0x25, 0x35, 0xA0))
OTHERS = (
    bytes((0x28, 0, 0, 0, 0, 0, 0, 0, 2, 0)), bytes((0x88, 0)) + bytes(11) + b"\2\0\0",
    bytes((0x9E, 0x10)) + bytes(11) + b"\x20\0\0", bytes((0x9E, 0x12)) + bytes(11) + b"\x40\0\0",
    bytes((0xA3, 0x0C)) + bytes(7) + b"\xff\0\0", bytes((0x5E, 0, 0, 0, 0, 0, 0, 0, 64, 0)),
    bytes((0x12, 1, 0xB0, 0, 64, 0)), bytes((0x5A, 0, 0x3F, 0xFF, 0, 0, 0, 1, 0, 0)),
    bytes((0xA3, 0x0A)) + bytes(7) + b"\xff\0\0", bytes((0x83, 0x1C)), bytes((0x84, 0x05)) + bytes(11) + b"\xff\0\0",
)  # fmt: skip
WRITES = (
    (cdb_10(0x2A, 0, 1), 512), (bytes((0x89, 0)) + bytes(11) + b"\1\0\0", 1024),
    (bytes((0x42,)) + bytes(6) + b"\0\x18\0", 24), (bytes((0x93, 8)) + bytes(11) + b"\x10\0\0", 512),
    (bytes((0x5F, 0)) + bytes(6) + b"\x18\0", 24), (bytes((0x5F, 5)) + bytes(6) + b"\x18\0", 24),
    (bytes((0x83, 0)) + bytes(10) + b"\0\x40\0\0", 64), (bytes((0x15, 0x10, 0, 0, 24, 0)), 24),
    (bytes((0x48, 1, 0, 0, 0, 0, 0, 2, 4, 0)), 516), (bytes((0x04, 0x10)) + bytes(4), 4),
    (bytes((0xA4, 0x0A)) + bytes(7) + b"\x08\0\0", 8),
)  # fmt: skip


def _command(control: int, itt: int, cdb: bytes, edtl: int, flags: int, data: bytes = b"", opcode: int = 1) -> bytes:
    header = bytearray(48)
    header[0:2] = bytes((opcode, flags))
    header[16:20] = itt.to_bytes(4, "big")
    header[20:24] = edtl.to_bytes(4, "big")
    header[32:48] = cdb.ljust(16, b"\0")
    return bytes((control,)) + len(data).to_bytes(2, "big") + bytes(header) + data


def _plain(opcode: int, flags: int, control: int = 6, **fields: tuple[int, int]) -> bytes:
    """A PDU with some fields: name -> (offset, value), 4 bytes each."""
    header = bytearray(48)
    header[0:2] = bytes((opcode, flags))
    for offset, value in fields.values():
        header[offset : offset + 4] = value.to_bytes(4, "big")
    return bytes((control, 0, 0)) + bytes(header)


def _session_seeds() -> Iterator[bytes]:
    for flags in (0, 2, 4, 5, 6, 22):
        start = bytes((flags,))
        reads = enumerate((*READS, *OTHERS), 500)
        yield start + b"".join(_command(6 | n & 1, n, cdb, 512, 0xC1) for n, cdb in reads)
        ready = _command(0x86, 650, READS[0], 0, 0x81)
        for n, (cdb, length) in enumerate(WRITES, 600):
            data_out = _command(4, n, b"", 1, 0x80, bytes(length), opcode=5)
            yield start + _command(6, n, cdb, length, 0xA1, bytes(length)) + ready
            yield start + _command(6, n, cdb, length, 0xA1) + data_out
        for function in (1, 2, 4, 5, 6, 7, 8, 9, 10, 11, 12):
            waiting = _command(6, 700, READS[5], 0, 0x81) + _command(6, 701, WRITES[0][0], 512, 0xA1)
            request = _plain(0x42, 0x80 | function, 6, itt=(16, 702), referenced=(20, 700))
            yield start + waiting + request + _plain(0x40, 0x80, 0x86, itt=(16, 703), ttt=(20, 0xFFFFFFFF))
        yield start + _plain(0x40, 0x80, itt=(16, 1), ttt=(20, 0xFFFFFFFF)) + _plain(0x06, 0x81, itt=(16, 2))
        yield start + _plain(0x06, 0x80, 7, itt=(16, 2)) + _plain(0x10, 0x80, itt=(16, 2))
        text_request = bytearray(_plain(0x04, 0x80, itt=(16, 9), ttt=(20, 0xFFFFFFFF)))
        text_request[1:3] = len(TEXTS[5]).to_bytes(2, "big")
        yield start + bytes(text_request) + TEXTS[5]


SEEDS: dict[str, Callable[[], Iterator[bytes]]] = {
    "framing": _framing_seeds, "text": _text_seeds, "login": _login_seeds, "session": _session_seeds,
    "writes": writes_seeds,
}  # fmt: skip
