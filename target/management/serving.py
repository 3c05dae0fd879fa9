"""What hosts see of the volumes: one target device a volume, one logical unit a LUN, and telling sessions of changes.

A LogicalUnit is kept for as long as its LUN is known, also while the volume is offline: sessions stay, and
their commands are answered NOT READY until it is back.  Everything here is immediate and awaits nothing, but for a unit
attention on all LUNs of a volume.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from target.iscsi.ports import Nexus
from target.lun_store import LunStore
from target.management.lun_values import LunPlatform
from target.management.names import ANY_INITIATOR
from target.management.state import AdminState
from target.nexus import LogicalUnit, TargetDevice, open_nexuses_of
from target.nexus import Nexus as OpenNexus
from target.scsi.sense import Asc
from target.scsi.store import BlockStore, FlushDone, StoreOffline
from wafl import Lun

if TYPE_CHECKING:
    from target.management.core import Core, Unit

COUNTERS = {
    "reads": "Read commands of hosts",
    "writes": "Write commands of hosts",
    "read_bytes": "Bytes read by hosts",
    "write_bytes": "Bytes written by hosts",
}


@dataclass(eq=False)
class Served:
    """The SCSI side of one volume; it outlives the mount."""

    device: TargetDevice
    luns: dict[str, LogicalUnit] = field(default_factory=dict)
    """By the LUN's UUID."""

    def lun(self, uuid: str) -> Lun | None:
        """None: it is not served, or its volume is offline."""
        known = self.luns.get(uuid)
        return known.store.lun if known is not None and isinstance(known.store, LunStore) else None


class GoneStore:
    """Stands in for a LUN whose volume is offline: the same identity, and nothing behind it."""

    online = False
    used_bytes = available_bytes = 0

    def __init__(self, store: BlockStore) -> None:
        self.size_bytes = store.size_bytes
        self.logical_block_bytes = store.logical_block_bytes
        self.physical_block_bytes = store.physical_block_bytes
        self.read_only = store.read_only
        self.thin = store.thin
        self.serial = store.serial
        self.naa = store.naa
        self.uuid_bytes = store.uuid_bytes

    def _offline(self) -> StoreOffline:
        return StoreOffline("the volume is offline")

    def read_into(self, offset: int, view: memoryview) -> None:
        raise self._offline()

    def read_into_nowait(self, offset: int, view: memoryview) -> bool:
        raise self._offline()

    def write(self, offset: int, data: memoryview, nowait: bool = False) -> bool:
        raise self._offline()

    def read_is_ready(self, offset: int, length: int) -> bool:
        return True

    def write_is_ready(self, offset: int, length: int) -> bool:
        return True

    def unmap_is_ready(self, offset: int, length: int) -> bool:
        return True

    def share_is_ready(self, offset: int, source: BlockStore, source_offset: int, length: int) -> bool:
        return True

    def write_atomic(self, offset: int, data: memoryview) -> None:
        raise self._offline()

    def share(self, offset: int, source: BlockStore, source_offset: int, length: int) -> int:
        raise self._offline()

    def unmap(self, offset: int, length: int) -> None:
        raise self._offline()

    def flush(self, done: FlushDone) -> None:
        raise self._offline()

    def extents(self, offset: int, length: int, *, nowait: bool = False) -> Iterator[tuple[int, int, bool]]:
        raise self._offline()


def commands_of(served: Mapping[str, Served]) -> int:
    """Reads and writes of all hosts since the start; it goes back when a LUN goes."""
    units = (unit for each in served.values() for unit in each.luns.values())
    return sum(unit.counters.reads + unit.counters.writes for unit in units)


# -- which logical units there are -------------------------------------------------------------------------


def serve_lun(core: Core, unit: Unit, lun: Lun) -> None:
    """A LUN is there: new, or back after its volume was offline."""
    if _enlist(core, unit, lun):
        names = (entry.igroup for entry in core.state.maps_of(str(lun.uuid)))
        refresh(core, unit.name, {each for name in names for each in core.state.igroups[name].initiators})


def serve_new(core: Core, unit: Unit, luns: list[Lun]) -> None:
    """New LUNs that nobody has a map of: no session sees anything of it."""
    for lun in luns:
        _enlist(core, unit, lun)


def _enlist(core: Core, unit: Unit, lun: Lun) -> bool:
    """Whether it was not known before."""
    served = core.served[unit.name]
    store = LunStore(lun, unit.service)
    known = served.luns.get(str(lun.uuid))
    if known is not None:
        known.replace_store(store)
        return False
    served.luns[str(lun.uuid)] = LogicalUnit(store, LunPlatform(core, unit.name, str(lun.uuid)))
    return True


def withdraw_lun(core: Core, unit: Unit, lun: Lun) -> None:
    """Before a LUN is destroyed: no session finds it any more."""
    logical_unit = core.served[unit.name].luns.pop(str(lun.uuid), None)
    if logical_unit is not None:
        refresh(core, unit.name, {nexus.initiator for nexus in open_nexuses_of(logical_unit)})


def suspend(core: Core, unit: Unit) -> None:
    """Before a volume goes offline: its LUNs are NOT READY."""
    served = core.served.get(unit.name)
    for logical_unit in served.luns.values() if served is not None else ():
        logical_unit.replace_store(GoneStore(logical_unit.store))


def withdraw_volume(core: Core, name: str) -> None:
    """Before a volume is destroyed: sessions find nothing."""
    served = core.served.pop(name, None)
    if served is not None:
        served.device.refresh(lambda initiator: {})


# -- who sees what -----------------------------------------------------------------------------------------


def lun_map(core: Core, volume: str, initiator: str) -> Mapping[int, LogicalUnit]:
    served = core.served.get(volume)
    luns = served.luns if served is not None else {}
    return {lun_id: luns[uuid] for lun_id, uuid in core.state.view(initiator, volume).items() if uuid in luns}


def refresh(core: Core, volume: str, initiators: Set[str]) -> None:
    """Give these initiators' sessions with the volume's target the map they have now (`*`: everybody's); hosts whose
    map differs get 3F/0E.  Other sessions are not looked at: each has a thousand LUNs, perhaps."""
    views: dict[tuple[str, ...], Mapping[int, LogicalUnit]] = {}
    for nexus in list(core.served[volume].device.nexuses):
        if nexus.initiator in initiators or ANY_INITIATOR in initiators:
            igroups = tuple(core.state.igroups_by_initiator.get(nexus.initiator, ()))
            if igroups not in views:
                views[igroups] = lun_map(core, volume, nexus.initiator)
            nexus.set_map(views[igroups])


def tell_maps(core: Core, before: AdminState) -> None:
    """Igroups or maps changed."""
    if initiators := core.state.whose_views_differ(before):
        for volume in core.served:
            refresh(core, volume, initiators)


def open_nexus(core: Core, volume: str, initiator: str, isid: bytes, tpgt: int) -> Nexus:
    device = core.served[volume].device
    seen = lun_map(core, volume, initiator)
    text = f"{initiator} logged in to {device.name} and sees {len(seen)} LUNs"
    _tell_of_session(core, "iscsi.session.opened", text, initiator)
    return device.open_nexus(initiator, isid, seen, _noted_close(core), tpgt)


def new_device(core: Core, volume: str) -> TargetDevice:
    """The target device of a volume."""
    device = TargetDevice(core.target_name(volume))
    device.management_addresses = core.management_addresses
    device.set_target_ports(core.port_groups)
    return device


def rename_targets(core: Core) -> None:
    """The node name is another one.  The devices stay: a login that came in meanwhile is still told of its LUNs."""
    for volume, served in core.served.items():
        served.device.name = core.target_name(volume)


def tell_port_groups(core: Core, groups: tuple[int, ...]) -> None:
    """Portal groups came or went: they are the target ports of every volume's device."""
    core.port_groups = groups
    for served in core.served.values():
        served.device.set_target_ports(groups)


def _noted_close(core: Core) -> Callable[[OpenNexus], None]:
    def closed(nexus: OpenNexus) -> None:
        text = f"the session of {nexus.initiator} with {nexus.target_name} ended"
        _tell_of_session(core, "iscsi.session.closed", text, nexus.initiator)

    return closed


def _tell_of_session(core: Core, kind: str, text: str, initiator: str) -> None:
    """A host that comes and goes without end must not drive everything else out of the events."""
    if core.session_events.take(initiator):
        core.events.emit(kind, text, subject=initiator)


# -- telling sessions that a LUN is not what it was --------------------------------------------------------

Tell = Callable[["Core", "Unit", Lun], None]


def _logical_unit(core: Core, unit: Unit, lun: Lun) -> LogicalUnit | None:
    """None: it is not served yet, or not any more (being made or destroyed, or its volume failed meanwhile)."""
    served = core.served.get(unit.name)
    return None if served is None else served.luns.get(str(lun.uuid))


def tell_capacity(core: Core, unit: Unit, lun: Lun) -> None:
    """2A/09."""
    if (logical_unit := _logical_unit(core, unit, lun)) is not None:
        logical_unit.capacity_changed()


def tell_contents(core: Core, unit: Unit, lun: Lun, *, resized: bool) -> None:
    """28/00, and 2A/09 if the size is another one."""
    if (logical_unit := _logical_unit(core, unit, lun)) is not None:
        logical_unit.contents_changed(resized=resized)


def tell_identity(core: Core, unit: Unit, lun: Lun) -> None:
    """3F/03: what INQUIRY and its VPD pages say."""
    if (logical_unit := _logical_unit(core, unit, lun)) is not None:
        logical_unit.establish(Asc.INQUIRY_DATA_HAS_CHANGED)


def tell_online(core: Core, unit: Unit, lun: Lun) -> None:
    """The next command finds it ready, or not ready."""
    if (logical_unit := _logical_unit(core, unit, lun)) is not None:
        logical_unit.state_changed()


def tell_switch(core: Core, unit: Unit, lun: Lun, name: str, value: bool) -> None:
    if (logical_unit := _logical_unit(core, unit, lun)) is not None:
        logical_unit.switch(name, value)


async def tell_threshold(core: Core, unit: Unit) -> None:
    """38/07 on every LUN whose writes may find no room.  Others are served in between: hundreds of sessions may see a
    thousand of them."""
    for lun in unit.volume.luns():
        if not lun.reserved and (logical_unit := _logical_unit(core, unit, lun)) is not None:
            logical_unit.threshold_reached()
            await asyncio.sleep(0)


# -- questions ---------------------------------------------------------------------------------------------


def sessions_of(core: Core, unit: Unit, lun: Lun) -> list[str]:
    """Initiators whose sessions see the LUN."""
    logical_unit = _logical_unit(core, unit, lun)
    nexuses = open_nexuses_of(logical_unit) if logical_unit is not None else []
    return list(dict.fromkeys(nexus.initiator for nexus in nexuses))


async def sessions_from(core: Core, initiator: str) -> list[str]:
    """Targets that an initiator is logged in to; of anybody, for '*'."""
    here = [(nexus.initiator, each.device.name) for each in core.served.values() for nexus in each.device.nexuses]
    there = [] if core.elsewhere is None else await core.elsewhere.sessions()
    return list(dict.fromkeys(target for who, target in (*here, *there) if initiator in ("*", who)))


def counters_of(core: Core, unit: Unit, lun: Lun) -> dict[str, int]:
    logical_unit = _logical_unit(core, unit, lun)
    return {name: getattr(logical_unit.counters, name) if logical_unit is not None else 0 for name in COUNTERS}
