"""SQLite under the administrator's settings: one file, one connection, one thread of its own.

A change is a function over a cursor.  It runs inside a transaction on the store's thread; the whole state
is read back inside the same transaction, checked, and only then committed (synchronous=FULL, so it is on
the disk) and published as `state`.  Hence readers on the event loop never see a half-made change, and
nothing is published that a power cut could take back.  The tables are small (a thousand maps), so reading
them all costs a few milliseconds, off the loop.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from target.management.lun_values import SCHEMA as LUN_VALUE_SCHEMA
from target.management.lun_values import read_lun_values
from target.management.names import PortalAddress
from target.management.policies import SCHEMA as POLICY_SCHEMA
from target.management.policies import read_policies
from target.management.refusal import Refused
from target.management.state import AdminState, AuthMethod, ChapAccount, Igroup, LunMap, Redirect, VolumeRecord

Change = Callable[[sqlite3.Cursor], object]

# One entry a schema version; PRAGMA user_version counts how many have been applied.
MIGRATIONS = (
    """
    CREATE TABLE setting (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
    CREATE TABLE volume (
        name TEXT PRIMARY KEY,
        uuid TEXT NOT NULL UNIQUE,
        path TEXT NOT NULL UNIQUE,
        online INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE igroup (name TEXT PRIMARY KEY, ostype TEXT NOT NULL) STRICT;
    CREATE TABLE igroup_initiator (
        igroup TEXT NOT NULL REFERENCES igroup ON DELETE CASCADE,
        initiator TEXT NOT NULL,
        PRIMARY KEY (igroup, initiator)
    ) STRICT;
    CREATE TABLE lun_map (
        volume TEXT NOT NULL REFERENCES volume ON DELETE CASCADE,
        lun_uuid TEXT NOT NULL,
        lun_name TEXT NOT NULL,
        igroup TEXT NOT NULL REFERENCES igroup ON DELETE CASCADE,
        lun_id INTEGER NOT NULL,
        PRIMARY KEY (lun_uuid, igroup),
        UNIQUE (volume, igroup, lun_id)
    ) STRICT;
    CREATE TABLE account (
        initiator TEXT PRIMARY KEY,
        method TEXT NOT NULL,
        user TEXT NOT NULL,
        secret BLOB NOT NULL,
        out_user TEXT NOT NULL,
        out_secret BLOB NOT NULL
    ) STRICT;
    CREATE TABLE portal (host TEXT NOT NULL, port INTEGER NOT NULL, PRIMARY KEY (host, port)) STRICT;
    """,
    POLICY_SCHEMA,
    """
    ALTER TABLE volume ADD COLUMN nvlog TEXT NOT NULL DEFAULT '';
    """,
    LUN_VALUE_SCHEMA,
    """
    ALTER TABLE account ADD COLUMN networks TEXT NOT NULL DEFAULT '';
    CREATE TABLE redirect (
        volume TEXT PRIMARY KEY REFERENCES volume ON DELETE CASCADE,
        host TEXT NOT NULL,
        port INTEGER NOT NULL,
        permanent INTEGER NOT NULL
    ) STRICT;
    """,
    """
    ALTER TABLE portal ADD COLUMN portal_group INTEGER NOT NULL DEFAULT 1;
    """,
)


class AdminStore:
    """Owns the database file.  `state` is always the last committed state."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.state = AdminState()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="admin-db")
        self._connection: sqlite3.Connection | None = None

    def open(self) -> None:
        """Create or open the database, bring its schema up to date, read it.  Raises Refused."""
        self.state = self._thread.submit(self._open).result()

    def close(self) -> None:
        self._thread.submit(self._close).result()
        self._thread.shutdown()

    async def change(self, change: Change) -> AdminState:
        """Run `change` in a transaction of its own; it is durable and published on return."""
        future = asyncio.get_running_loop().run_in_executor(self._thread, self._transact, change)
        # Shielded: a caller that goes away does not stop the thread, and what it commits must be published.
        return await asyncio.shield(asyncio.ensure_future(self._publish(future)))

    def change_now(self, change: Change) -> AdminState:
        """The same, waiting for the disk: for start and stop, when nobody else is served."""
        self.state = self._thread.submit(self._transact, change).result()
        return self.state

    async def _publish(self, future: asyncio.Future[AdminState]) -> AdminState:
        self.state = await future
        return self.state

    # -- on the store's thread ---------------------------------------------------------------------------

    def _open(self) -> AdminState:
        # The file holds CHAP secrets: it is created unreadable for others before SQLite writes to it.
        os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))
        try:
            self._connection = connection = sqlite3.connect(self.path, isolation_level=None)
            connection.execute("PRAGMA journal_mode = DELETE")
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA foreign_keys = ON")
            self._migrate(connection)
            return read_state(connection.cursor())
        except sqlite3.DatabaseError as error:
            raise Refused(
                "admin-database-damaged",
                f"{self.path} cannot be read ({error}); restore it from a copy, or move it away to start without "
                "igroups, maps and accounts (volumes keep their LUNs)",
            ) from error

    def _migrate(self, connection: sqlite3.Connection) -> None:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version > len(MIGRATIONS):
            raise Refused(
                "admin-database-newer",
                f"{self.path} has schema version {version}, this lund knows up to {len(MIGRATIONS)}; use a newer lund",
            )
        for number, script in enumerate(MIGRATIONS[version:], version + 1):
            connection.executescript(f"BEGIN IMMEDIATE; {script} PRAGMA user_version = {number}; COMMIT;")

    def _transact(self, change: Change) -> AdminState:
        connection = self._connection
        if connection is None:
            raise Refused("shutting-down", "the daemon is stopping; try again when it is back")
        cursor = connection.cursor()
        cursor.execute("BEGIN IMMEDIATE")
        try:
            change(cursor)
            state = read_state(cursor)
            state.check()
            cursor.execute("COMMIT")
        except BaseException:
            cursor.execute("ROLLBACK")
            raise
        return state

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def read_state(cursor: sqlite3.Cursor) -> AdminState:
    members: dict[str, list[str]] = {}
    for igroup, initiator in cursor.execute("SELECT igroup, initiator FROM igroup_initiator ORDER BY rowid"):
        members.setdefault(igroup, []).append(initiator)
    columns = "initiator, method, user, secret, out_user, out_secret, networks"
    accounts = cursor.execute(f"SELECT {columns} FROM account").fetchall()
    return AdminState(
        settings=dict(cursor.execute("SELECT name, value FROM setting").fetchall()),
        volumes={
            name: VolumeRecord(name, uuid, path, bool(online), nvlog)
            for name, uuid, path, online, nvlog in cursor.execute(
                "SELECT name, uuid, path, online, nvlog FROM volume ORDER BY name"
            )
        },
        igroups={
            name: Igroup(name, ostype, tuple(members.get(name, ())))
            for name, ostype in cursor.execute("SELECT name, ostype FROM igroup ORDER BY name").fetchall()
        },
        maps=tuple(
            LunMap(*row)
            for row in cursor.execute(
                "SELECT volume, lun_uuid, lun_name, igroup, lun_id FROM lun_map ORDER BY volume, igroup, lun_id"
            )
        ),
        policies=read_policies(cursor),
        lun_values=read_lun_values(cursor),
        accounts={
            name: ChapAccount(name, AuthMethod(method), user, secret, out_user, out_secret, tuple(networks.split()))
            for name, method, user, secret, out_user, out_secret, networks in accounts
        },
        portals={
            PortalAddress(host, port): group
            for host, port, group in cursor.execute("SELECT host, port, portal_group FROM portal ORDER BY host, port")
        },
        redirects={
            volume: Redirect(volume, PortalAddress(host, port), bool(permanent))
            for volume, host, port, permanent in cursor.execute("SELECT volume, host, port, permanent FROM redirect")
        },
    )


def set_setting(cursor: sqlite3.Cursor, name: str, value: str) -> None:
    cursor.execute("INSERT OR REPLACE INTO setting VALUES (?, ?)", (name, value))
