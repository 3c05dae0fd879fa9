"""Which paths hosts are to use for a LUN: the asymmetric access states of its target port groups.

A host may change them too (SET TARGET PORT GROUPS); whoever was last decides, and the state outlives a restart.
"""

from __future__ import annotations

import asyncio

from target.management import models
from target.management.core import Core
from target.management.iscsi import Iscsi
from target.management.refusal import Refused
from target.nexus import LogicalUnit
from target.scsi.access_state import AccessState, ChangedBy
from target.scsi.unit import ACCESS_STATES

CHANGED_BY: dict[ChangedBy, models.ChangedBy] = {
    ChangedBy.NOBODY: "nobody", ChangedBy.HOST: "host", ChangedBy.TARGET: "administrator",
}  # fmt: skip
STATES: dict[models.AccessState, AccessState] = {
    "active-optimized": AccessState.ACTIVE_OPTIMIZED,
    "active-non-optimized": AccessState.ACTIVE_NON_OPTIMIZED,
    "standby": AccessState.STANDBY,
    "unavailable": AccessState.UNAVAILABLE,
}
NAMES = {state: name for name, state in STATES.items()}


class Alua:
    def __init__(self, core: Core, iscsi: Iscsi) -> None:
        self.core = core
        self.iscsi = iscsi

    def get(self, text: str) -> list[models.PortGroupAccess]:
        """One entry a portal group."""
        return self._groups(self._logical_unit(text))

    async def put(self, text: str, wanted: models.PortGroupPut) -> list[models.PortGroupAccess]:
        """Hosts are told at once (2A/06); it is kept when this returns."""
        async with self.core.changing:
            logical_unit = self._logical_unit(text)
            if wanted.group not in self.core.port_groups:
                raise Refused(
                    "no-such-portal-group", f"no portal is in group {wanted.group}; see 'lun iscsi portal show'"
                )
            if logical_unit.set_access({wanted.group: STATES[wanted.state]}, ChangedBy.TARGET):
                await _save(logical_unit)
                said = f"{text} through portal group {wanted.group}: {wanted.state}"
                self.core.events.emit("lun.access", said, subject=text)
        return self._groups(logical_unit)

    def _logical_unit(self, text: str) -> LogicalUnit:
        unit, lun, _path = self.core.find(text)
        return self.core.served[unit.name].luns[str(lun.uuid)]

    def _groups(self, logical_unit: LogicalUnit) -> list[models.PortGroupAccess]:
        portals = self.iscsi.portals()
        return [
            models.PortGroupAccess(
                group=group,
                state=NAMES[logical_unit.access.of(group)],
                changed_by=CHANGED_BY[logical_unit.access.changed_by(group)],
                portals=[portal.address for portal in portals if portal.group == group],
            )
            for group in self.core.port_groups
        ]


async def _save(logical_unit: LogicalUnit) -> None:
    saved: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def done(error: BaseException | None) -> None:
        if saved.cancelled():
            return
        if error is None:
            saved.set_result(None)
        else:
            saved.set_exception(error)

    logical_unit.platform.save(ACCESS_STATES, logical_unit.access.encode(), done)
    await saved
