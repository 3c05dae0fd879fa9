"""Long Data-Out received straight into the command's buffer, without a stay in the receive buffer.

Only the plain case: the header has arrived (and its digest is right), the PDU is the one that comes next, its data
needs no padding, no data digest and no cutting.  Anything else takes the ordinary way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from target.iscsi import commands, layouts
from target.iscsi.constants import FINAL, Opcode
from target.iscsi.errors import PduRejected
from target.iscsi.tasks import Sequence, State, Task

if TYPE_CHECKING:
    from target.iscsi.connection import Connection

_UNPACK = layouts.DATA_OUT.codec.unpack_from


class DirectData:
    """One Data-Out that is arriving in place."""

    __slots__ = ("_filled", "_final", "_place", "_sequence", "_task")

    def __init__(self, task: Task, sequence: Sequence, place: memoryview, filled: int, final: bool) -> None:
        self._task = task
        self._sequence = sequence
        self._place = place
        self._filled = filled
        self._final = final
        # a reset in another session may drop the task meanwhile: its buffer must then not serve another command
        task.pinned = True

    def free(self) -> memoryview:
        return self._place[self._filled :]

    def took(self, count: int) -> bool:
        """True when the whole data segment is there."""
        self._filled += count
        return self._filled == len(self._place)

    def finish(self, connection: Connection) -> None:
        self._task.pinned = False
        connection.heard()
        if self._task.state is State.GATHERING:
            commands.data_out_taken(connection, self._task, self._sequence, len(self._place), self._final)


def begin_direct(connection: Connection, size: int) -> DirectData | None:
    """Set up the PDU at the start of the receive buffer, of which a part is there.  None: not a plain case."""
    rx, framing = connection.rx, connection.framing
    header = rx.view[rx.start : rx.start + 48]
    opcode, flags, lengths, _, _, _, _, data_sn, offset = _UNPACK(header)
    data_at = framing.data_at(rx.start)
    # `lengths` over 24 bits: an AHS
    if opcode != Opcode.DATA_OUT or framing.data_digest or lengths & 3 or lengths >> 24 or data_at > rx.end:
        return None
    if framing.header_digest and not framing.header_intact(rx.view, rx.start):
        return None
    try:
        found = commands.find_sequence(connection, header)
    except PduRejected:
        return None
    if found is None:
        return None
    task, sequence = found
    place = task.place(offset, lengths)
    if place is None or len(place) != lengths or not task.check(sequence, data_sn, offset, lengths):
        return None
    have = rx.end - data_at
    place[:have] = rx.view[data_at : rx.end]
    return DirectData(task, sequence, place, have, bool(flags & FINAL))
