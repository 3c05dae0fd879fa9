"""What a connection is given (the surroundings that all of a portal share) and what it tells (events)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from target.iscsi import limits
from target.iscsi.chap import Entropy
from target.iscsi.ports import TargetDirectory
from target.iscsi.registry import Registry
from target.iscsi.session import Identity


@dataclass(frozen=True)
class Host:
    """What the connections of one portal have in common."""

    directory: TargetDirectory
    registry: Registry
    entropy: Entropy
    """n -> n random bytes."""
    addresses: Callable[[str], list[str]] = lambda local: []
    """This side's address of a connection -> TargetAddress values of the addresses that the portal answers on."""
    alone: Callable[[float], bool] = lambda now: False
    """Whether a connection that has just received something is the only one that anything goes by."""
    tpgt: int = 1
    login_timeout_s: float = limits.LOGIN_TIMEOUT_S
    nop_interval_s: float = limits.NOP_INTERVAL_S
    nop_timeout_s: float = limits.NOP_TIMEOUT_S


@dataclass(frozen=True)
class LoggedIn:
    identity: Identity
    tsih: int


@dataclass(frozen=True)
class LoginFailed:
    who: str
    status: int
    detail: str


@dataclass(frozen=True)
class Closed:
    reason: str
    fault: bool
    """True: something was wrong, worth a line in the log."""


@dataclass(frozen=True)
class Rejected:
    """A PDU was refused, for a reason that is new on this connection."""

    reason: int
    detail: str


Event = LoggedIn | LoginFailed | Rejected | Closed
