"""What a new LUN is made from: a LUN in a snapshot, which is made for the purpose where none is named."""

from __future__ import annotations

import time
from dataclasses import dataclass

from target.management import models
from target.management.core import Core, Unit
from target.management.names import LunPath
from target.management.refusal import Refused
from target.management.wishes import check_staying

SNAPSHOT_NAME_TRIES = 100


@dataclass(frozen=True, slots=True)
class Parent:
    snapshot: str
    lun: str
    """Its name in the snapshot."""
    ostype: str
    made: bool
    """The snapshot was made for this."""

    @property
    def backing(self) -> tuple[str, str]:
        return self.snapshot, self.lun


async def find_parent(core: Core, unit: Unit, path: LunPath, backing: models.LunBacking) -> Parent:
    """For a LUN `path`.  Call with `core.changing` held, and `drop_made` if nothing comes of it."""
    parent = LunPath.parse(backing.path)
    if parent.volume != unit.name:
        raise Refused("other-volume", f"{path} and {parent} are on different volumes; blocks are shared within one")
    if parent.snapshot is not None and backing.snapshot not in (None, parent.snapshot):
        raise Refused("invalid-argument", f"{parent} names one snapshot and the request another")
    named = parent.snapshot or backing.snapshot
    if named is None:
        ostype = unit.lun(parent).ostype
        snapshot = free_snapshot_name(unit, parent.lun)
        await unit.service.create_snapshot(snapshot)
        return Parent(snapshot, parent.lun, ostype, made=True)
    snapshot = unit.snapshot(named).name
    check_staying(core, unit, snapshot)
    for lun in unit.volume.snapshot_luns(snapshot):
        if lun.name == parent.lun:
            return Parent(snapshot, lun.name, lun.ostype, made=False)
    raise Refused(
        "no-such-lun", f"snapshot {snapshot} of volume {unit.name} has no LUN {parent.lun!r}; see 'lun snap list'"
    )


async def drop_made(unit: Unit, parent: Parent) -> None:
    """What it was made for is refused."""
    if parent.made and unit.volume.failure is None:
        unit.volume.delete_snapshot(parent.snapshot)
        await unit.service.durable()
        unit.service.kick_reclaim()


def free_snapshot_name(unit: Unit, parent: str) -> str:
    taken = unit.volume.snapshot_names()
    stem = f"clone_{parent.replace('/', '_')[:80]}_{time.strftime('%Y%m%d_%H%M%S', time.gmtime())}"
    names = [stem, *(f"{stem}_{number}" for number in range(2, SNAPSHOT_NAME_TRIES))]
    try:
        return next(name for name in names if name not in taken)
    except StopIteration:
        raise Refused("name-taken", f"no free snapshot name like {stem}; name one yourself") from None
