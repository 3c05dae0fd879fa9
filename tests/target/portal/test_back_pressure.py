"""Peers that do not take what they asked for, over real sockets, on asyncio's loop and on uvloop's."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
import time
from typing import Any

from target.iscsi import limits
from target.iscsi.constants import Opcode
from tests.support.initiator import READ_10, cdb_10
from tests.support.served_portal import LIMIT_S, Served, each_loop, serve


@each_loop
def test_the_last_answers_reach_a_peer_that_is_behind(runner: str) -> None:
    """It logs out while the socket is full of what it has not taken."""

    def test(served: Served) -> None:
        initiator = served.initiator()
        initiator.login()
        link: Any = initiator.link
        (transport,) = served.portal.connections
        reads = 0
        while not transport._congested:
            cdb = cdb_10(READ_10, 0, 1024).ljust(16, b"\0")
            link.socket.sendall(
                initiator.encode(Opcode.SCSI_COMMAND, flags=0xC1, itt=1000 + reads, edtl=1 << 19, cdb=cdb)
            )
            initiator.cmd_sn += 1
            reads += 1
            while transport.core.session.counters.reads < reads:
                time.sleep(0.001)
        assert not transport.core.blocked
        link.socket.sendall(initiator.encode(Opcode.LOGOUT_REQUEST, flags=0x80, itt=7))
        while transport.core.closing is None:
            time.sleep(0.001)
        replies = []
        while not link.gone:
            replies += link.receive(1)
        assert sum(len(reply.data) for reply in replies) == reads << 19
        assert replies[-1].opcode is Opcode.LOGOUT_RESPONSE

    serve(runner, test)


@each_loop
def test_the_last_answer_leaves_though_there_is_no_room_beside_others(runner: str) -> None:
    """32 READs whose answers fill the output buffer to its last byte, and the Logout, all in one piece."""
    stall, stalled, sent = threading.Event(), threading.Event(), threading.Event()
    blocks = [68] * 31 + [65]
    assert sum(512 * count + 48 for count in blocks) == limits.OUTPUT_BYTES

    def test(served: Served) -> None:
        initiator = served.initiator()
        initiator.login()
        link: Any = initiator.link
        wire = b""
        for number, count in enumerate(blocks):
            cdb = cdb_10(READ_10, 0, count).ljust(16, b"\0")
            wire += initiator.encode(Opcode.SCSI_COMMAND, flags=0xC1, itt=1000 + number, edtl=count * 512, cdb=cdb)
            initiator.cmd_sn += 1
        stall.set()
        stalled.wait(LIMIT_S)
        link.socket.sendall(wire + initiator.encode(Opcode.LOGOUT_REQUEST, flags=0x80, itt=7))
        sent.set()
        replies = []
        while not link.gone:
            replies += link.receive(1)
        assert [reply.opcode for reply in replies] == [Opcode.DATA_IN] * len(blocks) + [Opcode.LOGOUT_RESPONSE]

    async def hold_the_loop(served: Served) -> None:
        while not stall.is_set():
            await asyncio.sleep(0.001)
        stalled.set()
        sent.wait(LIMIT_S)

    serve(runner, test, beside=hold_the_loop)


@each_loop
def test_nothing_more_is_read_for_a_peer_that_is_gone(runner: str) -> None:
    """It asks for 40 MiB and resets the connection before anybody looks."""
    stall, stalled, gone = threading.Event(), threading.Event(), threading.Event()

    def test(served: Served) -> int:
        initiator = served.initiator()
        initiator.login()
        link: Any = initiator.link
        (transport,) = served.portal.connections
        wire = b""
        for n in range(40):
            cdb = cdb_10(READ_10, 0, 2048).ljust(16, b"\0")
            wire += initiator.encode(Opcode.SCSI_COMMAND, flags=0xC1, itt=1000 + n, edtl=1 << 20, cdb=cdb)
            initiator.cmd_sn += 1
        stall.set()
        stalled.wait(LIMIT_S)
        link.socket.sendall(wire)
        link.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        link.socket.close()
        gone.set()
        while served.portal.connections:
            time.sleep(0.001)
        return int(transport.core.session.counters.reads)

    async def hold_the_loop(served: Served) -> None:
        while not stall.is_set():
            await asyncio.sleep(0.001)
        stalled.set()
        gone.wait(LIMIT_S)

    assert serve(runner, test, beside=hold_the_loop) <= 1
