"""The command window of a session: CmdSN, ExpCmdSN, MaxCmdSN (RFC 7143 4.2.2.1).

Serial number arithmetic is RFC 1982's with 32 bits.  The window is the valve of the session: every unfinished
non-immediate command takes one place, so MaxCmdSN stands still when commands pile up, and never goes back.
"""

from __future__ import annotations

from enum import Enum, auto

from target.iscsi import limits

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


class CommandWindow:
    """`exp_cmd_sn` is the next CmdSN to be taken; the hot path moves it itself."""

    __slots__ = ("early", "early_bytes", "exp_cmd_sn", "outstanding", "size")

    def __init__(self, first_cmd_sn: int, size: int = limits.COMMAND_WINDOW) -> None:
        self.exp_cmd_sn = first_cmd_sn
        self.size = size
        self.outstanding = 0
        """Non-immediate commands taken and not answered."""
        self.early: dict[int, bytes] = {}
        self.early_bytes = 0

    @property
    def credit(self) -> int:
        """MaxCmdSN - ExpCmdSN."""
        return self.size - 1 - self.outstanding

    @property
    def max_cmd_sn(self) -> int:
        return (self.exp_cmd_sn + self.credit) & MASK

    def arrival(self, cmd_sn: int) -> Arrival:
        ahead = (cmd_sn - self.exp_cmd_sn) & MASK
        if ahead == 0 and self.credit >= 0:
            return Arrival.IN_ORDER
        # `credit` is -1 for a closed window
        return Arrival.EARLY if ahead <= self.credit else Arrival.OUTSIDE

    def advance(self) -> None:
        self.exp_cmd_sn = (self.exp_cmd_sn + 1) & MASK

    def keep(self, cmd_sn: int, pdu: bytes) -> bool:
        """Hold a PDU that came early.  False when there is no room for it."""
        if cmd_sn in self.early or self.early_bytes + len(pdu) > limits.HELD_BYTES:
            return False
        self.early[cmd_sn] = pdu
        self.early_bytes += len(pdu)
        return True

    def next_kept(self) -> bytes | None:
        pdu = self.early.pop(self.exp_cmd_sn, None)
        if pdu is not None:
            self.early_bytes -= len(pdu)
        return pdu
