"""Every text key of RFC 7143 13 (and RFC 7144's), as one table.

For each key: the form of its value, how two offers become one result, who may send it, in which phase, for which
scope, its default, and what we offer.  negotiation.py works from this table alone; a key that is not in it is
answered NotUnderstood.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, Flag, auto

from target.iscsi import limits

Value = str | int | bool


class Form(Enum):
    """The form of a value."""

    BOOLEAN = auto()
    NUMBER = auto()
    LIST = auto()
    TEXT = auto()
    NAME = auto()


class Result(Enum):
    """How the offer and our own value become the result (6.2)."""

    AND = auto()
    OR = auto()
    MINIMUM = auto()
    MAXIMUM = auto()
    FIRST_COMMON = auto()
    """The first item of the offered list that we accept."""
    DECLARED = auto()
    """No negotiation: the sender says what is so."""
    OBSOLETE = auto()
    """13.25: answered, never used."""
    SECURITY = auto()
    """Belongs to the authentication exchange (chap.py)."""
    REQUEST = auto()
    """Asks for an answer that is more than a value (SendTargets)."""


class Sender(Flag):
    INITIATOR = auto()
    TARGET = auto()
    BOTH = INITIATOR | TARGET


class When(Flag):
    """Phases in which a key may be sent; the RFC's IO and LO are about the leading login, `leading` below."""

    SECURITY = auto()
    OPERATIONAL = auto()
    FULL_FEATURE = auto()
    LOGIN = SECURITY | OPERATIONAL
    ALL = LOGIN | FULL_FEATURE


class Scope(Enum):
    SESSION = auto()
    CONNECTION = auto()


@dataclass(frozen=True)
class Key:
    """One row of the table."""

    name: str
    form: Form
    result: Result
    sender: Sender
    when: When
    scope: Scope
    default: Value | None = None
    ours: Value | tuple[str, ...] | None = None
    low: int = 0
    high: int = 0
    leading: bool = False
    """Only in the leading login of a session (LO)."""
    discovery: bool = True
    """False: irrelevant in a discovery session."""


def _number(
    name: str, result: Result, low: int, high: int, default: int, ours: int, discovery: bool = False
) -> Key:
    return Key(
        name, Form.NUMBER, result, Sender.BOTH, When.OPERATIONAL, Scope.SESSION, default, ours, low, high,
        leading=True, discovery=discovery,
    )  # fmt: skip


def _boolean(name: str, result: Result, default: bool, ours: bool) -> Key:
    return Key(
        name, Form.BOOLEAN, result, Sender.BOTH, When.OPERATIONAL, Scope.SESSION, default, ours,
        leading=True, discovery=False,
    )  # fmt: skip


def _digest(name: str) -> Key:
    return Key(
        name, Form.LIST, Result.FIRST_COMMON, Sender.BOTH, When.OPERATIONAL, Scope.CONNECTION, "None",
        ("CRC32C", "None"),
    )  # fmt: skip


def _declared(name: str, form: Form, sender: Sender, when: When, scope: Scope = Scope.SESSION, **more: object) -> Key:
    return Key(name, form, Result.DECLARED, sender, when, scope, **more)  # type: ignore[arg-type]


def _security(name: str, form: Form = Form.TEXT) -> Key:
    return Key(name, form, Result.SECURITY, Sender.BOTH, When.SECURITY, Scope.CONNECTION)


def _obsolete(name: str, ours: str) -> Key:
    return Key(name, Form.TEXT, Result.OBSOLETE, Sender.INITIATOR, When.OPERATIONAL, Scope.CONNECTION, ours=ours)


_LENGTH_MAX = (1 << 24) - 1

TABLE: tuple[Key, ...] = (
    # 12.1: security
    _security("AuthMethod", Form.LIST),
    _security("CHAP_A", Form.LIST),
    _security("CHAP_I"),
    _security("CHAP_C"),
    _security("CHAP_N"),
    _security("CHAP_R"),
    # 13.1
    _digest("HeaderDigest"),
    _digest("DataDigest"),
    # 13.2
    _number("MaxConnections", Result.MINIMUM, 1, 65535, 1, limits.MAX_CONNECTIONS_PER_SESSION),
    # 13.3
    Key("SendTargets", Form.TEXT, Result.REQUEST, Sender.INITIATOR, When.FULL_FEATURE, Scope.SESSION),
    # 13.4 - 13.9; libiscsi repeats the names in each stage, so both stages of login allow them
    _declared("TargetName", Form.NAME, Sender.BOTH, When.LOGIN),
    _declared("InitiatorName", Form.NAME, Sender.INITIATOR, When.LOGIN),
    _declared("TargetAlias", Form.TEXT, Sender.TARGET, When.ALL),
    _declared("InitiatorAlias", Form.TEXT, Sender.INITIATOR, When.ALL),
    _declared("TargetAddress", Form.TEXT, Sender.TARGET, When.ALL),
    _declared("TargetPortalGroupTag", Form.NUMBER, Sender.TARGET, When.LOGIN, low=0, high=65535),
    # 13.10, 13.11
    _boolean("InitialR2T", Result.OR, True, False),
    _boolean("ImmediateData", Result.AND, True, True),
    # 13.12: each side declares what it can receive
    _declared(
        "MaxRecvDataSegmentLength", Form.NUMBER, Sender.BOTH, When.ALL, Scope.CONNECTION,
        default=8192, ours=limits.MAX_RECV_DATA_SEGMENT_BYTES, low=512, high=_LENGTH_MAX,
    ),
    # 13.13 - 13.20
    _number("MaxBurstLength", Result.MINIMUM, 512, _LENGTH_MAX, 262144, limits.MAX_BURST_BYTES),
    _number("FirstBurstLength", Result.MINIMUM, 512, _LENGTH_MAX, 65536, limits.FIRST_BURST_BYTES),
    _number("DefaultTime2Wait", Result.MAXIMUM, 0, 3600, 2, limits.DEFAULT_TIME2WAIT_S, discovery=True),
    _number("DefaultTime2Retain", Result.MINIMUM, 0, 3600, 20, limits.DEFAULT_TIME2RETAIN_S, discovery=True),
    _number("MaxOutstandingR2T", Result.MINIMUM, 1, 65535, 1, limits.MAX_OUTSTANDING_R2T),
    _boolean("DataPDUInOrder", Result.OR, True, False),
    _boolean("DataSequenceInOrder", Result.OR, True, False),
    _number("ErrorRecoveryLevel", Result.MINIMUM, 0, 2, 0, 0, discovery=True),
    # 13.21: in the first request, whatever its stage
    _declared("SessionType", Form.TEXT, Sender.INITIATOR, When.LOGIN, default="Normal"),
    # 13.23: the semantics of RFC 3720 are what every host expects today
    Key(
        "TaskReporting", Form.LIST, Result.FIRST_COMMON, Sender.BOTH, When.OPERATIONAL, Scope.SESSION, "RFC3720",
        ("RFC3720",), leading=True, discovery=False,
    ),
    # 13.24
    _declared("X#NodeArchitecture", Form.TEXT, Sender.BOTH, When.LOGIN),
    # 13.25: markers
    _obsolete("IFMarker", "No"),
    _obsolete("OFMarker", "No"),
    _obsolete("IFMarkInt", "Reject"),
    _obsolete("OFMarkInt", "Reject"),
    # RFC 7144 7.1.1: level 1 is RFC 7143, level 2 adds the functions of RFC 7144
    _number("iSCSIProtocolLevel", Result.MINIMUM, 0, 31, 1, limits.PROTOCOL_LEVEL),
)  # fmt: skip

KEYS: dict[str, Key] = {key.name: key for key in TABLE}
DEFAULTS: dict[str, Value] = {key.name: key.default for key in TABLE if key.default is not None}
