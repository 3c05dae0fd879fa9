"""LUNs: create, destroy, resize, rename, and the properties hosts can see.

Everything is in the volume; the call returns after a consistency point.  Sessions are told what changed
(unit attentions) after that, so that no host acts on something a crash could take back.
"""

from __future__ import annotations

import functools
import sqlite3
from collections.abc import Callable, Mapping

from target.management import models, serving
from target.management.backings import drop_made, find_parent
from target.management.clones import Clones
from target.management.core import Core, Unit
from target.management.events import Severity
from target.management.lun_values import forget_lun, set_value
from target.management.names import LunPath, check_ostype
from target.management.refusal import Refused
from target.scsi.unit import SWITCHES
from wafl import Lun

SECTOR_BYTES = 512
PROPERTIES: dict[str, serving.Tell | None] = {
    "comment": None,
    "reserved": None,
    "serial": serving.tell_identity,
    "online": serving.tell_online,
}
"""Settable as they are -> how sessions are told."""
SERIAL_CHARACTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.")


class Luns:
    def __init__(self, core: Core, clones: Clones) -> None:
        self.core = core
        self.clones = clones

    # -- looking -----------------------------------------------------------------------------------------

    def all(self, volume: str | None = None) -> list[models.Lun]:
        units = [self.core.unit(volume)] if volume is not None else list(self.core.units.values())
        found = []
        for unit in units:
            jobs = self.clones.jobs(unit)
            found += [self.model(unit, lun, jobs) for lun in unit.volume.luns()]
        return found

    def get(self, text: str) -> models.Lun:
        unit, lun, _path = self.core.find(text)
        return self.model(unit, lun)

    def model(self, unit: Unit, lun: Lun, jobs: Mapping[str, models.CloneStatus] | None = None) -> models.Lun:
        backing = lun.backing
        jobs = self.clones.jobs(unit) if jobs is None else jobs
        return models.Lun(
            path=f"/vol/{unit.name}/{lun.name}",
            volume=unit.name,
            name=lun.name,
            uuid=str(lun.uuid),
            serial=lun.serial,
            naa=lun.naa.hex(),
            ostype=lun.ostype,
            comment=lun.comment,
            size_bytes=lun.size_bytes,
            block_bytes=lun.block_bytes,
            used_bytes=lun.used_bytes,
            private_bytes=lun.private_bytes,
            kept_bytes=lun.kept_bytes,
            online=lun.online,
            reserved=lun.reserved,
            **{name: bool(self.core.state.lun_values.get(str(lun.uuid), {}).get(name)) for name in SWITCHES},
            created_at=lun.created_at,
            target=self.core.target_name(unit.name),
            backing=None
            if backing is None
            else models.Backing(
                path=f"/vol/{unit.name}/.snapshot/{backing.snapshot_name}/{backing.lun_name}",
                snapshot=backing.snapshot_name,
                snapshot_id=backing.snapshot_id,
                lun=backing.lun_name,
                limit_bytes=backing.limit_bytes,
            ),
            clone=jobs.get(str(lun.uuid)),
            maps=[models.MapEntry(igroup=m.igroup, lun_id=m.lun_id) for m in self.core.state.maps_of(str(lun.uuid))],
            stats=serving.counters_of(self.core, unit, lun),
        )

    # -- making ------------------------------------------------------------------------------------------

    async def create(self, wanted: models.LunCreate) -> models.Lun:
        path = LunPath.parse_active(wanted.path)
        if wanted.ostype is not None:
            check_ostype(wanted.ostype)
        async with self.core.changing:
            unit = self.core.unit(path.volume)
            self.check_free(unit, path)
            if wanted.backing is not None:
                lun = await self._create_backed(unit, path, wanted)
            else:
                lun = self._create_empty(unit, path, wanted)
            await unit.service.durable()
            serving.serve_lun(self.core, unit, lun)
        origin = f", backed by snapshot {lun.backing.snapshot_name}" if lun.backing else ""
        self.core.events.emit("lun.created", f"{path} has {lun.size_bytes} bytes{origin}", subject=str(path))
        return self.model(unit, lun)

    def check_free(self, unit: Unit, path: LunPath) -> None:
        if any(lun.name == path.lun for lun in unit.volume.luns()):
            raise Refused("name-taken", f"there is a LUN {path} already; choose another name")

    def _create_empty(self, unit: Unit, path: LunPath, wanted: models.LunCreate) -> Lun:
        if wanted.size_bytes is None:
            raise Refused("invalid-size", f"{path} needs a size")
        check_size(wanted.size_bytes, wanted.block_bytes)
        return unit.volume.create_lun(
            path.lun,
            wanted.size_bytes,
            ostype=wanted.ostype or "linux",
            reserved=wanted.reserved is not False,
            comment=wanted.comment,
            block_bytes=wanted.block_bytes,
        )

    async def _create_backed(self, unit: Unit, path: LunPath, wanted: models.LunCreate) -> Lun:
        assert wanted.backing is not None
        if wanted.size_bytes is not None:
            raise Refused("invalid-argument", f"the size of {path} is its parent's; leave out the size")
        parent = await find_parent(self.core, unit, path, wanted.backing)
        try:
            return unit.volume.create_lun(
                path.lun,
                None,
                ostype=wanted.ostype or parent.ostype,
                reserved=wanted.reserved,
                comment=wanted.comment,
                backing=parent.backing,
            )
        except BaseException:
            await drop_made(unit, parent)
            raise

    # -- changing ----------------------------------------------------------------------------------------

    async def patch(self, text: str, wanted: models.LunPatch) -> models.Lun:
        async with self.core.changing:
            unit, lun, path = self.core.find(text)
            self._check_patch(unit, lun, path, wanted)
            told = self._apply(unit, lun, path, wanted)
            try:
                await unit.service.durable()
                await self._set_switches(unit, lun, wanted)
                if wanted.path is not None:
                    await self._rename_maps(lun)
            finally:
                # Also when it failed: what hosts get is what is shown.
                for tell in told:
                    tell(self.core, unit, lun)
        for line in _changes(wanted):
            self.core.events.emit("lun.changed", f"/vol/{unit.name}/{lun.name}: {line}", subject=str(path))
        return self.model(unit, lun)

    def _check_patch(self, unit: Unit, lun: Lun, path: LunPath, wanted: models.LunPatch) -> None:
        """Everything that can be refused, before anything is changed."""
        if wanted.size_bytes is not None:
            check_size(wanted.size_bytes, lun.block_bytes)
            if wanted.size_bytes < lun.size_bytes and not wanted.force:
                raise Refused(
                    "would-lose-data",
                    f"{path} has {lun.size_bytes} bytes; what lies behind {wanted.size_bytes} would be lost: use -f",
                )
        if wanted.path is not None:
            new = LunPath.parse_active(wanted.path)
            if new.volume != path.volume:
                raise Refused("other-volume", f"a LUN stays in its volume; {new} is on another one")
            if new.lun != path.lun:
                self.check_free(unit, new)
        if wanted.serial is not None and wanted.serial != lun.serial:
            self._check_serial(unit, lun, path, wanted.serial)

    def _check_serial(self, unit: Unit, lun: Lun, path: LunPath, serial: str) -> None:
        if not set(serial) <= SERIAL_CHARACTERS:
            raise Refused("invalid-argument", "a serial number has letters, digits, '-', '_' and '.' only")
        if lun.online:
            raise Refused("lun-online", f"hosts know {path} by its serial number; take it offline first")
        for other in (each for one in self.core.units.values() for each in one.volume.luns()):
            if other is not lun and other.serial == serial:
                raise Refused("name-taken", f"LUN {other.name} has serial number {serial} already")

    def _apply(self, unit: Unit, lun: Lun, path: LunPath, wanted: models.LunPatch) -> list[serving.Tell]:
        """All of it or nothing: what can be taken back comes first, the resize, which cannot, last."""
        told: list[serving.Tell] = []
        undo: list[Callable[[], None]] = []
        try:
            self._set_properties(lun, wanted, told, undo)
            if wanted.path is not None and (new := LunPath.parse_active(wanted.path)).lun != path.lun:
                unit.volume.rename_lun(path.lun, new.lun)
                undo.append(lambda: unit.volume.rename_lun(new.lun, path.lun))
            if wanted.size_bytes is not None and wanted.size_bytes != lun.size_bytes:
                unit.volume.resize_lun(lun.name, wanted.size_bytes)
                told.append(serving.tell_capacity)
        except BaseException:
            for take_back in reversed(undo):
                take_back()
            raise
        return told

    def _set_properties(
        self, lun: Lun, wanted: models.LunPatch, told: list[serving.Tell], undo: list[Callable[[], None]]
    ) -> None:
        for name, tell in PROPERTIES.items():
            value, old = getattr(wanted, name), getattr(lun, name)
            if value is None or value == old:
                continue
            change = getattr(lun, f"set_{name}")
            change(value)
            undo.append(functools.partial(change, old))
            if tell is not None:
                told.append(tell)

    async def _set_switches(self, unit: Unit, lun: Lun, wanted: models.LunPatch) -> None:
        """Kept in the settings, not in the volume: they are about hosts only."""
        uuid = str(lun.uuid)
        for name in SWITCHES:
            value = getattr(wanted, name)
            if value is not None:
                change = functools.partial(
                    set_value, volume=unit.name, uuid=uuid, name=name, value=b"1" if value else b""
                )
                await self.core.store.change(change)
                serving.tell_switch(self.core, unit, lun, name, value)

    async def _rename_maps(self, lun: Lun) -> None:
        """Maps go by UUID; the name in them is only what people see while the volume is offline."""
        uuid, name = str(lun.uuid), lun.name
        if self.core.state.maps_of(uuid):
            await self.core.store.change(
                lambda cursor: cursor.execute("UPDATE lun_map SET lun_name = ? WHERE lun_uuid = ?", (name, uuid))
            )

    async def destroy(self, text: str, force: bool) -> None:
        async with self.core.changing:
            unit, lun, path = self.core.find(text)
            if not force:
                self._check_unused(unit, lun, path)
            uuid = str(lun.uuid)
            unit.volume.core.check_writable()
            await self.clones.stop_for_destroy(unit, lun)
            serving.withdraw_lun(self.core, unit, lun)
            try:
                if self.core.state.knows_lun(uuid):
                    # Settings first: a crash in between leaves an unmapped LUN, not a map to nothing.
                    before = self.core.state
                    await self.core.store.change(functools.partial(_forget, uuid=uuid))
                    serving.tell_maps(self.core, before)  # it may have hidden another one from somebody
                unit.volume.destroy_lun(lun.name)
            except BaseException:
                serving.serve_lun(self.core, unit, lun)
                raise
            await unit.service.durable()
            unit.service.kick_reclaim()
        self.core.events.emit("lun.destroyed", f"{path} is gone", subject=str(path), severity=Severity.NOTICE)

    def _check_unused(self, unit: Unit, lun: Lun, path: LunPath) -> None:
        maps = self.core.state.maps_of(str(lun.uuid))
        if maps:
            igroups = [m.igroup for m in maps]
            raise Refused(
                "lun-mapped",
                f"{path} is mapped to {', '.join(igroups)}; unmap it first, or use -f",
                [f"igroup {igroup}" for igroup in igroups],
            )
        users = serving.sessions_of(self.core, unit, lun)
        if users:
            raise Refused(
                "lun-in-use", f"{path} is in use by {', '.join(users)}; log out there first, or use -f", users
            )


def _forget(cursor: sqlite3.Cursor, uuid: str) -> None:
    cursor.execute("DELETE FROM lun_map WHERE lun_uuid = ?", (uuid,))
    forget_lun(cursor, uuid)


def check_size(size_bytes: int, block_bytes: int) -> None:
    if size_bytes <= 0 or size_bytes % SECTOR_BYTES or size_bytes % block_bytes:
        raise Refused(
            "invalid-size", f"{size_bytes} bytes is not a LUN's size; it must be a multiple of {block_bytes} and not 0"
        )


def _changes(wanted: models.LunPatch) -> list[str]:
    fields = wanted.model_dump(exclude_none=True, exclude={"force"})
    words = {"path": "renamed to {}", "size_bytes": "size is {} bytes", "reserved": "space reservation is {}",
             "comment": "comment changed", "serial": "serial is {}", "removable": "removable is {}",
             "write_protected": "write protection is {}", "fully_provisioned": "shown as fully provisioned is {}",
             "native_blocks": "shown with native blocks is {}"}  # fmt: skip
    lines = [words[name].format(value) for name, value in fields.items() if name != "online"]
    return lines if wanted.online is None else [*lines, "online" if wanted.online else "offline"]
