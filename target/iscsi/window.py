"""The command window of a session: CmdSN, ExpCmdSN, MaxCmdSN (RFC 7143 4.2.2.1).

Serial number arithmetic is RFC 1982's with 32 bits.  The window is the valve of the session: every unfinished
non-immediate command takes one place, so MaxCmdSN stands still when commands pile up, and never goes back.
Commands may come by any connection of the session; what comes before its turn waits here, with where it came by.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, auto
from typing import TYPE_CHECKING

from target.iscsi import limits

if TYPE_CHECKING:
    from target.iscsi.connection import Connection

MASK = 0xFFFFFFFF
HALF = 1 << 31


def serial_less(a: int, b: int) -> bool:
    """a comes before b."""
    return a != b and ((b - a) & MASK) < HALF


class Arrival(Enum):
    IN_ORDER = auto()
    EARLY = auto()
    """Inside the window, but commands before it are missing."""
    OUTSIDE = auto()
    """4.2.2.1: ignored silently."""


@dataclass(eq=False, slots=True)
class Held:
    """A PDU that waits for the CmdSNs before it."""

    connection: Connection
    cmd_sn: int
    pdu: bytes
    data: list[bytes] = field(default_factory=list)
    """Data-Out PDUs that came after it unasked."""

    @property
    def size(self) -> int:
        return len(self.pdu) + sum(map(len, self.data))

    @property
    def itt(self) -> int:
        return int.from_bytes(self.pdu[16:20], "big")


class CommandWindow:
    """`exp_cmd_sn` is the next CmdSN to be taken; the hot path moves it itself, unless something waits here."""

    __slots__ = ("early", "early_bytes", "exp_cmd_sn", "frozen", "functions", "outstanding", "size")

    def __init__(self, first_cmd_sn: int, size: int = limits.COMMAND_WINDOW) -> None:
        self.exp_cmd_sn = first_cmd_sn
        self.size = size
        self.outstanding = 0
        """Non-immediate commands taken and not answered."""
        self.early: dict[int, Held | None] = {}
        """By CmdSN.  None: it counts as received and there is nothing to do for it."""
        self.early_bytes = 0
        self.functions: list[Held] = []
        """Immediate task management requests that wait for the commands sent before them (4.2.3.3)."""
        self.frozen = False
        """A response fence stands: nothing is taken, all of the window is early."""

    @property
    def credit(self) -> int:
        """MaxCmdSN - ExpCmdSN."""
        return self.size - 1 - self.outstanding

    @property
    def max_cmd_sn(self) -> int:
        return (self.exp_cmd_sn + self.credit) & MASK

    def arrival(self, cmd_sn: int) -> Arrival:
        ahead = (cmd_sn - self.exp_cmd_sn) & MASK
        if ahead == 0 and self.credit >= 0 and not self.frozen:
            return Arrival.IN_ORDER
        # `credit` is -1 for a closed window
        return Arrival.EARLY if ahead <= self.credit else Arrival.OUTSIDE

    def advance(self) -> None:
        self.exp_cmd_sn = (self.exp_cmd_sn + 1) & MASK

    def keep(self, held: Held) -> bool:
        """Hold a PDU that came early.  False when there is no room for it, or its CmdSN was here already."""
        if held.cmd_sn in self.early or self.early_bytes + len(held.pdu) > limits.HELD_BYTES:
            return False
        self.early[held.cmd_sn] = held
        self.early_bytes += len(held.pdu)
        return True

    def keep_data(self, connection: Connection, itt: int, pdu: bytes) -> None:
        """Hold a Data-Out with the command that it belongs to, if that is held and there is room."""
        for held in self.early.values():
            if held is not None and held.connection is connection and held.itt == itt:
                if self.early_bytes + len(pdu) <= limits.HELD_BYTES:
                    held.data.append(pdu)
                    self.early_bytes += len(pdu)
                return

    def next_held(self) -> Held | None:
        """What waits no longer, in its order; CmdSNs that count as received are passed over."""
        if self.frozen:
            return None
        while self.exp_cmd_sn in self.early:
            held = self.early.pop(self.exp_cmd_sn)
            if held is not None:
                self.early_bytes -= held.size
                return held
            self.advance()
        ready = next((held for held in self.functions if not self.missing_before(held.cmd_sn)), None)
        if ready is not None:
            self.functions.remove(ready)
        return ready

    def missing_before(self, cmd_sn: int) -> int:
        """How many CmdSNs before this one are not taken yet; 0 also for one that is far from the window."""
        ahead = (cmd_sn - self.exp_cmd_sn) & MASK
        # an immediate request carries the CmdSN of the command after it, which may be just outside
        return ahead if ahead <= self.credit + 1 else 0

    def plug(self, cmd_sn: int) -> None:
        """A CmdSN inside the window counts as received."""
        held = self.early.get(cmd_sn)
        if held is not None:
            self.early_bytes -= held.size
        self.early[cmd_sn] = None

    def forget(self, connection: Connection) -> None:
        """A connection ended: what it brought early can no longer be answered."""
        for cmd_sn, held in list(self.early.items()):
            if held is not None and held.connection is connection:
                self.plug(cmd_sn)
        self.functions = [held for held in self.functions if held.connection is not connection]
