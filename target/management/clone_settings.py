"""What is remembered of clone jobs beside the volumes: what each was asked for, and the limits of all together.

That a clone is wanted stands in its volume and goes wherever that goes.  How it is to be done is a LUN's value in this
daemon's settings (`target.management.lun_values`): it is written before the request, and stays until the LUN is cloned
again or destroyed.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cloner import RUNNING_JOBS_MAX, CloneOptions, Policy, Priority
from target.management.clone_models import CloneSettings, CloneSettingsPatch
from target.management.core import Core, Unit
from target.management.lun_values import set_value
from target.management.models import MAX_SIZE_BYTES
from target.management.store import set_setting
from wafl import Lun

log = logging.getLogger("lund.clone")

CLONE = "clone"
LIMIT, RUNNING = "clone_limit_bytes_s", "clone_running"


class Remembered(BaseModel):
    """As JSON among the LUN's values."""

    model_config = ConfigDict(extra="ignore")

    limit_bytes_s: int | None = Field(default=None, ge=1, le=MAX_SIZE_BYTES)
    priority: Priority = Priority.NORMAL
    full_speed: bool = False
    policy: Policy = Policy.REPORT
    share: bool = False
    position: int = Field(ge=0, le=MAX_SIZE_BYTES)


async def remember(core: Core, unit: Unit, wanted: Sequence[tuple[Lun, CloneOptions, int]]) -> None:
    """LUNs, what their clones are asked for, and the places of the requests; in one transaction."""
    values = {
        str(lun.uuid): Remembered(
            limit_bytes_s=options.limit_bytes_s,
            priority=options.priority,
            full_speed=options.full_speed,
            policy=options.policy,
            share=options.share,
            position=position,
        ).model_dump_json().encode()
        for lun, options, position in wanted
    }  # fmt: skip

    def change(cursor: sqlite3.Cursor) -> None:
        for uuid, value in values.items():
            set_value(cursor, unit.name, uuid, CLONE, value)

    await core.store.change(change)


def remembered(core: Core, lun: Lun) -> tuple[CloneOptions, int | None]:
    """What the LUN's last clone was asked for."""
    value = core.state.lun_values.get(str(lun.uuid), {}).get(CLONE)
    if value is None:
        return CloneOptions(), None
    try:
        found = Remembered.model_validate_json(value)
    except ValidationError as error:
        log.warning("what the clone of LUN %s was asked for cannot be read: %s", lun.name, error)
        return CloneOptions(), None
    options = CloneOptions(found.limit_bytes_s, found.priority, found.full_speed, found.policy, found.share)
    return options, found.position


def apply_settings(core: Core, default_limit_bytes_s: int | None) -> None:
    """At the start: what an administrator has set comes before the configuration file."""
    settings = core.state.settings
    limit = int(settings[LIMIT]) or None if LIMIT in settings else default_limit_bytes_s
    core.clones.set_overall_limit(limit)
    if RUNNING in settings:
        core.clones.set_running_jobs(min(RUNNING_JOBS_MAX, int(settings[RUNNING])))


def settings_now(core: Core) -> CloneSettings:
    return CloneSettings(limit_bytes_s=core.clones.overall_limit_bytes_s, running=core.clones.running_jobs)


async def change_settings(core: Core, wanted: CloneSettingsPatch) -> CloneSettings:
    def change(cursor: sqlite3.Cursor) -> None:
        if wanted.limit_bytes_s is not None:
            set_setting(cursor, LIMIT, str(wanted.limit_bytes_s))
        if wanted.running is not None:
            set_setting(cursor, RUNNING, str(wanted.running))

    await core.store.change(change)
    apply_settings(core, core.clones.overall_limit_bytes_s)
    return settings_now(core)
