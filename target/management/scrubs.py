"""Scrubs: reading every block of a volume in the background and saying which are bad.

What was asked for survives a restart of the daemon and a volume's time offline: the request is kept with the settings,
and the scrub starts again from the beginning when the volume is mounted.  So is what the last one found.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import wafl
from target.management import models
from target.management.core import Core, Unit
from target.management.events import Severity
from target.management.operations import Operation
from target.management.refusal import Refused, one_line
from target.management.store import set_setting

log = logging.getLogger("lund.scrub")

BAD_SHOWN = 100
"""Bad blocks in an operation's result, in the record of the last scrub, and as events of their own."""


@dataclass(eq=False)
class _Job:
    unit: Unit
    scrub: wafl.Scrub
    pace: wafl.Pace
    started_at: float
    operation: Operation | None = None
    told: int = 0
    """Bad blocks of which events have been made."""
    leaving: bool = False
    """The volume goes offline: the request stays."""


class Scrubs:
    def __init__(self, core: Core, clock: Callable[[], float] = time.time) -> None:
        self.core = core
        self._clock = clock
        self._jobs: dict[str, _Job] = {}

    # -- asked for ---------------------------------------------------------------------------------------

    async def start(self, name: str, limit_bytes_s: int | None) -> models.ScrubStatus:
        """Start one; if one runs, it goes on with the new limit."""
        unit = self.core.unit(name)
        # Before it starts: its end takes the request back.
        await self._keep(unit, requested=True, limit_bytes_s=limit_bytes_s)
        job = self._jobs.get(name)
        if job is not None:
            job.pace.limit_bytes_s = limit_bytes_s
        else:
            try:
                await self._begin(unit, limit_bytes_s, "started")
            except BaseException:
                await self._keep(unit, requested=False)
                raise
        return self.status(name)

    async def stop(self, name: str) -> models.ScrubStatus:
        """The next one starts from the beginning."""
        self.core.unit(name)
        job = self._jobs.get(name)
        if job is None or job.operation is None:
            raise Refused("no-scrub", f"volume {name} is not being scrubbed; see 'lun vol scrub {name} status'")
        await self.core.operations.cancel(job.operation.id)
        return self.status(name)

    def status(self, name: str) -> models.ScrubStatus:
        record = self.core.state.volume(name)
        kept = self._kept(record.uuid)
        shown = models.ScrubStatus(volume=name, last=self.last(record.uuid))
        job = self._jobs.get(name)
        if job is not None and job.operation is not None:
            shown.state, shown.operation = "running", job.operation.id
            shown.completed_bytes, shown.total_bytes = job.operation.completed, job.operation.total
            shown.percent, shown.limit_bytes_s = job.operation.percent, job.pace.limit_bytes_s
            shown.started_at, shown.bad_blocks = job.started_at, job.scrub.bad_count
            shown.bad = _bad(job.scrub)
        elif kept.get("requested"):
            shown.state = "waiting"
        elif shown.last is not None:
            shown.state, shown.message = shown.last.state, shown.last.message
            shown.bad_blocks, shown.bad = shown.last.bad_blocks, shown.last.bad
            shown.percent = 100.0 if shown.state == "completed" else 0.0
        return shown

    def last(self, uuid: str) -> models.ScrubReport | None:
        """What the last scrub of a volume found."""
        last = self._kept(uuid).get("last")
        return models.ScrubReport(**last) if last else None

    # -- with the volume ---------------------------------------------------------------------------------

    async def mounted(self, unit: Unit) -> None:
        """A volume came online: what was asked for starts again."""
        kept = self._kept(unit.volume.uuid)
        if kept.get("requested"):
            try:
                await self._begin(unit, kept.get("limit_bytes_s"), "restarted")
            except (wafl.WaflError, OSError) as error:
                log.error("volume %s: the scrub could not be started again: %s", unit.name, one_line(error))

    async def unmounting(self, unit: Unit) -> None:
        """Quiet on return; the request stays."""
        job = self._jobs.pop(unit.name, None)
        if job is not None and job.operation is not None:
            job.leaving = True
            await self.core.operations.cancel(job.operation.id)

    async def destroyed(self, uuid: str) -> None:
        await self.core.store.change(lambda cursor: cursor.execute("DELETE FROM setting WHERE name = ?", (_key(uuid),)))

    # -- running -----------------------------------------------------------------------------------------

    async def _begin(self, unit: Unit, limit_bytes_s: int | None, word: str) -> None:
        await unit.service.commit()  # what was written just now is looked at too
        if unit.name in self._jobs or unit.closing:
            return
        job = _Job(unit, wafl.Scrub(unit.volume), wafl.Pace(limit_bytes_s), self._clock())
        self._jobs[unit.name] = job
        job.operation = self.core.operations.start("volume.scrub", unit.name, lambda operation: self._run(job))
        self.core.events.emit(f"volume.scrub.{word}", f"volume {unit.name} is being scrubbed", subject=unit.name)
        # A task that is cancelled before its first step would leave the job behind.
        await asyncio.sleep(0)

    async def _run(self, job: _Job) -> dict[str, Any]:
        try:
            await wafl.drive_scrub(job.scrub, job.pace, lambda: self._progress(job))
        except asyncio.CancelledError:
            if not job.leaving:
                await self._finish(job, "stopped")
            raise
        except (wafl.WaflError, OSError) as error:
            await self._finish(job, "failed", one_line(error))
            raise
        await self._finish(job, "completed")
        return {"bad_blocks": job.scrub.bad_count, "bad": [each.model_dump() for each in _bad(job.scrub)]}

    def _progress(self, job: _Job) -> None:
        if job.operation is not None:
            job.operation.progress(job.scrub.verified_bytes, job.scrub.total_bytes)
        for bad in job.scrub.bad[job.told : BAD_SHOWN]:
            self.core.events.emit(
                "volume.scrub.bad_block",
                f"volume {job.unit.name}: {one_line(str(bad))}",
                subject=f"/vol/{job.unit.name}/{bad.lun}" if bad.lun else job.unit.name,
                severity=Severity.ERROR,
                data={"vbn": bad.vbn, "offset": bad.offset, "length": bad.length},
            )
        job.told = len(job.scrub.bad)

    async def _finish(self, job: _Job, state: Literal["completed", "stopped", "failed"], message: str = "") -> None:
        unit = job.unit
        self._progress(job)
        self._jobs.pop(unit.name, None)
        report = models.ScrubReport(
            state=state, started_at=job.started_at, finished_at=self._clock(), bad_blocks=job.scrub.bad_count,
            verified_bytes=job.scrub.verified_bytes, bad=_bad(job.scrub), message=message,
        )  # fmt: skip
        await self._keep(unit, requested=False, last=report.model_dump())
        found = f"{job.scrub.bad_count} bad blocks" if job.scrub.bad_count else "no bad block"
        wrong = bool(job.scrub.bad_count) or state == "failed"
        self.core.events.emit(
            f"volume.scrub.{state}",
            f"volume {unit.name}: scrub {state}, {found}{f': {message}' if message else ''}",
            subject=unit.name,
            severity=Severity.ERROR if wrong else Severity.NOTICE,
            data={"bad_blocks": job.scrub.bad_count, "verified_bytes": job.scrub.verified_bytes},
        )

    # -- kept --------------------------------------------------------------------------------------------

    def _kept(self, uuid: str) -> dict[str, Any]:
        kept: dict[str, Any] = json.loads(self.core.state.settings.get(_key(uuid), "{}"))
        return kept

    async def _keep(self, unit: Unit, **values: Any) -> None:
        key = _key(unit.volume.uuid)

        def change(cursor: sqlite3.Cursor) -> None:
            row = cursor.execute("SELECT value FROM setting WHERE name = ?", (key,)).fetchone()
            set_setting(cursor, key, json.dumps((json.loads(row[0]) if row else {}) | values))

        await self.core.store.change(change)


def _key(uuid: str) -> str:
    return f"scrub.{uuid}"


def _bad(scrub: wafl.Scrub) -> list[models.BadBlock]:
    return [
        models.BadBlock(
            vbn=bad.vbn, error=one_line(bad.error), file=bad.file, lun=bad.lun, offset=bad.offset, length=bad.length,
            lost=bad.lost,
        )
        for bad in scrub.bad[:BAD_SHOWN]
    ]  # fmt: skip
