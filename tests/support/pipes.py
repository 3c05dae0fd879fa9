"""What an initiator on a network that misbehaves has under way: work, the commands that do it, and connections."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from target.iscsi.connection import Connection
from tests.support.initiator import Initiator


@dataclass(eq=False)
class Work:
    """Something to be done with one region, through however many commands it takes."""

    region: int
    blocks: int
    kind: str
    """read, write or flush"""
    data: bytes = b""


@dataclass(eq=False)
class Command:
    work: Work
    itt: int
    cmd_sn: int
    pipe: Pipe
    got: bytearray = field(default_factory=bytearray)
    data_sn: int = 0
    r2t_sn: int = 0


@dataclass(eq=False)
class Pipe:
    """One connection: the initiator's end, the target's, and what is under way between them."""

    initiator: Initiator
    outbox: deque[bytes] = field(default_factory=deque)
    incoming: bytearray = field(default_factory=bytearray)
    """On its way to the initiator."""
    inbox: bytearray = field(default_factory=bytearray)
    """Arrived there, not a whole PDU yet."""
    expected_stat_sn: int = 0
    alive: bool = True
    """In the initiator's eyes."""
    spoilt: bool = False
    """Something was lost on it: its numbers may have gaps."""

    @property
    def core(self) -> Connection:
        return self.initiator.link.core
