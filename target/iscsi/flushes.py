"""SYNCHRONIZE CACHEs that wait for the disk: all that came together wait together.

The hot path puts plain ones aside, and one question a batch goes to the device server (`Nexus.when_durable`): the wait
is the same for all of them, so no task, no reply object and no callback is made for each.  Meanwhile other commands
overtake them, which nothing forbids: what was written before them is written.  They count against the command window.

Whatever is no SCSI Command, on any connection of the session, turns them into tasks first (`finish`), so task
management finds them as it finds all others; and what the device server ends for others' sake ends here too (`ended`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from target.iscsi import layouts
from target.iscsi.answers import ScsiResponse
from target.iscsi.constants import FINAL, Opcode, ScsiStatus
from target.iscsi.limits import BHS_BYTES, DIGEST_BYTES
from target.iscsi.ports import Response

if TYPE_CHECKING:
    from target.iscsi.connection import Connection
    from target.iscsi.session import Session

_UNPACK = layouts.SCSI_COMMAND.codec.unpack_from
_PACK_GOOD = layouts.GOOD_RESPONSE.codec.pack_into
_GOOD_HEAD = Opcode.SCSI_RESPONSE << 24 | FINAL << 16


class _Group:
    """Those of one batch."""

    __slots__ = ("connection", "pdus")

    def __init__(self, connection: Connection, pdus: list[bytes]) -> None:
        self.connection = connection
        self.pdus = pdus


class Flushes:
    """Those of one session."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.waiting: list[_Group] = []
        """At most a command window full."""

    def ask(self, connection: Connection, positions: list[int], *, here: bool) -> None:
        """Answer the PDUs at these positions of the receive buffer, which goes on to other uses, when what was written
        is durable.  `here`: the answer is all that anybody waits for."""
        rx, size = connection.rx.view, BHS_BYTES + (DIGEST_BYTES if connection.framing.header_digest else 0)
        group = _Group(connection, [bytes(rx[at : at + size]) for at in positions])
        positions.clear()
        nexus = self._session.nexus
        assert nexus is not None
        self.waiting.append(group)
        if nexus.when_durable(partial(self._durable, group), here):
            self._end(group, None)

    def _durable(self, group: _Group, error: BaseException | None) -> None:
        if group in self.waiting:
            self._end(group, error)
            group.connection.push()

    def _end(self, group: _Group, error: BaseException | None) -> None:
        self.waiting.remove(group)
        # Whoever knows what an error means to a host meets it again.
        if error is not None or not self._answered(group):
            self._by_the_book(group)

    def _answered(self, group: _Group) -> bool:
        """GOOD for all of them, at once.  False: something is in the way, and nothing has changed."""
        c, session = group.connection, self._session
        out, framing, window = c.output, c.framing, session.window
        size = framing.encoded_bytes(0)
        if not c.full_feature or c.waiting or session.fence is not None or len(group.pdus) * size > out.room:
            return False
        for pdu in group.pdus:
            window.outstanding -= 1
            itt = _UNPACK(pdu)[4]
            at = out.used
            _PACK_GOOD(out.buffer, at, _GOOD_HEAD, itt, *c.numbers(True))
            out.used = framing.finish(out.view, at, 0)
        session.counters.others += len(group.pdus)
        return True

    def _by_the_book(self, group: _Group) -> None:
        for pdu in group.pdus:
            self._session.window.outstanding -= 1
            if group.connection.full_feature:
                group.connection.command_aside(memoryview(pdu), 0)

    def finish(self) -> None:
        """Make tasks of all of them."""
        waiting, self.waiting = self.waiting, []
        for group in waiting:
            self._by_the_book(group)
            group.connection.wake()

    def ended(self, names: Callable[[int], bool], told: bool) -> None:
        """The device server has ended all commands on one logical unit; `told`: their host hears of it."""
        session = self._session
        for group in self.waiting:
            for pdu in list(group.pdus):
                _, _, _, lun, itt, _, _, _ = _UNPACK(pdu)
                if not names(lun):
                    continue
                group.pdus.remove(pdu)
                session.window.outstanding -= 1
                session.counters.aborted += 1
                if told:
                    group.connection.emit(ScsiResponse(itt, 0, Response(status=ScsiStatus.TASK_ABORTED), 0))
                    group.connection.wake()

    def forget(self, connection: Connection) -> None:
        """There is no way left to answer."""
        for group in [each for each in self.waiting if each.connection is connection]:
            self._session.window.outstanding -= len(group.pdus)
            self.waiting.remove(group)
