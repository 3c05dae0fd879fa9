"""Bit arrays over numpy bytes: bit v of the volume is bit v & 7 of byte v >> 3, as in the maps on disk."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Bits = npt.NDArray[np.uint8]
Vbns = npt.NDArray[np.uint64]

COUNT_BYTES = 1 << 20
"""Bytes counted at once: the counts take as much memory again."""

MANY, DENSE = 1024, 8
"""So many bits that are so near to each other, on average, are set by the piece."""

_HEAD = [0xFF & (0xFF << k) for k in range(8)]
_TAIL = [0xFF >> (8 - k) if k else 0 for k in range(8)]
_MASK = np.array([1 << k for k in range(8)], dtype=np.uint8)


def set_range(bits: Bits, start: int, end: int) -> None:
    """Set bits start to end - 1."""
    first, last = start >> 3, end >> 3
    if first == last:
        bits[first] |= _HEAD[start & 7] & _TAIL[end & 7]
        return
    bits[first] |= _HEAD[start & 7]
    bits[first + 1 : last] = 0xFF
    if end & 7:
        bits[last] |= _TAIL[end & 7]


def clear_range(bits: Bits, start: int, end: int) -> None:
    """Clear bits start to end - 1."""
    first, last = start >> 3, end >> 3
    if first == last:
        bits[first] &= 0xFF ^ (_HEAD[start & 7] & _TAIL[end & 7])
        return
    bits[first] &= 0xFF ^ _HEAD[start & 7]
    bits[first + 1 : last] = 0
    if end & 7:
        bits[last] &= 0xFF ^ _TAIL[end & 7]


def set_each(bits: Bits, vbns: Vbns) -> None:
    """Set the bit of each vbn (several may share a byte)."""
    if len(vbns) >= MANY:
        first, end = int(vbns.min()) >> 3, (int(vbns.max()) >> 3) + 1
        if (end - first) << 3 <= DENSE * len(vbns):
            these = np.zeros((end - first) << 3, np.bool_)
            these[(vbns - np.uint64(first << 3)).astype(np.intp)] = True
            bits[first:end] |= np.packbits(these, bitorder="little")
            return
    np.bitwise_or.at(bits, (vbns >> 3).astype(np.intp), _MASK[(vbns & 7).astype(np.intp)])


def clear_each(bits: Bits, vbns: Vbns) -> None:
    """Clear the bit of each vbn (several may share a byte)."""
    np.bitwise_and.at(bits, (vbns >> 3).astype(np.intp), ~_MASK[(vbns & 7).astype(np.intp)])


def are_set(bits: Bits, vbns: Vbns) -> npt.NDArray[np.bool_]:
    """For each vbn, whether its bit is set."""
    found: npt.NDArray[np.bool_] = (bits[(vbns >> 3).astype(np.intp)] & _MASK[(vbns & 7).astype(np.intp)]) != 0
    return found


def count(bits: Bits) -> int:
    """Number of set bits."""
    if bits.size <= COUNT_BYTES:
        return int(np.bitwise_count(bits).sum(dtype=np.int64))
    flat = bits.reshape(-1)
    return sum(count(flat[at : at + COUNT_BYTES]) for at in range(0, flat.size, COUNT_BYTES))


def positions(bits: Bits, base: int = 0) -> Vbns:
    """The numbers of the set bits, counted from `base`."""
    return (np.flatnonzero(np.unpackbits(bits, bitorder="little")) + base).astype(np.uint64)


def free_runs(busy: Bits, base: int) -> list[tuple[int, int]]:
    """(start, end) of each run of clear bits, ascending, counted from `base`."""
    flags = np.unpackbits(busy, bitorder="little")
    edges = np.flatnonzero(np.diff(flags, prepend=np.uint8(1), append=np.uint8(1))) + base
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))
