"""The memory of a connection: what comes in, what goes out, and Data-Out that is being gathered.

All of it is allocated once and used again; sizes are in limits.py.  Nothing here knows a PDU.
"""

from __future__ import annotations

from target.iscsi import limits


class ReceiveBuffer:
    """Bytes between `start` and `end` have arrived and are not used up."""

    __slots__ = ("end", "size", "start", "view")

    def __init__(self, size: int) -> None:
        self.size = size
        self.view = memoryview(bytearray(size))
        self.start = 0
        self.end = 0

    def free(self) -> memoryview:
        return self.view[self.end :]

    def make_room(self, wanted: int) -> None:
        """Let at least `wanted` bytes from `start` fit, moving what is there if need be."""
        if self.start == self.end:
            self.start = self.end = 0
        elif self.start + wanted > self.size or self.end == self.size:
            left = self.end - self.start
            self.view[:left] = self.view[self.start : self.end]
            self.start, self.end = 0, left

    def grown(self, size: int) -> ReceiveBuffer:
        """A larger buffer with the same unused bytes."""
        larger = ReceiveBuffer(size)
        left = self.end - self.start
        larger.view[:left] = self.view[self.start : self.end]
        larger.end = left
        return larger


class OutputBuffer:
    """Answers are put together at `used`; a few buffers take turns while the network is behind."""

    __slots__ = ("_index", "buffer", "buffers", "size", "used", "view")

    def __init__(self, size: int) -> None:
        self.size = size
        self.buffers = [bytearray(size)]
        self._index = 0
        self._select()

    def _select(self) -> None:
        self.buffer = self.buffers[self._index]
        self.view = memoryview(self.buffer)
        self.used = 0

    @property
    def room(self) -> int:
        return self.size - self.used

    def grown(self, size: int) -> OutputBuffer:
        """A larger buffer with the same unsent bytes."""
        larger = OutputBuffer(size)
        larger.view[: self.used] = self.view[: self.used]
        larger.used = self.used
        return larger

    def rotate(self) -> None:
        """The current buffer is on its way and must not be touched: go on in another."""
        self._index += 1
        if self._index == len(self.buffers):
            if self._index == limits.OUTPUT_BUFFERS:
                self.buffers.pop(0)  # whoever sends it keeps it alive; the transport is paused long before
                self._index -= 1
            self.buffers.append(bytearray(self.size))
        self._select()

    def reset(self) -> None:
        """Everything was sent: all buffers can be used again."""
        if self._index:
            self._index = 0
            del self.buffers[2:]
            self._select()
        self.used = 0


class BufferPool:
    """Data-Out buffers, reused without clearing: a command runs only when every byte of its buffer was received."""

    SMALLEST = 64 * 1024
    KEPT_BYTES = 16 * 1024 * 1024

    def __init__(self) -> None:
        self._free: dict[int, list[bytearray]] = {}
        self._kept = 0

    def take(self, length: int) -> bytearray:
        size = self._class(length)
        free = self._free.get(size)
        if free:
            self._kept -= size
            return free.pop()
        return bytearray(size)

    def give(self, buffer: bytearray) -> None:
        size = len(buffer)
        if self._kept + size <= self.KEPT_BYTES:
            self._kept += size
            self._free.setdefault(size, []).append(buffer)

    def _class(self, length: int) -> int:
        return max(self.SMALLEST, 1 << (length - 1).bit_length())
