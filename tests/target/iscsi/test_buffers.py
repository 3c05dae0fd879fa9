"""Output buffers: none is touched while bytes of it are on their way, and each is used again afterwards."""

from __future__ import annotations

from random import Random

import pytest

from target.iscsi import limits
from target.iscsi.buffers import OutputBuffer

SIZE = 1000


@pytest.mark.parametrize("seed", range(20))
def test_what_is_on_its_way_is_never_written_over(seed: int) -> None:
    """A network that takes what it likes gets every byte as it was handed over."""
    random, out = Random(seed), OutputBuffer(SIZE)
    wire, wanted, got, counter = [], bytearray(), bytearray(), 0
    for _ in range(500):
        if sum(map(len, wire)) < (limits.OUTPUT_BUFFERS - 1) * SIZE:
            length = random.randrange(1, SIZE + 1)
            counter += 1
            out.view[:length] = bytes([counter & 0xFF]) * length
            out.used = length
            wanted += out.view[:length]
            wire.append(out.view[:length])
            out.rotate()
        for _ in range(random.randrange(3)):
            if wire:
                part = random.randrange(1, len(wire[0]) + 1)
                got += wire[0][:part]
                wire[0] = wire[0][part:]
                if not wire[0]:
                    wire.pop(0)
        out.sent(sum(map(len, wire)))
    got += b"".join(wire)
    assert got == wanted


def test_a_buffer_whose_bytes_are_out_is_the_next_one() -> None:
    out = OutputBuffer(SIZE)
    first = out.buffer
    out.used = 700
    out.rotate()
    out.used = 300
    out.rotate()
    out.sent(300)
    out.used = 10
    out.rotate()
    assert out.buffer is first
    assert out.held_bytes == 4 * SIZE - SIZE


def test_memory_goes_back_when_there_is_time() -> None:
    out = OutputBuffer(SIZE)
    for _ in range(limits.OUTPUT_BUFFERS + 3):
        out.used = SIZE
        out.rotate()
    assert out.held_bytes == (limits.OUTPUT_BUFFERS + 1) * SIZE
    out.sent(0)
    out.trim()
    assert out.held_bytes == 2 * SIZE
