"""The administrator's settings in several processes: the front has the database, each worker a copy of it in memory.

Only the front writes.  After each commit it gives every worker the whole database, as an image (it is small), and a
change has returned only when they have it: who has unmapped a LUN knows that no host sees it any more.

A worker's change is done on its copy first, which refuses what the tables refuse, and taken back there.  Its statements
then go to the front, to be done in a transaction like any other; what it has changed comes back as an image, before the
answer.  Settings that two processes change at the same time are the same as if one had been a little later: each change
is whole, and the database's own rules and `AdminState.check` hold at its end.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from target.management.refusal import Refused
from target.management.state import AdminState
from target.management.store import AdminStore, Change, read_state
from target.workers.messages import MAX_ROWS, Blob, Statement, Value

STATEMENTS: TypeAdapter[list[Statement]] = TypeAdapter(list[Statement])
Parameters = Sequence[Any]


class SharedStore(AdminStore):
    """The front's."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.share: Callable[[bytes], Awaitable[None]] | None = None
        """Gives an image to the workers, at once; what it returns is done when they have it."""
        self.sharing = asyncio.Lock()
        """Held from the making of an image until it is on its way: no worker gets an older one after a newer one."""

    async def image(self) -> bytes:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._serialize)

    def _serialize(self) -> bytes:
        if self._connection is None:
            raise Refused("shutting-down", "the daemon is stopping; try again when it is back")
        return self._connection.serialize()

    async def _publish(self, future: asyncio.Future[AdminState]) -> AdminState:
        self.state = await future
        if self.share is not None:
            async with self.sharing:
                image = await self.image()
                arrived = self.share(image)
            await arrived
        return self.state

    async def apply(self, statements: bytes) -> None:
        """A worker's change.  Raises ValueError, Refused."""
        wanted = STATEMENTS.validate_json(statements)
        try:
            await self.change(lambda cursor: _replay(cursor, wanted))
        except sqlite3.IntegrityError as error:
            raise Refused("changed-meanwhile", f"the settings have changed meanwhile ({error}); try again") from None


class CopiedStore:
    """A worker's."""

    def __init__(self, ask: Callable[[bytes], Awaitable[None]]) -> None:
        self.state = AdminState()
        self._ask = ask
        self._copy = sqlite3.connect(":memory:")

    async def take(self, image: bytes) -> None:
        """The settings are these now."""
        copy, state = await asyncio.to_thread(_open, image)
        self._copy.close()
        self._copy, self.state = copy, state

    async def change(self, change: Change) -> AdminState:
        await self._ask(STATEMENTS.dump_json(self._record(change)))
        return self.state

    def _record(self, change: Change) -> list[Statement]:
        recorder = Recorder(self._copy)
        self._copy.execute("BEGIN")
        try:
            change(recorder)
        finally:
            self._copy.execute("ROLLBACK")
        return recorder.statements


def _open(image: bytes) -> tuple[sqlite3.Connection, AdminState]:
    copy = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
    copy.deserialize(image)
    copy.execute("PRAGMA foreign_keys = ON")
    return copy, read_state(copy.cursor())


class Recorder(sqlite3.Cursor):
    """A cursor that remembers what it was asked to change."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        super().__init__(connection)
        self.statements: list[Statement] = []

    def execute(self, sql: str, parameters: Parameters = (), /) -> Recorder:  # type: ignore[override]
        super().execute(sql, parameters)
        if not sql.lstrip().upper().startswith("SELECT"):
            self._keep(sql, [parameters])
        return self

    def executemany(self, sql: str, rows: Iterable[Parameters], /) -> Recorder:  # type: ignore[override]
        kept = list(rows)
        super().executemany(sql, kept)
        for start in range(0, len(kept), MAX_ROWS):
            self._keep(sql, kept[start : start + MAX_ROWS])
        return self

    def _keep(self, sql: str, rows: Sequence[Parameters]) -> None:
        self.statements.append(Statement(sql=sql, rows=[[_portable(value) for value in row] for row in rows]))


def _portable(value: Any) -> Value:
    return Blob(hex=value.hex()) if isinstance(value, bytes) else value


def _replay(cursor: sqlite3.Cursor, statements: list[Statement]) -> None:
    for each in statements:
        rows = [[bytes.fromhex(v.hex) if isinstance(v, Blob) else v for v in row] for row in each.rows]
        cursor.executemany(each.sql, rows)
