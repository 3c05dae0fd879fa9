"""Volumes: create, mount, take offline, check, destroy.

The registry (SQLite) says which volumes there ought to be; a volume that cannot be mounted stays offline
with its reason, and the daemon goes on.  Formatting and mounting read and write the disk at length, so they
run in a thread, before anything else knows the volume.

Order.  Create: file, format, registry, mount; whatever fails takes back what was made.  Destroy: out of
service, registry, file; a crash in between leaves at worst a file that nobody names.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import stat
import time
from pathlib import Path
from typing import Any

import wafl
from target.management import models, serving
from target.management.clones import Clones
from target.management.core import Core, Unit
from target.management.events import Severity
from target.management.names import check_volume_name
from target.management.operations import Operation
from target.management.policy_service import set_thresholds
from target.management.refusal import Refused, one_line, refusal_of
from target.management.scrubs import Scrubs
from target.management.space_watch import percent_full
from target.management.state import VOLUME_LIMIT, VolumeRecord
from target.nexus import TargetDevice

log = logging.getLogger("lund.volume")

MIN_VOLUME_BYTES = 1 << 20
FINDINGS_SHOWN = 1000


class Volumes:
    def __init__(self, core: Core, clones: Clones, scrubs: Scrubs) -> None:
        self.core = core
        self.clones = clones
        self.scrubs = scrubs

    # -- looking -----------------------------------------------------------------------------------------

    def all(self) -> list[models.Volume]:
        return [self._model(record) for record in self.core.state.volumes.values()]

    def get(self, name: str) -> models.Volume:
        return self._model(self.core.state.volume(name))

    def _model(self, record: VolumeRecord) -> models.Volume:
        unit = self.core.units.get(record.name)
        shown = models.Volume(
            name=record.name,
            uuid=record.uuid,
            path=record.path,
            target=self.core.target_name(record.name),
            state="offline",
            problem=self.core.problems.get(record.name, ""),
            last_scrub=self.scrubs.last(record.uuid),
            thresholds=list(self.core.state.policies_of(record.name).thresholds),
        )
        if unit is None:
            return shown
        space = unit.volume.space()
        shown.state, shown.problem = ("failed", unit.failed) if unit.failed else ("online", "")
        shown.size_bytes = space.total
        shown.used_bytes = space.used
        shown.free_bytes = space.available
        shown.full_percent = round(percent_full(space), 1)
        shown.active_bytes = space.active
        shown.snapshot_bytes = space.snapshots
        shown.reserved_bytes = space.reserved
        shown.generation = unit.volume.generation
        shown.luns = len(unit.volume.luns())
        shown.snapshots = len(unit.volume.snapshot_names())
        shown.mount_report = list(unit.volume.mount_report)
        return shown

    # -- mounting ----------------------------------------------------------------------------------------

    async def mount_registered(self) -> None:
        """At the daemon's start: every volume that ought to be online."""
        for record in list(self.core.state.volumes.values()):
            if not record.online:
                continue
            try:
                await self._mount(record)
            except Exception as error:
                refused = refusal_of(error)
                self._problem(record, refused)
                if refused.name == "internal":
                    log.error("mounting %s", record.path, exc_info=error)

    def _problem(self, record: VolumeRecord, refused: Refused) -> None:
        self.core.problems[record.name] = refused.message
        self.core.events.emit(
            "volume.mount.failed",
            f"volume {record.name} stays offline: {refused.message}",
            subject=record.name,
            severity=Severity.ERROR,
            data={"error": refused.name},
        )

    async def _mount(self, record: VolumeRecord) -> Unit:
        volume = await asyncio.to_thread(_open_volume, record, self.core.cache_bytes)
        unit = Unit(record.name, volume, wafl.VolumeService(volume, cp_interval_s=self.core.cp_interval_s))
        if record.name not in self.core.served:
            self.core.served[record.name] = serving.Served(TargetDevice(self.core.target_name(record.name)))
        unit.service.on_failure = lambda error: self._volume_failed(unit, error)
        unit.service.start()
        self.core.units[record.name] = unit
        self.core.problems.pop(record.name, None)
        for lun in volume.luns():
            serving.serve_lun(self.core, unit, lun)
        for line in volume.mount_report:
            self.core.events.emit(
                "volume.mount.report", f"volume {record.name}: {line}", subject=record.name, severity=Severity.WARNING
            )
        self.core.events.emit("volume.online", f"volume {record.name} is online", subject=record.name)
        self.clones.follow_restarted(unit, self.core.clones.restart_requested(unit.service))
        await self.scrubs.mounted(unit)
        return unit

    def _volume_failed(self, unit: Unit, error: BaseException) -> None:
        unit.failed = one_line(error)
        self.core.events.emit(
            "volume.failed",
            f"volume {unit.name} accepts no more changes: {unit.failed}; look at its device, then take the volume "
            "offline and online again",
            subject=unit.name,
            severity=Severity.ERROR,
        )

    async def unmount_all(self) -> None:
        """At the daemon's end.  One volume's trouble does not keep the others from their last consistency point."""
        for unit in list(self.core.units.values()):
            try:
                await self._unmount(unit)
            except Exception as error:
                log.error("closing volume %s: %s", unit.name, one_line(error))

    async def _unmount(self, unit: Unit) -> None:
        # Out of sight first: what came after the last consistency point would be lost, and the volume is closed in a
        # thread, where nobody may touch it.
        unit.closing = True
        del self.core.units[unit.name]
        serving.suspend(self.core, unit)
        try:
            await self.scrubs.unmounting(unit)
            await self.core.clones.forget(unit.service)
        finally:
            try:
                await unit.service.stop()
            finally:
                await asyncio.to_thread(unit.volume.close)

    # -- changing ----------------------------------------------------------------------------------------

    async def create(self, wanted: models.VolumeCreate) -> models.Volume:
        name = check_volume_name(wanted.name)
        path = Path(wanted.path) if wanted.path else self.core.directory / "volumes" / f"{name}.img"
        async with self.core.changing:
            self._check_new(name, path)
            if not wanted.adopt:
                await asyncio.to_thread(_format_at, name, path, wanted.size_bytes, wanted.force)
            try:
                uuid = await asyncio.to_thread(_uuid_at, path, name)
                record = VolumeRecord(name, uuid, str(path), True)
                await self.core.store.change(lambda cursor: _register(cursor, record))
            except BaseException:
                if not wanted.adopt:
                    _remove_file(path)
                raise
            try:
                await self._mount(record)
            except Exception as error:
                self._problem(record, refusal_of(error))
                raise
        self.core.events.emit("volume.created", f"volume {name} is in {path}", subject=name)
        return self.get(name)

    def _check_new(self, name: str, path: Path) -> None:
        if not str(path).isprintable():
            raise Refused("invalid-path", f"{str(path)!r} has characters that a volume's path must not have")
        if name in self.core.state.volumes:
            raise Refused("name-taken", f"there is a volume {name} already; choose another name")
        if len(self.core.state.volumes) >= VOLUME_LIMIT:
            raise Refused("limit-reached", f"{VOLUME_LIMIT} volumes are the limit of one lund")
        if not path.is_absolute():
            raise Refused("invalid-path", f"{path} is not an absolute path")
        for record in self.core.state.volumes.values():
            if os.path.realpath(record.path) == os.path.realpath(path):
                raise Refused("name-taken", f"{path} holds volume {record.name} already")

    async def patch(self, name: str, wanted: models.VolumePatch) -> models.Volume:
        async with self.core.changing:
            self.core.state.volume(name)
            if wanted.thresholds is not None:
                await set_thresholds(self.core, name, wanted.thresholds)
            if wanted.size_bytes is not None:
                await self._grow(self.core.unit(name), wanted.size_bytes)
            if wanted.online is not None:
                await self._set_online(name, wanted.online)
        return self.get(name)

    async def _grow(self, unit: Unit, size_bytes: int) -> None:
        # Most of what is dirty is written beside the hosts' commands; growing stops them for the rest.
        await unit.service.commit()
        before = unit.volume.size_bytes
        unit.volume.grow(size_bytes)
        now = unit.volume.size_bytes
        self.core.events.emit(
            "volume.grown",
            f"volume {unit.name} has {now} bytes now, {before} before",
            subject=unit.name,
            data={"size_bytes": now, "before_bytes": before},
        )

    async def _set_online(self, name: str, online: bool) -> None:
        record = self.core.state.volume(name)
        if record.online != online:
            await self.core.store.change(
                lambda cursor: cursor.execute("UPDATE volume SET online = ? WHERE name = ?", (online, name))
            )
        unit = self.core.units.get(name)
        if online and unit is None:
            try:
                await self._mount(self.core.state.volume(name))
            except Exception as error:
                self._problem(record, refusal_of(error))
                raise
        elif not online:
            self.core.problems.pop(name, None)
            if unit is not None:
                await self._unmount(unit)
                self.core.events.emit("volume.offline", f"volume {name} is offline", subject=name)

    async def destroy(self, name: str, force: bool) -> None:
        async with self.core.changing:
            record = self.core.state.volume(name)
            unit = self.core.units.get(name)
            if unit is not None and not force and (luns := unit.volume.luns()):
                holders = [f"/vol/{name}/{lun.name}" for lun in luns]
                some = ", ".join(holders[:5]) + (", …" if len(holders) > 5 else "")
                raise Refused(
                    "volume-in-use",
                    f"volume {name} has {len(luns)} LUNs ({some}); destroy them first, or use -f",
                    holders,
                )
            if unit is None and not force:
                raise Refused("volume-offline", f"volume {name} is offline: what is in it cannot be seen; use -f")
            serving.withdraw_volume(self.core, name)
            if unit is not None:
                await self._unmount(unit)
            await self.core.store.change(lambda cursor: cursor.execute("DELETE FROM volume WHERE name = ?", (name,)))
            await self.scrubs.destroyed(record.uuid)
            self.core.problems.pop(name, None)
            _remove_file(Path(record.path))
        self.core.events.emit("volume.destroyed", f"volume {name} is gone", subject=name, severity=Severity.NOTICE)

    def check(self, name: str) -> Operation:
        unit = self.core.unit(name)
        return self.core.operations.start("volume.check", name, lambda operation: self._check(unit))

    async def _check(self, unit: Unit) -> dict[str, Any]:
        await unit.service.commit()
        findings = await unit.service.check()
        bad = any(each.severity is wafl.Severity.ERROR for each in findings)
        severity = Severity.ERROR if bad else Severity.NOTICE
        text = f"{len(findings)} findings" if findings else "clean"
        self.core.events.emit("volume.checked", f"volume {unit.name}: {text}", subject=unit.name, severity=severity)
        return {
            "findings": [
                {"severity": each.severity.name.lower(), "where": each.where, "what": one_line(each.what)}
                for each in findings[:FINDINGS_SHOWN]
            ],
            "count": len(findings),
        }


def _register(cursor: Any, record: VolumeRecord) -> None:
    cursor.execute(
        "INSERT INTO volume (name, uuid, path, online) VALUES (?, ?, ?, ?)",
        (record.name, record.uuid, record.path, record.online),
    )


# -- in a thread -------------------------------------------------------------------------------------------


def _open_volume(record: VolumeRecord, cache_bytes: int) -> wafl.Volume:
    device = wafl.FileDevice.open(record.path)
    try:
        volume = wafl.Volume.mount(device, cache_bytes=cache_bytes)
    except BaseException:
        device.close()
        raise
    if str(volume.uuid) != record.uuid:
        volume.close()
        raise Refused("wrong-volume", f"{record.path} holds another volume ({volume.uuid}) than {record.name} was")
    return volume


def _uuid_at(path: Path, name: str | None = None) -> str:
    """The volume's identity.  With a name, refuses a volume that is called otherwise: LUN paths and targets have it."""
    device = wafl.FileDevice.open(path)
    try:
        volume = wafl.Volume.mount(device, read_only=True)
    except BaseException:
        device.close()
        raise
    try:
        if name is not None and volume.name != name:
            raise Refused("invalid-name", f"{path} holds a volume called {volume.name}; adopt it under that name")
        return str(volume.uuid)
    finally:
        volume.close()


def _format_at(name: str, path: Path, size_bytes: int | None, force: bool) -> None:
    """Make a volume in a new file, or on a block device."""
    is_device = path.exists() and stat.S_ISBLK(path.stat().st_mode)
    if is_device:
        if size_bytes is not None:
            raise Refused("invalid-size", f"{path} is a block device and is used whole; leave the size out")
        if not force and _holds_volume(path):
            raise Refused("name-taken", f"{path} holds a volume already; adopt it, or use -f to format over it")
        _format(name, path, None)
        return
    if size_bytes is None:
        raise Refused("invalid-size", "a volume in a file needs a size")
    if size_bytes < MIN_VOLUME_BYTES:
        raise Refused("invalid-size", f"a volume needs at least {MIN_VOLUME_BYTES} bytes")
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        _format(name, path, size_bytes)
        _sync_directory(path.parent)
    except FileExistsError:
        raise Refused("name-taken", f"{path} is there already; adopt it if it is a volume, or remove it") from None
    except BaseException as error:
        _remove_file(path)
        if isinstance(error, OSError) and error.errno in (errno.EFBIG, errno.ENOSPC, errno.EINVAL):
            raise Refused("invalid-size", f"{path} cannot have {size_bytes} bytes: {error.strerror}") from None
        raise


def _format(name: str, path: Path, size_bytes: int | None) -> None:
    device = wafl.FileDevice.open(path, create_bytes=size_bytes)
    try:
        wafl.Volume.format(device, name=name, now=time.time())
    finally:
        device.close()


def _holds_volume(path: Path) -> bool:
    try:
        _uuid_at(path)
    except wafl.NotAVolume:
        return False
    except wafl.WaflError:
        return True
    return True


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _remove_file(path: Path) -> None:
    """The file of a volume; a block device is left as it is."""
    with contextlib.suppress(OSError):
        if stat.S_ISREG(path.stat().st_mode):
            path.unlink()
