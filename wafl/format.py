"""The on-disk format, declared.  docs/format.md says the same byte by byte and a test compares the two.

The declarations are construct's; each fixed record also has a `struct` layout derived from its declaration at
import (`Record`), because inode, vtoc and snapshot records are packed in every consistency point.  Pointer blocks
and data never pass through either.

Everything is little endian.  Blocks 0 to 8 are the label and the head fsinfo ring, then the log region; the last
nine blocks are the mirror ring and the second label; every other block can be anything.

Reading this module: the block layout, then the records from the outside in (label, fsinfo, inode, vtoc entry,
snapshot entry), then the helpers that pack and check.

Length: all declarations are in one place, so that whoever reads a volume by hand needs no other.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Any

import construct as c
from crc32c import crc32c

from wafl.errors import InvalidName, InvalidSize

# --- blocks and pointers -------------------------------------------------------------------------------------------

BLOCK_BYTES = 4096
BLOCK_SHIFT = 12
POINTERS = 256
"""Pointers in a pointer block: 16 bytes each, in planes."""
VBN_PLANE = slice(0, 2048)
"""256 x u64: the child's vbn, or a mark."""
CRC_PLANE = slice(2048, 3072)
"""256 x u32: crc32c of the child's 4096 bytes."""
BIRTH_PLANE = slice(3072, 4096)
"""256 x u32: the consistency point that wrote the child."""
LEVEL_ONE_BYTES = POINTERS * BLOCK_BYTES

HOLE = 0
"""Nothing here: falls through to the backing, reads zeros without one.  Legal at every level."""
ZERO = 1
"""Reads zeros and stops the search.  Legal at every level."""
FIRST_DATA_VBN = 2
"""Pointers from here on name a block (in practice the first nine blocks are never pointed at)."""

MAX_HEIGHT = 6
"""Level-5 blocks cover 4 PiB; level 6 lets a graveyard hold more than 256 level-4 subtrees."""
MAX_ID = 2**63
"""Snapshot ids and inode generations lie below."""
MAX_GENERATION = 2**32 - 2
"""Births are 32 bits (docs/decisions/0003): the volume stops before they wrap."""

# --- places of the volume ------------------------------------------------------------------------------------------

LABEL_VBN = 0
RING_SLOTS = 8
"""fsinfo of generation g lies in slot g % 8 of the head ring and of the mirror ring."""
HEAD_RING_VBN = 1
HEAD_BLOCKS = HEAD_RING_VBN + RING_SLOTS
TAIL_BLOCKS = RING_SLOTS + 1

MIN_VOLUME_BYTES = 1 << 20
MAX_VOLUME_BYTES = 1 << 50
MIN_LOG_BYTES = 32 << 10
MAX_LOG_BYTES = 64 << 20
"""More is of no use, and a mount reads all of it: of a larger device no more than this is used."""
MAX_LUN_BYTES = 16 << 40
"""What a tree of height 4 covers."""

MAX_SNAPSHOTS = 255
MAX_LUNS = 1000
MAX_CHAIN_DEPTH = 16
NAME_BYTES = 255
"""Longest LUN, snapshot or volume name in UTF-8."""

MAP_BITS = BLOCK_BYTES * 8
"""Blocks that one block of the active map or of the summary describes."""

COUNTS = BLOCK_BYTES // 2
"""Reference counts (u16) in one block of inode 3."""
MAX_COUNT = 0xFFFF
"""A block with this many pointers beyond the first is not shared once more."""

FORMAT_VERSION = 1
LABEL_MAGIC = b"LAZYLUN\n"
FSINFO_MAGIC = b"LLFSINFO"
LOG_MAGIC = b"LLNVLOG\n"


class Incompat(IntFlag):
    """Features that an older version must refuse."""

    NONE = 0
    LOG_RECORDS = 1
    """A log may hold records that a mount must replay."""
    REFERENCE_COUNTS = 2
    """Blocks may be shared inside the active file system (inode 3)."""


KNOWN_INCOMPAT = int(Incompat.LOG_RECORDS | Incompat.REFERENCE_COUNTS)
KNOWN_RO_COMPAT = 0


class InodeType(IntEnum):
    FREE = 0
    VTOC = 1
    ACTIVE_MAP = 2
    REFERENCE_COUNTS = 3
    LUN = 4
    ZOMBIE = 5
    """A tree on its way out: reclaim truncates it from its end, then the inode is free."""


VTOC_INODE = 1
ACTIVE_MAP_INODE = 2
REFERENCE_INODE = 3
FIRST_INODE = 16
"""Inode numbers from here on are given out; the first block of the inode file holds the fixed ones."""


class FsinfoFlag(IntFlag):
    NONE = 0
    CLEAN = 1
    """Written by an orderly close: nothing was lost."""


class InodeFlag(IntFlag):
    NONE = 0
    EXACT = 1
    """`private_blocks` is exact, not only a lower bound.  Versions that know nothing of it leave zeros."""
    ADOPTED = 2
    """The tree may have adopted subtrees, whose blocks `blocks` does not count."""


class VtocFlag(IntFlag):
    NONE = 0
    ONLINE = 1
    RESERVED = 2
    CLONE_REQUESTED = 4


class LogPlace(IntEnum):
    """Where the records lie that belong to a consistency point."""

    NONE = 0
    REGION = 1
    """The volume's own log region."""
    SEPARATE = 2
    """A file or device of its own, named at each mount."""


class LogKind(IntEnum):
    """Kinds of log records.  All say what has changed, none says how: replay computes nothing."""

    WRITE = 1
    """Blocks of a LUN got these places and checksums."""
    PUNCH = 2
    """Blocks of a LUN read zeros."""
    VTOC = 3
    """A vtoc entry: a LUN was made, destroyed or changed."""
    SNAPSHOT = 4
    """A snapshot was renamed or deleted."""
    SHARE = 5
    """Blocks of a LUN became those of a LUN, itself or another."""


class EntryState(IntEnum):
    """State of a vtoc entry or of a snapshot entry."""

    FREE = 0
    LIVE = 1
    DELETING = 2
    """Snapshots only: gone for everybody, its blocks not yet given back."""


# --- declarations --------------------------------------------------------------------------------------------------


def _text(size: int) -> c.Construct:
    """UTF-8, padded with zero bytes; at least one zero byte at the end."""
    return c.Bytes(size)


TreeRoot = c.Struct(
    "root_vbn" / c.Int64ul,
    "root_crc" / c.Int32ul,
    "root_birth" / c.Int32ul,
    "height" / c.Int32ul,
    "pad" / c.Int32ul,
    "size_bytes" / c.Int64ul,
)

Label = c.Struct(
    "magic" / c.Bytes(8),
    "format_version" / c.Int32ul,
    "block_bytes" / c.Int32ul,
    "compat" / c.Int64ul,
    "ro_compat" / c.Int64ul,
    "incompat" / c.Int64ul,
    "uuid" / c.Bytes(16),
    "initial_blocks" / c.Int64ul,
    "created_us" / c.Int64ul,
    "nvlog_start" / c.Int64ul,
    "nvlog_blocks" / c.Int64ul,
    "name" / _text(256),
    "reserved" / c.Bytes(3748),
    "crc" / c.Int32ul,
)

Fsinfo = c.Struct(
    "magic" / c.Bytes(8),
    "uuid" / c.Bytes(16),
    "generation" / c.Int64ul,
    "vbn" / c.Int64ul,
    "volume_blocks" / c.Int64ul,
    "flags" / c.Int64ul,
    "written_us" / c.Int64ul,
    "next_inode_generation" / c.Int64ul,
    "next_snapshot_id" / c.Int64ul,
    "active_blocks" / c.Int64ul,
    "summary_blocks" / c.Int64ul,
    "allocation_hint" / c.Int64ul,
    "ifile" / TreeRoot,
    "summary" / TreeRoot,
    "snapshot_table" / TreeRoot,
    "log_seq" / c.Int64ul,
    "log_epoch" / c.Int64ul,
    "log_place" / c.Int64ul,
    "reserved" / c.Bytes(3868),
    "crc" / c.Int32ul,
)

Inode = c.Struct(
    "number" / c.Int32ul,
    "type" / c.Int16ul,
    "height" / c.Int16ul,
    "generation" / c.Int64ul,
    "size_bytes" / c.Int64ul,
    "blocks" / c.Int64ul,
    "root_vbn" / c.Int64ul,
    "root_crc" / c.Int32ul,
    "root_birth" / c.Int32ul,
    "owner" / c.Int32ul,
    "flags" / c.Int32ul,
    "owner_generation" / c.Int64ul,
    "private_blocks" / c.Int64ul,
    "private_since" / c.Int64ul,
    "reserved" / c.Bytes(176),
)

VtocEntry = c.Struct(
    "state" / c.Int32ul,
    "flags" / c.Int32ul,
    "inode" / c.Int32ul,
    "block_bytes" / c.Int32ul,
    "inode_generation" / c.Int64ul,
    "size_bytes" / c.Int64ul,
    "created_us" / c.Int64ul,
    "uuid" / c.Bytes(16),
    "naa" / c.Bytes(8),
    "serial" / _text(32),
    "ostype" / _text(32),
    "name" / _text(256),
    "comment" / _text(256),
    "backing_snapshot" / c.Int64ul,
    "backing_inode" / c.Int32ul,
    "pad" / c.Int32ul,
    "backing_inode_generation" / c.Int64ul,
    "backing_limit_bytes" / c.Int64ul,
    "missing_blocks" / c.Int64ul,
    "backing_name" / _text(256),
    "reserved" / c.Bytes(88),
)

SnapshotEntry = c.Struct(
    "state" / c.Int32ul,
    "pad" / c.Int32ul,
    "id" / c.Int64ul,
    "created_us" / c.Int64ul,
    "generation" / c.Int64ul,
    "volume_blocks" / c.Int64ul,
    "active_blocks" / c.Int64ul,
    "ifile" / TreeRoot,
    "name" / _text(256),
    "reserved" / c.Bytes(176),
)

LogHeader = c.Struct(
    "crc" / c.Int32ul,
    "size" / c.Int16ul,
    "kind" / c.Int16ul,
    "seq" / c.Int64ul,
    "durable" / c.Int64ul,
)

LogWrite = c.Struct(
    "slot" / c.Int32ul,
    "blocks" / c.Int32ul,
    "fbn" / c.Int64ul,
    "vbn" / c.Int64ul,
)

LogPunch = c.Struct(
    "slot" / c.Int32ul,
    "cut" / c.Int32ul,
    "first" / c.Int64ul,
    "last" / c.Int64ul,
)

LogVtoc = c.Struct(
    "slot" / c.Int32ul,
    "pad" / c.Int32ul,
)

LogSnapshot = c.Struct(
    "id" / c.Int64ul,
    "state" / c.Int32ul,
    "pad" / c.Int32ul,
    "name" / _text(256),
)

LogShare = c.Struct(
    "slot" / c.Int32ul,
    "source_slot" / c.Int32ul,
    "fbn" / c.Int64ul,
    "source_fbn" / c.Int64ul,
    "blocks" / c.Int64ul,
)

LogLabel = c.Struct(
    "magic" / c.Bytes(8),
    "uuid" / c.Bytes(16),
    "size_bytes" / c.Int64ul,
    "reserved" / c.Bytes(4060),
    "crc" / c.Int32ul,
)


# --- struct layouts derived from the declarations ------------------------------------------------------------------


def _flatten(declaration: Any, prefix: str = "") -> list[tuple[str, str]]:
    """(field name, struct code) of each field; a nested struct's fields are prefixed with its name."""
    fields: list[tuple[str, str]] = []
    for renamed in declaration.subcons:
        name, inner = f"{prefix}{renamed.name}", renamed.subcon
        if isinstance(inner, c.FormatField):
            fields.append((name, inner.fmtstr[-1]))
        elif isinstance(inner, c.Bytes):
            fields.append((name, f"{inner.length}s"))
        else:
            fields += _flatten(inner, f"{name}_")
    return fields


class Record:
    """One declaration and the `struct` layout read off it: fields by name, nested ones as `outer_inner`."""

    def __init__(self, declaration: Any, size: int) -> None:
        fields = _flatten(declaration)
        self.declaration = declaration
        self.names = tuple(name for name, _ in fields)
        self.layout = struct.Struct("<" + "".join(code for _, code in fields))
        self._defaults = {name: b"" if code.endswith("s") else 0 for name, code in fields}
        assert self.layout.size == declaration.sizeof() == size

    @property
    def size(self) -> int:
        return self.layout.size

    def pack(self, **values: Any) -> bytes:
        """The record's bytes; a field not given is zero."""
        merged = self._defaults | values
        assert len(merged) == len(self._defaults), values.keys() - self._defaults.keys()
        return self.layout.pack(*(merged[name] for name in self.names))

    def unpack(self, data: bytes | bytearray | memoryview, offset: int = 0) -> dict[str, Any]:
        return dict(zip(self.names, self.layout.unpack_from(data, offset), strict=True))

    def offset_of(self, field: str) -> int:
        codes = [code for _, code in _flatten(self.declaration)]
        return struct.calcsize("<" + "".join(codes[: self.names.index(field)]))


LABEL = Record(Label, BLOCK_BYTES)
FSINFO = Record(Fsinfo, BLOCK_BYTES)
INODE = Record(Inode, 256)
VTOC_ENTRY = Record(VtocEntry, 1024)
SNAPSHOT_ENTRY = Record(SnapshotEntry, 512)
TREE_ROOT = Record(TreeRoot, 32)
LOG_HEADER = Record(LogHeader, 24)
LOG_WRITE = Record(LogWrite, 24)
LOG_PUNCH = Record(LogPunch, 24)
LOG_VTOC = Record(LogVtoc, 8)
LOG_SNAPSHOT = Record(LogSnapshot, 272)
LOG_SHARE = Record(LogShare, 32)
LOG_LABEL = Record(LogLabel, BLOCK_BYTES)

INODE_ROOT_CRC = INODE.offset_of("root_crc")
SNAPSHOT_IFILE_CRC = SNAPSHOT_ENTRY.offset_of("ifile_root_crc")


def seal(record: Record, **values: Any) -> bytes:
    """Pack a label or fsinfo with the crc32c of all that precedes its last four bytes."""
    body = record.pack(**values)
    return body[:-4] + struct.pack("<I", crc32c(body[:-4]))


def unseal(record: Record, magic: bytes, data: bytes | bytearray | memoryview) -> dict[str, Any] | None:
    """The fields of a label or fsinfo, or None if it is not one or is damaged."""
    if bytes(data[: len(magic)]) != magic or crc32c(data[:-4]) != struct.unpack_from("<I", data, len(data) - 4)[0]:
        return None
    return record.unpack(data)


# --- geometry ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Geometry:
    """Where the fixed parts of a volume of `blocks` blocks lie."""

    blocks: int
    nvlog_blocks: int

    @property
    def nvlog_start(self) -> int:
        return HEAD_BLOCKS

    @property
    def head_blocks(self) -> int:
        """Blocks at the head that are never allocated."""
        return HEAD_BLOCKS + self.nvlog_blocks

    @property
    def tail_ring(self) -> int:
        return self.blocks - TAIL_BLOCKS

    @property
    def second_label(self) -> int:
        return self.blocks - 1

    def fsinfo_vbns(self, generation: int) -> tuple[int, int]:
        slot = generation % RING_SLOTS
        return HEAD_RING_VBN + slot, self.tail_ring + slot


def plan_geometry(size_bytes: int, log_bytes: int | None = None) -> Geometry:
    """Geometry of a new volume: the log gets 1/64 of it, 256 KiB to 64 MiB, or nothing on a tiny volume, unless its
    size is given (0: no log, the volume's every flush is a consistency point).  Raises InvalidSize."""
    if not MIN_VOLUME_BYTES <= size_bytes <= MAX_VOLUME_BYTES:
        raise InvalidSize(f"a volume has {MIN_VOLUME_BYTES} to {MAX_VOLUME_BYTES} bytes, not {size_bytes}")
    if log_bytes is None:
        share = size_bytes // 64
        log_bytes = 0 if share < 256 << 10 else min(share, 64 << 20)
    if log_bytes and not MIN_LOG_BYTES <= log_bytes <= min(MAX_LOG_BYTES, size_bytes // 4):
        raise InvalidSize(f"a log region has {MIN_LOG_BYTES} bytes to a quarter of the volume, not {log_bytes}")
    return Geometry(size_bytes // BLOCK_BYTES, log_bytes // BLOCK_BYTES)


def height_for(blocks: int) -> int:
    """Height of the smallest tree that reaches `blocks` blocks (at least 1: the root is a pointer block)."""
    height = 1
    while POINTERS**height < blocks:
        height += 1
    return height


# --- names ---------------------------------------------------------------------------------------------------------


def encode_text(text: str, what: str, limit: int = NAME_BYTES) -> bytes:
    """UTF-8 of a name or comment that fits its field and holds no control character."""
    try:
        raw = text.encode()
    except UnicodeEncodeError:
        raise InvalidName(f"{what} is not valid text") from None
    if len(raw) > limit:
        raise InvalidName(f"{what} is longer than {limit} bytes")
    if any(ord(char) < 32 or ord(char) == 127 for char in text):
        raise InvalidName(f"{what} holds a control character")
    return raw


def decode_text(raw: bytes) -> str:
    return raw.rstrip(b"\0").decode("utf-8", "replace")


def check_lun_name(name: str) -> bytes:
    """A LUN's path within the volume: components between single slashes; `.snapshot` belongs to the snapshots."""
    raw = encode_text(name, "LUN name")
    for part in name.split("/"):
        if not part or part in (".", "..", ".snapshot") or part != part.strip():
            raise InvalidName(f"{name!r} is not a LUN name: no part of it is empty, '.', '..' or '.snapshot'")
    return raw


def check_snapshot_name(name: str) -> bytes:
    raw = encode_text(name, "snapshot name")
    if not name or "/" in name or name in (".", "..") or name != name.strip():
        raise InvalidName(f"{name!r} is not a snapshot name: no '/' in it, no blanks around it, not '.' or '..'")
    return raw
