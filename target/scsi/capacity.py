"""READ CAPACITY, GET LBA STATUS, UNMAP and WRITE SAME: sizes and provisioning (SBC-3 4.7).

A deallocated block reads zeros (LBPRZ=1), so zeros written by WRITE SAME are deallocated too: the reader cannot tell.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from construct import Const, GreedyRange, Int8ub, Int16ub, Int32ub, Int64ub, Padding, Struct

from target.scsi.cdb import Fields
from target.scsi.cdbs import NDOB, WRITE_SAME_UNMAP
from target.scsi.limits import (
    MAX_LBA_STATUS_DESCRIPTORS,
    MAX_LBA_STATUS_STEPS,
    MAX_UNMAP_BLOCKS,
    MAX_UNMAP_DESCRIPTORS,
    MAX_WRITE_SAME_BYTES,
    OPTIMAL_TRANSFER_BYTES,
    PATTERN_BYTES,
    SHARE_BYTES,
)
from target.scsi.sense import Asc, illegal, invalid_field, invalid_parameter, lba_out_of_range
from target.scsi.store import MediumError
from target.scsi.task import Reply, Task, data_in
from target.scsi.unit import LogicalUnit

# SBC-3 5.15
CAPACITY_10 = Struct("last_lba" / Int32ub, "block_length" / Int32ub)
# SBC-3 5.16
CAPACITY_16 = Struct(
    "last_lba" / Int64ub,
    "block_length" / Int32ub,
    "protection" / Const(0, Int8ub),
    "physical_exponent" / Int8ub,
    "provisioning" / Int16ub,  # LBPME, LBPRZ, LOWEST ALIGNED LBA
    Padding(16),
)
LBPME, LBPRZ = 0x8000, 0x4000

# SBC-3 5.5.2
LBA_STATUS = Struct("lba" / Int64ub, "blocks" / Int32ub, "status" / Int8ub, Padding(3))
LBA_STATUS_LIST = Struct(
    "parameter_data_length" / Int32ub, Padding(4), "descriptors" / GreedyRange(LBA_STATUS)
)
MAPPED, DEALLOCATED = 0, 1
MAX_LBA_STATUS_BLOCKS = 0xFFFFFFFF

# SBC-3 5.28.2
UNMAP_HEADER = Struct("data_length" / Int16ub, "descriptor_data_length" / Int16ub, Padding(4))
UNMAP_DESCRIPTOR = Struct("lba" / Int64ub, "blocks" / Int32ub, Padding(4))


def read_capacity_10(task: Task) -> Reply:
    if task.fields["lba"] and not task.fields["pmi"] & 1:
        raise invalid_field(2)
    last = min(task.lu.blocks - 1, 0xFFFFFFFF)
    return data_in(CAPACITY_10.build({"last_lba": last, "block_length": task.lu.block_bytes}), 8)


def read_capacity_16(task: Task) -> Reply:
    lu, fields = task.lu, task.fields
    if fields["lba"] and not fields["pmi"] & 1:
        raise invalid_field(2)
    built = CAPACITY_16.build({
        "last_lba": lu.blocks - 1,
        "block_length": lu.block_bytes,
        "physical_exponent": (lu.physical_block_bytes // lu.block_bytes).bit_length() - 1,
        "provisioning": LBPME | LBPRZ if lu.thin else 0,
    })
    return data_in(built, fields["allocation_length"])


# --- GET LBA STATUS ---------------------------------------------------------------------------------------------------


def get_lba_status(task: Task) -> Reply:
    lu, lba = task.lu, task.fields["lba"]
    if lba >= lu.blocks:
        raise lba_out_of_range()
    room = max((task.fields["allocation_length"] - 8) // LBA_STATUS.sizeof(), 1)
    descriptors = list(_merged(lu, lba, min(room, MAX_LBA_STATUS_DESCRIPTORS), nowait=not task.patient))
    task.need(bool(descriptors))
    built = LBA_STATUS_LIST.build({
        "parameter_data_length": 4 + LBA_STATUS.sizeof() * len(descriptors), "descriptors": descriptors,
    })
    return data_in(built, task.fields["allocation_length"])


def _merged(lu: LogicalUnit, lba: int, limit: int, *, nowait: bool) -> Iterator[dict[str, int]]:
    """At most `limit` descriptors from `lba` on, neighbours of equal state made one.  With `nowait` they end before
    what is not in memory: the host asks again from there."""
    shift = lu.shift
    start = end = lba << shift
    state: bool | None = None
    length = lu.store.size_bytes - start
    extents = lu.store.extents(start, length, nowait=nowait) if lu.thin else ((start, length, True),)
    for _, (offset, length, mapped) in zip(range(MAX_LBA_STATUS_STEPS), extents, strict=False):
        if state is not None and mapped is not state:
            yield _descriptor(start, end, state, shift)
            limit -= 1
            if not limit:
                return
            start = end
        state, end = mapped, offset + length
        if end - start >> shift > MAX_LBA_STATUS_BLOCKS:
            break  # longer than the field can say: the host asks again from where this one ends
    if state is not None:
        yield _descriptor(start, end, state, shift)


def _descriptor(start: int, end: int, mapped: bool, shift: int) -> dict[str, int]:
    blocks = min(end - start >> shift, MAX_LBA_STATUS_BLOCKS)
    return {"lba": start >> shift, "blocks": blocks, "status": MAPPED if mapped else DEALLOCATED}


# --- UNMAP ------------------------------------------------------------------------------------------------------------


def is_thin(lu: LogicalUnit) -> bool:
    return lu.thin


def unmap(task: Task) -> Reply:
    """SBC-3 5.28; everything is checked before anything is unmapped."""
    if task.wanted == 0:
        return Reply()
    ranges = _unmap_ranges(task.parameter_list(UNMAP_HEADER.sizeof()), task.lu)
    shift, store = task.lu.shift, task.lu.store
    if not task.patient:
        ready = [store.unmap_is_ready(lba << shift, blocks << shift) for lba, blocks in ranges]
        task.need(all(ready))
    for lba, blocks in ranges:
        store.unmap(lba << shift, blocks << shift)
    return Reply()


def _unmap_ranges(parameters: memoryview, lu: LogicalUnit) -> list[tuple[int, int]]:
    head, size = UNMAP_HEADER.sizeof(), UNMAP_DESCRIPTOR.sizeof()
    announced = UNMAP_HEADER.parse(parameters[:head]).descriptor_data_length
    count = min(announced, len(parameters) - head) // size
    if count > MAX_UNMAP_DESCRIPTORS:
        raise invalid_parameter(2)
    descriptors = [UNMAP_DESCRIPTOR.parse(parameters[at : at + size]) for at in range(head, head + count * size, size)]
    ranges = [(d.lba, d.blocks) for d in descriptors]
    _check_ranges(ranges, lu)
    return [(lba, blocks) for lba, blocks in ranges if blocks]


def _check_ranges(ranges: Iterable[tuple[int, int]], lu: LogicalUnit) -> None:
    total = 0
    for lba, blocks in ranges:
        if lba + blocks > lu.blocks:
            raise lba_out_of_range()
        total += blocks
    if total > MAX_UNMAP_BLOCKS:
        raise illegal(Asc.INVALID_FIELD_IN_PARAMETER_LIST)


# --- WRITE SAME -------------------------------------------------------------------------------------------------------


def write_same_out(fields: Fields, lu: LogicalUnit) -> int:
    return 0 if fields["flags"] & NDOB else lu.block_bytes


def write_same(task: Task) -> Reply:
    """SBC-3 5.49, 5.50.  ANCHOR, PBDATA and LBDATA are refused by the CDB's declaration.  UNMAP with a block that is
    not zeros writes it: reads must return what was sent."""
    lu, fields = task.lu, task.fields
    lba, blocks = task.extent
    if fields["flags"] & WRITE_SAME_UNMAP and not lu.thin:
        raise invalid_field(1, 3)
    blocks = blocks or _blocks_to_the_end(task)
    block = bytes(task.data_out)
    offset, length = lba << lu.shift, blocks << lu.shift
    if not any(block):
        task.need(task.patient or lu.store.unmap_is_ready(offset, length))
        lu.store.unmap(offset, length)
    else:
        task.need(task.patient or lu.store.write_is_ready(offset, length))
        _fill(lu, offset, length, block)
    lu.counters.writes += 1
    return Reply()


def _blocks_to_the_end(task: Task) -> int:
    """NUMBER OF LOGICAL BLOCKS of 0: up to the last one, within the MAXIMUM WRITE SAME LENGTH.  Where blocks can be
    unmapped it must be given (WSNZ=1): a count that came out as 0 would give back the rest of the disk."""
    lu, lba = task.lu, task.extent[0]
    if lba >= lu.blocks:
        raise lba_out_of_range()
    blocks = lu.blocks - lba
    if lu.thin or blocks << lu.shift > MAX_WRITE_SAME_BYTES:
        raise invalid_field(10 if task.fields["opcode"] == 0x93 else 7)
    return blocks


def _fill(lu: LogicalUnit, offset: int, length: int, block: bytes) -> None:
    """A part of the pattern is written, or found before the range, and the rest is more pointers to its blocks."""
    lu.counters.write_bytes += length
    pattern = memoryview(block * (min(length, OPTIMAL_TRANSFER_BYTES) // len(block)))
    start = -(-offset // SHARE_BYTES) * SHARE_BYTES
    end = (offset + length) // SHARE_BYTES * SHARE_BYTES
    if end - start < 2 * PATTERN_BYTES:
        start = end = offset
    _write_over(lu, offset, start, pattern)
    at, seed = start, _before(lu, start, pattern[:PATTERN_BYTES]) if start < end else None
    written = -1
    while at < end:
        done = 0 if seed is None else lu.store.share(at, lu.store, seed, min(end - at, at - seed))
        if not done and at == written:
            break  # not even what has just been written can be shared
        if not done:
            seed, done = at, min(PATTERN_BYTES, end - at)
            written = at + done
            _write_over(lu, at, written, pattern)
        at += done
    _write_over(lu, at, offset + length, pattern)


def _before(lu: LogicalUnit, offset: int, pattern: memoryview) -> int | None:
    """Where the pattern lies right before the range, as after the last of several commands in a row; None if not."""
    found = memoryview(bytearray(len(pattern)))
    if offset < len(pattern):
        return None
    try:
        there = lu.store.read_into_nowait(offset - len(pattern), found)
    except MediumError:
        return None  # it is written over, or nobody's concern here
    return offset - len(pattern) if there and found == pattern else None


def _write_over(lu: LogicalUnit, offset: int, end: int, pattern: memoryview) -> None:
    for at in range(offset, end, len(pattern)):
        lu.store.write(at, pattern[: end - at])
