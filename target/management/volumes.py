"""Volumes: create, mount, take offline, check, destroy.

The registry (SQLite) says which volumes there ought to be; a volume that cannot be mounted stays offline
with its reason, and the daemon goes on.  Formatting and mounting read and write the disk at length, so they
run in a thread, before anything else knows the volume.

Order.  Create: file, format, registry, mount; whatever fails takes back what was made.  Destroy: out of
service, registry, file; a crash in between leaves at worst a file that nobody names.
"""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path
from typing import Any

import wafl
from target.management import images, models, serving
from target.management.clones import Clones
from target.management.core import Core, Unit
from target.management.departures import Departures
from target.management.events import Severity
from target.management.lun_values import forget_gone
from target.management.names import check_volume_name
from target.management.operations import Operation
from target.management.policy_service import set_thresholds
from target.management.refusal import Refused, one_line, refusal_of
from target.management.scrubs import Scrubs
from target.management.space_watch import percent_full
from target.management.state import VOLUME_LIMIT, VolumeRecord

log = logging.getLogger("lund.volume")

FINDINGS_SHOWN = 1000
START_PATIENCE_S = 60.0
"""Half of what Linux hosts wait before their file systems get errors."""


class Volumes:
    def __init__(self, core: Core, clones: Clones, scrubs: Scrubs, departures: Departures) -> None:
        self.core = core
        self.clones = clones
        self.scrubs = scrubs
        self.departures = departures
        self._mounts: set[asyncio.Future[None]] = set()
        """Those of the daemon's start."""

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
            nvlog=record.nvlog,
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
        shown.kept_bytes = space.reserved_luns
        shown.overcommitted_bytes = space.overcommitted
        shown.shared_bytes = space.shared
        shown.generation = unit.volume.generation
        shown.luns = len(unit.volume.luns())
        shown.snapshots = len(unit.volume.snapshot_names())
        shown.mount_report = list(unit.volume.mount_report)
        return shown

    # -- mounting ----------------------------------------------------------------------------------------

    async def mount_registered(self) -> None:
        """At the daemon's start: every volume that ought to be online.  Where other processes serve them, the rest does
        not wait for one whose disk hangs: who logs in to that one waits until it is there."""
        records = [record for record in self.core.state.volumes.values() if record.online]
        if self.core.elsewhere is None:
            for record in records:
                await self.try_mount(record)
        elif records:
            self._mounts = {asyncio.ensure_future(self.try_mount(record)) for record in records}
            await asyncio.wait(self._mounts, timeout=START_PATIENCE_S)

    async def try_mount(self, record: VolumeRecord) -> None:
        """One that cannot be mounted stays offline, and says why."""
        try:
            await self.mount(record)
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

    async def mount(self, record: VolumeRecord) -> None:
        """Raises what `images.open_volume` raises."""
        if self.core.elsewhere is not None:
            await self.core.elsewhere.mount(record)
            self.core.problems.pop(record.name, None)
            return
        volume = await asyncio.to_thread(images.open_volume, record, self.core.cache_bytes)
        unit = Unit(record.name, volume, wafl.VolumeService(volume, cp_interval_s=self.core.cp_interval_s))
        if record.name not in self.core.served:
            self.core.served[record.name] = serving.Served(serving.new_device(self.core, record.name))
        # From here on records go into the log once a batch, before the answers.
        device = self.core.served[record.name].device
        device.before_answers = volume.push_log
        device.when_warm = unit.service.when_warm
        device.when_durable = unit.service.when_durable
        volume.batch_log()
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
        self.clones.restart_requested(unit)
        await forget_gone(self.core, record.name, [str(lun.uuid) for lun in volume.luns()])
        await self.scrubs.mounted(unit)

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
            if not wanted.path:
                path.parent.mkdir(mode=0o700, exist_ok=True)
            nvlog = wanted.nvlog or ""
            log_made = nvlog and await self._make_log(nvlog)
            try:
                if not wanted.adopt:
                    await asyncio.to_thread(images.format_at, name, path, wanted.size_bytes, wanted.force)
                try:
                    # A new volume has nothing in its log yet; another's log is refused when it goes online.
                    uuid = await asyncio.to_thread(images.uuid_at, path, name, nvlog if wanted.adopt else "")
                    record = VolumeRecord(name, uuid, str(path), True, nvlog)
                    if nvlog:
                        await asyncio.to_thread(images.claim_log, nvlog, record)
                    await self.core.store.change(lambda cursor: _register(cursor, record))
                except BaseException:
                    if not wanted.adopt:
                        images.remove_file(path)
                    raise
            except BaseException:
                if log_made:
                    images.remove_file(Path(nvlog))
                raise
            try:
                await self.mount(record)
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

    async def _make_log(self, nvlog: str) -> bool:
        """A separate log that no other volume has.  Whether a file was made for it."""
        if not os.path.isabs(nvlog) or not nvlog.isprintable():
            raise Refused("invalid-path", f"{nvlog!r} is not an absolute path of printable characters")
        for record in self.core.state.volumes.values():
            taken = (os.path.realpath(used) for used in (record.path, record.nvlog) if used)
            if os.path.realpath(nvlog) in taken:
                raise Refused("log-mismatch", f"{nvlog} is in use by volume {record.name}; name another file or device")
        return await asyncio.to_thread(images.make_log, Path(nvlog))

    async def _set_nvlog(self, name: str, nvlog: str) -> None:
        if name in self.core.units:
            raise Refused("volume-online", f"volume {name} is online; take it offline to move its log")
        if nvlog == self.core.state.volume(name).nvlog:
            return
        made = nvlog and await self._make_log(nvlog)
        try:
            if nvlog:
                await asyncio.to_thread(images.claim_log, nvlog, self.core.state.volume(name))
            await self.core.store.change(
                lambda cursor: cursor.execute("UPDATE volume SET nvlog = ? WHERE name = ?", (nvlog, name))
            )
        except BaseException:
            if made:
                images.remove_file(Path(nvlog))
            raise

    async def patch(self, name: str, wanted: models.VolumePatch) -> models.Volume:
        async with self.core.changing:
            self.core.state.volume(name)
            if wanted.thresholds is not None:
                await set_thresholds(self.core, name, wanted.thresholds)
            if wanted.nvlog is not None:
                await self._set_nvlog(name, wanted.nvlog)
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
                await self.mount(self.core.state.volume(name))
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
            await self.departures.destroyed(record.uuid)
            self.core.problems.pop(name, None)
            await asyncio.to_thread(images.remove_file, Path(record.path))
            if record.nvlog:
                await asyncio.to_thread(images.drop_log, record.nvlog)
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
        "INSERT INTO volume (name, uuid, path, online, nvlog) VALUES (?, ?, ?, ?, ?)",
        (record.name, record.uuid, record.path, record.online, record.nvlog),
    )
