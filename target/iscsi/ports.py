"""What the iSCSI core asks of the world around it.

`target.iscsi` and `target.scsi` do not import each other: the core sees SCSI through `Nexus`, and
names, access and secrets through `TargetDirectory`.  `target.nexus` and `target.management` implement
them; the tests have small ones of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

# A SCSI LUN is the 8-byte field of SAM-5 4.7, read as one big-endian unsigned integer.
SegmentReader = Callable[[int, memoryview], None]
"""(offset within the command's data, view to fill); raises DataInFailed."""


@dataclass(slots=True)
class Response:
    """The outcome of one SCSI command, as SAM gives it to the transport."""

    status: int = 0
    sense: bytes = b""
    """Sense data without the iSCSI length prefix."""
    data: bytes | memoryview = b""
    """Data-In, when it is small or computed."""
    reader: SegmentReader | None = None
    """Data-In in place: fills pieces of the output buffer; `length` bytes in all."""
    length: int = 0
    """Bytes of Data-In the command returns (before EDTL is applied)."""
    wanted: int = 0
    """Bytes of Data-Out the CDB asks for (before EDTL is applied): for the residual."""
    fenced: bool = False
    """RFC 7143 4.2.2.3.3: it tells of commands that another connection of the session may have brought."""


class DataInFailed(Exception):
    """A `reader` could not deliver; `response` replaces GOOD status."""

    def __init__(self, response: Response) -> None:
        super().__init__("Data-In failed")
        self.response = response


Done = Callable[[Response], None]


Aborted = Callable[[Callable[[int], bool], bool], None]
"""(is this LUN the logical unit?, are its tasks told?): the device server has ended all tasks of this nexus on one
logical unit.  Told: they end with TASK ABORTED, because another nexus did it (SAM-5 5.3.1, TAS=1); else silently."""


class Placing(Protocol):
    """The Data-Out of one WRITE on its way to the medium.  Nobody reads any of it before `Nexus.end_write`."""

    taken: int
    """Bytes that were added."""

    def add(self, data: memoryview) -> None:
        """The bytes that come next, a multiple of 4096; `data` is not looked at afterwards.  Raises what it likes."""

    def read_back(self, view: memoryview) -> None:
        """Fill `view` with what was added, from the first byte on.  Raises what it likes."""

    def drop(self) -> None:
        """No more of it is wanted: what has not happened does not.  Safe to call twice, and after its end."""


Announce = Callable[[int, bytes], None]
"""(LUN, sense data): a SCSI event that the initiator may be told of before it asks (11.9.1, event 0)."""


class Nexus(Protocol):
    """One I_T nexus: a normal session's way into the SCSI device server."""

    on_event: Announce | None
    """Set by the session.  Called outside of `execute` and `manage`; the unit attention of the event stays pending."""

    on_abort: Aborted | None
    """Set by the session: what it still holds for the logical unit ends too.  Called for every function of `manage`
    and every command (PREEMPT AND ABORT) that ends tasks, whoever sent it; never for what `execute` is doing."""

    protocol_level: int
    """Set by the session: iSCSIProtocolLevel."""

    def fast_read(self, lun: int, buf: memoryview, cdb_at: int, edtl: int, out: memoryview) -> int:
        """Hot path.  If `buf[cdb_at:]` is a plain in-range READ of exactly `edtl` bytes that fit `out`, nothing
        (unit attention, reservation, offline) stands in its way and the data needs no disk wait: fill `out` and
        return the bytes read.  Else return -1, having changed nothing."""

    def fast_read_pieces(
        self, lun: int, buf: memoryview, cdb_at: int, edtl: int, pieces: Sequence[memoryview]
    ) -> bool:
        """Hot path.  As `fast_read`, into pieces that make up `edtl` bytes, each but the last a multiple of 512.
        False: `pieces` are undefined and nothing else has changed."""

    def fast_write(self, lun: int, buf: memoryview, cdb_at: int, data: memoryview) -> bool:
        """Hot path.  Same for a plain WRITE without FUA whose whole Data-Out is `data`."""

    def fast_writes(self, lun: int, buf: memoryview, cdbs: Sequence[int], datas: Sequence[memoryview]) -> bool:
        """Hot path.  Same for several that came together, in order.  False: some may have been done, which does no harm
        when all of them are done again."""

    def begin_write(self, lun: int, cdb: bytes, length: int) -> Placing | None:
        """Data-Out of `length` bytes will come in pieces.  If `cdb` is a plain WRITE of that length and nothing stands
        in its way: where to put them, to be ended by `end_write`, or by `drop`.  None: gather them, and `execute`."""

    def end_write(self, lun: int, placing: Placing) -> bool:
        """All `length` bytes were added: the WRITE is done.  False: something stands in its way now, and it is to be
        executed with what was added, which `read_back` gives."""

    def data_out_length(self, lun: int, cdb: bytes) -> int:
        """Bytes of Data-Out that the command will take, 0 if none or if it will fail anyway.  Bounded by the
        MAXIMUM TRANSFER LENGTH; never raises."""

    def execute(
        self, lun: int, cdb: bytes, attribute: int, data_out: memoryview, tag: int, done: Done
    ) -> Response | None:
        """Execute one command whose Data-Out is complete.  The Response, or None: then `done` is called later, exactly
        once, unless the task `tag` (the ITT) is aborted first.  `attribute`: RFC 7143 11.3.1.  Never raises.

        `data_out` is a piece of the receive buffer and valid until `execute` returns: copy what is needed longer.
        A `reader` in the Response is called before anything else is asked of this nexus, or, when the output buffer
        is full, as room appears; each piece once, in order."""

    def abort_task(self, lun: int, tag: int) -> bool:
        """ABORT TASK: True if the task was still in the device server (its `done` is never called then)."""

    def manage(self, function: int, lun: int) -> int:
        """The other task management functions (RFC 7143 11.5.1 code) -> response code (11.6.1).  Aborts this and, as
        the function says, other nexuses' tasks (those end with TASK ABORTED) and establishes unit attentions."""

    def attention(self, lun: int) -> bytes | None:
        """QUERY ASYNCHRONOUS EVENT (SAM-5 7.10): the three bytes that describe the unit attention which is reported
        next, none if there is none to report; None if there is no such logical unit."""

    def when_warm(self, done: Callable[[], None]) -> bool:
        """READs were refused by the fast ways.  If that may be because the disk has to be waited for: True, and `done`
        is called when they are worth another try, never before returning.  False: waiting would change nothing."""

    def fast_flush(self, lun: int, buf: memoryview, cdb_at: int) -> bool:
        """Hot path.  Whether `buf[cdb_at:]` is a plain SYNCHRONIZE CACHE and nothing stands in its way: then all that
        is left to do is to wait (`when_durable`)."""

    def when_durable(self, done: Callable[[BaseException | None], None], here: bool) -> bool:
        """True: all that was written is durable.  False: `done` is called when it is, or with the error, never before
        returning.  `here`: nobody else waits for anything, so the disk may be waited for here if that is soon over."""

    def before_answers(self) -> None:
        """Called before answers leave, once for all that are ready: what they promise must be there then.  If it
        raises, they do not leave."""

    def close(self) -> None:
        """I_T nexus loss: tasks are dropped silently, RESERVE(6) is released."""


@dataclass(frozen=True)
class ChapPolicy:
    """What a login must prove.  `inbound` empty: no authentication is asked for (AuthMethod=None is accepted)."""

    inbound: Mapping[str, bytes] = field(default_factory=dict)
    """CHAP name -> secret that the initiator may use."""
    outbound: tuple[str, bytes] | None = None
    """(name, secret) with which the target answers a mutual challenge."""


class LoginRefused(Exception):
    """Login ends with RFC 7143 11.13.5 status class and detail; `reason` is for the log, never with a secret."""

    def __init__(self, status_class: int, status_detail: int, reason: str, target_address: str = "") -> None:
        super().__init__(reason)
        self.status_class = status_class
        self.status_detail = status_detail
        self.reason = reason
        self.target_address = target_address
        """Class 1 (redirection) only: the TargetAddress to go to, "addr:port[,tpgt]"."""


class TargetDirectory(Protocol):
    """Which targets there are, who may see them, and what they must prove."""

    def chap_policy(self, initiator: str, target: str | None, peer: str) -> ChapPolicy:
        """For a normal session to `target`, or for discovery (None), from the address `peer`.  Raises LoginRefused."""

    def visible_targets(self, initiator: str, local_address: tuple[str, int]) -> list[tuple[str, list[str]]]:
        """SendTargets: (target name, its TargetAddress values "addr:port,tpgt"), only where something is mapped.
        An empty list of addresses means every address that the portal answers on."""

    def open_nexus(self, initiator: str, isid: bytes, target: str, tpgt: int) -> Nexus:
        """Called once per new normal session after authentication.  Raises LoginRefused (2,3 not found; 2,2 not
        authorised; 1,1 and 1,2 moved)."""
