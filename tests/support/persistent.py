"""What a cluster's node does to a LUN: SCSI-3 persistent reservations by `sg_persist`, and whether it may use it.

What it knows: the command lines of sg3-utils and their output.  Nothing decides here whether an answer is right.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import IntEnum

from tests.support.uml import HostError, Job, UmlHost

# Linux's words for the status RESERVATION CONFLICT (EBADE).
CONFLICT = "Invalid exchange"
SG_CONFLICT = 24
"""sg3-utils' exit status for it."""


class Kind(IntEnum):
    """SPC-4 table 207: persistent reservation types."""

    WRITE_EXCLUSIVE = 1
    EXCLUSIVE_ACCESS = 3
    WRITE_EXCLUSIVE_REGISTRANTS_ONLY = 5
    EXCLUSIVE_ACCESS_REGISTRANTS_ONLY = 6
    WRITE_EXCLUSIVE_ALL_REGISTRANTS = 7
    EXCLUSIVE_ACCESS_ALL_REGISTRANTS = 8


@dataclass
class Node:
    """One host with one disk and one key."""

    host: UmlHost
    disk: str
    key: int

    def _out(self, action: str, *more: str) -> None:
        self.host.run("sg_persist", "--out", f"--{action}", *more, self.disk)

    def register(self, *, aptpl: bool = False) -> None:
        self._out("register", f"--param-sark={self.key:#x}", *(["--param-aptpl"] if aptpl else []))

    def unregister(self) -> None:
        self._out("register", f"--param-rk={self.key:#x}", "--param-sark=0")

    def reserve(self, kind: Kind) -> None:
        self._out("reserve", f"--param-rk={self.key:#x}", f"--prout-type={kind:d}")

    def refused_to_reserve(self, kind: Kind) -> bool:
        words = ("sg_persist", "--out", "--reserve", f"--param-rk={self.key:#x}", f"--prout-type={kind:d}", self.disk)
        result = self.host.run(*words, check=False)
        if result.code not in (0, SG_CONFLICT):
            raise HostError(str(result))
        return result.code == SG_CONFLICT

    def release(self, kind: Kind) -> None:
        self._out("release", f"--param-rk={self.key:#x}", f"--prout-type={kind:d}")

    def clear(self) -> None:
        self._out("clear", f"--param-rk={self.key:#x}")

    def preempt(self, victim: Node, kind: Kind, *, abort: bool = False) -> None:
        keys = (f"--param-rk={self.key:#x}", f"--param-sark={victim.key:#x}")
        self._out("preempt-abort" if abort else "preempt", *keys, f"--prout-type={kind:d}")

    def keys(self) -> list[int]:
        listing = self.host.run("sg_persist", "--in", "--read-keys", self.disk).out
        return sorted(int(key, 16) for key in re.findall(r"^ +(0x[0-9a-f]+)$", listing, re.MULTILINE))

    def holder(self) -> int | None:
        """The key that holds the reservation: 0 where all registrants do; None if there is none."""
        listing = self.host.run("sg_persist", "--in", "--read-reservation", self.disk).out
        key = re.search(r"Key=(0x[0-9a-f]+)", listing)
        return int(key[1], 16) if key else None

    def attention(self) -> str:
        """What the next command is told, which TEST UNIT READY takes from the kernel's hands; empty if nothing."""
        return (
            self.host.run("sg_turs", "--verbose", self.disk, check=False).err.partition("Additional sense: ")[2].strip()
        )

    def may_read(self) -> bool:
        return self._may("dd", f"if={self.disk}", "of=/dev/null", "iflag=direct")

    def may_write(self) -> bool:
        return self._may("dd", "if=/dev/zero", f"of={self.disk}", "oflag=direct")

    def _may(self, *dd: str) -> bool:
        result = self.host.run(*dd, "bs=4096", "count=1", check=False)
        if result.code != 0 and CONFLICT not in result.text:
            raise HostError(str(result))
        return result.code == 0

    def write_on(self) -> Job:
        """Writes without an end."""
        script = f"while :; do dd if=/dev/zero of={self.disk} bs=64k count=64 oflag=direct; done"
        return self.host.spawn("/bin/sh", "-ec", script, limit_s=120)
