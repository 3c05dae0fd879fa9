"""The administrator's settings as one immutable value: igroups, maps, accounts, portals, volume registry.

`target.management.store` reads it from SQLite after every change; everybody else only looks.  It knows
names and numbers, no volume and no session.

Rules.  A map names its LUN by UUID, so that renaming a LUN touches no map.  One initiator sees a LUN of a
target at most once and finds at most one LUN behind an id: `check` refuses any state in which two igroups
that name the same initiator disagree.  The initiator `*` stands for everybody; what igroups that do name
an initiator map takes precedence over it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from ipaddress import ip_address, ip_network

from target.management.lun_values import LunValues
from target.management.names import ANY_INITIATOR, PortalAddress
from target.management.policies import DEFAULTS, Policies
from target.management.refusal import Refused

LUN_ID_LIMIT = 16384
"""SAM-5 4.7.7.3: flat space addressing has 14 bits."""
IGROUP_LIMIT = 1024
INITIATORS_PER_IGROUP = 1024
ACCOUNT_LIMIT = 4096
NETWORKS_PER_ACCOUNT = 64
PORTAL_LIMIT = 64
VOLUME_LIMIT = 256


@dataclass(frozen=True, slots=True)
class VolumeRecord:
    name: str
    uuid: str
    path: str
    online: bool
    nvlog: str = ""
    """File or device of a separate log; empty: the volume's own region."""


@dataclass(frozen=True, slots=True)
class Igroup:
    name: str
    ostype: str
    initiators: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LunMap:
    volume: str
    lun_uuid: str
    lun_name: str
    """The name when the map was made or the LUN last renamed; only for people, while the volume is offline."""
    igroup: str
    lun_id: int


class AuthMethod(StrEnum):
    CHAP = "chap"
    NONE = "none"
    DENY = "deny"


@dataclass(frozen=True, slots=True)
class ChapAccount:
    """How one initiator (or, with an empty name, every other one) must prove itself."""

    initiator: str
    method: AuthMethod
    user: str = ""
    secret: bytes = field(default=b"", repr=False)
    out_user: str = ""
    out_secret: bytes = field(default=b"", repr=False)
    networks: tuple[str, ...] = ()
    """Where the initiator may come from; nothing here: from anywhere."""

    def admits(self, address: str) -> bool:
        """`address`: numeric, as the connection has it."""
        return not self.networks or any(ip_address(address) in ip_network(each) for each in self.networks)


@dataclass(frozen=True, slots=True)
class Redirect:
    """Logins to a volume's target are sent somewhere else."""

    volume: str
    address: PortalAddress
    permanent: bool


DEFAULT_ACCOUNT = ChapAccount("", AuthMethod.NONE)


@dataclass(frozen=True)
class AdminState:
    settings: Mapping[str, str] = field(default_factory=dict)
    volumes: Mapping[str, VolumeRecord] = field(default_factory=dict)
    igroups: Mapping[str, Igroup] = field(default_factory=dict)
    maps: tuple[LunMap, ...] = ()
    policies: Mapping[str, Policies] = field(default_factory=dict)
    lun_values: LunValues = field(default_factory=dict)
    accounts: Mapping[str, ChapAccount] = field(default_factory=dict)
    portals: Mapping[PortalAddress, int] = field(default_factory=dict)
    """With their portal groups."""
    redirects: Mapping[str, Redirect] = field(default_factory=dict)
    """By volume."""

    @property
    def nodename(self) -> str:
        return self.settings["nodename"]

    @property
    def default_account(self) -> ChapAccount:
        return self.accounts.get("", DEFAULT_ACCOUNT)

    def account_of(self, initiator: str) -> ChapAccount:
        return self.accounts.get(initiator) or self.default_account

    def igroup(self, name: str) -> Igroup:
        try:
            return self.igroups[name]
        except KeyError:
            raise Refused("no-such-igroup", f"there is no igroup {name!r}; see 'lun igroup show'") from None

    def volume(self, name: str) -> VolumeRecord:
        try:
            return self.volumes[name]
        except KeyError:
            raise Refused("no-such-volume", f"there is no volume {name!r}; see 'lun vol show'") from None

    def policies_of(self, volume: str) -> Policies:
        return self.policies.get(volume, DEFAULTS)

    @cached_property
    def igroups_by_initiator(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for group in self.igroups.values():
            for initiator in group.initiators:
                found.setdefault(initiator, []).append(group.name)
        return found

    @cached_property
    def maps_by_lun(self) -> dict[str, list[LunMap]]:
        found: dict[str, list[LunMap]] = {}
        for entry in self.maps:
            found.setdefault(entry.lun_uuid, []).append(entry)
        return found

    @cached_property
    def maps_by_igroup(self) -> dict[str, list[LunMap]]:
        found: dict[str, list[LunMap]] = {}
        for entry in self.maps:
            found.setdefault(entry.igroup, []).append(entry)
        return found

    def maps_of(self, lun_uuid: str) -> list[LunMap]:
        return self.maps_by_lun.get(lun_uuid, [])

    def knows_lun(self, lun_uuid: str) -> bool:
        """Something is kept here of a LUN."""
        return bool(self.maps_of(lun_uuid)) or lun_uuid in self.lun_values

    def _maps_through(self, initiator: str, volume: str) -> Iterator[LunMap]:
        for igroup in self.igroups_by_initiator.get(initiator, ()):
            yield from (m for m in self.maps_by_igroup.get(igroup, ()) if m.volume == volume)

    def whose_views_differ(self, before: AdminState) -> set[str]:
        """Initiators that may see something else than `before`; `*` stands for everybody."""
        if self.maps == before.maps and self.igroups == before.igroups:
            return set()
        found: set[str] = set()
        for name in {entry.igroup for entry in set(self.maps) ^ set(before.maps)}:
            for each in (self.igroups, before.igroups):
                found.update(each[name].initiators if name in each else ())
        for name in self.igroups.keys() | before.igroups.keys():
            now, then = (
                set(each[name].initiators) if name in each else set() for each in (self.igroups, before.igroups)
            )
            found |= now ^ then
        return found

    def sees(self, initiator: str, volume: str) -> bool:
        """Anything at all of the volume's target."""
        names = (initiator, ANY_INITIATOR)
        return any(True for name in names for _ in self._maps_through(name, volume))

    def view(self, initiator: str, volume: str) -> dict[int, str]:
        """LUN id -> LUN UUID, as `initiator` sees the volume's target."""
        seen = {m.lun_id: m.lun_uuid for m in self._maps_through(initiator, volume)}
        luns = set(seen.values())
        for entry in self._maps_through(ANY_INITIATOR, volume):
            if entry.lun_id not in seen and entry.lun_uuid not in luns:
                seen[entry.lun_id] = entry.lun_uuid
        return seen

    def lun_ids_taken(self, igroup: str, volume: str) -> set[int]:
        """Ids that a new map of `igroup` cannot have."""
        taken = {m.lun_id for m in self.maps_by_igroup.get(igroup, ()) if m.volume == volume}
        for initiator in self.igroup(igroup).initiators:
            taken.update(m.lun_id for m in self._maps_through(initiator, volume))
        return taken

    def lun_ids_seen(self, igroup: str, volume: str) -> set[int]:
        """Ids that a new map of `igroup` had better not have: one of its initiators would lose sight of a LUN."""
        if ANY_INITIATOR in self.igroup(igroup).initiators:
            return {m.lun_id for m in self.maps if m.volume == volume}
        through_any = {m.lun_id for m in self._maps_through(ANY_INITIATOR, volume)}
        return self.lun_ids_taken(igroup, volume) | through_any

    def check(self) -> None:
        """Refuse a state in which an initiator would see two LUNs behind one id, or one LUN behind two."""
        for initiator, igroups in self.igroups_by_initiator.items():
            if len(igroups) > 1:
                self._check_initiator(initiator, igroups)

    def _check_initiator(self, initiator: str, igroups: list[str]) -> None:
        by_id: dict[tuple[str, int], LunMap] = {}
        by_lun: dict[str, LunMap] = {}
        for entry in (m for igroup in igroups for m in self.maps_by_igroup.get(igroup, ())):
            path = f"/vol/{entry.volume}/{entry.lun_name}"
            other = by_lun.setdefault(entry.lun_uuid, entry)
            if other is not entry:
                raise Refused(
                    "map-conflict",
                    f"{initiator} is in igroups {other.igroup} and {entry.igroup} and would see {path} twice; "
                    "map it to one of them",
                    [other.igroup, entry.igroup],
                )
            other = by_id.setdefault((entry.volume, entry.lun_id), entry)
            if other is not entry:
                raise Refused(
                    "map-conflict",
                    f"{initiator} is in igroups {other.igroup} and {entry.igroup} and would see both "
                    f"/vol/{other.volume}/{other.lun_name} and {path} as LUN {entry.lun_id}; choose another id",
                    [other.igroup, entry.igroup],
                )
