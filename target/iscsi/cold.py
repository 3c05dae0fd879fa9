"""READs that wait for the disk.

The hot path puts aside what the device server could not read at once; the disk has begun to read it.  Whoever knows the
disk tells when that is worth another try (`Nexus.when_warm`), and until then the loop has time for others.  They
may be overtaken: SIMPLE and untagged tasks have no order (SAM-5 8.6).  They count against the command window, and
whatever is not such a SCSI Command, on any connection of the session, has them done first, waiting if need be
(`finish`): so none is left when a task management request looks for its tasks.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from target.iscsi import hotpath, layouts, limits
from target.iscsi.limits import BHS_BYTES, DIGEST_BYTES

if TYPE_CHECKING:
    from target.iscsi.connection import Connection
    from target.iscsi.session import Session

_UNPACK = layouts.SCSI_COMMAND.codec.unpack_from

HEADERS_BYTES = 4096
"""Of the Data-In of one READ, with digests, unless they are very short."""


class _ColdRead:
    __slots__ = ("connection", "edtl", "pdu", "tries")

    def __init__(self, connection: Connection, pdu: bytes) -> None:
        self.connection = connection
        self.pdu = pdu
        self.edtl = _UNPACK(pdu)[5]
        self.tries = 0


class ColdReads:
    """Those of one session."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.waiting: dict[_ColdRead, None] = {}
        """At most a command window full."""
        self._asked = False

    def put_aside(self, connection: Connection, positions: list[int]) -> None:
        """Keep the PDUs at these positions of the receive buffer, which goes on to other uses."""
        rx, size = connection.rx.view, BHS_BYTES + (DIGEST_BYTES if connection.framing.header_digest else 0)
        for at in positions:
            self.waiting[_ColdRead(connection, bytes(rx[at : at + size]))] = None
        positions.clear()

    def wait(self) -> None:
        """Until the disk has read; or not at all, if it is not the disk that they wait for."""
        nexus = self._session.nexus
        if self._asked or not self.waiting:
            return
        self._asked = nexus is not None and nexus.when_warm(self._warm)
        if not self._asked:
            self.finish()

    def finish(self) -> None:
        """Do all of them now, by the book, waiting for the disk."""
        waiting, self.waiting = self.waiting, {}
        for read in waiting:
            self._by_the_book(read)
        self._wake(waiting)

    def forget(self, connection: Connection) -> None:
        """There is no way left to answer."""
        left = {read: None for read in self.waiting if read.connection is not connection}
        self._session.window.outstanding -= len(self.waiting) - len(left)
        self.waiting = left

    def _warm(self) -> None:
        self._asked = False
        waiting = list(self.waiting)
        for read in waiting:
            self._make_room(read)
            if read not in self.waiting:
                continue  # done meanwhile, or its connection is gone
            del self.waiting[read]
            if not read.connection.full_feature:
                self._session.window.outstanding -= 1
            elif not self._at_once(read):
                # Pointers are read before what they point at, and others may have come with cold data of their own.
                read.tries += 1
                if read.tries < limits.COLD_TRIES:
                    self.waiting[read] = None
                else:
                    self._by_the_book(read)
        self._wake(waiting)
        self.wait()

    def _make_room(self, read: _ColdRead) -> None:
        """Answers that are ready leave before one that has no room beside them.  More is taken then, which may have all
        that waits done first."""
        out = read.connection.output
        if out.used and out.room < read.edtl + HEADERS_BYTES:
            read.connection.push()

    def _at_once(self, read: _ColdRead) -> bool:
        """As the hot path does it.  False: it is still cold, or not a plain case."""
        c, session = read.connection, self._session
        out, framing, nexus = c.output, c.framing, session.nexus
        _, _, _, lun, itt, edtl, _, _ = _UNPACK(read.pdu)
        trailer = DIGEST_BYTES if framing.data_digest else 0
        places = hotpath.places(c, edtl, out.used, len(read.pdu), trailer)
        if nexus is None or c.waiting or session.fence is not None or not places or edtl & 3:
            return False
        end = places[-1][1] + trailer
        if end > out.size:
            return False
        pieces = [out.view[begin:finish] for begin, finish, _ in places]
        if not nexus.fast_read_pieces(lun, memoryview(read.pdu), 32, edtl, pieces):
            return False
        session.window.outstanding -= 1
        hotpath.answer_in_pieces(c, itt, places, *c.numbers(True))
        out.used = end
        session.counters.reads += 1
        session.counters.read_bytes += edtl
        return True

    def _by_the_book(self, read: _ColdRead) -> None:
        self._session.window.outstanding -= 1
        if read.connection.full_feature:
            read.connection.command_aside(memoryview(read.pdu), 0)

    def _wake(self, reads: Iterable[_ColdRead]) -> None:
        for connection in dict.fromkeys(read.connection for read in reads):
            connection.wake()
