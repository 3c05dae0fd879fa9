"""Snapshots of a volume: take, list, rename, delete, and who depends on one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from typing import TypeVar

from target.management import models
from target.management.core import Core, Unit
from target.management.refusal import Refused
from wafl import SnapshotInfo, Step

T = TypeVar("T")


class Snapshots:
    def __init__(self, core: Core) -> None:
        self.core = core
        self.departure: Callable[[Unit, SnapshotInfo], models.Departure | None] = lambda unit, snapshot: None
        """What one that is on its way out waits for; set by target.management.departures."""

    def all(self, volume: str) -> list[models.Snapshot]:
        unit = self.core.unit(volume)
        return [self._model(unit, snapshot) for snapshot in unit.volume.snapshots()]

    async def all_with_space(self, volume: str) -> list[models.Snapshot]:
        """Compares all their maps, in slices."""
        unit = self.core.unit(volume)
        spaces = {space.name: space for space in await in_slices(unit.volume.snapshot_spaces())}
        shown = self.all(volume)
        for each in shown:
            if each.name in spaces:
                space = spaces[each.name]
                each.referenced_bytes, each.reclaimable_bytes = space.referenced, space.reclaimable
        return shown

    async def reclaimable(self, volume: str, names: list[str]) -> models.Reclaimable:
        unit = self.core.unit(volume)
        for name in names:
            unit.snapshot(name)
        together = await in_slices(unit.volume.reclaimable_together(names))
        return models.Reclaimable(volume=volume, snapshots=names, reclaimable_bytes=together)

    def get(self, volume: str, name: str) -> models.Snapshot:
        unit = self.core.unit(volume)
        shown = self._model(unit, unit.snapshot(name))
        space = unit.volume.snapshot_space(name)
        shown.referenced_bytes, shown.reclaimable_bytes = space.referenced, space.reclaimable
        return shown

    def _model(self, unit: Unit, snapshot: SnapshotInfo) -> models.Snapshot:
        return models.Snapshot(
            volume=unit.name,
            name=snapshot.name,
            id=snapshot.id,
            created_at=snapshot.created_at,
            generation=snapshot.generation,
            busy=bool(snapshot.busy_holders),
            holders=[holder_path(unit, holder) for holder in snapshot.busy_holders],
            departure=self.departure(unit, snapshot),
        )

    def luns(self, volume: str, name: str) -> list[models.SnapshotLun]:
        unit = self.core.unit(volume)
        unit.snapshot(name)
        return [
            models.SnapshotLun(
                path=f"/vol/{volume}/.snapshot/{name}/{lun.name}",
                name=lun.name,
                size_bytes=lun.size_bytes,
                ostype=lun.ostype,
            )
            for lun in unit.volume.snapshot_luns(name)
        ]

    async def create(self, volume: str, name: str) -> models.Snapshot:
        async with self.core.changing:
            unit = self.core.unit(volume)
            if name in unit.volume.snapshot_names():
                raise Refused("name-taken", f"volume {volume} has a snapshot {name} already; choose another name")
            made = await unit.service.create_snapshot(name)
        self.core.events.emit("snapshot.created", f"snapshot {name} of volume {volume}", subject=f"{volume}:{name}")
        return self._model(unit, made)

    async def rename(self, volume: str, old: str, new: str) -> models.Snapshot:
        async with self.core.changing:
            unit = self.core.unit(volume)
            unit.snapshot(old)
            unit.volume.rename_snapshot(old, new)
            await unit.service.durable()
        self.core.events.emit(
            "snapshot.renamed", f"snapshot {old} of volume {volume} is now {new}", subject=f"{volume}:{new}"
        )
        return self._model(unit, unit.snapshot(new))

    async def delete(self, volume: str, name: str) -> None:
        async with self.core.changing:
            unit = self.core.unit(volume)
            holders = [holder_path(unit, holder) for holder in unit.snapshot(name).busy_holders]
            if holders:
                raise Refused(
                    "snapshot-busy",
                    f"snapshot {name} of volume {volume} is in use by {', '.join(holders)}; {advice(holders)}",
                    holders,
                )
            await delete_snapshot(self.core, unit, name)


async def delete_snapshot(core: Core, unit: Unit, name: str) -> None:
    """Of one that nothing holds.  Call with `core.changing` held."""
    unit.volume.delete_snapshot(name)
    await unit.service.durable()
    unit.service.kick_reclaim()
    core.events.emit(
        "snapshot.deleted", f"snapshot {name} of volume {unit.name} is gone", subject=f"{unit.name}:{name}"
    )


async def in_slices(work: Generator[Step, None, T]) -> T:
    """Do it while hosts go on."""
    while True:
        try:
            next(work)
        except StopIteration as ended:
            found: T = ended.value
            return found
        await asyncio.sleep(0)


def advice(holders: list[str]) -> str:
    """What frees a snapshot from its holders."""
    ways = []
    if any("/.snapshot/" not in holder for holder in holders):
        ways.append("'lun clone start LUN' separates a LUN from it, 'lun snap delete --detach' all of them")
    if any("/.snapshot/" in holder for holder in holders):
        ways.append("a LUN inside a later snapshot holds it until that snapshot is deleted")
    return "; ".join(ways)


def holder_path(unit: Unit, holder: str) -> str:
    """A holder as the volume names it, as a path of the whole system."""
    return holder if holder.startswith("/vol/") else f"/vol/{unit.name}/{holder}"
