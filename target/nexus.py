"""The join of iSCSI and SCSI: targets, their I_T nexuses, and the fast path from a PDU to a store.

The API that management uses:

    device = TargetDevice("iqn.2024-01.example:vol0")      one per target (one per volume)
    lu = LogicalUnit(store)                                one per LUN, for as long as the target has it
    nexus = device.open_nexus(initiator, isid, lun_map, on_close=None, tpgt=1)
                                                           lun_map: Mapping[LUN id, LogicalUnit], what this initiator
                                                           sees; `nexus` is what TargetDirectory.open_nexus returns
    nexus.set_map(lun_map)                                 after map, unmap, destroy, igroup changes; compares with what
                                                           was, tells the host (3F/0E) if anything differs
    device.refresh(lun_map_of)                             set_map for all nexuses: lun_map_of(initiator name) -> map
    device.nexuses                                         the open ones: .initiator .isid .target_port .itls
    lu.capacity_changed()                                  the store's size_bytes is another one (2A/09)
    lu.state_changed()                                     the store's online or read_only changed
    lu.contents_changed(resized=…)                         the LUN was restored (28/00, and 2A/09 if resized)
    lu.replace_store(store)                                another store behind the same LUN
    device.set_target_ports(tags)                          portal groups came or went (2A/06)
    lu.set_access(states, ChangedBy.TARGET)                target port groups are in other access states (2A/06)
    lu.threshold_reached()                                 thin provisioning soft threshold (38/07)
    lu.counters                                            .reads .writes .read_bytes .write_bytes
    lu.reservations                                        .keys .type .holder .unit_holder, to show

All of it on the loop that owns the volume.  A LogicalUnit's object identity is its identity for hosts: reuse the
object for the same LUN, never for another.

The fast path asks one question, "is the LUN in this dictionary?".  `itl_changed` keeps the dictionaries so that a LUN
is in `_readable` or `_writable` only while nothing (unit attention, reservation, write protection, offline) stands in
the way; everything else goes through the router.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import cast

from target.iscsi.constants import Attribute, TaskFunction, TaskResponse
from target.iscsi.ports import Aborted, Announce, DataInFailed, Done, Placing, Response, SegmentReader
from target.scsi.cdbs import (
    DPO,
    READ_10,
    READ_16,
    SYNC_NV,
    SYNCHRONIZE_CACHE_10,
    SYNCHRONIZE_CACHE_16,
    WRITE_10,
    WRITE_16,
)
from target.scsi.it_nexus import ITNexus, lun_field, lun_id
from target.scsi.router import data_out_length, perform
from target.scsi.sense import Asc, CheckCondition, SenseKey, Status
from target.scsi.task import Access, ReaderFailed, Reply
from target.scsi.task_management import (
    ServiceResponse,
    abort_task,
    abort_task_set,
    clear_task_set,
    logical_unit_reset,
    on_unit,
    target_reset,
)
from target.scsi.tokens import Tokens
from target.scsi.unit import Counters, ITLNexus, LogicalUnit

__all__ = ["LogicalUnit", "Nexus", "TargetDevice", "lun_field", "lun_id"]

log = logging.getLogger(__name__)

LunMap = Mapping[int, LogicalUnit]
OnClose = Callable[["Nexus"], None]

READ_10_OPCODE, READ_16_OPCODE = READ_10.opcode, READ_16.opcode
WRITE_10_OPCODE, WRITE_16_OPCODE = WRITE_10.opcode, WRITE_16.opcode
FLUSH_10_OPCODE, FLUSH_16_OPCODE = SYNCHRONIZE_CACHE_10.opcode, SYNCHRONIZE_CACHE_16.opcode
# (opcode, flags, lba, length, control), as declared in `cdbs`; WRITE and SYNCHRONIZE CACHE have the layout of READ
unpack_10 = READ_10.struct.unpack_from
unpack_16 = READ_16.struct.unpack_from
NOT_PLAIN = 0xFF & ~DPO
"""DPO is advice; any other flag needs the router."""
NOT_PLAIN_FLUSH = 0xFF & ~SYNC_NV
"""There is no cache that SYNC_NV could tell apart."""

SERVICE_RESPONSES = {
    ServiceResponse.FUNCTION_COMPLETE: TaskResponse.FUNCTION_COMPLETE,
    ServiceResponse.INCORRECT_LOGICAL_UNIT_NUMBER: TaskResponse.LUN_DOES_NOT_EXIST,
    ServiceResponse.FUNCTION_REJECTED: TaskResponse.FUNCTION_REJECTED,
}
# ABORT TASK has its own method; CLEAR ACA is not supported as NORMACA is 0
FUNCTIONS: dict[int, Callable[[ITNexus, int], ServiceResponse]] = {
    TaskFunction.ABORT_TASK_SET: lambda nexus, lun: on_unit(abort_task_set, nexus, lun),
    TaskFunction.CLEAR_TASK_SET: lambda nexus, lun: on_unit(clear_task_set, nexus, lun),
    TaskFunction.LOGICAL_UNIT_RESET: lambda nexus, lun: on_unit(logical_unit_reset, nexus, lun),
    TaskFunction.TARGET_WARM_RESET: lambda nexus, lun: target_reset(nexus),
    TaskFunction.TARGET_COLD_RESET: lambda nexus, lun: target_reset(nexus),
}
MAY_BE_REORDERED = (Attribute.UNTAGGED, Attribute.SIMPLE)

FastRead = tuple[int, int, Callable[[int, memoryview], bool], Counters]
LongWrites = tuple[Callable[[int, int], Placing | None], Callable[[Placing], None]]
FastWrite = tuple[int, int, Callable[[int, memoryview, bool], bool], Counters]
WhenDurable = Callable[[Callable[[BaseException | None], None], bool], bool]


def plain_extent(
    buf: bytes | memoryview, cdb_at: int, opcode_10: int, opcode_16: int, not_plain: int = NOT_PLAIN
) -> tuple[int, int] | None:
    """(LBA, blocks) of a command with one of the two opcodes that asks for nothing that needs the router.  `fast_read`,
    `fast_write` and `fast_writes` do the same in place: beside 4 KiB the call would show."""
    opcode, flags, lba, blocks, control = unpack_10(buf, cdb_at)
    if opcode == opcode_16:
        _, flags, lba, blocks, control = unpack_16(buf, cdb_at)
    elif opcode != opcode_10:
        return None
    return None if flags & not_plain or control else (lba, blocks)


class TargetDevice:
    """A SCSI target device: the nexuses of one target."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.nexuses: list[Nexus] = []
        self.tokens = Tokens()
        self.target_ports: tuple[int, ...] = (1,)
        """The tags of the portal groups."""
        self.management_addresses: tuple[str, ...] = ()
        """URLs, for VPD page 85h."""
        self.before_answers: Callable[[], None] = lambda: None
        """What must have happened before any answer of this device leaves."""
        self.when_warm: Callable[[Callable[[], None]], bool] = lambda done: False
        self.when_durable: WhenDurable | None = None
        """As `ports.Nexus` has them.  None: each flush goes by its store."""

    def open_nexus(
        self, initiator: str, isid: bytes, lun_map: LunMap, on_close: OnClose | None = None, tpgt: int = 1
    ) -> Nexus:
        """A new session's nexus; `on_close` is called once when the session is gone."""
        nexus = Nexus(self, initiator, isid, tpgt, on_close)
        nexus.set_map(lun_map)
        self.nexuses.append(nexus)
        return nexus

    def set_target_ports(self, ports: tuple[int, ...]) -> None:
        """Portal groups came or went."""
        if ports != self.target_ports:
            self.target_ports = ports
            for nexus in self.nexuses:
                nexus.set_target_ports(ports)

    def refresh(self, lun_map_of: Callable[[str], LunMap]) -> None:
        """Give every nexus the map that its initiator has now."""
        for nexus in list(self.nexuses):
            nexus.set_map(lun_map_of(nexus.initiator))


class Nexus(ITNexus):
    """`ports.Nexus` for one session."""

    def __init__(
        self, device: TargetDevice, initiator: str, isid: bytes, tpgt: int, on_close: OnClose | None
    ) -> None:
        super().__init__(initiator, isid, device.name, tpgt)
        self.tokens = device.tokens
        self.management_addresses = device.management_addresses
        self.device = device
        self._on_close = on_close
        self.on_abort: Aborted | None = None
        self.on_event: Announce | None = None
        self._readable: dict[int, FastRead] = {}
        self._writable: dict[int, FastWrite] = {}
        self._write_several: dict[int, Callable[[Sequence[tuple[int, memoryview]]], bool]] = {}
        """Where there is a better way than one by one; what is here is in `_writable` too."""
        self._long_writable: dict[int, LongWrites] = {}
        """Those of them that take a long WRITE as it comes."""
        self._closed = False
        self.set_target_ports(device.target_ports)

    def before_answers(self) -> None:
        self.device.before_answers()

    def when_warm(self, done: Callable[[], None]) -> bool:
        return self.device.when_warm(done)

    def announce(self, lun: int, attention: Asc) -> None:
        if self.on_event is not None:
            self.on_event(lun_field(lun), CheckCondition(SenseKey.UNIT_ATTENTION, attention).encode())

    # --- hot path -----------------------------------------------------------------------------------------------

    def fast_read(self, lun: int, buf: memoryview, cdb_at: int, edtl: int, out: memoryview) -> int:
        try:
            shift, size, read, counters = self._readable[lun]
        except KeyError:
            return -1
        opcode, flags, lba, blocks, control = unpack_10(buf, cdb_at)
        if opcode == READ_16_OPCODE:
            _, flags, lba, blocks, control = unpack_16(buf, cdb_at)
        elif opcode != READ_10_OPCODE:
            return -1
        offset = lba << shift
        room = len(out)
        if flags & NOT_PLAIN or control or blocks << shift != edtl or offset + edtl > size or not 0 < edtl <= room:
            return -1
        try:
            if not read(offset, out if edtl == room else out[:edtl]):
                return -1
        except Exception:  # whatever it was, the router meets it again and says what it is
            return -1
        counters.reads += 1
        counters.read_bytes += edtl
        return edtl

    def fast_read_pieces(
        self, lun: int, buf: memoryview, cdb_at: int, edtl: int, pieces: Sequence[memoryview]
    ) -> bool:
        try:
            shift, size, read, counters = self._readable[lun]
        except KeyError:
            return False
        plain = plain_extent(buf, cdb_at, READ_10_OPCODE, READ_16_OPCODE)
        if plain is None:
            return False
        offset = plain[0] << shift
        if plain[1] << shift != edtl or offset + edtl > size:
            return False
        try:
            here = True
            for piece in pieces:
                here = read(offset, piece) and here  # what is missing of the rest is asked for, too
                offset += len(piece)
        except Exception:  # as above
            return False
        if not here:
            return False
        counters.reads += 1
        counters.read_bytes += edtl
        return True

    def fast_write(self, lun: int, buf: memoryview, cdb_at: int, data: memoryview) -> bool:
        try:
            shift, size, write, counters = self._writable[lun]
        except KeyError:
            return False
        opcode, flags, lba, blocks, control = unpack_10(buf, cdb_at)
        if opcode == WRITE_16_OPCODE:
            _, flags, lba, blocks, control = unpack_16(buf, cdb_at)
        elif opcode != WRITE_10_OPCODE:
            return False
        offset = lba << shift
        length = len(data)
        if flags & NOT_PLAIN or control or blocks << shift != length or offset + length > size or not length:
            return False
        try:
            if not write(offset, data, True):
                return False
        except Exception:  # as above
            return False
        counters.writes += 1
        counters.write_bytes += length
        return True

    def fast_writes(self, lun: int, buf: memoryview, cdbs: Sequence[int], datas: Sequence[memoryview]) -> bool:
        try:
            write_several = self._write_several[lun]
            shift, size, _, counters = self._writable[lun]
        except KeyError:
            return False
        writes = []
        for cdb_at, data in zip(cdbs, datas, strict=True):
            opcode, flags, lba, blocks, control = unpack_10(buf, cdb_at)
            if opcode == WRITE_16_OPCODE:
                _, flags, lba, blocks, control = unpack_16(buf, cdb_at)
            elif opcode != WRITE_10_OPCODE:
                return False
            offset, length = lba << shift, len(data)
            if flags & NOT_PLAIN or control or blocks << shift != length or offset + length > size:
                return False
            writes.append((offset, data))
        try:
            if not write_several(writes):
                return False
        except Exception:  # as above
            return False
        counters.writes += len(writes)
        counters.write_bytes += sum(map(len, datas))
        return True

    def fast_flush(self, lun: int, buf: memoryview, cdb_at: int) -> bool:
        try:
            shift, size, _, _ = self._writable[lun]
        except KeyError:
            return False
        plain = plain_extent(buf, cdb_at, FLUSH_10_OPCODE, FLUSH_16_OPCODE, NOT_PLAIN_FLUSH)
        if plain is None or self.device.when_durable is None:
            return False
        lba, blocks = plain
        return lba << shift < size and lba + blocks << shift <= size

    def when_durable(self, done: Callable[[BaseException | None], None], here: bool) -> bool:
        assert self.device.when_durable is not None
        return self.device.when_durable(done, here)

    def begin_write(self, lun: int, cdb: bytes, length: int) -> Placing | None:
        try:
            begin, _ = self._long_writable[lun]
            shift, size, _, _ = self._writable[lun]
        except KeyError:
            return None
        plain = plain_extent(cdb, 0, WRITE_10_OPCODE, WRITE_16_OPCODE)
        if plain is None:
            return None
        offset = plain[0] << shift
        if plain[1] << shift != length or offset + length > size:
            return None
        try:
            return begin(offset, length)
        except Exception:  # as above
            return None

    def end_write(self, lun: int, placing: Placing) -> bool:
        try:
            _, end = self._long_writable[lun]
            counters = self._writable[lun][3]
            end(placing)
        except Exception:  # as above
            return False
        counters.writes += 1
        counters.write_bytes += placing.taken
        return True

    def itl_changed(self, itl: ITLNexus) -> None:
        field, lu = lun_field(itl.lun), itl.lu
        self._readable.pop(field, None)
        self._writable.pop(field, None)
        self._write_several.pop(field, None)
        self._long_writable.pop(field, None)
        if itl.attentions or self.itls.get(field) is not itl:
            return
        shift, size, store = lu.shift, lu.blocks << lu.shift, lu.store
        if itl.open_for(Access.READ):
            self._readable[field] = (shift, size, getattr(store, "plain_read", store.read_into_nowait), lu.counters)
        if itl.open_for(Access.WRITE):
            self._writable[field] = (shift, size, getattr(store, "plain_write", store.write), lu.counters)
            if hasattr(store, "plain_writes"):
                self._write_several[field] = store.plain_writes
            if hasattr(store, "begin_write") and hasattr(store, "end_write"):
                self._long_writable[field] = (store.begin_write, store.end_write)

    def itls_changed(self) -> None:
        for each in (self._readable, self._writable, self._write_several, self._long_writable):
            each.clear()

    # --- every command ------------------------------------------------------------------------------------------

    def data_out_length(self, lun: int, cdb: bytes) -> int:
        return data_out_length(self, lun, cdb)

    def execute(
        self, lun: int, cdb: bytes, attribute: int, data_out: memoryview, tag: int, done: Done
    ) -> Response | None:
        """Commands run one at a time in the order they come.  Overtaken are only a wait for durability, and what that
        waits for has been written by then, and a wait for the disk (target.scsi.cold): not by a command that must keep
        its place."""
        try:
            in_place = attribute not in MAY_BE_REORDERED
            reply = perform(
                self, lun, cdb, data_out, tag, lambda late: done(response_to(late)), in_place=in_place
            )  # fmt: skip
        except Exception:  # the border of the device server: a fault here ends one command, not the session
            log.exception("%s: command %s failed inside the device server", self.initiator, cdb[:16].hex())
            return Response(Status.CHECK_CONDITION, INTERNAL_FAILURE)
        return None if reply is None else response_to(reply)

    def abort_task(self, lun: int, tag: int) -> bool:
        return abort_task(self, lun, tag)

    def manage(self, function: int, lun: int) -> int:
        if function == TaskFunction.TASK_REASSIGN:
            return TaskResponse.REASSIGNMENT_NOT_SUPPORTED
        if function == TaskFunction.I_T_NEXUS_RESET:
            self.reset()
            return TaskResponse.FUNCTION_COMPLETE
        act = FUNCTIONS.get(function)
        return TaskResponse.FUNCTION_NOT_SUPPORTED if act is None else SERVICE_RESPONSES[act(self, lun)]

    def attention(self, lun: int) -> bytes | None:
        itl = self.find(lun)
        if itl is None:
            return None
        if not itl.attentions:
            return b""
        depth = 1 if len(itl.attentions) == 1 else 2
        return bytes((depth << 4 | SenseKey.UNIT_ATTENTION,)) + int(itl.attentions[0]).to_bytes(2, "big")

    def abort(self, lu: LogicalUnit, issuer: ITNexus) -> int:
        """As ITNexus does, and what the transport holds for the logical unit ends with it."""
        count = super().abort(lu, issuer)
        if self.on_abort is not None:
            self.on_abort(lambda field: (itl := self.find(field)) is not None and itl.lu is lu, issuer is not self)
        return count

    def reset(self) -> None:
        """I_T NEXUS RESET (SAM-5 7.6): I_T nexus loss on every logical unit, and the nexus goes on."""
        for itl in list(self.itls.values()):
            self.abort(itl.lu, self)
            if itl.lu.reservations.release_unit(itl):
                itl.lu.state_changed()
            itl.establish(Asc.I_T_NEXUS_LOSS_OCCURRED)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self.lose()
        self.device.nexuses.remove(self)
        if self._on_close is not None:
            self._on_close(self)


INTERNAL_FAILURE = CheckCondition(SenseKey.HARDWARE_ERROR, Asc.INTERNAL_TARGET_FAILURE).encode()


def response_to(reply: Reply) -> Response:
    """The Reply in the transport's words."""
    reader = None if reply.reader is None else failing_in_transport_terms(reply.reader)
    return Response(reply.status, reply.sense, reply.data, reader, reply.length, reply.wanted, reply.fenced)


def failing_in_transport_terms(reader: SegmentReader) -> SegmentReader:
    def read(offset: int, view: memoryview) -> None:
        try:
            reader(offset, view)
        except ReaderFailed as failed:
            raise DataInFailed(response_to(failed.reply)) from failed

    return read


def open_nexuses_of(lu: LogicalUnit) -> list[Nexus]:
    """The sessions that see a logical unit, each once."""
    return list(dict.fromkeys(cast(Nexus, itl.nexus) for itl in lu.itls))
