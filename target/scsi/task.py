"""One command on its way through the device server, its outcome, and what the command table says about commands."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from target.scsi.access_state import AccessState
from target.scsi.cdb import Cdb, Fields
from target.scsi.sense import Asc, CheckCondition, SenseKey, Status, illegal
from target.scsi.store import MediumError, SpaceExhausted, SpaceNotYet, StoreError, StoreOffline

if TYPE_CHECKING:
    from target.scsi.it_nexus import ITNexus
    from target.scsi.unit import ITLNexus, LogicalUnit

SegmentReader = Callable[[int, memoryview], None]


@dataclass(slots=True)
class Reply:
    """How a command ended.  The fields are those of `target.iscsi.ports.Response`, which this package cannot see."""

    status: int = Status.GOOD
    sense: bytes = b""
    data: bytes | memoryview = b""
    reader: SegmentReader | None = None
    """Raises ReaderFailed."""
    length: int = 0
    wanted: int = 0
    fenced: bool = False


class NotInMemory(Exception):
    """The command would have to wait for the disk, which has begun to read.  Nothing has been changed."""


class ReaderFailed(Exception):
    """A reader could not deliver; `reply` takes the place of GOOD status."""

    def __init__(self, reply: Reply) -> None:
        super().__init__("Data-In failed")
        self.reply = reply


ReplyDone = Callable[[Reply], None]
Attempt = Callable[[], "Reply | None"]


class Access(Enum):
    """What a command does to the logical unit, in the eyes of reservations (SPC-4 table 66, SBC-3 table 13)."""

    FREE = "allowed whoever holds a reservation"
    UNIT = "allowed by persistent reservations, refused by RESERVE(6)"
    READ = "reads the medium"
    WRITE = "writes the medium, or changes or shows parameters of it"
    RESERVATION = "decides for itself"


Handler = Callable[["Task"], "Reply | None"]
Extent = Callable[[Fields], tuple[int, int]]
DataOut = Callable[[Fields, "LogicalUnit"], int]


@dataclass(frozen=True, slots=True)
class Command:
    """One row of the command table."""

    name: str
    cdb: Cdb
    handler: Handler
    access: Access | Callable[[Fields], Access]
    extent: Extent | None = None
    """CDB fields -> (LBA, number of blocks), for commands that address a range.  The router checks it."""
    limit_bytes: int | None = None
    """Longest range; longer is INVALID FIELD IN CDB."""
    data_out: DataOut | None = None
    """Bytes of Data-Out that the CDB asks for."""
    limit_blocks: int | None = None
    exact: bool = False
    """A Data-Out of another length than the CDB asks for is an error (elsewhere it is a residual): half a comparison
    or half a pattern means nothing.  One block more than wanted is taken, so that too much is noticed."""
    blocked_by_attention: bool = True
    """False for INQUIRY, REPORT LUNS and REQUEST SENSE only (SAM-5 5.14)."""
    needs_ready: bool = True
    needs_medium: bool = True
    """False: executed while the medium of a removable unit is out, too."""
    while_erasing: bool = False
    """Executed while SANITIZE or FORMAT UNIT goes on (SBC-3 4.11.3)."""
    worst_access: AccessState = AccessState.ACTIVE_NON_OPTIMIZED
    """Through ports in a worse asymmetric access state it is not executed (SPC-4 5.15.2.4)."""
    writes: bool = False
    """Changes the medium: refused on a write-protected unit."""
    fenced: bool = False
    """It ends commands that may have come by other connections of the nexus (RFC 7143 4.2.2.3.3)."""
    supported: Callable[[LogicalUnit], bool] | None = None
    """None: on every logical unit."""


class Task:
    """A command with its CDB parsed and its Data-Out complete."""

    __slots__ = (
        "attempt", "command", "data_out", "done", "extent", "fields", "itl", "lu", "nexus", "patient", "tag", "tries",
        "wanted",
    )  # fmt: skip

    def __init__(self, nexus: ITNexus, itl: ITLNexus, command: Command, data_out: memoryview, tag: int,
                 done: ReplyDone) -> None:
        self.nexus = nexus
        self.itl = itl
        self.lu: LogicalUnit = itl.lu
        self.command = command
        self.fields: Fields = {}
        self.extent = (0, 0)
        self.data_out = data_out
        self.wanted = 0
        self.tag = tag
        self.done = done
        self.patient = False
        """It waits for the disk on the spot, and everybody else with it."""
        self.tries = 0
        """How often it has been put aside for the disk."""
        self.attempt: Attempt | None = None
        """What is done when the disk has read; None: it does not wait for that (target.scsi.cold)."""

    def read(self, offset: int, view: memoryview) -> bool:
        """Fill `view` from the store.  False, for a command that is not patient: not in memory."""
        if not self.patient:
            return self.lu.store.read_into_nowait(offset, view)
        self.lu.store.read_into(offset, view)
        return True

    def write(self, offset: int, data: memoryview) -> None:
        """Into the store, all of it.  Raises NotInMemory."""
        self.need(self.lu.store.write(offset, data, not self.patient))

    def need(self, ready: bool) -> None:
        """Raises NotInMemory if something that the command needs is not `ready`, unless it is patient."""
        if not (ready or self.patient):
            raise NotInMemory

    def put_aside(self) -> None:
        """The handler returns None, and `finish` ends the task later unless it is aborted first."""
        self.nexus.tasks[self.tag] = self

    @property
    def waiting(self) -> bool:
        """Put aside, and neither ended nor aborted."""
        return self.nexus.tasks.get(self.tag) is self

    def after_flush(self, reply: Reply) -> None:
        """Put the task aside; it ends with `reply` once everything written is durable."""
        # the store does not call back before it returns, and may raise
        self.lu.store.flush(lambda error: self._flushed(error, reply))
        self.put_aside()

    def after_save(self, name: str, value: bytes, reply: Reply) -> None:
        """Put the task aside; it ends with `reply` once `value` would survive a power cut."""
        self.lu.platform.save(name, value, lambda error: self._flushed(error, reply))
        self.put_aside()

    def _flushed(self, error: BaseException | None, reply: Reply) -> None:
        if error is not None:
            reply = self.lu.failed(flush_failure(error))
        self.finish(reply)

    def finish(self, reply: Reply) -> None:
        """End a task that was put aside, unless it has been aborted meanwhile."""
        reply.wanted = self.wanted
        reply.fenced = self.command.fenced
        self.end(reply)

    def end(self, reply: Reply) -> None:
        """The same with a reply that is complete."""
        if self.waiting:
            del self.nexus.tasks[self.tag]
            self.done(reply)

    def parameter_list(self, minimum: int = 0) -> memoryview:
        """The Data-Out of a command with a PARAMETER LIST LENGTH; shorter than announced is an error."""
        wanted = self.wanted
        if len(self.data_out) < wanted:
            raise illegal(Asc.INVALID_FIELD_IN_COMMAND_INFORMATION_UNIT)
        if wanted < minimum:
            raise illegal(Asc.PARAMETER_LIST_LENGTH_ERROR)
        return self.data_out[:wanted]


def data_in(data: bytes, allocation_length: int) -> Reply:
    """A Reply with parameter data, cut to the ALLOCATION LENGTH (SPC-4 4.2.5.6)."""
    data = data[:allocation_length]
    return Reply(data=data, length=len(data))


NOT_READY = CheckCondition(SenseKey.NOT_READY, Asc.LOGICAL_UNIT_NOT_READY_MANUAL_INTERVENTION_REQUIRED)


def store_failure(error: StoreError, block_bytes: int) -> CheckCondition:
    """What the host is told of an error of the store."""
    if isinstance(error, MediumError):
        # SBC-3 4.18.1: INFORMATION holds the LBA of the error
        return CheckCondition(SenseKey.MEDIUM_ERROR, Asc.UNRECOVERED_READ_ERROR, error.offset // block_bytes)
    if isinstance(error, SpaceNotYet):
        return CheckCondition(SenseKey.NOT_READY, Asc.LOGICAL_UNIT_NOT_READY_SPACE_ALLOCATION_IN_PROGRESS)
    if isinstance(error, SpaceExhausted):
        return CheckCondition(SenseKey.DATA_PROTECT, Asc.SPACE_ALLOCATION_FAILED_WRITE_PROTECT)
    if isinstance(error, StoreOffline):
        return NOT_READY
    return CheckCondition(SenseKey.HARDWARE_ERROR, Asc.INTERNAL_TARGET_FAILURE)


def flush_failure(error: BaseException) -> CheckCondition:
    """A flush that failed: never GOOD, whatever the error was."""
    if isinstance(error, SpaceExhausted | StoreOffline):
        return store_failure(error, 1)
    return CheckCondition(SenseKey.MEDIUM_ERROR, Asc.WRITE_ERROR)
