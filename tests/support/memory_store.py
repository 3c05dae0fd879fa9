"""A BlockStore in memory with faults on demand, for the SCSI tests.

It checks the contract from the other side: an unaligned or out-of-range access is a bug of the caller and raises
AssertionError.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

from target.scsi.store import BlockStore, FlushDone, MediumError, SpaceExhausted, StoreOffline

PIECE = 4096


class MemoryStore:
    """Pieces of 4 KiB in a dict; what is not there reads zeros."""

    def __init__(
        self,
        size_bytes: int = 1 << 20,
        logical_block_bytes: int = 512,
        *,
        thin: bool = True,
        serial: str = "LL0000000001",
        naa: bytes = bytes.fromhex("3000000000000001"),
    ) -> None:
        self.size_bytes = size_bytes
        self.logical_block_bytes = logical_block_bytes
        self.physical_block_bytes = 4096
        self.online = True
        self.read_only = False
        self.thin = thin
        self.serial = serial
        self.naa = naa
        self.uuid_bytes = bytes(16)
        self.pieces: dict[int, bytearray] = {}
        self.cold = False
        """Whoever does not want to wait is refused."""
        self.full = False
        self.bad: set[int] = set()
        """Offsets of pieces that cannot be read."""
        self.flushes: list[FlushDone] = []

    @property
    def used_bytes(self) -> int:
        return len(self.pieces) * PIECE

    @property
    def available_bytes(self) -> int:
        return 0 if self.full else self.size_bytes - self.used_bytes

    def contents(self, offset: int, length: int) -> bytes:
        """For the test to look at, whatever is online or bad."""
        first, last = offset // PIECE, (offset + length + PIECE - 1) // PIECE
        zeros = bytes(PIECE)
        whole = b"".join(bytes(self.pieces.get(i, zeros)) for i in range(first, last))
        return whole[offset - first * PIECE :][:length]

    def _check(self, offset: int, length: int) -> None:
        mask = self.logical_block_bytes - 1
        assert not offset & mask, "unaligned offset"
        assert not length & mask, "unaligned length"
        assert 0 <= offset <= offset + length <= self.size_bytes, "out of range"
        if not self.online:
            raise StoreOffline("offline")

    def read_into(self, offset: int, view: memoryview) -> None:
        self._check(offset, len(view))
        for piece in range(offset // PIECE * PIECE, offset + len(view), PIECE):
            if piece in self.bad:
                raise MediumError(max(piece, offset), "bad piece")
        view[:] = self.contents(offset, len(view))

    def read_into_nowait(self, offset: int, view: memoryview) -> bool:
        if self.cold:
            return False
        self.read_into(offset, view)
        return True

    def write(self, offset: int, data: memoryview, nowait: bool = False) -> bool:
        self._check(offset, len(data))
        if nowait and self.cold:
            return False
        if self.full:
            raise SpaceExhausted("full")
        done = 0
        while done < len(data):
            number, at = divmod(offset + done, PIECE)
            part = data[done : done + PIECE - at]
            self.pieces.setdefault(number, bytearray(PIECE))[at : at + len(part)] = part
            done += len(part)
        return True

    def read_is_ready(self, offset: int, length: int) -> bool:
        return not self.cold

    def write_is_ready(self, offset: int, length: int) -> bool:
        return not self.cold

    def unmap_is_ready(self, offset: int, length: int) -> bool:
        return not self.cold

    def share_is_ready(self, offset: int, source: BlockStore, source_offset: int, length: int) -> bool:
        return not self.cold

    def write_atomic(self, offset: int, data: memoryview) -> None:
        assert not (offset | len(data)) % PIECE
        assert len(data) <= 1 << 20
        self.write(offset, data)

    def share(self, offset: int, source: BlockStore, source_offset: int, length: int) -> int:
        """It has no blocks that could be in two places: whoever asks has to copy."""
        self._check(offset, length)
        return 0

    def unmap(self, offset: int, length: int) -> None:
        self._check(offset, length)
        end = offset + length
        touched = range(offset // PIECE, (end + PIECE - 1) // PIECE)
        few = len(touched) < len(self.pieces)
        for number in [n for n in touched if n in self.pieces] if few else [n for n in self.pieces if n in touched]:
            start, stop = max(offset, number * PIECE), min(end, (number + 1) * PIECE)
            if stop - start == PIECE:
                del self.pieces[number]
            else:
                at = start - number * PIECE
                self.pieces[number][at : at + stop - start] = bytes(stop - start)

    def flush(self, done: FlushDone) -> None:
        self.flushes.append(done)

    def finish_flushes(self, error: BaseException | None = None) -> None:
        waiting, self.flushes = self.flushes, []
        for done in waiting:
            done(error)

    def extents(self, offset: int, length: int, *, nowait: bool = False) -> Iterator[tuple[int, int, bool]]:
        self._check(offset, length)
        if nowait and self.cold:
            return
        end = offset + length
        numbers = range(offset // PIECE, (end + PIECE - 1) // PIECE)
        for mapped, group in groupby(numbers, lambda n: n in self.pieces):
            run = list(group)
            start, stop = max(offset, run[0] * PIECE), min(end, (run[-1] + 1) * PIECE)
            yield start, stop - start, mapped
