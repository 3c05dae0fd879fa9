"""What the services share: the store, the mounted volumes, events, operations, and the lock for changes.

A `Unit` is one mounted volume with everything that serves it.  A registered volume without a unit is
offline; `problems` says why, when it should not be.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import tzinfo
from pathlib import Path
from typing import Protocol

from cloner import CloneManager
from target.management.events import EventLog
from target.management.names import LunPath
from target.management.operations import Operations
from target.management.refusal import Refused
from target.management.serving import Served
from target.management.state import AdminState, VolumeRecord
from target.management.store import Change
from target.portal.logs import INFOS, Allowance
from wafl import Lun, NoSuchLun, NoSuchSnapshot, SnapshotInfo, Volume, VolumeService


class Settings(Protocol):
    """Where the administrator's settings are kept (`store.AdminStore`, for one)."""

    state: AdminState
    """The last committed one."""

    async def change(self, change: Change) -> AdminState:
        """In a transaction of its own; durable and published on return."""


@dataclass(eq=False)
class Unit:
    """A mounted volume."""

    name: str
    volume: Volume
    service: VolumeService
    failed: str = ""
    """Why the volume accepts nothing any more."""
    closing: bool = False
    """On its way out of service: jobs that end now end because of that."""

    def lun(self, path: LunPath) -> Lun:
        try:
            return self.volume.lun(path.lun)
        except NoSuchLun:
            raise Refused("no-such-lun", f"there is no LUN {path}; see 'lun show'") from None

    def snapshot(self, name: str) -> SnapshotInfo:
        try:
            return self.volume.snapshot(name)
        except NoSuchSnapshot:
            raise Refused(
                "no-such-snapshot", f"volume {self.name} has no snapshot {name!r}; see 'lun snap list {self.name}'"
            ) from None


class Elsewhere(Protocol):
    """Other processes that serve volumes."""

    async def mount(self, record: VolumeRecord) -> None:
        """Have one serve the volume.  Raises Refused."""

    async def sessions(self) -> list[tuple[str, str]]:
        """Initiators and the targets that they are logged in to there."""

    def portals_changed(self) -> None:
        """Portals or their groups have changed."""


@dataclass(eq=False)
class Core:
    directory: Path
    """The state directory."""
    store: Settings
    events: EventLog
    operations: Operations
    clones: CloneManager
    cache_bytes: int
    cp_interval_s: float
    units: dict[str, Unit] = field(default_factory=dict)
    served: dict[str, Served] = field(default_factory=dict)
    """What hosts see; outlives a mount."""
    port_groups: tuple[int, ...] = (1,)
    """Tags of the portal groups: the target ports of every device."""
    management_addresses: tuple[str, ...] = ()
    """URLs that hosts are told of (VPD page 85h)."""
    problems: dict[str, str] = field(default_factory=dict)
    elsewhere: Elsewhere | None = None
    """None: this process serves all volumes itself."""
    started_at: float = field(default_factory=time.time)
    clock: Callable[[], float] = time.time
    """The wall clock that schedules go by, in `zone`."""
    zone: tzinfo | None = None
    """None: the machine's local time."""
    session_events: Allowance = field(init=False)
    """How many events an initiator's sessions may make."""
    changing: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held over every change that awaits, so that what was checked still holds when it is done."""

    def __post_init__(self) -> None:
        self.session_events = Allowance(INFOS, time.monotonic, self._left_out)

    def _left_out(self, initiator: str, count: int) -> None:
        text = f"{initiator}: {count} more openings and ends of sessions"
        self.events.emit("iscsi.session.left-out", text, subject=initiator)

    @property
    def state(self) -> AdminState:
        return self.store.state

    def target_name(self, volume: str) -> str:
        return f"{self.state.nodename}:{volume}"

    def unit(self, name: str) -> Unit:
        """The mounted volume.  Raises Refused: unknown, or offline and why."""
        self.state.volume(name)
        unit = self.units.get(name)
        if unit is None:
            why = self.problems.get(name)
            raise Refused(
                "volume-offline",
                f"volume {name} is offline{f' ({why})' if why else ''}; bring it online with 'lun vol online {name}'",
            )
        return unit

    def lun_name(self, volume: str, uuid: str) -> str:
        """A LUN's path for people, or its UUID if it is not there now."""
        unit = self.units.get(volume)
        luns = unit.volume.luns() if unit is not None else []
        return next((f"/vol/{volume}/{lun.name}" for lun in luns if str(lun.uuid) == uuid), f"LUN {uuid}")

    def find(self, text: str) -> tuple[Unit, Lun, LunPath]:
        """A LUN of the active file system by its path."""
        path = LunPath.parse_active(text)
        unit = self.unit(path.volume)
        return unit, unit.lun(path), path
