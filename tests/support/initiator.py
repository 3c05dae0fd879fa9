"""A small initiator without I/O: the other end of the target's connection in the tests.

`Link` is the wire: it carries bytes between an `Initiator` and the target's `Connection`, in pieces of any size, and
moves the clock.  The initiator does what RFC 7143 asks of one and can be told to do otherwise: every PDU that it
sends goes through `request`, where any field can be given another value.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from target.iscsi import pdus
from target.iscsi.connection import Connection
from target.iscsi.constants import FINAL, IMMEDIATE, NO_TAG, Opcode
from target.iscsi.framing import Framing, encode
from target.iscsi.host import Closed, Event, Host, LoggedIn, LoginFailed
from target.iscsi.ports import TargetDirectory
from target.iscsi.registry import Registry
from tests.support.memory_target import TARGET

NAME = "iqn.2026-01.test.host:one"
READ_10, WRITE_10 = 0x28, 0x2A


@dataclass
class Reply:
    """One PDU from the target."""

    opcode: Opcode
    fields: Any
    data: bytes
    raw: bytes

    def __getattr__(self, name: str) -> Any:
        return getattr(self.fields, name)

    @property
    def text(self) -> dict[str, str]:
        return dict(item.split("=", 1) for item in self.data.decode().split("\0") if item)


class Link:
    """One connection: the target's end, the wire, and the bytes that came back."""

    def __init__(self, host: Host, *, piece: int = 1 << 30, peer: tuple[str, int] = ("127.0.0.1", 40000)) -> None:
        self.now = 0.0
        self.piece = piece
        self.core = Connection(host, peer, ("127.0.0.1", 3260), self.now)
        self.framing = Framing(1 << 24)
        self.replies: list[Reply] = []
        self.events: list[Event] = []
        self._incoming = bytearray()
        self.core.wake = self.core.push = self.collect

    @property
    def closed(self) -> str | None:
        return self.core.closing

    def send(self, data: bytes) -> list[Reply]:
        """Carry bytes to the target; the replies that came."""
        view = memoryview(data)
        while view and self.core.closing is None:
            buffer = self.core.receive_buffer()
            count = min(len(buffer), len(view), self.piece)
            buffer[:count] = view[:count]
            view = view[count:]
            self.core.received(count, self.now)
            self.collect()
        return self.take()

    def collect(self) -> None:
        """Take what the target has to say, and let it go on."""
        while True:
            self._incoming += self.core.data_to_send()
            self.core.data_sent(kept=False)
            if not self.core.blocked or self.core.closing is not None:
                break
            self.core.resume(self.now)
        while (event := self.core.next_event()) is not None:
            self.events.append(event)
        self._parse()

    def take(self) -> list[Reply]:
        replies, self.replies = self.replies, []
        return replies

    def pass_time(self, seconds: float) -> list[Reply]:
        self.now += seconds
        self.core.tick(self.now)
        self.collect()
        return self.take()

    def _parse(self) -> None:
        while len(self._incoming) >= 48:
            # a copy for each PDU: the replies outlive the buffer
            size = self.framing.size(memoryview(bytes(self._incoming[:48])), 0)
            if len(self._incoming) < size:
                return
            raw = bytes(self._incoming[:size])
            del self._incoming[:size]
            pdu = self.framing.split(memoryview(raw), 0)
            assert pdu.data_intact
            opcode = Opcode(raw[0])
            self.replies.append(
                Reply(opcode, pdus.parse_header(pdus.DECLARATIONS[opcode], raw), bytes(pdu.data), raw)
            )

    def failure(self) -> LoginFailed | None:
        return next((e for e in self.events if isinstance(e, LoginFailed)), None)

    def logged_in(self) -> bool:
        return any(isinstance(e, LoggedIn) for e in self.events)

    def fault(self) -> str | None:
        return next((e.reason for e in self.events if isinstance(e, Closed) and e.fault), None)


@dataclass
class Outcome:
    """What became of one SCSI command."""

    status: int
    data: bytes = b""
    sense: bytes = b""
    overflow: int = 0
    underflow: int = 0
    replies: list[Reply] = field(default_factory=list)

    @property
    def sense_code(self) -> tuple[int, int, int]:
        return self.sense[2] & 15, self.sense[12], self.sense[13]


OPERATIONAL: dict[str, str] = {
    "HeaderDigest": "None",
    "DataDigest": "None",
    "InitialR2T": "No",
    "ImmediateData": "Yes",
    "MaxRecvDataSegmentLength": "262144",
    "MaxBurstLength": "16776192",
    "FirstBurstLength": "262144",
    "MaxOutstandingR2T": "1",
    "ErrorRecoveryLevel": "0",
}


@dataclass
class Numbers:
    """What the connections of a session share."""

    cmd_sn: int = 100
    itt: int = 1
    max_cmd_sn: int = 0


class Initiator:
    """One session over one link, or (`join`) one more connection of a session."""

    def __init__(
        self, link: Link, *, name: str = NAME, target: str | None = TARGET, isid: bytes = b"\x80\0\0\0\0\1",
        keys: dict[str, str] | None = None,
    ) -> None:  # fmt: skip
        self.link = link
        self.name = name
        self.target = target
        self.isid = isid
        self.tsih = 0
        self.cid = 1
        self.numbers = Numbers()
        self.keys = {**OPERATIONAL, **(keys or {})}
        self.agreed: dict[str, str] = {}
        self.exp_stat_sn = 0

    @property
    def cmd_sn(self) -> int:
        return self.numbers.cmd_sn

    @cmd_sn.setter
    def cmd_sn(self, value: int) -> None:
        self.numbers.cmd_sn = value

    @property
    def itt(self) -> int:
        return self.numbers.itt

    def join(self, link: Link, cid: int = 2) -> Initiator:
        """One more connection of this session, not logged in yet."""
        other = Initiator(link, name=self.name, target=self.target, isid=self.isid, keys=self.keys)
        other.tsih, other.cid, other.numbers = self.tsih, cid, self.numbers
        other.agreed = {k: v for k, v in self.agreed.items() if "Digest" not in k and "RecvData" not in k}
        return other

    # --- PDUs

    def encode(
        self, opcode: Opcode, data: bytes = b"", *, flags: int = FINAL, immediate: bool = False, **f: Any
    ) -> bytes:
        fields = {"exp_stat_sn": self.exp_stat_sn, "cmd_sn": self.cmd_sn, **f}
        known = {sub.name for sub in pdus.DECLARATIONS[opcode].subcons}
        fields = {name: value for name, value in fields.items() if name in known}
        code = opcode | IMMEDIATE if immediate else opcode
        header = pdus.build_header(pdus.DECLARATIONS[opcode], opcode=code, flags=flags, **fields)
        return encode(header, data, self.link.framing)

    def request(self, opcode: Opcode, data: bytes = b"", **fields: Any) -> list[Reply]:
        """Send one PDU as told; the replies."""
        replies = self.link.send(self.encode(opcode, data, **fields))
        for reply in replies:
            self.numbers.max_cmd_sn = reply.max_cmd_sn
        return replies

    def next_itt(self) -> int:
        self.numbers.itt += 1
        return self.numbers.itt

    def numbered(self, opcode: Opcode, data: bytes = b"", **fields: Any) -> list[Reply]:
        """A non-immediate request: takes the next CmdSN."""
        replies = self.request(opcode, data, itt=self.next_itt(), **fields)
        self.cmd_sn = (self.cmd_sn + 1) & 0xFFFFFFFF
        return replies

    # --- login

    def login_pdu(self, stage: int, to: int | None, pairs: Iterable[tuple[str, str]], **fields: Any) -> Reply:
        """One Login Request; `to`: the stage that T asks for."""
        flags = stage << 2 | (0 if to is None else FINAL | to)
        data = b"".join(f"{k}={v}\0".encode() for k, v in pairs)
        fields = {"isid": self.isid, "tsih": self.tsih, "cid": self.cid, "itt": 1, "flags": flags, **fields}
        replies = self.request(Opcode.LOGIN_REQUEST, data, immediate=True, **fields)
        assert len(replies) == 1, replies
        return replies[0]

    def names(self) -> list[tuple[str, str]]:
        if self.target is None:
            return [("InitiatorName", self.name), ("SessionType", "Discovery")]
        return [("InitiatorName", self.name), ("TargetName", self.target), ("SessionType", "Normal")]

    def login(self, chap: ChapClient | None = None) -> Reply:
        """The whole login, as open-iscsi does it.  The last Login Response, good or bad."""
        reply = self._security(chap) if chap else self.login_pdu(0, 1, [*self.names(), ("AuthMethod", "None")])
        if reply.status_class:
            return reply
        self.agreed.update(reply.text)
        return self.finish_login()

    def finish_login(self) -> Reply:
        # a further connection negotiates only what is its own (RFC 7143 13: LO keys belong to the leading login)
        keys = {k: v for k, v in self.keys.items() if not self.tsih or "Digest" in k or "Segment" in k}
        reply = self.login_pdu(1, 3, keys.items())
        self.agreed.update(reply.text)
        if reply.status_class == 0 and reply.flags & 0x83 == 0x83:
            self.enter(reply)
        return reply

    def enter(self, reply: Reply) -> None:
        """Full feature phase begins with the next PDU."""
        self.tsih = reply.tsih
        self.link.framing = Framing(
            1 << 24, self.agreed.get("HeaderDigest") == "CRC32C", self.agreed.get("DataDigest") == "CRC32C"
        )

    def _security(self, chap: ChapClient) -> Reply:
        reply = self.login_pdu(0, None, [*self.names(), ("AuthMethod", "CHAP,None")])
        if reply.status_class or reply.text.get("AuthMethod") != "CHAP":
            return reply
        reply = self.login_pdu(0, None, [("CHAP_A", chap.algorithm)])
        if reply.status_class:
            return reply
        reply = self.login_pdu(0, 1, chap.answer(reply.text))
        if reply.status_class == 0:
            chap.check(reply.text)
        return reply

    # --- commands

    def command(self, cdb: bytes, *, lun: int = 0, read: int = 0, write: bytes | None = None, **more: Any) -> Outcome:
        """One SCSI command from start to end, with data sent as negotiated."""
        edtl = len(write) if write is not None else read
        flags = FINAL | 1 | (0x20 if write is not None else 0x40 if read else 0)
        data, unsolicited = self._first_data(write or b"")
        itt = self.next_itt()
        if unsolicited:
            flags &= ~FINAL
        fields = {"flags": flags, "lun": lun, "itt": itt, "edtl": edtl, "cdb": cdb.ljust(16, b"\0"), **more}
        replies = self.request(Opcode.SCSI_COMMAND, data, **fields)
        if not fields.get("immediate"):
            self.cmd_sn = (self.cmd_sn + 1) & 0xFFFFFFFF
        if unsolicited:
            replies += self.send_data(itt, NO_TAG, len(data), unsolicited, lun=lun)
        return self.follow(itt, write or b"", replies, lun)

    def _first_data(self, write: bytes) -> tuple[bytes, bytes]:
        first = int(self.agreed.get("FirstBurstLength", "65536"))
        first = min(first, int(self.agreed.get("MaxBurstLength", "262144")))
        segment = int(self.agreed.get("MaxRecvDataSegmentLength", "8192"))
        immediate = write[: min(first, segment)] if self.agreed.get("ImmediateData") == "Yes" else b""
        unsolicited = write[len(immediate) : first] if self.agreed.get("InitialR2T") == "No" else b""
        return immediate, unsolicited

    def send_data(self, itt: int, ttt: int, offset: int, data: bytes, lun: int = 0) -> list[Reply]:
        """A run of Data-Out PDUs."""
        segment = int(self.agreed.get("MaxRecvDataSegmentLength", "8192"))
        wire = b""
        for data_sn, at in enumerate(range(0, len(data), segment)):
            piece = data[at : at + segment]
            last = at + len(piece) == len(data)
            wire += self.encode(
                Opcode.DATA_OUT, piece, flags=FINAL if last else 0, lun=lun, itt=itt, ttt=ttt, data_sn=data_sn,
                buffer_offset=offset + at,
            )  # fmt: skip
        return self.link.send(wire)

    def follow(self, itt: int, write: bytes, replies: list[Reply], lun: int = 0) -> Outcome:
        """Answer R2Ts and gather Data-In until the command has its status."""
        data = bytearray()
        seen: list[Reply] = []
        while replies:
            reply = replies.pop(0)
            seen.append(reply)
            if reply.opcode is Opcode.R2T:
                piece = write[reply.buffer_offset : reply.buffer_offset + reply.desired_length]
                replies += self.send_data(itt, reply.ttt, reply.buffer_offset, piece, lun)
            elif reply.opcode is Opcode.DATA_IN:
                assert reply.buffer_offset == len(data), "Data-In out of order"
                data += reply.data
                if reply.flags & 1:
                    return _outcome(reply, bytes(data), seen)
            elif reply.opcode is Opcode.SCSI_RESPONSE and reply.itt == itt:
                return _outcome(reply, bytes(data), seen)
        return Outcome(status=-1, data=bytes(data), replies=seen)

    def read(self, lba: int, blocks: int, **more: Any) -> Outcome:
        return self.command(cdb_10(READ_10, lba, blocks), read=blocks * 512, **more)

    def write(self, lba: int, data: bytes, **more: Any) -> Outcome:
        return self.command(cdb_10(WRITE_10, lba, len(data) // 512), write=data, **more)


def _outcome(reply: Reply, data: bytes, seen: list[Reply]) -> Outcome:
    sense = reply.data[2:] if reply.opcode is Opcode.SCSI_RESPONSE and reply.data else b""
    return Outcome(
        status=reply.status,
        data=data,
        sense=sense,
        overflow=reply.residual if reply.flags & 4 else 0,
        underflow=reply.residual if reply.flags & 2 else 0,
        replies=seen,
    )


def cdb_10(code: int, lba: int, blocks: int) -> bytes:
    return bytes((code, 0)) + lba.to_bytes(4, "big") + b"\0" + blocks.to_bytes(2, "big") + b"\0"


@dataclass
class ChapClient:
    """The initiator's side of CHAP."""

    name: str
    secret: bytes
    algorithm: str = "5"
    target_secret: bytes | None = None
    """Set: the target must prove itself too."""
    encode: Callable[[bytes], str] = field(default=lambda value: "0x" + value.hex())
    challenge: bytes = b"0123456789abcdef"

    HASHES = {"5": "md5", "6": "sha1", "7": "sha256", "8": "sha3_256"}  # noqa: RUF012

    def digest(self, identifier: int, secret: bytes, challenge: bytes) -> bytes:
        return hashlib.new(self.HASHES[self.algorithm], bytes((identifier,)) + secret + challenge).digest()

    def answer(self, text: dict[str, str]) -> list[tuple[str, str]]:
        self.algorithm = text["CHAP_A"]
        answer = self.digest(int(text["CHAP_I"]), self.secret, bytes.fromhex(text["CHAP_C"][2:]))
        pairs = [("CHAP_N", self.name), ("CHAP_R", self.encode(answer))]
        if self.target_secret is not None:
            pairs += [("CHAP_I", "7"), ("CHAP_C", self.encode(self.challenge))]
        return pairs

    def check(self, text: dict[str, str]) -> None:
        if self.target_secret is not None:
            assert text["CHAP_R"] == "0x" + self.digest(7, self.target_secret, self.challenge).hex()


def make_host(directory: TargetDirectory, **settings: Any) -> Host:
    """A host whose randomness is a counter, so that a failing test fails the same way again."""
    count = 0

    def entropy(length: int) -> bytes:
        nonlocal count
        count += 1
        return hashlib.shake_128(count.to_bytes(8, "big")).digest(length)

    settings.setdefault("addresses", lambda local: ["192.0.2.1:3260,1"])
    return Host(directory=directory, registry=Registry(), entropy=entropy, **settings)
