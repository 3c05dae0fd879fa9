"""The medium of a removable logical unit: in or out, and who keeps it in (SPC-4 6.16 PREVENT ALLOW, SBC-3 5.25 LOEJ).

An ejected medium comes back with a load command or when the daemon starts: nothing is really moved.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from target.scsi.sense import Asc, CheckCondition, SenseKey, illegal

if TYPE_CHECKING:
    from target.scsi.unit import ITLNexus

NOT_PRESENT = CheckCondition(SenseKey.NOT_READY, Asc.MEDIUM_NOT_PRESENT)


class Medium:
    """State of one logical unit; a unit that is not removable has its medium always."""

    def __init__(self, removable: bool) -> None:
        self.removable = removable
        self.loaded = True
        self._preventing: set[ITLNexus] = set()
        """SBC-3 5.15: removal is allowed again when the last nexus that prevented it allows it, or is lost."""

    def prevent(self, itl: ITLNexus) -> None:
        self._preventing.add(itl)

    def allow(self, itl: ITLNexus) -> None:
        self._preventing.discard(itl)

    def reset(self) -> None:
        self._preventing.clear()

    def move(self, loaded: bool) -> bool:
        """Load or eject.  True if that changed anything.  Raises CheckCondition while somebody prevents it."""
        if self._preventing:
            raise illegal(Asc.MEDIUM_REMOVAL_PREVENTED)
        changed = self.loaded is not loaded
        self.loaded = loaded
        return changed
