"""Which LUN depends on which snapshot, and what it costs to free one.

A snapshot is held by LUNs, which a clone frees, and by later snapshots that have such a LUN in them, which have to go
first; what holds those comes on top.
"""

from __future__ import annotations

from collections.abc import Mapping

from cloner import NotBacked
from target.management import family_models as models
from target.management.core import Core, Unit
from target.management.refusal import Refused
from target.management.snapshots import holder_path
from target.management.wishes import wish_for
from wafl import BLOCK_BYTES, Lun, NoSuchLun

SNAPSHOT = ".snapshot/"


class Families:
    def __init__(self, core: Core) -> None:
        self.core = core

    async def estimate(self, text: str) -> models.CloneEstimate:
        unit, lun, path = self.core.find(text)
        if lun.backing is None:
            error = NotBacked(lun.name)
            raise Refused(error.name, str(error))
        found = await self.core.clones.look_and_estimate(unit.service, lun.name)
        return models.CloneEstimate(
            path=str(path),
            backing=backing_path(unit, lun),
            missing_blocks=found.missing_blocks,
            exact=found.exact,
            missing_bytes=found.missing_blocks * BLOCK_BYTES,
            needed_bytes=found.needed_bytes,
            available_bytes=found.available_bytes,
            fits=found.fits,
            rate_bytes_s=found.rate_bytes_s,
            seconds=found.seconds,
        )

    def tree(self, volume: str) -> list[models.SnapshotFamily]:
        """Every snapshot, oldest first."""
        unit = self.core.unit(volume)
        snapshots = unit.volume.snapshots()
        states = {job.lun_uuid: str(job.state) for job in self.core.clones.show(unit.service)}
        children = _children(unit)
        dependents = {
            each.name: _dependents(unit, each.busy_holders, states, children) for each in snapshots
        }
        shown = []
        for each in snapshots:
            names = _held_up_by(each.name, dependents)
            luns = {one.path: one for name in names for one in dependents[name] if one.kind == "lun"}
            shown.append(
                models.SnapshotFamily(
                    volume=unit.name,
                    snapshot=each.name,
                    id=each.id,
                    created_at=each.created_at,
                    leaving=wish_for(self.core.state, unit.volume.uuid, each) is not None,
                    dependents=dependents[each.name],
                    clones_needed=list(luns),
                    snapshots_in_the_way=names[1:],
                    missing_bytes=sum(lun.missing_bytes for lun in luns.values()),
                )
            )
        return shown


Children = Mapping[str, Mapping[str, list[str]]]
"""Snapshot and LUN in it -> the LUNs that read through that."""


def _children(unit: Unit) -> Children:
    found: dict[str, dict[str, list[str]]] = {}
    for lun in unit.volume.luns():
        if lun.backing is not None:
            found.setdefault(lun.backing.snapshot_name, {}).setdefault(lun.backing.lun_name, []).append(lun.name)
    return found


def _dependents(
    unit: Unit, holders: list[str], states: dict[str, str], children: Children
) -> list[models.Dependent]:
    """LUNs first, then the later snapshots, each once."""
    luns, snapshots = by_snapshot(holders)
    found = [_lun(unit, name, states) for name in luns]
    return found + [
        models.Dependent(
            path=f"/vol/{unit.name}/{SNAPSHOT}{name}", kind="snapshot", snapshot=name, luns=len(held),
            derived=[f"/vol/{unit.name}/{lun}" for lun in _derived(children.get(name, {}), name, held)],
        )
        for name, held in snapshots.items()
    ]  # fmt: skip


def _derived(children: Mapping[str, list[str]], snapshot: str, held: list[str]) -> list[str]:
    """LUNs made from these LUNs in the snapshot."""
    return [lun for holder in held for lun in children.get(holder.removeprefix(f"{SNAPSHOT}{snapshot}/"), ())]


def _lun(unit: Unit, name: str, states: dict[str, str]) -> models.Dependent:
    path = holder_path(unit, name)
    try:
        lun = unit.volume.lun(name)
    except NoSuchLun:  # it has let go, and the next consistency point is to make that durable
        return models.Dependent(path=path, kind="lun")
    return models.Dependent(
        path=path,
        kind="lun",
        backing=backing_path(unit, lun) or None,
        missing_bytes=lun.missing_blocks() * BLOCK_BYTES,
        clone=states.get(str(lun.uuid), "none"),
    )


def by_snapshot(holders: list[str]) -> tuple[list[str], dict[str, list[str]]]:
    """Holders of a snapshot as the volume names them: LUNs, and later snapshots with what of theirs holds it."""
    luns: list[str] = []
    snapshots: dict[str, list[str]] = {}
    for holder in holders:
        if holder.startswith(SNAPSHOT):
            snapshots.setdefault(holder.split("/")[1], []).append(holder)
        else:
            luns.append(holder)
    return luns, snapshots


def luns_text(number: int) -> str:
    return f"{number} LUN{'' if number == 1 else 's'}"


def _held_up_by(name: str, dependents: dict[str, list[models.Dependent]]) -> list[str]:
    """The snapshot, and all later ones that have to go before it, each once."""
    found = [name]
    for each in found:
        for one in dependents.get(each, ()):
            if one.snapshot is not None and one.snapshot not in found:
                found.append(one.snapshot)
    return [each for each in found if each in dependents]


def backing_path(unit: Unit, lun: Lun) -> str:
    """Of what the LUN reads through; empty if it reads through nothing."""
    below = lun.backing
    return f"/vol/{unit.name}/.snapshot/{below.snapshot_name}/{below.lun_name}" if below else ""
