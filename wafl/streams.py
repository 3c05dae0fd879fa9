"""Sequential reads of what is not in memory: the disk reads on before it is asked.

A LUN's neighbours may lie anywhere on the volume, so the kernel's own read-ahead, which goes on behind the last block,
reads the wrong ones.  Here the LUN's next blocks are looked up and asked for where they are.  Where they do lie behind
the last block the kernel is left to it, if it reads far enough ahead: what it is told to read it takes page by page,
100 us for 256 KiB on the loop, and twice the time to copy later; what it reads by itself, in large pieces.

Rules: only a read of several blocks that would have to wait begins a stream, so what is in memory costs nothing.  A few
streams of a LUN are known, those used last.  A stream that goes on asks for twice as much each time, up to a bound; one
that finds everything there already is forgotten.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from wafl.errors import WaflError
from wafl.format import BLOCK_BYTES, BLOCK_SHIFT, FIRST_DATA_VBN, POINTERS

if TYPE_CHECKING:
    from wafl.scattered import Run
    from wafl.views import View

STREAMS = 4
"""Of one LUN."""
LEAST, MOST = 128, 2048
"""Blocks that a stream is ahead of its reader: 512 KiB to 8 MiB."""
BEFORE, BEHIND = 4096, 256
"""Reads of a stream come in another order than they were sent, and once more after a wait: so many blocks from where it
goes on."""
STRETCHES = 64
"""Asked for at a time: each costs the loop a call."""
IN_VAIN = 4
"""So often in a row all was there already, or is the kernel's."""
FOLLOWED_BYTES = 1 << 20
"""A device where the kernel reads so far ahead is left to it while a stream's blocks lie side by side."""

_BYTE = memoryview(bytearray(1))


class _Stream:
    __slots__ = ("ahead", "in_vain", "next", "steps", "window")

    def __init__(self, end: int) -> None:
        self.next = self.ahead = end
        """Where the reader goes on; up to where the disk has been asked."""
        self.window = LEAST
        self.steps = self.in_vain = 0


class Streams:
    """Those of one LUN."""

    def __init__(self, view: View) -> None:
        self._view = view
        self.known: list[_Stream] = []
        """The one used last at the end."""

    def note(self, first: int, end: int, *, here: bool) -> None:
        """Blocks `first` to `end - 1` are being read; not `here`: they had to be asked for."""
        stream = next((known for known in self.known if -BEFORE <= first - known.next <= BEHIND), None)
        if stream is not None:
            self.known.remove(stream)
        elif here:
            return
        else:
            stream = _Stream(end)
        self.known.append(stream)
        del self.known[:-STREAMS]
        if end <= stream.next:
            return  # seen before
        stream.next = end
        stream.steps += 1
        if stream.steps > 1 and stream.next + stream.window // 2 >= stream.ahead:
            self._go_on(stream)

    def _go_on(self, stream: _Stream) -> None:
        view = self._view
        low, high = max(stream.ahead, stream.next), min(stream.next + stream.window, view.size_bytes >> BLOCK_SHIFT)
        if low >= high:
            return
        cold, reached, in_vain = view.core.cold, high, False
        with suppress(WaflError, OSError):  # whoever reads that far is told
            reached, in_vain = _ask(view, low, high)
        view.core.cold = cold  # nobody waits for this
        stream.ahead = max(stream.ahead, reached)
        stream.window = min(2 * stream.window, MOST)
        stream.in_vain = stream.in_vain + 1 if in_vain else 0
        if stream.in_vain >= IN_VAIN:
            self.known.remove(stream)


def _ask(view: View, low: int, high: int) -> tuple[int, bool]:
    """The disk begins to read blocks `low` to `high - 1`: up to where it was asked, and whether that was in vain."""
    runs: list[Run] = []
    before = view.runs_nowait(low - 1 << BLOCK_SHIFT, BLOCK_BYTES)
    known = True
    while low < high and len(runs) < STRETCHES:
        upto = min(high, (low // POINTERS + 1) * POINTERS)
        more = view.runs_nowait(low << BLOCK_SHIFT, (upto - low) << BLOCK_SHIFT)
        if more is None:  # its pointers are being read
            known = False
            break
        runs += [(vbn, blocks, 0) for vbn, blocks, _ in more[:STRETCHES] if vbn >= FIRST_DATA_VBN]
        low = upto if len(more) <= STRETCHES else low + more[STRETCHES][2]
    if before and view.core.device.read_ahead_bytes >= FOLLOWED_BYTES:
        runs = _jumps(runs, before[0][0] + 1)
    if known and (not runs or _is_here(view, runs[-1])):
        return low, True
    view.prefetch(runs)
    return low, False


def _jumps(runs: list[Run], vbn: int) -> list[Run]:
    """Those that do not lie behind the one before, the first of them behind block `vbn - 1`."""
    found = []
    for run in runs:
        if run[0] != vbn:
            found.append(run)
        vbn = run[0] + run[1]
    return found


def _is_here(view: View, run: Run) -> bool:
    return view.core.device.pread_nowait((run[0] + run[1] << BLOCK_SHIFT) - 1, _BYTE)
