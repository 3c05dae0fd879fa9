"""What a job tells the world.  Kinds are `lun.clone.` and a verb; the management sends them on to syslog.

started, restarted (after a mount), progress (each tenth), paused, resumed, stopped, completed, failed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

INFO, NOTICE, WARNING, ERROR = "info", "notice", "warning", "error"

LEVELS = {
    "lun.clone.started": INFO,
    "lun.clone.restarted": INFO,
    "lun.clone.progress": INFO,
    "lun.clone.paused": WARNING,
    "lun.clone.resumed": NOTICE,
    "lun.clone.stopped": NOTICE,
    "lun.clone.completed": NOTICE,
    "lun.clone.failed": ERROR,
}


@dataclass(frozen=True, slots=True)
class CloneEvent:
    kind: str
    """`lun.clone.completed`"""
    volume: str
    lun: str
    message: str
    data: dict[str, object] = field(default_factory=dict)

    @property
    def path(self) -> str:
        return f"/vol/{self.volume}/{self.lun}"

    @property
    def level(self) -> str:
        """info, notice, warning or error"""
        return LEVELS[self.kind]


OnEvent = Callable[[CloneEvent], None]
