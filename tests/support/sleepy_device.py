"""A device whose reads take a while: what is not in memory comes after `prefetch`, once somebody has waited.  With
`read_ahead_bytes` a read that does not wait begins too, and that much behind it, as Linux does it."""

from __future__ import annotations

import threading
from typing import Any

from tests.support.crash_device import MemoryDevice
from wafl.format import BLOCK_BYTES


class SleepyDevice(MemoryDevice):
    """Begins to read with `prefetch`; what it has begun is there when a thread has waited for any of it."""

    def __init__(self, image: bytearray) -> None:
        super().__init__(image)
        self.here: set[int] = set()
        self.coming: set[int] = set()
        self.waits = {"loop": 0, "thread": 0}
        self.asked: list[int] = []
        """Blocks, in the order in which they were asked for ahead."""

    def pread_nowait(self, offset: int, view: Any) -> bool:
        if not self.pages(offset, len(view)) <= self.here:
            if self.read_ahead_bytes:
                self.coming |= self.pages(offset, len(view) + self.read_ahead_bytes)
            return False
        super().pread(offset, view)
        return True

    def prefetch(self, offset: int, length: int) -> None:
        pages = self.pages(offset, length)
        self.asked += sorted(pages - self.coming)
        self.coming |= pages

    def pread(self, offset: int, view: Any) -> None:
        pages = self.pages(offset, len(view))
        if not pages <= self.here:
            main = threading.current_thread() is threading.main_thread()
            self.waits["loop" if main else "thread"] += 1
            self.here |= pages | self.coming
        super().pread(offset, view)

    def wrote(self, offset: int, data: bytes) -> None:
        self.here |= self.pages(offset, len(data))

    def forget(self) -> None:
        """Memory was needed for something else."""
        self.here.clear()
        self.coming.clear()
        self.asked.clear()

    @staticmethod
    def pages(offset: int, length: int) -> set[int]:
        return set(range(offset // BLOCK_BYTES, (offset + length - 1) // BLOCK_BYTES + 1))
