"""READ, WRITE, VERIFY and their kin, and the cache (SBC-3 clause 5).

`task.extent` has been checked against the capacity by the router.  Data-Out may be shorter than the CDB asks for when
the initiator's EDTL was: then only the blocks that came are written (RFC 7143 11.4.5.1 reports the rest).  Data that
ends within a block is an error and nothing is written: GOOD would tell of bytes that went nowhere.
"""

from __future__ import annotations

from target.scsi.cdb import Fields
from target.scsi.cdbs import BYTCHK, FUA, IMMED
from target.scsi.limits import ATOMIC_GRANULARITY_BYTES, OPTIMAL_TRANSFER_BYTES
from target.scsi.sense import Asc, CheckCondition, SenseKey, illegal, invalid_field
from target.scsi.store import StoreError
from target.scsi.task import ReaderFailed, Reply, Task, store_failure
from target.scsi.unit import LogicalUnit

# --- extents and lengths, for the command table -----------------------------------------------------------------------


def extent_6(fields: Fields) -> tuple[int, int]:
    """SBC-3 5.8: a TRANSFER LENGTH of 0 means 256 blocks."""
    return (fields["lba_high"] & 0x1F) << 16 | fields["lba_low"], fields["length"] or 256


def extent(fields: Fields) -> tuple[int, int]:
    return fields["lba"], fields["length"]


def blocks_out_6(fields: Fields, lu: LogicalUnit) -> int:
    return extent_6(fields)[1] << lu.shift


def blocks_out(fields: Fields, lu: LogicalUnit) -> int:
    return fields["length"] << lu.shift


def twice_blocks_out(fields: Fields, lu: LogicalUnit) -> int:
    return fields["length"] << lu.shift + 1


def verify_out(fields: Fields, lu: LogicalUnit) -> int:
    """SBC-3 5.36: BYTCHK 1 sends every block, 3 one block for all."""
    check = bytchk(fields)
    if check == 3:
        return lu.block_bytes if fields["length"] else 0
    return blocks_out(fields, lu) if check == 1 else 0


def bytchk(fields: Fields) -> int:
    return (fields["flags"] & BYTCHK) >> 1


# --- reading and writing ----------------------------------------------------------------------------------------------


CONTENTS_REPLACED = CheckCondition(SenseKey.ABORTED_COMMAND, Asc.COMMANDS_CLEARED_BY_DEVICE_SERVER)
"""Hosts send such a read again."""


class ExtentReader:
    """Data-In of a READ, filled piece by piece into the transport's buffer."""

    __slots__ = ("base", "contents", "lu")

    def __init__(self, lu: LogicalUnit, base: int) -> None:
        self.lu = lu
        self.base = base
        self.contents = lu.contents

    def __call__(self, offset: int, view: memoryview) -> None:
        lu = self.lu
        if lu.contents != self.contents:
            raise ReaderFailed(lu.failed(CONTENTS_REPLACED))
        mask = lu.block_bytes - 1
        try:
            if offset & mask or len(view) & mask:
                self._unaligned(offset, view, mask)
            else:
                lu.store.read_into(self.base + offset, view)
        except StoreError as error:
            raise ReaderFailed(lu.failed(store_failure(error, lu.block_bytes))) from error

    def _unaligned(self, offset: int, view: memoryview, mask: int) -> None:
        """A MaxRecvDataSegmentLength or EDTL that is no multiple of the block."""
        first = offset & ~mask
        whole = bytearray((offset + len(view) + mask & ~mask) - first)
        self.lu.store.read_into(self.base + first, memoryview(whole))
        view[:] = memoryview(whole)[offset - first : offset - first + len(view)]


def read(task: Task) -> Reply | None:
    lba, blocks = task.extent
    lu = task.lu
    length = blocks << lu.shift
    if length:
        task.need(task.patient or lu.store.read_is_ready(lba << lu.shift, length))
    lu.counters.reads += 1
    lu.counters.read_bytes += length
    reply = Reply(reader=ExtentReader(lu, lba << lu.shift) if length else None, length=length)
    if not task.fields.get("flags", 0) & FUA or not length:
        return reply
    # SBC-3 4.15: what is in the volatile cache goes to the medium before a read that forces unit access
    task.after_flush(reply)
    return None


def _cut_within_a_block(task: Task) -> Reply | None:
    """The failure, with the residual that the EDTL causes; None if there is none."""
    if len(task.data_out) >= task.wanted or not len(task.data_out) & task.lu.block_bytes - 1:
        return None
    return task.lu.failed(illegal(Asc.INVALID_FIELD_IN_COMMAND_INFORMATION_UNIT))


def write(task: Task) -> Reply | None:
    if failure := _cut_within_a_block(task):
        return failure
    _store_data(task, task.data_out)
    return _written(task)


def _store_data(task: Task, data: memoryview) -> None:
    lu = task.lu
    lba, blocks = task.extent
    length = min(len(data), blocks << lu.shift)
    if length:
        task.write(lba << lu.shift, data[:length])
    lu.counters.writes += 1
    lu.counters.write_bytes += length


def _written(task: Task) -> Reply | None:
    if not task.fields.get("flags", 0) & FUA:
        return Reply()
    task.after_flush(Reply())
    return None


def write_and_verify(task: Task) -> Reply | None:
    """SBC-3 5.47: on the medium before it is verified, and GOOD only when it is."""
    if bytchk(task.fields) > 1:
        raise invalid_field(1, 2)
    if failure := _cut_within_a_block(task):
        return failure
    _store_data(task, task.data_out)
    _compare(task, task.data_out if bytchk(task.fields) else None)
    task.after_flush(Reply())
    return None


def verify(task: Task) -> Reply:
    check = bytchk(task.fields)
    if check == 2:
        raise invalid_field(1, 2)
    if len(task.data_out) < task.wanted:
        raise illegal(Asc.INVALID_FIELD_IN_COMMAND_INFORMATION_UNIT)
    data = task.data_out[: task.wanted]
    if check == 3:
        data = memoryview(bytes(data) * task.extent[1])
    _compare(task, data if check else None)
    return Reply()


def _compare(task: Task, data: memoryview | None) -> None:
    """Read the extent back (every block's checksum is verified by that) and compare it with `data` if there is any."""
    lu = task.lu
    start, length = task.extent[0] << lu.shift, task.extent[1] << lu.shift
    if data is not None:
        length = min(length, len(data))
    piece = memoryview(bytearray(min(length, OPTIMAL_TRANSFER_BYTES)))
    ready = True
    for at in range(0, length, OPTIMAL_TRANSFER_BYTES):
        found = piece[: length - at]
        ready = task.read(start + at, found) and ready
        # where something is missing the rest is only looked at to have it read ahead
        if ready and data is not None and data[at : at + len(found)] != found:
            raise miscompare(at + first_difference(data[at : at + len(found)], found))
    task.need(ready)


def first_difference(one: memoryview, other: memoryview) -> int:
    """Offset of the first byte that differs; by halves, as the views are compared at memcmp's speed."""
    low, high = 0, len(one)
    while high - low > 1:
        middle = (low + high) // 2
        if one[low:middle] != other[low:middle]:
            high = middle
        else:
            low = middle
    return low


def miscompare(offset: int) -> CheckCondition:
    """SBC-3 5.2: INFORMATION is the offset of the first byte that differs."""
    return CheckCondition(SenseKey.MISCOMPARE, Asc.MISCOMPARE_DURING_VERIFY_OPERATION, offset)


def compare_and_write(task: Task) -> Reply | None:
    """SBC-3 5.2.  Atomic because nothing else runs between the comparison and the write."""
    lu = task.lu
    lba, blocks = task.extent
    length = blocks << lu.shift
    _compare(task, task.data_out[:length])
    if length:
        task.write(lba << lu.shift, task.data_out[length:])
    lu.counters.writes += 1
    lu.counters.write_bytes += length
    return _written(task)


def write_atomic(task: Task) -> Reply | None:
    """SBC-4 5.47: all of it or nothing, for other commands and over a power cut.  No ATOMIC BOUNDARY is offered."""
    lu = task.lu
    lba, blocks = task.extent
    unit = max(ATOMIC_GRANULARITY_BYTES >> lu.shift, 1)
    if task.fields["atomic_boundary"]:
        raise invalid_field(10)
    if lba % unit:
        raise invalid_field(2)
    if blocks % unit:
        raise invalid_field(12)
    length = blocks << lu.shift
    if length:
        task.need(task.patient or lu.store.write_is_ready(lba << lu.shift, length))
        lu.store.write_atomic(lba << lu.shift, task.data_out)
    lu.counters.writes += 1
    lu.counters.write_bytes += length
    return _written(task)


def orwrite(task: Task) -> Reply | None:
    """SBC-3 5.17: atomic in the same way."""
    if failure := _cut_within_a_block(task):
        return failure
    lu = task.lu
    lba, blocks = task.extent
    length = min(len(task.data_out), blocks << lu.shift)
    old = bytearray(length)
    if length:
        task.need(task.read(lba << lu.shift, memoryview(old)))
    mixed = int.from_bytes(old, "little") | int.from_bytes(task.data_out[:length], "little")
    _store_data(task, memoryview(mixed.to_bytes(length, "little")))
    return _written(task)


# --- the cache --------------------------------------------------------------------------------------------------------


def synchronize_cache(task: Task) -> Reply | None:
    """SBC-3 5.33.  The whole unit is flushed whatever the range; IMMED starts it and answers."""
    if task.fields["flags"] & IMMED:
        task.lu.store.flush(lambda _: None)
        return Reply()
    task.after_flush(Reply())
    return None


def pre_fetch(_: Task) -> Reply:
    """SBC-3 5.9: GOOD says that not all of it is certain to be in the cache."""
    return Reply()
