"""A volume's file behind a write cache that a power cut empties: kill the process, and what was not synced is lost.

Everything written stays in the memory of the process; only `sync` puts it into the file.  So SIGKILL is a power cut:
the file then has what the last syncs put there and nothing else.  Two things make it as bad as a disk may be:

- A sync writes its sectors in any order, in pieces; a kill in the middle leaves any part of them.
- By chance a write reaches the file early, whole or torn between sectors: unsynced writes may be there.

`LAZYLUN_EARLY` is the share of the writes that do (0 to 1, default 0.1), `LAZYLUN_VOLATILE_SEED` the seed.
`LAZYLUN_LOSE_SYNCS` set makes a disk that lies: syncs do nothing, for tests of the tests.
"""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from wafl.device import Bytes, FileDevice, Places

SECTOR = 512
PIECE = 64
"""Sectors that a sync writes in one go."""

Numbers = npt.NDArray[np.intp]


class VolatileDevice(FileDevice):
    """A `FileDevice` whose writes are in memory until a sync.

    `_memory` is right for every sector that `_present` has, which is every one that was ever written here; all others
    are in the file.  `_unsynced` are those that the file does not have yet, or may not have.
    """

    def __init__(self, fd: int, size_bytes: int, *, is_file: bool) -> None:
        super().__init__(fd, size_bytes, is_file=is_file)
        self._early = float(os.environ.get("LAZYLUN_EARLY", "0.1"))
        self._lose_syncs = "LAZYLUN_LOSE_SYNCS" in os.environ
        self._rng = random.Random(os.environ.get("LAZYLUN_VOLATILE_SEED"))
        self._lock = threading.Lock()
        """Taken for what must not be seen half: the memory and its two maps."""
        self._sync_lock = threading.Lock()
        self._memory = np.zeros((0, SECTOR), np.uint8)
        self._present = self._unsynced = np.zeros(0, bool)
        self._cover(size_bytes)

    def _cover(self, size_bytes: int) -> None:
        more = -(-size_bytes // SECTOR) - len(self._present)
        self._memory = np.concatenate([self._memory, np.zeros((more, SECTOR), np.uint8)])
        self._present = np.concatenate([self._present, np.zeros(more, bool)])
        self._unsynced = np.concatenate([self._unsynced, np.zeros(more, bool)])

    def grow(self, size_bytes: int) -> None:
        super().grow(size_bytes)
        with self._lock:
            self._cover(self.size_bytes)

    # --- reading ---------------------------------------------------------------------------------------------------

    def pread(self, offset: int, view: memoryview | bytearray) -> None:
        wanted = len(view)
        first, end = offset // SECTOR, -(-(offset + wanted) // SECTOR)
        with self._lock:
            here = self._present[first:end]
            if not here.any():
                super().pread(offset, view)
                return
            sectors = self._memory[first:end]
            if not here.all():
                sectors = np.where(here[:, None], sectors, self._of_file(first, end))
            start = offset - first * SECTOR
            memoryview(view).cast("B")[:] = memoryview(sectors.reshape(-1)[start : start + wanted])

    def _of_file(self, first: int, end: int) -> npt.NDArray[np.uint8]:
        raw = bytearray((end - first) * SECTOR)
        super().pread(first * SECTOR, raw)
        return np.frombuffer(raw, np.uint8).reshape(-1, SECTOR)

    def pread_nowait(self, offset: int, view: memoryview | bytearray) -> bool:
        self.pread(offset, view)
        return True

    def preadv_nowait(self, places: Places) -> bool:
        for offset, buffers in places:
            for buffer in buffers:
                self.pread(offset, buffer)
                offset += len(buffer)
        return True

    # --- writing ---------------------------------------------------------------------------------------------------

    def pwrite(self, offset: int, buffers: Sequence[Bytes]) -> None:
        data = np.frombuffer(b"".join(buffers), np.uint8)
        first, end = offset // SECTOR, -(-(offset + len(data)) // SECTOR)
        start = offset - first * SECTOR
        with self._lock:
            for edge in {first, end - 1}:
                if not self._present[edge]:
                    self._memory[edge] = self._of_file(edge, edge + 1)
            self._memory[first:end].reshape(-1)[start : start + len(data)] = data
            self._present[first:end] = True
            self._unsynced[first:end] = True
            if self._rng.random() < self._early:
                share = self._rng.choice([1.0, 1.0, self._rng.random()])
                self._to_file(np.array([n for n in range(first, end) if self._rng.random() < share], np.intp))

    def sync(self) -> None:
        if self._lose_syncs:
            return
        with self._sync_lock:
            with self._lock:
                numbers = np.flatnonzero(self._unsynced)
                # Writes from here on belong to the next sync, though this one may take some of them along.
                self._unsynced[numbers] = False
            pieces = list(_pieces(numbers))
            self._rng.shuffle(pieces)
            for piece in pieces:
                with self._lock:
                    self._to_file(piece)

    def _to_file(self, numbers: Numbers) -> None:
        for run in _runs(numbers):
            super().pwrite(int(run[0]) * SECTOR, [self._memory[run[0] : run[-1] + 1].tobytes()])

    def close(self) -> None:
        """In order: like the page cache, it forgets nothing then."""
        if self._fd >= 0:
            self.sync()
        super().close()


def _runs(numbers: Numbers) -> list[Numbers]:
    """Neighbours together."""
    return [run for run in np.split(numbers, np.flatnonzero(np.diff(numbers) != 1) + 1) if run.size]


def _pieces(numbers: Numbers) -> Iterator[Numbers]:
    for run in _runs(numbers):
        yield from (run[at : at + PIECE] for at in range(0, run.size, PIECE))


def install() -> None:
    """Every volume of this process, and every separate log, is on a volatile device from now on."""
    opened = FileDevice.open.__func__  # type: ignore[attr-defined]

    def open_volatile(cls: type[FileDevice], *args: Any, **options: Any) -> FileDevice:
        device: FileDevice = opened(VolatileDevice, *args, **options)
        return device

    FileDevice.open = classmethod(open_volatile)  # type: ignore[assignment,method-assign]
