"""How a CDB is declared, and what follows from the declaration.

A CDB is one construct declaration of whole-byte fields.  From it come, at import: a `struct.Struct` that parses the
same bytes (construct costs tens of microseconds a header, struct 0.25), the usage map for REPORT SUPPORTED OPERATION
CODES (SPC-4 6.35), and the bits that make a command fail with INVALID FIELD IN CDB when set.  A property test holds
the two parsers equal.
"""

from __future__ import annotations

import struct
from typing import Any

from construct import Bytes, FormatField, Int8ub, Padding, Struct, Subconstruct

from target.scsi.sense import invalid_field

Fields = dict[str, int]

CDB_BYTES = 16
NACA = 0x04


class Masked(Subconstruct):  # type: ignore[misc]
    """An integer field of which the device server evaluates the bits of `mask` only.

    Other bits must be zero if `strict` (a feature that is not there: protection information, say), else they are
    ignored.  `shown` replaces the mask in the usage map (operation code and service action show their value).
    """

    def __init__(self, subcon: Any, mask: int, *, strict: bool = True, shown: int | None = None) -> None:
        super().__init__(subcon)
        self.mask = mask
        self.strict = strict
        self.shown = mask if shown is None else shown


def flags(mask: int) -> Any:
    """A byte of flags; setting one that is not in `mask` is an error."""
    return Masked(Int8ub, mask)


def lenient(mask: int) -> Any:
    """A byte of which only `mask` matters."""
    return Masked(Int8ub, mask, strict=False)


def service_action_byte(value: int, mask: int = 0) -> Any:
    """Byte 1 with a SERVICE ACTION in bits 4-0 and flags of `mask` above."""
    return Masked(Int8ub, 0x1F | mask, shown=value | mask)


class Cdb:
    """One CDB format."""

    def __init__(self, opcode: int, *fields: Any, service_action: int | None = None) -> None:
        self.opcode = opcode
        self.service_action = service_action
        self.declaration = Struct(
            "opcode" / Masked(Int8ub, 0xFF, shown=opcode),
            *fields,
            # SAM-5 5.2: NACA is an error as NORMACA is 0; the other bits are vendor specific or obsolete.
            "control" / lenient(NACA),
        )
        self.length: int = self.declaration.sizeof()
        self.struct, self.names, self.usage, self.forbidden = _derive(self.declaration)
        if self.length not in (6, 10, 12, 16):
            raise ValueError(f"CDB {opcode:02X}h declared with {self.length} bytes")

    def parse(self, cdb: bytes) -> Fields:
        """The fields by name; raises CheckCondition for a bit that must not be set."""
        wrong = int.from_bytes(cdb[: self.length], "big") & self.forbidden
        if wrong:
            bit = wrong.bit_length() - 1
            raise invalid_field(self.length - 1 - bit // 8, bit % 8)
        return dict(zip(self.names, self.struct.unpack_from(cdb), strict=True))


def _derive(declaration: Any) -> tuple[struct.Struct, tuple[str, ...], bytes, int]:
    layout, names = ">", []
    usage, forbidden = bytearray(), bytearray()
    for renamed in declaration.subcons:
        field = renamed.subcon if renamed.name else renamed
        size: int = field.sizeof()
        inner = field.subcon if isinstance(field, Masked) else field
        layout += _format_of(inner, size)
        if renamed.name:
            names.append(renamed.name)
        usage += _used(field, size).to_bytes(size, "big")
        forbidden += _forbidden(field, size).to_bytes(size, "big")
    forbidden[-1] = NACA
    return struct.Struct(layout), tuple(names), bytes(usage), int.from_bytes(forbidden, "big")


def _format_of(field: Any, size: int) -> str:
    if isinstance(field, FormatField):
        return str(field.fmtstr)[-1]
    if isinstance(field, Bytes):
        return f"{size}s"
    return f"{size}x"


def _used(field: Any, size: int) -> int:
    if isinstance(field, Masked):
        return field.shown
    return (1 << 8 * size) - 1 if isinstance(field, FormatField | Bytes) else 0


def _forbidden(field: Any, size: int) -> int:
    strict = isinstance(field, Masked) and field.strict
    return ((1 << 8 * size) - 1) & ~field.mask if strict else 0


def reserved(size: int) -> Any:
    """Bytes that are reserved, obsolete, or name a feature whose absence lets them be ignored (group number)."""
    return Padding(size)
