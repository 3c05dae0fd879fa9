"""Showing and changing the policies of a volume; they act in `housekeeping`, also after the next restart."""

from __future__ import annotations

from dataclasses import replace

from target.management import policy_models as models
from target.management.core import Core
from target.management.policies import Autodelete, Policies, Schedule, check_thresholds, put_policies


async def set_policies(core: Core, volume: str, policies: Policies) -> None:
    await core.store.change(lambda cursor: put_policies(cursor, volume, policies))


async def set_thresholds(core: Core, volume: str, levels: list[int]) -> None:
    """The caller holds `core.changing`.  Raises Refused."""
    checked = check_thresholds(levels)
    await set_policies(core, volume, replace(core.state.policies_of(volume), thresholds=checked))
    shown = ", ".join(f"{level} %" for level in checked) or "none"
    core.events.emit("volume.thresholds.changed", f"volume {volume} has the thresholds {shown}", subject=volume)


class PolicyService:
    def __init__(self, core: Core) -> None:
        self.core = core

    # -- autodelete ----------------------------------------------------------------------------------------

    def autodelete(self, volume: str) -> models.Autodelete:
        self.core.state.volume(volume)
        policy = self.core.state.policies_of(volume).autodelete
        return models.Autodelete(
            volume=volume,
            enabled=policy.enabled,
            trigger_percent=policy.trigger_percent,
            target_percent=policy.target_percent,
            prefixes=list(policy.prefixes),
        )

    async def set_autodelete(self, volume: str, wanted: models.AutodeletePatch) -> models.Autodelete:
        async with self.core.changing:
            self.core.state.volume(volume)
            policies = self.core.state.policies_of(volume)
            old = policies.autodelete
            new = Autodelete(
                old.enabled if wanted.enabled is None else wanted.enabled,
                old.trigger_percent if wanted.trigger_percent is None else wanted.trigger_percent,
                old.target_percent if wanted.target_percent is None else wanted.target_percent,
                old.prefixes if wanted.prefixes is None else tuple(dict.fromkeys(wanted.prefixes)),
            )
            new.check()
            await set_policies(self.core, volume, replace(policies, autodelete=new))
        state = "on" if new.enabled else "off"
        self.core.events.emit(
            "snapshot.autodelete.changed", f"autodelete of snapshots is {state} on volume {volume}", subject=volume
        )
        return self.autodelete(volume)

    # -- schedule --------------------------------------------------------------------------------------------

    def schedule(self, volume: str) -> models.SnapshotSchedule:
        self.core.state.volume(volume)
        schedule = self.core.state.policies_of(volume).schedule
        return models.SnapshotSchedule(
            volume=volume,
            weekly=schedule.weekly,
            nightly=schedule.nightly,
            hourly=schedule.hourly,
            hours=list(schedule.hours),
            next_at=schedule.next(self.core.clock(), self.core.zone),
        )

    async def set_schedule(self, volume: str, wanted: models.SchedulePut) -> models.SnapshotSchedule:
        """It begins now: nothing that lies in the past is caught up."""
        hours = tuple(sorted(set(wanted.hours)))
        new = Schedule(wanted.weekly, wanted.nightly, wanted.hourly, hours, self.core.clock())
        new.check()
        async with self.core.changing:
            self.core.state.volume(volume)
            policies = self.core.state.policies_of(volume)
            await set_policies(self.core, volume, replace(policies, schedule=new))
        self.core.events.emit(
            "snapshot.schedule.changed",
            f"the schedule of volume {volume} keeps {new.weekly} weekly, {new.nightly} nightly and {new.hourly} hourly "
            "snapshots",
            subject=volume,
        )
        return self.schedule(volume)
