"""Where a PDU ends, what is in it, and how one is put together: RFC 7143 11.1 and 11.2.

    BHS 48 | AHS 4n | header digest 4? | data segment, padded to 4 | data digest 4?

A PDU whose length or header digest is wrong cannot be skipped reliably: FormatError, the connection ends (7.7, 7.8).
Digests are CRC32C, least significant byte first, over padding too (13.1).
"""

from __future__ import annotations

import struct

from crc32c import crc32c

from target.iscsi import limits
from target.iscsi.constants import IMMEDIATE, OPCODE_MASK
from target.iscsi.errors import FormatError
from target.iscsi.limits import BHS_BYTES, DIGEST_BYTES

_DIGEST = struct.Struct("<I")
_LENGTHS = struct.Struct(">I")
_EXTENDED_CDB = 1
"""AHSType, 11.2.2.1."""


def digest_of(data: bytes | bytearray | memoryview) -> bytes:
    """The four digest bytes as they go on the wire."""
    return _DIGEST.pack(crc32c(data))


def padded(length: int) -> int:
    return (length + 3) & ~3


class Pdu:
    """One whole PDU inside somebody's buffer: views, valid while that buffer is left alone."""

    __slots__ = ("ahs", "data", "data_intact", "flags", "header", "immediate", "opcode")

    def __init__(self, header: memoryview, ahs: memoryview, data: memoryview, data_intact: bool) -> None:
        self.header = header
        self.opcode = header[0] & OPCODE_MASK
        self.immediate = bool(header[0] & IMMEDIATE)
        self.flags = header[1]
        self.ahs = ahs
        self.data = data
        self.data_intact = data_intact
        """False: the data digest does not match."""

    def encoded(self, framing: Framing) -> bytes:
        """The PDU again as bytes of its own, as `framing` would have received it."""
        head = bytes(self.header) + bytes(self.ahs)
        if framing.header_digest:
            head += digest_of(head)
        data = bytes(self.data) + bytes(-len(self.data) & 3)
        if framing.data_digest and data:
            digest = digest_of(data)
            data += digest if self.data_intact else bytes(255 - b for b in digest)
        return head + data

    def cdb(self) -> bytes:
        """The CDB, with its extension from an AHS (11.2.2.3)."""
        return bytes(self.header[32:48]) + b"".join(
            bytes(value[1:]) for kind, value in additional_headers(self.ahs) if kind == _EXTENDED_CDB
        )


class Framing:
    """The digests in force on one connection, and the limit on its data segments."""

    __slots__ = ("data_digest", "data_limit", "header_digest")

    def __init__(self, data_limit: int, header_digest: bool = False, data_digest: bool = False) -> None:
        self.data_limit = data_limit
        self.header_digest = header_digest
        self.data_digest = data_digest

    def size(self, view: memoryview, at: int) -> int:
        """Bytes of the whole PDU whose BHS is at `at`.  Raises FormatError for a data segment over the limit."""
        (lengths,) = _LENGTHS.unpack_from(view, at + 4)
        length = lengths & 0xFFFFFF
        if length > self.data_limit:
            raise FormatError(f"data segment of {length} bytes, {self.data_limit} are allowed")
        size = int(BHS_BYTES + (lengths >> 24) * 4 + padded(length))
        if self.header_digest:
            size += DIGEST_BYTES
        if self.data_digest and length:
            size += DIGEST_BYTES
        return size

    def split(self, view: memoryview, at: int) -> Pdu:
        """The parts of the whole PDU at `at`, digests checked.  Raises FormatError if the header's does not match."""
        (lengths,) = _LENGTHS.unpack_from(view, at + 4)
        length = lengths & 0xFFFFFF
        data_at = at + BHS_BYTES + (lengths >> 24) * 4
        ahs = view[at + BHS_BYTES : data_at]
        if self.header_digest:
            if not self.header_intact(view, at, data_at):
                raise FormatError("header digest does not match")
            data_at += DIGEST_BYTES
        end = data_at + padded(length)
        intact = True
        if self.data_digest and length:
            intact = view[end : end + DIGEST_BYTES] == digest_of(view[data_at:end])
        return Pdu(view[at : at + BHS_BYTES], ahs, view[data_at : data_at + length], intact)

    def header_intact(self, view: memoryview, at: int, end: int = 0) -> bool:
        """Does the digest behind the header(s) from `at` to `end` match?"""
        end = end or at + BHS_BYTES
        return view[end : end + DIGEST_BYTES] == digest_of(view[at:end])

    def encoded_bytes(self, data_bytes: int) -> int:
        """Bytes of a PDU of ours with that much data and no AHS."""
        size = BHS_BYTES + padded(data_bytes) + (DIGEST_BYTES if self.header_digest else 0)
        return size + DIGEST_BYTES if self.data_digest and data_bytes else size

    def finish(self, out: memoryview, at: int, data_bytes: int) -> int:
        """Header and data are in `out`, in their places (`data_at`): add padding and digests, return the end."""
        start = self.data_at(at)
        end = start + data_bytes
        if data_bytes & 3:
            fill = -data_bytes & 3
            out[end : end + fill] = bytes(fill)
            end += fill
        if self.header_digest:
            out[at + BHS_BYTES : start] = digest_of(out[at : at + BHS_BYTES])
        if self.data_digest and data_bytes:
            out[end : end + DIGEST_BYTES] = digest_of(out[start:end])
            end += DIGEST_BYTES
        return end

    def data_at(self, at: int) -> int:
        return at + BHS_BYTES + (DIGEST_BYTES if self.header_digest else 0)


def additional_headers(ahs: memoryview) -> list[tuple[int, memoryview]]:
    """(AHSType, specific part) of each additional header segment.  Raises FormatError (11.2.2)."""
    found = []
    at = 0
    while at < len(ahs):
        length = int.from_bytes(ahs[at : at + 2], "big")  # of the specific part, reserved byte included
        end = at + 3 + length
        if end > len(ahs):
            raise FormatError("additional header segment longer than its space")
        found.append((ahs[at + 2] & 0x3F, ahs[at + 3 : end]))
        at += padded(3 + length)
    return found


def encode(header: bytes, data: bytes | memoryview = b"", framing: Framing | None = None) -> bytes:
    """A PDU as bytes; DataSegmentLength is put into the header."""
    framing = framing or Framing(limits.MAX_RECV_DATA_SEGMENT_BYTES)
    size = framing.encoded_bytes(len(data))
    out = bytearray(size)
    view = memoryview(out)
    out[:BHS_BYTES] = header
    out[5:8] = len(data).to_bytes(3, "big")
    start = framing.data_at(0)
    view[start : start + len(data)] = data
    framing.finish(view, 0, len(data))
    return bytes(out)
