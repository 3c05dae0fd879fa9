"""The shapes of names: LUN paths, volumes, igroups, iSCSI nodes and portals.

Paths are ONTAP's: `/vol/VOLUME/LUN`, and inside a snapshot `/vol/VOLUME/.snapshot/SNAP/LUN`.  The names of
LUNs and snapshots belong to the volume and are checked by wafl; what must fit into an iSCSI name is
checked here.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from target.management.refusal import Refused

# A volume's name is the tail of its target's name, so it keeps to what RFC 3722 leaves of ASCII: lower-case
# letters, digits, '-' and '.'.
VOLUME_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,62}[a-z0-9])?\Z")
IGROUP_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,95}\Z")
# RFC 7143 4.2.7: iqn. date . reversed domain [: string], eui. 16 hex, naa. 16 or 32 hex.
IQN = re.compile(r"iqn\.\d{4}-(0[1-9]|1[0-2])\.[a-z0-9.-]*[a-z0-9](:[^\s:/][^\s/]*)?\Z")
EUI = re.compile(r"eui\.[0-9a-f]{16}\Z")
TAG = re.compile(r"[0-9]{1,5}\Z")
NAA = re.compile(r"naa\.([0-9a-f]{16}|[0-9a-f]{32})\Z")

ISCSI_NAME_BYTES = 223
"""RFC 7143 4.2.7.1: the longest iSCSI name."""
NODENAME_BYTES = ISCSI_NAME_BYTES - 1 - 64
"""A node name leaves room for ':' and the longest volume name."""
ANY_INITIATOR = "*"
"""In an igroup: every initiator that no igroup names."""
ISCSI_PORT = 3260
MAX_PORTAL_GROUP = 65535
"""RFC 7143 13.9; 0 would be no relative target port identifier (SPC-4 4.3.4)."""
OSTYPES = (
    "linux", "windows", "vmware", "hyper_v", "xen", "kvm", "aix", "hpux", "solaris", "freebsd", "image",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class LunPath:
    """`/vol/VOLUME/LUN`, or `/vol/VOLUME/.snapshot/SNAP/LUN`."""

    volume: str
    lun: str
    snapshot: str | None = None

    @classmethod
    def parse(cls, text: str) -> LunPath:
        parts = text.split("/")
        if len(parts) < 4 or parts[0] or parts[1] != "vol" or not all(parts[2:]):
            raise Refused("invalid-path", f"{text!r} is not a LUN path; write /vol/VOLUME/LUN")
        volume, rest = parts[2], parts[3:]
        if rest[0] != ".snapshot":
            return cls(volume, "/".join(rest))
        if len(rest) < 3:
            raise Refused("invalid-path", f"{text!r} names no LUN; write /vol/{volume}/.snapshot/SNAP/LUN")
        return cls(volume, "/".join(rest[2:]), rest[1])

    @classmethod
    def parse_active(cls, text: str) -> LunPath:
        """A path that must not lead into a snapshot."""
        path = cls.parse(text)
        if path.snapshot is not None:
            raise Refused("invalid-path", f"{text} is inside a snapshot, which never changes; write /vol/VOLUME/LUN")
        return path

    def __str__(self) -> str:
        middle = f".snapshot/{self.snapshot}/" if self.snapshot is not None else ""
        return f"/vol/{self.volume}/{middle}{self.lun}"


def check_volume_name(name: str) -> str:
    if not VOLUME_NAME.match(name):
        raise Refused(
            "invalid-name",
            f"{name!r} cannot name a volume; use 1 to 64 lower-case letters, digits, '-' and '.', "
            "with a letter or digit at both ends",
        )
    return name


def check_igroup_name(name: str) -> str:
    if not IGROUP_NAME.match(name):
        raise Refused("invalid-name", f"{name!r} cannot name an igroup; use 1 to 96 letters, digits and _ - . :")
    return name


def check_ostype(ostype: str) -> str:
    if ostype not in OSTYPES:
        raise Refused("invalid-argument", f"{ostype!r} is not an ostype; choose one of {', '.join(OSTYPES)}")
    return ostype


def check_initiator(name: str, *, any_allowed: bool = False) -> str:
    """The initiator's name in the form in which names are compared (RFC 3722 folds case)."""
    if any_allowed and name == ANY_INITIATOR:
        return name
    folded = name.lower()
    known = IQN.match(folded) or EUI.match(folded) or NAA.match(folded)
    if not known or len(folded.encode()) > ISCSI_NAME_BYTES or not folded.isprintable():
        hint = " (or '*' for every initiator that no igroup names)" if any_allowed else ""
        raise Refused(
            "invalid-name",
            f"{name[:ISCSI_NAME_BYTES]!r} is not an iSCSI name; write iqn.YYYY-MM.DOMAIN:NAME{hint}",
        )
    return folded


def check_nodename(name: str) -> str:
    folded = check_initiator(name)
    if len(folded.encode()) > NODENAME_BYTES or "%" in folded or "," in folded:
        raise Refused("invalid-name", f"the node name must have at most {NODENAME_BYTES} bytes and no ',' or '%'")
    return folded


@dataclass(frozen=True, slots=True, order=True)
class PortalAddress:
    """Where the target listens.  `host` is an address in its shortest form; an unspecified one means all."""

    host: str
    port: int = ISCSI_PORT

    @classmethod
    def parse(cls, text: str) -> PortalAddress:
        """`ADDR`, `ADDR:PORT`, `[ADDR6]:PORT`, `ADDR6`; `*` is 0.0.0.0."""
        host, port = _split_port(text.strip())
        try:
            address = ipaddress.ip_address("0.0.0.0" if host == "*" else host)
            number = int(port)
        except ValueError:
            raise Refused(
                "invalid-argument", f"{text!r} is not a portal; write ADDRESS:PORT, as in 127.0.0.1:3260 or [::1]:3260"
            ) from None
        if not 0 <= number <= 65535:
            raise Refused("invalid-argument", f"{number} is not a TCP port")
        return cls(str(address), number)

    @property
    def is_wildcard(self) -> bool:
        return ipaddress.ip_address(self.host.partition("%")[0]).is_unspecified

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_listen(text: str) -> tuple[PortalAddress, int]:
    """`ADDR[:PORT][,TAG]`, as TargetAddress has it (RFC 7143 13.8): a portal and its portal group."""
    address, comma, tag = text.partition(",")
    if comma and not (TAG.match(tag) and 1 <= int(tag) <= MAX_PORTAL_GROUP):
        raise Refused("invalid-argument", f"{tag[:20]!r} is no portal group; write ADDRESS:PORT,TAG, TAG from 1 on")
    return PortalAddress.parse(address), int(tag) if comma else 1


def _split_port(text: str) -> tuple[str, str]:
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        return host, rest.removeprefix(":") or (str(ISCSI_PORT) if bracket else "")
    if text.count(":") > 1:
        return text, str(ISCSI_PORT)
    host, colon, port = text.partition(":")
    return host, port if colon else str(ISCSI_PORT)
