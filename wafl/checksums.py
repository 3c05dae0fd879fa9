"""Checksums of runs of blocks.

A run is read with one call and verified with one call: crc32c is linear, so the checksum of a whole run follows from
the checksums of its blocks.  crc(A + B) = shift(crc(A)) ^ crc(B), where `shift` passes a checksum over one block of
zeros without the inversions.  `shift` applied d times, for each byte of a checksum, is a table, and the checksum of n
blocks is n * 4 look-ups in one numpy call: 256 KiB take about 17 us instead of 31 for 64 calls.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from crc32c import crc32c

from wafl.format import BLOCK_BYTES, POINTERS

COMBINE_FROM = 8
"""Blocks from which on the combined comparison is the faster one."""
_BLOCKS = [slice(at, at + BLOCK_BYTES) for at in range(0, POINTERS * BLOCK_BYTES, BLOCK_BYTES)]

Crcs = npt.NDArray[np.uint32]


def _tables() -> npt.NDArray[np.uint32]:
    """[distance from the end in blocks][byte of the checksum][value of the byte], flat."""
    zeros = bytes(BLOCK_BYTES)
    base = crc32c(zeros)
    tables = np.empty((POINTERS, 4, 256), np.uint32)
    values = np.arange(256, dtype=np.uint32)
    once = np.empty((4, 256), np.uint32)
    for byte in range(4):
        tables[0, byte] = values << np.uint32(8 * byte)
        once[byte] = [crc32c(zeros, value << 8 * byte) ^ base for value in range(256)]
    for distance in range(1, POINTERS):
        before = tables[distance - 1]
        tables[distance] = (
            once[0][before & 0xFF] ^ once[1][before >> 8 & 0xFF] ^ once[2][before >> 16 & 0xFF] ^ once[3][before >> 24]
        )
    return tables.reshape(-1)


_TABLES = _tables()
# Row of the first byte of a run of 256 blocks first; a shorter run uses the end.
_ROWS = (np.arange(POINTERS * 4, dtype=np.intp).reshape(POINTERS, 4)[::-1] * 256).reshape(-1)


def combined(crcs: Crcs) -> int:
    """The checksum of up to 256 blocks put together, from the checksums of each."""
    return int(np.bitwise_xor.reduce(_TABLES.take(_ROWS[-4 * len(crcs) :] + crcs.view(np.uint8))))


def of_blocks(data: memoryview) -> list[int]:
    """The checksum of each of up to 256 blocks."""
    return list(map(crc32c, map(data.__getitem__, _BLOCKS[: len(data) // BLOCK_BYTES])))


def first_wrong(data: memoryview, crcs: Crcs) -> tuple[int, int] | None:
    """(index, found) of the first block whose checksum is another than expected; None if all are right."""
    for first in range(0, len(crcs), POINTERS):
        piece = crcs[first : first + POINTERS]
        bytes_of = data[first * BLOCK_BYTES : (first + len(piece)) * BLOCK_BYTES]
        # A block that differs changes the combined checksum for certain; two could cancel out with probability 2^-32,
        # which is what the checksum of one block offers too.
        if len(piece) >= COMBINE_FROM and crc32c(bytes_of) == combined(piece):
            continue
        for index, (found, expected) in enumerate(zip(of_blocks(bytes_of), piece.tolist(), strict=True)):
            if found != expected:
                return first + index, found
    return None
