"""Who may use a logical unit: RESERVE(6) (SPC-2 5.5.1) and persistent reservations (SPC-4 5.13).

Pure state: a change returns the notices (unit attentions) it owes, and the commands in `reserve` deliver them and, if
`persistent` (APTPL), write `encode` down before they answer.
Rules: a registration belongs to an I_T nexus by name and survives its loss; RESERVE(6) belongs to the session and
does not.  Which command conflicts with which type is one table, `ALLOWED`.
"""

from __future__ import annotations

import json
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

    def __init__(self, saved: bytes = b"") -> None:
        self.unit_holder: ITLNexus | None = None
        """RESERVE(6)."""
        self.generation = 0
        self.keys: dict[Registrant, int] = {}
        self.all_ports: set[Registrant] = set()
        """Those whose registration was made with ALL_TG_PT."""
        self.type: PersistentType | None = None
        self.holder: Registrant | None = None
        """Of `type`; with the all-registrants types everybody registered holds it, and this is nobody."""
        self.persistent = False
        """APTPL of the last registration: what is here survives a loss of power."""
        if saved:
            self._decode(saved)

    def encode(self) -> bytes:
        """What a restart needs; nothing if it is not to survive one.  PRGENERATION begins anew (SPC-4 6.15.2)."""
        if not self.persistent or not self.keys:
            return b""
        names = list(self.keys)
        return json.dumps({
            "registrants": [[who.initiator, who.isid.hex(), who.target_port, self.keys[who], who in self.all_ports]
                            for who in names],
            "type": self.type,
            "holder": names.index(self.holder) if self.holder is not None else None,
        }).encode()  # fmt: skip

    def _decode(self, saved: bytes) -> None:
        parsed = json.loads(saved)
        names = []
        for initiator, isid, target_port, key, all_ports in parsed["registrants"]:
            who = Registrant(initiator, bytes.fromhex(isid), target_port)
            names.append(who)
            self.keys[who] = key
            if all_ports:
                self.all_ports.add(who)
        self.type = None if parsed["type"] is None else PersistentType(parsed["type"])
        self.holder = None if parsed["holder"] is None else names[parsed["holder"]]
        self.persistent = True

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

    def check_key(self, who: Registrant, key: int) -> None:
        """What REGISTER asks of whoever sends it (SPC-4 5.13.7): its own key, or 0 if it has none."""
        if self.keys.get(who, 0) != key:
            raise ReservationConflict

    def register(self, registrants: Iterable[Registrant], new_key: int, all_ports: bool = False) -> list[Notice]:
        """REGISTER and REGISTER AND IGNORE EXISTING KEY: all of them or none; key 0 unregisters."""
        wanted = dict.fromkeys(registrants)
        if new_key == 0:
            self.generation += 1
            return [notice for who in wanted for notice in self._unregister(who)]
        if len(self.keys.keys() | wanted.keys()) > MAX_REGISTRATIONS:
            raise illegal(Asc.INSUFFICIENT_REGISTRATION_RESOURCES)
        for who in wanted:
            self.keys[who] = new_key
            (self.all_ports.add if all_ports else self.all_ports.discard)(who)
        self.generation += 1
        return []

    def move(self, who: Registrant, key: int, other: Registrant, new_key: int, unregister: bool) -> list[Notice]:
        """REGISTER AND MOVE (SPC-4 5.13.8): the reservation goes to `other`, which is registered with `new_key`."""
        self._must_be_registered(who, key)
        if self.type is None or self.type in ALL_REGISTRANTS or not self.holds(who):
            raise ReservationConflict
        if other not in self.keys and len(self.keys) >= MAX_REGISTRATIONS:
            raise illegal(Asc.INSUFFICIENT_REGISTRATION_RESOURCES)
        self.keys[other] = new_key
        self.holder = other
        if unregister:
            self._remove({who})
        self.generation += 1
        return []

    def _unregister(self, who: Registrant) -> list[Notice]:
        held, kind = self.holds(who), self.type
        if who in self.keys:
            self._remove({who})
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
        self._remove(set(self.keys))
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
            self.all_ports.discard(registrant)
