"""The order that a response fence promises (RFC 7143 4.2.2.3), looked at from the initiator's side."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class FenceWatch:
    """Answers in the order in which the device server made them: a fenced one overtakes none, and none overtakes it."""

    expected: Callable[[int], bool]
    """Will the answer to the command with this tag come, as far as the initiator can know?"""
    made: list[tuple[int, bool]] = field(default_factory=list)
    """(tag, fenced), not seen yet."""
    passed: int = 0
    """Fenced answers that were seen in their place."""

    def make(self, tag: int, fenced: bool) -> None:
        self.made.append((tag, fenced))

    def see(self, tag: int) -> None:
        at = next((n for n, (made, _) in enumerate(self.made) if made == tag), None)
        if at is None:
            return
        own_fence = self.made[at][1]
        for earlier, fenced in self.made[:at]:
            assert not (fenced or own_fence) or not self.expected(earlier), "an answer on the wrong side of a fence"
        self.passed += own_fence
        del self.made[at]

    def forget(self, tag: int) -> None:
        self.made = [(made, fenced) for made, fenced in self.made if made != tag]
