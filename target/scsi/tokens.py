"""ROD tokens (SPC-4 5.16.6, 6.4.7): 512 bytes that stand for ranges of a logical unit, to be written somewhere else.

Ours are "access upon reference" (ROD type 0001_0000h): what a token yields is what its ranges hold when it is used,
like a copy that a host makes itself, as nothing is set aside for it.  A token ends when it has not been used for its
timeout, when the medium is replaced (restored, sanitized, formatted, ejected), when it is deleted, and with the
daemon.  Whoever knows the 512 bytes may use it: 256 bits of them are random.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from construct import Bytes, BytesInteger, Const, Int8ub, Int16ub, Int32ub, Padding, Struct

from target.scsi.limits import MAX_TOKENS
from target.scsi.sense import Asc, illegal

if TYPE_CHECKING:
    from target.scsi.unit import LogicalUnit

ACCESS_UPON_REFERENCE = 0x00010000
BLOCK_ZERO = 0xFFFF0001
TOKEN_BYTES = 512
# SPC-4 6.4.7.2, SBC-3 table 124
ROD_TOKEN = Struct(
    "rod_type" / Int32ub,
    Padding(2),
    "rod_token_length" / Const(TOKEN_BYTES - 8, Int16ub),
    "copy_manager_rod_token_identifier" / Bytes(8),
    "creator" / Bytes(32),
    "bytes_represented" / BytesInteger(16),
    Padding(32),
    "logical_block_length" / Int32ub,
    "physical_exponent" / Int8ub,
    Padding(27),
    "secret" / Bytes(32),
    Padding(352),
)
CREATOR = Struct(
    "type" / Const(0xE4, Int8ub),
    Padding(3),
    "code_set" / Const(1, Int8ub),
    "designator_type" / Const(3, Int8ub),
    Padding(1),
    "designator_length" / Int8ub,
    "designator" / Bytes(20),
    Padding(4),
)

Range = tuple[int, int]
"""(byte offset, bytes)"""


@dataclass(eq=False)
class Token:
    encoded: bytes
    lu: LogicalUnit
    ranges: Sequence[Range]
    contents: int
    timeout_s: float
    used_at: float

    @property
    def length(self) -> int:
        return sum(length for _, length in self.ranges)

    def slices(self, offset: int, length: int) -> list[Range]:
        """Where in the logical unit the bytes of the ROD from `offset` on are."""
        found = []
        for start, size in self.ranges:
            if offset < size and length:
                part = min(size - offset, length)
                found.append((start + offset, part))
                length -= part
                offset = 0
            else:
                offset -= min(offset, size)
        return found


class Tokens:
    """The valid tokens of one target, by identifier."""

    def __init__(self) -> None:
        self._tokens: dict[bytes, Token] = {}

    def create(self, lu: LogicalUnit, ranges: Sequence[Range], timeout_s: float) -> Token:
        """Raises CheckCondition if there are too many."""
        now = lu.platform.now()
        self._tokens = {name: token for name, token in self._tokens.items() if not _over(token, now)}
        if len(self._tokens) >= MAX_TOKENS:
            raise illegal(Asc.INSUFFICIENT_RESOURCES_TO_CREATE_ROD_TOKEN)
        name = lu.platform.random_bytes(8)
        encoded = ROD_TOKEN.build({
            "rod_type": ACCESS_UPON_REFERENCE,
            "copy_manager_rod_token_identifier": name,
            "creator": CREATOR.build(
                {"designator_length": len(lu.store.naa), "designator": lu.store.naa.ljust(20, b"\0")}
            ),
            "bytes_represented": sum(length for _, length in ranges),
            "logical_block_length": lu.block_bytes,
            "physical_exponent": (lu.physical_block_bytes // lu.block_bytes).bit_length() - 1,
            "secret": lu.platform.random_bytes(32),
        })
        token = self._tokens[name] = Token(encoded, lu, ranges, lu.contents, timeout_s, now)
        return token

    def use(self, encoded: bytes) -> Token:
        """The token, whose timeout begins anew.  Raises CheckCondition with the reason why it is not valid."""
        if int.from_bytes(encoded[:4], "big") != ACCESS_UPON_REFERENCE:
            raise illegal(Asc.UNSUPPORTED_TOKEN_TYPE)
        token = self._tokens.get(encoded[8:16])
        if token is None:
            raise illegal(Asc.TOKEN_UNKNOWN)
        if not hmac.compare_digest(token.encoded, encoded):
            raise illegal(Asc.TOKEN_CORRUPT)
        now = token.lu.platform.now()
        if token.contents != token.lu.contents:
            self.delete(token)
            raise illegal(Asc.TOKEN_REVOKED)
        if _over(token, now):
            self.delete(token)
            raise illegal(Asc.TOKEN_EXPIRED)
        token.used_at = now
        return token

    def delete(self, token: Token) -> None:
        self._tokens.pop(token.encoded[8:16], None)


def _over(token: Token, now: float) -> bool:
    return now - token.used_at > token.timeout_s
