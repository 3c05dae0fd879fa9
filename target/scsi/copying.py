"""Moving data from one logical unit to another in slices: what EXTENDED COPY and the tokens share.

Whole blocks that lie alike in both are shared by the store, which moves nothing. What cannot be is read and written
like by a host that has the fast path: what is not in memory is read ahead and asked for again, zeros become holes.
Between two slices everybody else has a turn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from target.scsi.limits import COPY_RETRIES, COPY_STEP_BYTES, COPY_WAIT_S, SHARE_BYTES
from target.scsi.sense import Asc, CheckCondition, SenseKey
from target.scsi.store import StoreError
from target.scsi.task import store_failure

if TYPE_CHECKING:
    from target.scsi.unit import LogicalUnit

ZEROS = bytes(COPY_STEP_BYTES)


class Segment(NamedTuple):
    """`length` bytes from here to there; all whole blocks of both."""

    source: LogicalUnit
    source_offset: int
    destination: LogicalUnit
    destination_offset: int
    length: int


CopyDone = Callable[["Copier", "CheckCondition | None"], None]


class Copier:
    """One copy under way."""

    def __init__(self, segments: Sequence[Segment], wanted: Callable[[], bool], done: CopyDone) -> None:
        """`wanted` is asked before each slice: False ends the copy without a word.  `done` is called with what went
        wrong."""
        self.segments = segments
        self.segments_done = 0
        self.bytes_done = 0
        self._wanted = wanted
        self._done = done
        self._offset = 0
        self._waits = 0
        self._contents = [segment.source.contents for segment in segments]
        self._buffer = memoryview(bytearray(min(COPY_STEP_BYTES, max((s.length for s in segments), default=0))))

    def start(self) -> None:
        self._later(0.0)

    def _later(self, delay_s: float) -> None:
        self.segments[0].destination.platform.call_later(delay_s, self._step)

    def _step(self) -> None:
        if not self._wanted():
            return
        try:
            delay_s = self._copy_some()
        except CheckCondition as condition:
            self._done(self, condition)
        except StoreError as error:
            self._done(self, store_failure(error, self.segments[self.segments_done].source.block_bytes))
        else:
            if self.segments_done < len(self.segments):
                self._later(delay_s)
            else:
                self._done(self, None)

    def _copy_some(self) -> float:
        """One slice, or none if it has to be read from the disk first; how long to wait for the next."""
        segment = self.segments[self.segments_done]
        source, destination = segment.source, segment.destination
        condition = source.not_ready() or destination.not_ready()
        if condition is not None:
            raise condition
        if source.contents != self._contents[self.segments_done]:
            raise CheckCondition(SenseKey.ABORTED_COMMAND, Asc.COMMANDS_CLEARED_BY_DEVICE_SERVER)
        if segment.length:
            done = self._move(segment)
            if not done:
                return COPY_WAIT_S
            self._waits = 0
            self._offset += done
            self.bytes_done += done
        if self._offset == segment.length:
            self.segments_done += 1
            self._offset = 0
        return 0.0

    def _move(self, segment: Segment) -> int:
        """Bytes done, from where the segment has come to; 0: the disk has to read something first."""
        source, destination = segment.source, segment.destination
        at, start = segment.source_offset + self._offset, segment.destination_offset + self._offset
        whole = self._whole(segment)
        if whole:
            if self._put_off(destination.store.share_is_ready(start, source.store, at, whole)):
                return 0
            if done := self._share(segment, whole):
                return done
        view = self._buffer[: self._unshared(segment)]
        if not self._read(source, at, view) or self._put_off(is_ready(destination, start, view)):
            return 0
        source.counters.reads += 1
        source.counters.read_bytes += len(view)
        write(destination, start, view)
        return len(view)

    def _put_off(self, ready: bool) -> bool:
        """Whether to wait for the disk; not for ever."""
        self._waits += not ready
        return not ready and self._waits < COPY_RETRIES

    def _whole(self, segment: Segment) -> int:
        """Bytes of whole blocks that lie alike in both, from where the segment has come to."""
        at, start = segment.source_offset + self._offset, segment.destination_offset + self._offset
        return 0 if (at | start) % SHARE_BYTES else (segment.length - self._offset) // SHARE_BYTES * SHARE_BYTES

    def _share(self, segment: Segment, length: int) -> int:
        """Bytes that need no copying."""
        at, start = segment.source_offset + self._offset, segment.destination_offset + self._offset
        done = segment.destination.store.share(start, segment.source.store, at, length)
        if done:
            segment.destination.counters.writes += 1
            segment.destination.counters.write_bytes += done
        return done

    def _unshared(self, segment: Segment) -> int:
        """Bytes to copy: up to the next whole block, if the rest lies alike in both."""
        at, start = segment.source_offset + self._offset, segment.destination_offset + self._offset
        left = segment.length - self._offset
        return min(left, -at % SHARE_BYTES) if at % SHARE_BYTES and (at - start) % SHARE_BYTES == 0 else left

    def _read(self, source: LogicalUnit, offset: int, view: memoryview) -> bool:
        if not source.store.read_into_nowait(offset, view):
            if self._put_off(ready=False):
                return False
            source.store.read_into(offset, view)
        return True


def is_ready(destination: LogicalUnit, offset: int, data: memoryview) -> bool:
    """Whether `write` would not have to wait for the disk."""
    if destination.store.thin and data == ZEROS[: len(data)]:
        return destination.store.unmap_is_ready(offset, len(data))
    return destination.store.write_is_ready(offset, len(data))


def write(destination: LogicalUnit, offset: int, data: memoryview) -> None:
    """Zeros are unmapped where that is possible: a copy of a thin disk is as thin."""
    destination.counters.writes += 1
    destination.counters.write_bytes += len(data)
    if destination.store.thin and data == ZEROS[: len(data)]:
        destination.store.unmap(offset, len(data))
    else:
        destination.store.write(offset, data)
