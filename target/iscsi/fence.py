"""The response fence of a session with several connections: RFC 7143 4.2.2.3.

The answer to a task management function that ends many tasks tells the initiator that no more will be heard of them.
Answers that other connections sent before may still be on their way when it arrives, so it waits until they are there:
each of the other connections asks with a NOP-In, whose answer can only come after what was sent before it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from target.iscsi.answers import Message
from target.iscsi.constants import NO_TAG, Opcode

if TYPE_CHECKING:
    from target.iscsi.connection import Connection


class Fence:
    """One answer that waits for other connections.  A connection that ends keeps nobody waiting."""

    def __init__(self, others: list[Connection], then: Callable[[], None]) -> None:
        self._waiting = set(others)
        self._then = then
        for connection in others:
            ttt = connection.session.tags.take()
            connection.fences[ttt] = self
            connection.emit(Message(Opcode.NOP_IN, counts=False, itt=NO_TAG, ttt=ttt))
            connection.wake()

    def passed(self, connection: Connection) -> None:
        """The initiator has everything that the connection sent before."""
        self._waiting.discard(connection)
        if not self._waiting:
            self._then()
