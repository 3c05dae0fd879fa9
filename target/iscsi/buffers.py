"""The memory of a connection: what comes in, what goes out, and Data-Out that is being gathered.

All of it is allocated once and used again; sizes are in limits.py.  Nothing here knows a PDU.
"""

from __future__ import annotations

from collections import deque
from mmap import MADV_DONTNEED, MAP_ANONYMOUS, MAP_PRIVATE, mmap

from target.iscsi import limits

Memory = bytearray | mmap


def allocate(size: int) -> Memory:
    """Zeros.  Large ones have pages of their own, which go back to the kernel when nobody uses them any more.  malloc
    would take them from the heap once it has freed one as large, where smaller things that stay keep them for ever."""
    return bytearray(size) if size < limits.OWN_PAGES_BYTES else mmap(-1, size, flags=MAP_PRIVATE | MAP_ANONYMOUS)


def give_back(memory: Memory) -> None:
    """Pages of its own go back to the kernel until they are touched again: what is in them is lost."""
    if isinstance(memory, mmap):
        memory.madvise(MADV_DONTNEED)


class ReceiveBuffer:
    """Bytes between `start` and `end` have arrived and are not used up."""

    __slots__ = ("_buffer", "end", "size", "start", "view", "wanted")

    def __init__(self, size: int) -> None:
        self.size = size
        self.wanted = 0
        """Bytes from `start` on that make the next PDU whole, as far as is known."""
        self._buffer = allocate(size)
        self.view = memoryview(self._buffer)
        self.start = 0
        self.end = 0

    def free(self) -> memoryview:
        return self.view[self.end :]

    def free_for_next(self, most: int) -> memoryview:
        """As `free`, but for `most` bytes or what the next PDU still lacks, whichever is more."""
        return self.view[self.end : max(self.end + most, self.start + self.wanted)]

    def make_room(self, wanted: int) -> None:
        """Let at least `wanted` bytes from `start` fit, moving what is there if need be."""
        self.wanted = wanted
        if self.start == self.end:
            self.start = self.end = 0
        elif self.start + wanted > self.size or self.end == self.size:
            left = self.end - self.start
            self.view[:left] = self.view[self.start : self.end]
            self.start, self.end = 0, left

    def rest(self) -> None:
        """Nothing is expected soon: of many sessions most are idle."""
        if self.start == self.end:
            self.start = self.end = 0
            give_back(self._buffer)

    def grown(self, size: int) -> ReceiveBuffer:
        """A larger buffer with the same unused bytes."""
        larger = ReceiveBuffer(size)
        left = self.end - self.start
        larger.view[:left] = self.view[self.start : self.end]
        larger.end = left
        return larger


class OutputBuffer:
    """Answers are put together at `used`; a few buffers take turns while the network is behind.  A buffer whose bytes
    have gone out is used again: a new one costs the kernel as much as sending from it."""

    __slots__ = ("_free", "_sending", "buffer", "size", "used", "view")

    def __init__(self, size: int) -> None:
        self.size = size
        self._sending: deque[tuple[Memory, int]] = deque()
        """(buffer, bytes of it) that are on their way, the oldest first."""
        self._free: list[Memory] = []
        self._take(allocate(size))

    def _take(self, buffer: Memory) -> None:
        self.buffer = buffer
        self.view = memoryview(buffer)
        self.used = 0

    @property
    def room(self) -> int:
        return self.size - self.used

    @property
    def held_bytes(self) -> int:
        """Of memory."""
        return self.size * (1 + len(self._sending) + len(self._free))

    def grown(self, size: int) -> OutputBuffer:
        """A larger buffer with the same unsent bytes."""
        larger = OutputBuffer(size)
        larger.view[: self.used] = self.view[: self.used]
        larger.used = self.used
        return larger

    def rotate(self) -> None:
        """The current buffer is on its way and must not be touched: go on in another."""
        if len(self._sending) == limits.OUTPUT_BUFFERS:
            self._sending.popleft()  # whoever sends it keeps it alive; the transport is paused long before
        self._sending.append((self.buffer, self.used))
        self._take(self._free.pop() if self._free else allocate(self.size))

    def reset(self) -> None:
        """What is in the current buffer has gone out, and with it all that was on its way."""
        self.used = 0
        if self._sending:
            self.sent(0)

    def sent(self, pending: int) -> None:
        """All that was on its way has gone out but for the last `pending` bytes."""
        staying = 0
        for _, length in reversed(self._sending):
            if pending <= 0:
                break
            pending -= length
            staying += 1
        while len(self._sending) > staying:
            self._free.append(self._sending.popleft()[0])

    def trim(self) -> None:
        """Keep no more than one to spare."""
        del self._free[1:]

    def rest(self) -> None:
        """As `ReceiveBuffer.rest`."""
        self._free.clear()
        if not self.used and not self._sending:
            give_back(self.buffer)


class BufferPool:
    """Data-Out buffers, reused without clearing: a command runs only when every byte of its buffer was received."""

    SMALLEST = 64 * 1024
    KEPT_BYTES = 16 * 1024 * 1024

    def __init__(self) -> None:
        self._free: dict[int, list[Memory]] = {}
        self._kept = 0

    def take(self, length: int) -> Memory:
        size = self._class(length)
        free = self._free.get(size)
        if free:
            self._kept -= size
            return free.pop()
        return allocate(size)

    def give(self, buffer: Memory) -> None:
        size = len(buffer)
        if self._kept + size <= self.KEPT_BYTES:
            self._kept += size
            self._free.setdefault(size, []).append(buffer)

    def _class(self, length: int) -> int:
        return max(self.SMALLEST, 1 << (length - 1).bit_length())
