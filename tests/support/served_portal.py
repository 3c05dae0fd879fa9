"""A portal over real sockets, on asyncio's loop or on uvloop's, and an initiator's wire to it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import uvloop

from target.iscsi.registry import Registry
from target.portal import Portal, PortalConfig
from tests.support.initiator import Initiator, Link, Reply, make_host
from tests.support.memory_target import MemoryDisk, one_disk

RUNNERS: dict[str, Callable[[Any], Any]] = {"asyncio": asyncio.run, "uvloop": uvloop.run}
LIMIT_S = 20.0


class SocketLink(Link):
    """The initiator's wire over a real connection; blocking calls, made in a thread."""

    def __init__(self, address: tuple[str, int]) -> None:
        directory, _ = one_disk()
        super().__init__(make_host(directory))  # the parser and its framing; its own target's end is not used
        self.socket = socket.create_connection(address, timeout=LIMIT_S)
        self.expected = 1
        self.gone = False

    def send(self, data: bytes) -> list[Reply]:
        self.socket.sendall(data)
        return self.receive(self.expected)

    def receive(self, count: int) -> list[Reply]:
        while len(self.replies) < count:
            data = self.socket.recv(1 << 20)
            if not data:
                self.gone = True
                break
            self._incoming += data
            self._parse()
        return self.take()

    def close(self) -> None:
        self.socket.close()


class Served:
    def __init__(self, portal: Portal, disk: MemoryDisk, address: tuple[str, int]) -> None:
        self.portal, self.disk, self.address = portal, disk, address

    def initiator(self, **settings: Any) -> Initiator:
        return Initiator(SocketLink(self.address), **settings)


def serve(
    runner: str, test: Callable[[Served], Any], config: PortalConfig | None = None, address: str = "127.0.0.1",
    beside: Callable[[Served], Awaitable[None]] | None = None,
) -> Any:  # fmt: skip
    """Run `test` in a thread against a portal in the loop."""

    async def run() -> Any:
        directory, disk = one_disk(4)
        portal = Portal(directory, Registry(), config)
        served = Served(portal, disk, await portal.start(address, 0))
        try:
            beside_task = asyncio.ensure_future(beside(served)) if beside else None
            result = await asyncio.wait_for(asyncio.to_thread(test, served), LIMIT_S)
            if beside_task:
                await beside_task
            return result
        finally:
            await portal.stop()
            assert not portal.connections
            assert portal.listening == []

    return RUNNERS[runner](run())


each_loop = pytest.mark.parametrize("runner", RUNNERS)
