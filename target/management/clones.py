"""Clones: the jobs of `cloner`, seen and commanded by path, each with an operation to wait for or cancel.

The request is kept in the volume (it survives a crash); the operation is only how this daemon's clients
follow it.  Cancelling the operation is `lun clone stop`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Any

from cloner import CloneError, CloneEvent, CloneStatus
from target.management import models
from target.management.core import Core, Unit
from target.management.events import EventLog, Severity
from target.management.operations import Operation, OperationState
from target.management.refusal import Refused
from wafl import Lun, WaflError

log = logging.getLogger("lund.clone")

PROGRESS_S = 0.5
"""How often an operation takes over the job's progress."""


def forward_event(events: EventLog, event: CloneEvent) -> None:
    events.emit(event.kind, event.message, subject=event.path, severity=Severity[event.level.upper()], data=event.data)


class Clones:
    def __init__(self, core: Core) -> None:
        self.core = core
        self._operations: dict[str, Operation] = {}
        """LUN UUID -> the operation of its last job."""

    # -- looking -----------------------------------------------------------------------------------------

    def all(self) -> list[models.CloneStatus]:
        """Every LUN that has a job or a backing."""
        shown = []
        for unit in self.core.units.values():
            jobs = {status.lun_uuid: status for status in self.core.clones.show(unit.service)}
            for lun in sorted(unit.volume.luns(), key=lambda each: each.name):
                job = jobs.get(str(lun.uuid))
                if job is not None or lun.backing is not None:
                    shown.append(self._model(unit, job or self.core.clones.status(unit.service, lun.name)))
        return shown

    def get(self, text: str) -> models.CloneStatus:
        unit, lun, _path = self.core.find(text)
        return self._model(unit, self.core.clones.status(unit.service, lun.name))

    def jobs(self, unit: Unit) -> dict[str, models.CloneStatus]:
        """By LUN UUID, for listings: of LUNs with a job only, because counting what others lack would read their
        trees."""
        return {status.lun_uuid: self._model(unit, status) for status in self.core.clones.show(unit.service)}

    def _model(self, unit: Unit, status: CloneStatus) -> models.CloneStatus:
        operation = self._operations.get(status.lun_uuid)
        return models.CloneStatus(
            path=f"/vol/{unit.name}/{status.lun}",
            state="none" if status.state is None else status.state.value,
            requested=status.requested,
            backing=f"/vol/{unit.name}/{status.backing}" if status.backing else "",
            completed_blocks=status.completed_blocks,
            total_blocks=status.total_blocks,
            copied_blocks=status.copied_blocks,
            percent=status.percent,
            rate_bytes_s=status.rate_bytes_s,
            remaining_s=status.remaining_s,
            limit_bytes_s=status.limit_bytes_s,
            message=status.message,
            operation=operation.id if operation is not None else None,
        )

    # -- commands ----------------------------------------------------------------------------------------

    async def start(self, text: str, limit_bytes_s: int | None) -> models.CloneStatus:
        async with self.core.changing:
            unit, lun, _path = self.core.find(text)
            self.launch(unit, lun, limit_bytes_s)
            await unit.service.durable()
        return self.get(text)

    def launch(self, unit: Unit, lun: Lun, limit_bytes_s: int | None = None) -> None:
        try:
            self.core.clones.start(unit.service, lun.name, limit_bytes_s)
        except CloneError as error:
            raise Refused(error.name, str(error)) from None
        self._follow(unit, lun, f"/vol/{unit.name}/{lun.name}")

    def follow_restarted(self, unit: Unit, names: list[str]) -> None:
        """After a mount: the jobs that were wanted get their operations."""
        for name in names:
            self._follow(unit, unit.volume.lun(name), f"/vol/{unit.name}/{name}")

    async def stop(self, text: str) -> models.CloneStatus:
        unit, lun, _path = self.core.find(text)
        await self._stop(unit, lun)
        return self.get(text)

    async def _stop(self, unit: Unit, lun: Lun) -> None:
        try:
            await self.core.clones.stop(unit.service, lun.name)
        except CloneError as error:
            raise Refused(error.name, str(error)) from None

    async def stop_for_destroy(self, unit: Unit, lun: Lun) -> None:
        with contextlib.suppress(Refused):
            await self._stop(unit, lun)

    # -- operations --------------------------------------------------------------------------------------

    def _follow(self, unit: Unit, lun: Lun, path: str) -> None:
        uuid = str(lun.uuid)
        try:
            self._operations[uuid] = self.core.operations.start(
                "lun.clone", path, lambda operation: self._work(unit, lun, operation)
            )
        except Refused as refused:
            # Too many at a time: the job needs none.
            self._operations.pop(uuid, None)
            log.info("the clone of %s has no operation: %s", path, refused.message)

    async def _work(self, unit: Unit, lun: Lun, operation: Operation) -> dict[str, Any]:
        progress = asyncio.create_task(self._progress(unit, lun, operation))
        try:
            # A task of its own: cancelling this operation must not cancel the wait inside the manager.
            status = await asyncio.shield(asyncio.ensure_future(self.core.clones.wait(unit.service, lun.name)))
        except asyncio.CancelledError:
            if unit.name in self.core.units and not unit.closing:
                with contextlib.suppress(CloneError, WaflError):
                    await self.core.clones.stop(unit.service, lun.name)
            raise
        finally:
            progress.cancel()
        operation.progress(status.completed_blocks, status.total_blocks)
        operation.message = status.message
        if status.state == "failed":
            raise Refused("clone-failed", status.message or "the clone failed")
        if status.state != "completed":
            raise asyncio.CancelledError
        return {"copied_blocks": status.copied_blocks, "total_blocks": status.total_blocks}

    async def _progress(self, unit: Unit, lun: Lun, operation: Operation) -> None:
        while operation.state is OperationState.RUNNING:
            with contextlib.suppress(WaflError):
                status = self.core.clones.status(unit.service, lun.name)
                operation.progress(status.completed_blocks, status.total_blocks)
                operation.message = status.message
            await asyncio.sleep(PROGRESS_S)
