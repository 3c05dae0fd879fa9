"""How full volumes are, and telling people and hosts when a threshold is crossed.

A volume is above its highest threshold that it has reached, and stays so until it has fallen `HYSTERESIS` below it:
a volume that hovers about a threshold crosses it once.  Each crossing is one event.  A crossing upwards also gives
hosts that see a LUN without a space reservation the unit attention THIN PROVISIONING SOFT THRESHOLD REACHED (SBC-3
4.7.3.8).
"""

from __future__ import annotations

from collections.abc import Sequence

from target.management import serving
from target.management.core import Core, Unit
from target.management.events import Severity
from wafl import Space

HYSTERESIS = 2
"""Percent."""


def percent_full(space: Space) -> float:
    """What thin LUNs can no longer write.  What is freed and waits for the next consistency point counts as free."""
    return max(0.0, 100 * (space.total - space.available - space.freeing) / space.total)


def level_of(levels: Sequence[int], percent: float, before: int) -> int:
    """The threshold that a volume is above now, 0 for none, if it was above `before`."""
    reached = max((level for level in levels if percent >= level), default=0)
    held = max((level for level in levels if level <= before and percent >= level - HYSTERESIS), default=0)
    return max(reached, held)


class SpaceWatch:
    def __init__(self, core: Core) -> None:
        self.core = core
        self._levels: dict[str, int] = {}
        """Volume -> the threshold that it is above."""

    async def look(self, unit: Unit, space: Space) -> None:
        levels = self.core.state.policies_of(unit.name).thresholds
        percent = percent_full(space)
        before = self._levels.get(unit.name, 0)
        before = before if before in levels else 0
        now = self._levels[unit.name] = level_of(levels, percent, before)
        if now > before:
            self._emit(unit, space, percent, now, "above", Severity.ERROR if now == levels[-1] else Severity.WARNING)
            await serving.tell_threshold(self.core, unit)
        elif now < before:
            left = min(level for level in levels if level > now)
            self._emit(unit, space, percent, left, "below", Severity.NOTICE)

    def forget(self, names: set[str]) -> None:
        """Keep only these volumes."""
        self._levels = {name: level for name, level in self._levels.items() if name in names}

    def _emit(
        self, unit: Unit, space: Space, percent: float, level: int, direction: str, severity: Severity
    ) -> None:
        self.core.events.emit(
            "volume.space.threshold",
            f"volume {unit.name} is {percent:.1f} % full, {direction} its threshold of {level} %: hosts can write "
            f"{space.available} bytes more",
            subject=unit.name,
            severity=severity,
            data={
                "level": level,
                "direction": direction,
                "percent": round(percent, 1),
                "size_bytes": space.total,
                "free_bytes": space.available,
                "snapshot_bytes": space.snapshots,
            },
        )
