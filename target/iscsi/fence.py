"""The response fence of a session with several connections: RFC 7143 4.2.2.3.

Some answers tell the initiator about commands that may have gone by other connections: the answer to a task management
function that ended many tasks, the first unit attention after one, the answer to PREEMPT AND ABORT.  Its SCSI layer
must see such an answer after everything that was sent before and before everything that is sent later, by whatever
connection.  TCP keeps no order between connections, so a fence asks: each of the others with a NOP-In, whose answer
can only come after what was sent there before; then, when the fenced answer is out, its own connection.  Until that is
answered no other answer leaves and no further command begins: commands are held as if one before them were missing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from target.iscsi.answers import Message
from target.iscsi.constants import NO_TAG, Opcode

if TYPE_CHECKING:
    from target.iscsi.connection import Connection


class Deferred(NamedTuple):
    """An answer that waits for a fence."""

    connection: Connection
    send: Callable[[], None]
    fenced: bool
    """It is to have a fence of its own."""
    function: bool
    """To a task management request: these have no window that limits them."""


class Fence:
    """One answer in its place among those of all connections.  A connection that ends keeps nobody waiting."""

    def __init__(self, answer: Deferred, over: Callable[[], None]) -> None:
        self.answer = answer
        self._over = over
        self._waiting: set[Connection] = set()
        self._next: Callable[[], None] = self._send

    @property
    def _others(self) -> list[Connection]:
        own = self.answer.connection
        return [each for each in own.session.connections.values() if each is not own]

    def begin(self) -> None:
        self._ask(self._others)

    def _ask(self, connections: list[Connection]) -> None:
        """Go on when the initiator has everything that these have sent."""
        self._waiting = set(connections)
        for connection in connections:
            connection.ask_for_fence(self)
        if not connections:
            self._next()

    def _send(self) -> None:
        self._next = self._over
        own = self.answer.connection
        self.answer.send()
        own.wake()
        self._ask([own] if own.full_feature and self._others else [])

    def passed(self, connection: Connection) -> None:
        """The initiator has everything that the connection sent before."""
        if connection in self._waiting:
            self._waiting.remove(connection)
            if not self._waiting:
                self._next()

    def gone(self, connection: Connection) -> None:
        """The connection has ended."""
        if connection is self.answer.connection:
            self._waiting.clear()
            self._over()
        else:
            self.passed(connection)


def ask(connection: Connection, tag: int) -> None:
    """The NOP-In that asks."""
    connection.emit(Message(Opcode.NOP_IN, counts=False, itt=NO_TAG, ttt=tag))
    connection.wake()
