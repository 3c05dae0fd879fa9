"""What the daemon does by itself for its volumes, once a second: scheduled snapshots, snapshots on their way out,
thresholds, autodelete.

Nothing here is done per command.  A volume's space is looked at after each of its consistency points, every second
while autodelete is at work, and once a minute in any case.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging

from target.management.autodelete import Autodeletion
from target.management.core import Core, Unit
from target.management.departures import Departures
from target.management.policies import Policies
from target.management.refusal import one_line
from target.management.schedules import Schedules
from target.management.space_watch import SpaceWatch

log = logging.getLogger("lund.housekeeping")

TICK_S = 1.0
SLOW_TICKS = 60
"""Ticks between two looks at a volume on which nothing happens."""


class Housekeeping:
    def __init__(self, core: Core, departures: Departures) -> None:
        self.core = core
        self.departures = departures
        self.watch = SpaceWatch(core)
        self.autodeletion = Autodeletion(core)
        self.schedules = Schedules(core)
        self._ticks = 0
        self._seen: dict[str, tuple[int, Policies]] = {}
        """Volume -> its consistency point and its policies at the last look."""
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="housekeeping")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            await self.tick()

    async def tick(self) -> None:
        """One round over all volumes.  One volume's trouble does not keep the others from theirs."""
        self._ticks += 1
        known = set(self.core.state.volumes)
        self.watch.forget(known)
        self.autodeletion.forget(known)
        for unit in list(self.core.units.values()):
            if unit.failed or unit.closing:
                continue
            try:
                await self._look(unit)
            except Exception as error:
                log.warning("volume %s: %s", unit.name, one_line(error))

    async def _look(self, unit: Unit) -> None:
        await self.schedules.look(unit)
        await self.departures.look(unit)
        seen = unit.volume.generation, self.core.state.policies_of(unit.name)
        idle = self._seen.get(unit.name) == seen and not self.autodeletion.busy(unit.name)
        if idle and self._ticks % SLOW_TICKS:
            return
        self._seen[unit.name] = seen
        space = unit.volume.space()
        await self.watch.look(unit, space)
        await self.autodeletion.look(unit, space)
