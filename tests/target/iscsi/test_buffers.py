"""Output buffers: none is touched while bytes of it are on their way, and each is used again afterwards."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from target.iscsi import limits
from target.iscsi.buffers import BufferPool, OutputBuffer, ReceiveBuffer
from tests.target.iscsi.conftest import MakeBench

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


def own_bytes() -> int:
    """What this process has in memory that is not a file's."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0]) * 1024


def test_memory_of_connections_that_have_ended_goes_back_though_other_things_stay() -> None:
    stays = []
    before = own_bytes()
    for _ in range(4):
        connections, pool = [], BufferPool()
        for _ in range(32):
            whole = OutputBuffer(limits.OUTPUT_BYTES), ReceiveBuffer(limits.RECEIVE_BYTES), pool.take(1 << 20)
            for view in (whole[0].view, whole[1].view, memoryview(whole[2])):
                view[:] = b"x" * len(view)
            connections.append(whole)
            stays.append(b"x" * 65536)
        assert own_bytes() > before + 32 * limits.OUTPUT_BYTES
    del connections, whole, view, pool
    kept = sum(map(len, stays))
    assert own_bytes() < before + kept + 16 * limits.OUTPUT_BYTES


def test_what_is_not_used_takes_no_room() -> None:
    before = own_bytes()
    buffers = [(ReceiveBuffer(limits.RECEIVE_BYTES), OutputBuffer(limits.OUTPUT_BYTES)) for _ in range(64)]
    assert own_bytes() - before < sum(each.size for pair in buffers for each in pair) // 4


def test_a_buffer_that_rests_is_given_back_unless_something_is_in_it() -> None:
    size = limits.OWN_PAGES_BYTES
    for buffer in (ReceiveBuffer(size), OutputBuffer(size)):
        buffer.view[:5] = b"bytes"
        buffer.rest()
        assert buffer.view[:5] == bytes(5)
    received = ReceiveBuffer(size)
    received.view[:5] = b"bytes"
    received.end = 5
    received.rest()
    assert received.view[:5] == b"bytes"
    answers = OutputBuffer(size)
    answers.view[:5] = b"bytes"
    answers.used = 5
    answers.rest()
    assert answers.view[:5] == b"bytes"
    sending = answers.view
    answers.rotate()
    answers.rest()
    assert sending[:5] == b"bytes", "on its way"


def test_a_session_that_is_idle_gives_its_buffers_back(make_bench: MakeBench) -> None:
    initiator = make_bench(nop_interval_s=30, nop_timeout_s=15).logged_in()
    core = initiator.link.core
    core.rx.view[-5:] = core.output.view[-5:] = b"bytes"
    initiator.link.pass_time(29)
    assert core.rx.view[-5:] == core.output.view[-5:] == b"bytes"
    initiator.link.pass_time(1)
    assert core.rx.view[-5:] == core.output.view[-5:] == bytes(5)
