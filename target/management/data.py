"""Bytes of a LUN through the management socket: import and export.

Meant for a LUN no host is using; a write to a LUN that sessions see is refused, because the hosts' caches
would not notice it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Protocol

from target.management import serving
from target.management.core import Core, Unit
from target.management.names import LunPath
from target.management.refusal import Refused

SECTOR_BYTES = 512
COLD_TRIES, COLD_WAIT_S = 50, 0.002
"""How often, and how far apart, a piece that is being read ahead is looked for."""


class View(Protocol):
    """A LUN, active or in a snapshot, for reading."""

    @property
    def size_bytes(self) -> int: ...

    def read_into(self, offset: int, view: memoryview) -> None: ...

    def read_into_nowait(self, offset: int, view: memoryview) -> bool: ...

    def extents(self, offset: int, length: int) -> Iterator[tuple[int, int, bool]]: ...


class Data:
    def __init__(self, core: Core) -> None:
        self.core = core

    async def read(self, text: str, offset: int, length: int) -> bytes | None:
        """The bytes, or None if all of them are unmapped.  Ends at the LUN's end.  Snapshots can be read too."""
        path = LunPath.parse(text)
        unit = self.core.unit(path.volume)
        lun = _view(unit, path)
        length = min(length, lun.size_bytes - offset)
        _check_range(lun.size_bytes, path, offset, length)
        if not any(mapped for _at, _length, mapped in lun.extents(offset, length)):
            return None
        data = bytearray(length)
        await _read(unit, lun, offset, memoryview(data))
        return bytes(data)

    async def write(self, text: str, offset: int, data: bytes) -> None:
        unit, lun, path = self.core.find(text)
        _check_range(lun.size_bytes, path, offset, len(data))
        users = serving.sessions_of(self.core, unit, lun)
        if users:
            raise Refused(
                "lun-in-use", f"{path} is in use by {', '.join(users)}; log out there before an import", users
            )
        if data.count(0) == len(data):
            lun.unmap(offset, len(data))
        else:
            lun.write(offset, memoryview(data))
        unit.volume.push_log()

    async def flush(self, text: str) -> None:
        unit, _lun, _path = self.core.find(text)
        await unit.service.durable()


def _view(unit: Unit, path: LunPath) -> View:
    if path.snapshot is None:
        return unit.lun(path)
    return unit.volume.snapshot_lun(path.snapshot, path.lun)


async def _read(unit: Unit, lun: View, offset: int, view: memoryview) -> None:
    """From the page cache if that can be had: the loop is the hosts', who should not wait for an export's disk."""
    for _ in range(COLD_TRIES):
        if lun.read_into_nowait(offset, view):
            return
        await asyncio.sleep(COLD_WAIT_S)
        if unit.closing:
            raise Refused("volume-offline", f"volume {unit.name} is going offline")
    lun.read_into(offset, view)


def _check_range(size_bytes: int, path: LunPath, offset: int, length: int) -> None:
    if length <= 0 or offset + length > size_bytes:
        raise Refused("invalid-argument", f"bytes {offset} to {offset + length} are not all within {path}")
    if offset % SECTOR_BYTES or length % SECTOR_BYTES:
        raise Refused("invalid-argument", f"offset and length must be multiples of {SECTOR_BYTES}")
