"""One parent, many LUNs: a golden image rolled out.  All of them, or none.

What can be refused is refused before the first change.  The LUNs then come with one consistency point, and their
maps with one transaction after it; when that is refused, or fails, LUNs and snapshot go again.  A crash in between
leaves the LUNs without maps.
"""

from __future__ import annotations

import re
import sqlite3

from target.management import family_models, models, serving
from target.management.access import free_lun_ids
from target.management.backings import Parent, drop_made, find_parent
from target.management.core import Core, Unit
from target.management.luns import Luns
from target.management.names import LunPath, check_ostype
from target.management.refusal import Refused
from wafl import Lun, create_luns

NUMBER = re.compile(r"%(?:0([1-9]))?d")
"""%d, or padded with zeros to so many digits: %03d."""


class Rollouts:
    def __init__(self, core: Core, luns: Luns) -> None:
        self.core = core
        self.luns = luns

    async def create(self, wanted: family_models.Rollout) -> list[models.Lun]:
        paths = [LunPath.parse_active(text) for text in numbered(wanted.pattern, wanted.first, wanted.count)]
        if wanted.ostype is not None:
            check_ostype(wanted.ostype)
        async with self.core.changing:
            unit = self.core.unit(paths[0].volume)
            self._check(unit, paths, wanted)
            parent = await find_parent(self.core, unit, paths[0], wanted.backing)
            try:
                # Most of what is dirty is written beside the hosts' commands; making the LUNs stops them for the rest.
                await unit.service.commit()
                made = self._make(unit, paths, parent, wanted)
                await self._map(unit, made, wanted.igroup)
            except BaseException:
                await drop_made(unit, parent)
                raise
        self._tell(unit, made)
        jobs = self.luns.clones.jobs(unit)
        return [self.luns.model(unit, lun, jobs) for lun in made]

    def _check(self, unit: Unit, paths: list[LunPath], wanted: family_models.Rollout) -> None:
        taken = {lun.name for lun in unit.volume.luns()}.intersection(path.lun for path in paths)
        if taken:
            holders = [f"/vol/{unit.name}/{name}" for name in sorted(taken)]
            raise Refused("name-taken", f"there is a LUN {holders[0]} already; choose other names or numbers", holders)
        if wanted.igroup is not None:
            self.core.state.igroup(wanted.igroup)
            free_lun_ids(self.core.state, wanted.igroup, unit.name, len(paths))

    def _make(self, unit: Unit, paths: list[LunPath], parent: Parent, wanted: family_models.Rollout) -> list[Lun]:
        made = create_luns(
            unit.volume,
            [path.lun for path in paths],
            parent.backing,
            ostype=wanted.ostype or parent.ostype,
            reserved=wanted.reserved,
            comment=wanted.comment,
        )
        serving.serve_new(self.core, unit, made)
        return made

    async def _map(self, unit: Unit, made: list[Lun], igroup: str | None) -> None:
        if igroup is None:
            return
        before = self.core.state
        try:
            ids = free_lun_ids(before, igroup, unit.name, len(made))
            rows = [(unit.name, str(lun.uuid), lun.name, igroup, number) for lun, number in zip(made, ids, strict=True)]

            def change(cursor: sqlite3.Cursor) -> None:
                cursor.executemany("INSERT INTO lun_map VALUES (?, ?, ?, ?, ?)", rows)

            await self.core.store.change(change)
        except BaseException:
            await self._take_back(unit, made)
            raise
        serving.tell_maps(self.core, before)

    async def _take_back(self, unit: Unit, made: list[Lun]) -> None:
        for lun in made:
            serving.withdraw_lun(self.core, unit, lun)
            unit.volume.destroy_lun(lun.name)
        await unit.service.durable()
        unit.service.kick_reclaim()

    def _tell(self, unit: Unit, made: list[Lun]) -> None:
        for lun in made:
            path = f"/vol/{unit.name}/{lun.name}"
            origin = f", backed by snapshot {lun.backing.snapshot_name}" if lun.backing else ""
            self.core.events.emit("lun.created", f"{path} has {lun.size_bytes} bytes{origin}", subject=path)
            for entry in self.core.state.maps_of(str(lun.uuid)):
                text = f"{path} is LUN {entry.lun_id} for igroup {entry.igroup}"
                self.core.events.emit("lun.mapped", text, subject=path)


def numbered(pattern: str, first: int, count: int) -> list[str]:
    """The paths that a pattern stands for."""
    if pattern.count("%") != 1 or not (found := NUMBER.search(pattern)):
        raise Refused(
            "invalid-argument", f"{pattern[:200]!r} has no place for a number; write %d or %03d once: /vol/vol0/vm%03d"
        )
    head, tail, width = pattern[: found.start()], pattern[found.end() :], int(found[1] or 0)
    if head.count("/") < 3:
        raise Refused("invalid-path", f"{pattern[:200]!r} has its number in the volume's name; write /vol/VOLUME/LUN%d")
    return [f"{head}{number:0{width}}{tail}" for number in range(first, first + count)]
