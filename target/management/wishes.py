"""Which snapshots are to go when nothing holds them any more, as the settings keep it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from target.management.core import Core, Unit
from target.management.refusal import Refused
from target.management.state import AdminState
from wafl import SnapshotInfo


@dataclass(frozen=True, slots=True)
class Wish:
    id: int
    created_at: float
    """Of the snapshot.  Ids come again on a volume that is brought back from a copy."""
    asked_at: float

    def means(self, snapshot: SnapshotInfo) -> bool:
        return (snapshot.id, snapshot.created_at) == (self.id, self.created_at)

    def record(self) -> dict[str, Any]:
        return asdict(self)


def key_of(uuid: str) -> str:
    """The setting of a volume."""
    return f"departures.{uuid}"


def wishes_of(state: AdminState, uuid: str) -> list[Wish]:
    """Of a volume, in the order in which they were asked for."""
    return [Wish(**record) for record in json.loads(state.settings.get(key_of(uuid), "[]"))]


def wish_for(state: AdminState, uuid: str, snapshot: SnapshotInfo) -> Wish | None:
    return next((wish for wish in wishes_of(state, uuid) if wish.means(snapshot)), None)


def check_staying(core: Core, unit: Unit, name: str) -> None:
    """Before anything is made to depend on a snapshot.  Raises Refused."""
    if wish_for(core.state, unit.volume.uuid, unit.snapshot(name)) is not None:
        raise Refused(
            "snapshot-leaving",
            f"snapshot {name} of volume {unit.name} goes as soon as its LUNs are cloned, and takes no more; "
            f"'lun snap delete --cancel {unit.name} {name}' keeps it",
        )
