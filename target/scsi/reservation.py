"""Who may use a logical unit: RESERVE(6) (SPC-2 5.5.1) and persistent reservations (SPC-4 5.13).

Pure state: a change returns the notices (unit attentions) it owes, and the commands in `reserve` deliver them.
Rules: a registration belongs to an I_T nexus by name and survives its loss; RESERVE(6) belongs to the session and
does not.  Which command conflicts with which type is one table, `ALLOWED`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

from target.scsi.limits import MAX_REGISTRATIONS
from target.scsi.sense import Asc, illegal, invalid_parameter
from target.scsi.task import Access

if TYPE_CHECKING:
    from target.scsi.unit import ITLNexus


class PersistentType(IntEnum):
    """SPC-4 table 176."""

    WRITE_EXCLUSIVE = 1
    EXCLUSIVE_ACCESS = 3
    WRITE_EXCLUSIVE_REGISTRANTS_ONLY = 5
    EXCLUSIVE_ACCESS_REGISTRANTS_ONLY = 6
    WRITE_EXCLUSIVE_ALL_REGISTRANTS = 7
    EXCLUSIVE_ACCESS_ALL_REGISTRANTS = 8


Type = PersistentType
ALL_REGISTRANTS = {Type.WRITE_EXCLUSIVE_ALL_REGISTRANTS, Type.EXCLUSIVE_ACCESS_ALL_REGISTRANTS}
REGISTRANTS_ONLY = {Type.WRITE_EXCLUSIVE_REGISTRANTS_ONLY, Type.EXCLUSIVE_ACCESS_REGISTRANTS_ONLY}

_NOTHING: frozenset[Access] = frozenset()
_READING = frozenset({Access.READ})
_EVERYTHING = frozenset({Access.READ, Access.WRITE})
# type -> what a nexus that does not hold the reservation may do: (not registered, registered).  SPC-4 tables 66, 67.
ALLOWED: dict[PersistentType, tuple[frozenset[Access], frozenset[Access]]] = {
    Type.WRITE_EXCLUSIVE: (_READING, _READING),
    Type.EXCLUSIVE_ACCESS: (_NOTHING, _NOTHING),
    Type.WRITE_EXCLUSIVE_REGISTRANTS_ONLY: (_READING, _EVERYTHING),
    Type.EXCLUSIVE_ACCESS_REGISTRANTS_ONLY: (_NOTHING, _EVERYTHING),
    Type.WRITE_EXCLUSIVE_ALL_REGISTRANTS: (_READING, _EVERYTHING),
    Type.EXCLUSIVE_ACCESS_ALL_REGISTRANTS: (_NOTHING, _EVERYTHING),
}


class Registrant(NamedTuple):
    """An I_T nexus by name."""

    initiator: str
    isid: bytes
    target_port: int


@dataclass(frozen=True)
class Notice:
    """A unit attention that these nexuses are owed."""

    attention: Asc
    to: frozenset[Registrant]


class ReservationConflict(Exception):
    """The command ends with RESERVATION CONFLICT status."""


def registrant_of(itl: ITLNexus) -> Registrant:
    nexus = itl.nexus
    return Registrant(nexus.initiator, nexus.isid, nexus.target_port)


class Reservations:
    """The reservation state of one logical unit."""

    def __init__(self) -> None:
        self.unit_holder: ITLNexus | None = None
        """RESERVE(6)."""
        self.generation = 0
        self.keys: dict[Registrant, int] = {}
        self.type: PersistentType | None = None
        self.holder: Registrant | None = None
        """Of `type`; with the all-registrants types everybody registered holds it, and this is nobody."""

    # --- questions ----------------------------------------------------------------------------------------------

    def allows(self, itl: ITLNexus, access: Access) -> bool:
        if access in (Access.FREE, Access.RESERVATION):
            return True
        if self.unit_holder is not None and self.unit_holder is not itl:
            return False
        if self.type is None or access is Access.UNIT:
            return True
        registrant = registrant_of(itl)
        return self.holds(registrant) or access in ALLOWED[self.type][registrant in self.keys]

    def holds(self, registrant: Registrant) -> bool:
        if self.type in ALL_REGISTRANTS:
            return registrant in self.keys
        return self.type is not None and registrant == self.holder

    @property
    def holder_key(self) -> int:
        """What READ RESERVATION shows: 0 for the all-registrants types."""
        return self.keys.get(self.holder, 0) if self.holder else 0

    def _must_be_registered(self, registrant: Registrant, key: int) -> None:
        if self.keys.get(registrant) != key:
            raise ReservationConflict

    # --- RESERVE(6), RELEASE(6) ---------------------------------------------------------------------------------

    def reserve_unit(self, itl: ITLNexus) -> None:
        # SPC-4 5.13.3: the two kinds of reservation do not mix
        if self.keys or self.unit_holder not in (None, itl):
            raise ReservationConflict
        self.unit_holder = itl

    def release_unit(self, itl: ITLNexus | None = None) -> bool:
        """Release RESERVE(6) if `itl` holds it (None: whoever does).  True if it was released."""
        if self.unit_holder is None or itl not in (None, self.unit_holder):
            return False
        self.unit_holder = None
        return True

    # --- PERSISTENT RESERVE OUT ---------------------------------------------------------------------------------

    def register(self, who: Registrant, key: int, new_key: int, ignore: bool) -> list[Notice]:
        """REGISTER and REGISTER AND IGNORE EXISTING KEY (SPC-4 5.13.7)."""
        if not ignore and self.keys.get(who, 0) != key:
            raise ReservationConflict
        if new_key == 0:
            return self._unregister(who)
        if who not in self.keys and len(self.keys) >= MAX_REGISTRATIONS:
            raise illegal(Asc.INSUFFICIENT_REGISTRATION_RESOURCES)
        self.keys[who] = new_key
        self.generation += 1
        return []

    def _unregister(self, who: Registrant) -> list[Notice]:
        self.generation += 1
        held, kind = self.holds(who), self.type
        self.keys.pop(who, None)
        if not held or (kind in ALL_REGISTRANTS and self.keys):
            return []
        self._end()
        # SPC-4 5.13.11.2.1: the others learn it only if they had shared in it
        return [Notice(Asc.RESERVATIONS_RELEASED, frozenset(self.keys))] if kind in REGISTRANTS_ONLY else []

    def reserve(self, who: Registrant, key: int, kind: PersistentType) -> list[Notice]:
        self._must_be_registered(who, key)
        if self.type is None:
            self._begin(who, kind)
        elif not (self.holds(who) and self.type is kind):
            raise ReservationConflict
        return []

    def release(self, who: Registrant, key: int, kind: PersistentType) -> list[Notice]:
        self._must_be_registered(who, key)
        if self.type is None or not self.holds(who):
            return []
        if self.type is not kind:
            raise illegal(Asc.INVALID_RELEASE_OF_PERSISTENT_RESERVATION)
        self._end()
        if kind in REGISTRANTS_ONLY | ALL_REGISTRANTS:
            return [Notice(Asc.RESERVATIONS_RELEASED, frozenset(self.keys) - {who})]
        return []

    def clear(self, who: Registrant, key: int) -> list[Notice]:
        self._must_be_registered(who, key)
        others = frozenset(self.keys) - {who}
        self.keys.clear()
        self._end()
        self.generation += 1
        return [Notice(Asc.RESERVATIONS_PREEMPTED, others)]

    def preempt(self, who: Registrant, key: int, victim_key: int, kind: PersistentType) -> list[Notice]:
        """PREEMPT (SPC-4 5.13.11.2.4); the notice of REGISTRATIONS PREEMPTED names those whose tasks PREEMPT AND ABORT
        aborts."""
        self._must_be_registered(who, key)
        victims = {r for r, k in self.keys.items() if k == victim_key} - {who}
        if self.type in ALL_REGISTRANTS:
            takes_over = victim_key == 0
            victims = set(self.keys) - {who} if takes_over else victims
        else:
            takes_over = self.type is not None and self.holder_key == victim_key
            if victim_key == 0:
                raise invalid_parameter(8)
        if not victims and not takes_over:
            raise ReservationConflict
        self._remove(victims)
        self.generation += 1
        notices = [Notice(Asc.REGISTRATIONS_PREEMPTED, frozenset(victims))]
        if takes_over:
            if self.type is not kind:
                notices.append(Notice(Asc.RESERVATIONS_RELEASED, frozenset(self.keys) - {who}))
            self._begin(who, kind)
        return notices

    # --- steps --------------------------------------------------------------------------------------------------

    def _begin(self, who: Registrant, kind: PersistentType) -> None:
        self.type = kind
        self.holder = None if kind in ALL_REGISTRANTS else who

    def _end(self) -> None:
        self.type = self.holder = None

    def _remove(self, registrants: Iterable[Registrant]) -> None:
        for registrant in registrants:
            del self.keys[registrant]
