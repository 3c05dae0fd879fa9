"""Where the blocks of a LUN live, for `lun show --map`."""

from __future__ import annotations

import asyncio
from collections.abc import Generator

from target.management import family_models as models
from target.management.core import Core, Unit
from target.management.families import backing_path
from target.management.refusal import Refused
from target.management.snapshots import in_slices
from wafl import Layout, Lun, Step, lun_layout


class Layouts:
    def __init__(self, core: Core) -> None:
        self.core = core
        self._drawing = asyncio.Lock()
        """One at a time: each is some thousand reads of pointer blocks at most, on the loop's thread."""

    @property
    def busy(self) -> bool:
        return self._drawing.locked()

    async def get(self, text: str, stretches: int) -> models.LunLayout:
        async with self._drawing:
            unit, lun, _path = self.core.find(text)
            found = await in_slices(_looked_at(unit, lun, stretches))
        own = sum(each.own for each in found.stretches)
        backing = sum(each.backing for each in found.stretches)
        return models.LunLayout(
            path=f"/vol/{unit.name}/{lun.name}",
            size_bytes=found.size_bytes,
            own_bytes=own,
            backing_bytes=backing,
            zero_bytes=found.size_bytes - own - backing,
            exact=found.exact,
            backing=backing_path(unit, lun),
            stretches=[
                models.Stretch(
                    offset=each.offset, length=each.length, own_bytes=each.own, backing_bytes=each.backing
                )
                for each in found.stretches
            ],
        )  # fmt: skip


def _looked_at(unit: Unit, lun: Lun, stretches: int) -> Generator[Step, None, Layout]:
    steps = lun_layout(lun, stretches)
    while True:
        if unit.closing:
            raise Refused("volume-offline", f"volume {unit.name} went offline meanwhile")
        try:
            yield next(steps)
        except StopIteration as ended:
            found: Layout = ended.value
            return found
