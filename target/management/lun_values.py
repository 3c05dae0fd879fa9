"""What a logical unit keeps for itself in the settings: named values by LUN UUID, and the Platform that serves them.

Reservations with APTPL, saved mode pages, an unfinished SANITIZE, "removable".  They go with the LUN: destroyed with it
and with its volume, and left behind when a volume's file is carried to another machine.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import sqlite3
import time
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING

from target.management.events import Severity
from target.scsi.platform import SaveDone

if TYPE_CHECKING:
    from target.management.core import Core

log = logging.getLogger("lund.luns")

SCHEMA = """
    CREATE TABLE lun_value (
        volume TEXT NOT NULL REFERENCES volume ON DELETE CASCADE,
        lun_uuid TEXT NOT NULL,
        name TEXT NOT NULL,
        value BLOB NOT NULL,
        PRIMARY KEY (lun_uuid, name)
    ) STRICT;
    """

LunValues = Mapping[str, Mapping[str, bytes]]
"""By LUN UUID and name."""


def read_lun_values(cursor: sqlite3.Cursor) -> LunValues:
    values: dict[str, dict[str, bytes]] = {}
    for uuid, name, value in cursor.execute("SELECT lun_uuid, name, value FROM lun_value"):
        values.setdefault(uuid, {})[name] = value
    return values


def set_value(cursor: sqlite3.Cursor, volume: str, uuid: str, name: str, value: bytes) -> None:
    if value:
        cursor.execute("INSERT OR REPLACE INTO lun_value VALUES (?, ?, ?, ?)", (volume, uuid, name, value))
    else:
        cursor.execute("DELETE FROM lun_value WHERE lun_uuid = ? AND name = ?", (uuid, name))


def forget_lun(cursor: sqlite3.Cursor, uuid: str) -> None:
    cursor.execute("DELETE FROM lun_value WHERE lun_uuid = ?", (uuid,))


async def forget_gone(core: Core, volume: str, present: Collection[str]) -> None:
    """After a mount, which found the LUNs `present`: whatever the settings say of others of this volume goes.  A crash
    between a restore and its transaction leaves such rows."""
    state = core.state
    known = {entry.lun_uuid for entry in state.maps if entry.volume == volume} | set(state.lun_values)
    gone = [(volume, uuid) for uuid in known.difference(present)]  # maybe another volume's: the rows say whose

    def change(cursor: sqlite3.Cursor) -> None:
        for table in ("lun_map", "lun_value"):
            cursor.executemany(f"DELETE FROM {table} WHERE volume = ? AND lun_uuid = ?", gone)

    if gone:
        await core.store.change(change)


class LunPlatform:
    """`target.scsi.platform.Platform` of one LUN of the daemon."""

    def __init__(self, core: Core, volume: str, uuid: str) -> None:
        self.core = core
        self.volume = volume
        self.uuid = uuid
        self.saved: Mapping[str, bytes] = dict(core.state.lun_values.get(uuid, {}))
        self._saving: set[asyncio.Task[None]] = set()

    def save(self, name: str, value: bytes, done: SaveDone) -> None:
        # one thread takes the changes in the order they are made here
        task = asyncio.get_running_loop().create_task(self._save(name, value, done))
        self._saving.add(task)
        task.add_done_callback(self._saving.discard)

    async def _save(self, name: str, value: bytes, done: SaveDone) -> None:
        served = self.core.served.get(self.volume)
        try:
            if served is not None and self.uuid in served.luns:  # else it is being destroyed, and nothing is kept of it
                await self.core.store.change(lambda cursor: set_value(cursor, self.volume, self.uuid, name, value))
        except Exception as error:  # whatever it was, the host that waits is told
            log.error("%s of LUN %s could not be saved: %s", name, self.uuid, error)
            done(error)
        else:
            done(None)

    def note(self, kind: str, what: str) -> None:
        """The few things hosts do that administrators want to hear of: a LUN is erased, a path closed."""
        lun = self.core.lun_name(self.volume, self.uuid)
        self.core.events.emit(f"lun.{kind}", f"{lun}: {what}", subject=lun, severity=Severity.NOTICE)

    def call_later(self, delay_s: float, call: Callable[[], None]) -> None:
        asyncio.get_running_loop().call_later(delay_s, call)

    def random_bytes(self, size: int) -> bytes:
        return secrets.token_bytes(size)

    def now(self) -> float:
        return asyncio.get_running_loop().time()

    def wall_clock(self) -> float:
        return time.time()
