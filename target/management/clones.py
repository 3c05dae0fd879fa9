"""Clones: the jobs of `cloner`, seen and commanded by path, each with an operation to wait for or cancel.

The request is kept in the volume (it survives a crash); the operation is only how this daemon's clients
follow it.  Cancelling the operation is `lun clone stop`.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import logging
from collections.abc import Iterator, Sequence
from typing import Any

from cloner import DEFAULTS, ENDED, CloneError, CloneEvent, CloneOptions, CloneStatus
from target.management import clone_models, models
from target.management.clone_settings import remember, remembered
from target.management.core import Core, Unit
from target.management.events import EventLog, Severity
from target.management.families import SNAPSHOT, by_snapshot
from target.management.operations import Operation, OperationState
from target.management.refusal import Refused, refusal_of
from target.management.snapshots import holder_path
from wafl import Lun, WaflError

log = logging.getLogger("lund.clone")

LAUNCHES = 16
"""Jobs that are started before others have their turn."""
PROGRESS_S = 0.5
"""How often an operation takes over the job's progress."""


def forward_event(events: EventLog, event: CloneEvent) -> None:
    events.emit(event.kind, event.message, subject=event.path, severity=Severity[event.level.upper()], data=event.data)


HOLDERS_SHOWN = 8
"""In the list of all jobs: a golden image has hundreds of LUNs, and each of them has a line there."""


def _holders(unit: Unit, holders: list[str]) -> list[str]:
    """LUNs, then later snapshots that have such LUNs in them, each once."""
    luns, snapshots = by_snapshot(holders)
    return [holder_path(unit, name) for name in (*luns, *(f"{SNAPSHOT}{name}" for name in snapshots))]


@contextlib.contextmanager
def _refusing() -> Iterator[None]:
    try:
        yield
    except CloneError as error:
        raise Refused(error.name, str(error)) from None


def options_of(wanted: clone_models.CloneStart) -> CloneOptions:
    return CloneOptions(wanted.limit_bytes_s, wanted.priority, wanted.full_speed, wanted.policy, wanted.share)


class Clones:
    def __init__(self, core: Core) -> None:
        self.core = core
        self._operations: dict[str, Operation] = {}
        """LUN UUID -> the operation of its last job, while that can be asked for, or somewhat longer."""

    # -- looking -----------------------------------------------------------------------------------------

    def all(self) -> list[models.CloneStatus]:
        """Every LUN that has a job or a backing."""
        shown = []
        for unit in self.core.units.values():
            jobs = {status.lun_uuid: status for status in self.core.clones.show(unit.service)}
            holders = {each.name: _holders(unit, each.busy_holders) for each in unit.volume.snapshots()}
            for lun in sorted(unit.volume.luns(), key=lambda each: each.name):
                job = jobs.get(str(lun.uuid))
                if job is not None or lun.backing is not None:
                    model = self._model(unit, job or self.core.clones.status(unit.service, lun.name))
                    found = holders.get(lun.backing.snapshot_name, []) if lun.backing is not None else []
                    model.holders, model.holder_count = found[:HOLDERS_SHOWN], len(found)
                    shown.append(model)
        return shown

    def get(self, text: str) -> models.CloneStatus:
        unit, lun, _path = self.core.find(text)
        model = self._model(unit, self.core.clones.status(unit.service, lun.name))
        if lun.backing is not None and lun.backing.snapshot_name:
            model.holders = _holders(unit, unit.volume.snapshot_usage(lun.backing.snapshot_name))
            model.holder_count = len(model.holders)
        return model

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
            shared_blocks=status.shared_blocks,
            skipped_blocks=status.skipped_blocks,
            present_blocks=status.present_blocks,
            bad_blocks=status.bad_blocks,
            percent=status.percent,
            rate_bytes_s=status.rate_bytes_s,
            remaining_s=status.remaining_s,
            limit_bytes_s=status.options.limit_bytes_s,
            priority=status.options.priority,
            full_speed=status.options.full_speed,
            policy=status.options.policy,
            share=status.options.share,
            queue_place=status.queue_place,
            message=status.message,
            operation=operation.id if operation is not None and self.core.operations.knows(operation) else None,
        )

    # -- commands ----------------------------------------------------------------------------------------

    async def start(self, text: str, wanted: clone_models.CloneStart) -> models.CloneStatus:
        options = options_of(wanted)
        async with self.core.changing:
            unit, lun, _path = self.core.find(text)
            await self.ask(unit, lun, options, force=wanted.force)
            await unit.service.durable()
        return self.get(text)

    async def ask(self, unit: Unit, lun: Lun, options: CloneOptions = DEFAULTS, *, force: bool = False) -> None:
        """Call with `core.changing` held; it is durable when the volume is."""
        if not (force or options.share):
            await self.core.clones.look_closer(unit.service, lun.name)
        with _refusing():
            self.core.clones.check_start(unit.service, lun.name, force=force or options.share)
        position = self.core.clones.next_position()
        await remember(self.core, unit, [(lun, options, position)])
        self.launch(unit, lun, options, position, force=True)

    async def ask_all(
        self, unit: Unit, luns: Sequence[Lun], options: CloneOptions, *, force: bool
    ) -> dict[str, Refused]:
        """The same for many, which are remembered at once; those that are refused, by UUID."""
        wanted = [(lun, options, self.core.clones.next_position()) for lun in luns]
        await remember(self.core, unit, wanted)
        refused = {}
        for number, (lun, _options, position) in enumerate(wanted):
            if number % LAUNCHES == LAUNCHES - 1:
                await asyncio.sleep(0)
            try:
                if not (force or options.share):
                    await self.core.clones.look_closer(unit.service, lun.name)
                self.launch(unit, lun, options, position, force=force)
            except (Refused, WaflError) as error:
                refused[str(lun.uuid)] = refusal_of(error)
        return refused

    def launch(
        self,
        unit: Unit,
        lun: Lun,
        options: CloneOptions = DEFAULTS,
        position: int | None = None,
        *,
        force: bool = False,
    ) -> None:
        """`force`: whether it fits has been looked at, or does not matter."""
        with _refusing():
            self.core.clones.start(unit.service, lun.name, options, force=force, position=position)
        self._follow(unit, lun, f"/vol/{unit.name}/{lun.name}")

    def restart_requested(self, unit: Unit) -> None:
        """After a mount: the jobs that were wanted, as they were wanted."""
        names = self.core.clones.restart_requested(unit.service, functools.partial(remembered, self.core))
        self.follow_restarted(unit, names)

    async def patch(self, text: str, wanted: clone_models.ClonePatch) -> models.CloneStatus:
        async with self.core.changing:
            unit, lun, _path = self.core.find(text)
            status = self.core.clones.status(unit.service, lun.name)
            if status.state is None or status.state in ENDED:
                raise Refused("not-cloning", f"{text} is not being cloned; start its clone with these options")
            given = wanted.model_dump(exclude_none=True)
            if wanted.limit_bytes_s == 0:
                given["limit_bytes_s"] = None
            options = dataclasses.replace(status.options, **given)
            await remember(self.core, unit, [(lun, options, status.position)])
            with _refusing():
                self.core.clones.set_options(unit.service, lun.name, options)
        return self.get(text)

    def follow_restarted(self, unit: Unit, names: list[str]) -> None:
        """After a mount: the jobs that were wanted get their operations."""
        for name in names:
            self._follow(unit, unit.volume.lun(name), f"/vol/{unit.name}/{name}")

    async def stop(self, text: str) -> models.CloneStatus:
        unit, lun, _path = self.core.find(text)
        await self._stop(unit, lun)
        return self.get(text)

    async def _stop(self, unit: Unit, lun: Lun) -> None:
        with _refusing():
            await self.core.clones.stop(unit.service, lun.name)

    async def stop_for_destroy(self, unit: Unit, lun: Lun) -> None:
        with contextlib.suppress(Refused):
            await self._stop(unit, lun)

    # -- operations --------------------------------------------------------------------------------------

    def _follow(self, unit: Unit, lun: Lun, path: str) -> None:
        uuid, knows = str(lun.uuid), self.core.operations.knows
        self._operations = {key: each for key, each in self._operations.items() if knows(each)}
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
        return {
            "copied_blocks": status.copied_blocks,
            "shared_blocks": status.shared_blocks,
            "skipped_blocks": status.skipped_blocks,
            "present_blocks": status.present_blocks,
            "total_blocks": status.total_blocks,
        }

    async def _progress(self, unit: Unit, lun: Lun, operation: Operation) -> None:
        while operation.state is OperationState.RUNNING:
            with contextlib.suppress(WaflError):
                status = self.core.clones.status(unit.service, lun.name)
                operation.progress(status.completed_blocks, status.total_blocks)
                operation.message = status.message
            await asyncio.sleep(PROGRESS_S)
