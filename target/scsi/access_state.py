"""Asymmetric access states of the target port groups, for one logical unit (SPC-4 5.15.2).

Nothing makes one way to a LUN slower than another here: the states are what hosts (SET TARGET PORT GROUPS) and
administrators want them to be.  They belong to the logical unit, are kept over a restart, and no reset changes them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from enum import IntEnum

from target.scsi.sense import Asc, CheckCondition, SenseKey


class AccessState(IntEnum):
    """The primary states, SPC-4 table 271; the larger the number, the less a path can do."""

    ACTIVE_OPTIMIZED = 0x0
    ACTIVE_NON_OPTIMIZED = 0x1
    STANDBY = 0x2
    UNAVAILABLE = 0x3


class ChangedBy(IntEnum):
    """STATUS CODE, SPC-4 table 272."""

    NOBODY = 0
    HOST = 1
    TARGET = 2


NOT_ACCESSIBLE: Mapping[AccessState, CheckCondition] = {
    AccessState.STANDBY: CheckCondition(SenseKey.NOT_READY, Asc.LOGICAL_UNIT_NOT_ACCESSIBLE_TARGET_PORT_IN_STANDBY),
    AccessState.UNAVAILABLE: CheckCondition(
        SenseKey.NOT_READY, Asc.LOGICAL_UNIT_NOT_ACCESSIBLE_TARGET_PORT_IN_UNAVAILABLE
    ),
}


class AccessStates:
    """Target port group -> state, of one logical unit.  A group that nobody spoke of is active/optimized."""

    def __init__(self, saved: bytes = b"") -> None:
        self._groups: dict[int, tuple[AccessState, ChangedBy]] = {}
        for group, state, changed_by in json.loads(saved) if saved else ():
            self._groups[group] = AccessState(state), ChangedBy(changed_by)

    def of(self, group: int) -> AccessState:
        return self._entry(group)[0]

    def changed_by(self, group: int) -> ChangedBy:
        return self._entry(group)[1]

    def _entry(self, group: int) -> tuple[AccessState, ChangedBy]:
        return self._groups.get(group, (AccessState.ACTIVE_OPTIMIZED, ChangedBy.NOBODY))

    def change(self, wanted: Mapping[int, AccessState], changed_by: ChangedBy) -> bool:
        """True if any state is another one than before."""
        different = {group: state for group, state in wanted.items() if self.of(group) is not state}
        self._groups.update({group: (state, changed_by) for group, state in different.items()})
        return bool(different)

    def encode(self) -> bytes:
        if not self._groups:
            return b""
        return json.dumps([[group, *entry] for group, entry in sorted(self._groups.items())]).encode()
