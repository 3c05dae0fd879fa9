"""Listeners, and the limits on the connections that they accept."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import os
import socket
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

from target.iscsi import announce, limits
from target.iscsi.host import Host
from target.iscsi.ports import TargetDirectory
from target.iscsi.registry import Registry
from target.portal.addresses import MachineAddresses, expand
from target.portal.logs import RateLimited
from target.portal.newcomers import Acceptor, Newcomer, Route, target_wanted
from target.portal.spin import Spinner
from target.portal.transport import IscsiTransport

log = logging.getLogger("target.portal")

BACKLOG = 256
SHUTTING_DOWN = "the target is shutting down"
ALONE_S = 0.01
"""A connection is alone if for so long nothing was received by any other, and by it no READs together with others."""
LAST_WORDS_S = 1.0
"""What `stop` gives connections to take what was said to them."""


@dataclass(frozen=True)
class PortalConfig:
    """What an operator may set."""

    login_timeout_s: float = limits.LOGIN_TIMEOUT_S
    nop_interval_s: float = limits.NOP_INTERVAL_S
    nop_timeout_s: float = limits.NOP_TIMEOUT_S
    connections_max: int = limits.CONNECTIONS
    logging_in_max: int = limits.CONNECTIONS_LOGGING_IN
    logging_in_per_source_max: int = limits.CONNECTIONS_LOGGING_IN_PER_SOURCE
    spin_us: Mapping[tuple[str, int], int] = field(default_factory=dict)
    """By (address, port) of a listener: how long it keeps looking for more after its last traffic before it sleeps."""


class Portal:
    """The portals of one process: any number of listeners, each of a portal group, and their connections.

    With a `route` a connection's first Login PDU is looked at, and the connection may be another process's.
    """

    def __init__(
        self,
        directory: TargetDirectory,
        registry: Registry,
        config: PortalConfig | None = None,
        route: Route | None = None,
    ) -> None:
        self.registry = registry
        self.config = config or PortalConfig()
        self.connections: set[IscsiTransport | Newcomer] = set()
        self.busy: IscsiTransport | None = None
        self.busy_since = 0.0
        self._route = route
        self._tasks: set[asyncio.Task[None]] = set()
        self._spinners: dict[tuple[str, int], Spinner] = {}
        self._logging_in: dict[IscsiTransport | Newcomer, None] = {}
        """The oldest first."""
        self._host = Host(
            directory=directory,
            registry=registry,
            entropy=os.urandom,
            addresses=self.addresses,
            alone=lambda now: now - self.busy_since >= ALONE_S,
            login_timeout_s=self.config.login_timeout_s,
            nop_interval_s=self.config.nop_interval_s,
            nop_timeout_s=self.config.nop_timeout_s,
        )
        self._servers: dict[tuple[str, int], asyncio.Server | Acceptor] = {}
        self._groups: dict[tuple[str, int], int] = {}
        """Target portal group tag of each listener, here or in the process that listens."""
        self.on_addresses: Callable[[], None] = lambda: None
        """Called when addresses of the machine came, went, or became usable."""
        self._machine = MachineAddresses(self._addresses_changed, lambda: self.on_addresses())
        self._following = False
        self._stopping = False
        self._notices: RateLimited | None = None

    @property
    def listening(self) -> list[tuple[str, int]]:
        """(address, port) of each listener; the port is the real one."""
        return list(self._servers)

    def addresses(self, local: str = "") -> list[str]:
        """TargetAddress values: every address that the listeners answer on, for one who has come by `local`."""
        portals = [(*each, group) for each, group in self._groups.items()]
        return expand(portals, self._machine.current, local)

    async def start(self, address: str, port: int, tpgt: int = 1) -> tuple[str, int]:
        """Listen on one numeric address (or a wildcard) as a portal of the group `tpgt`.  (address, real port).
        Raises OSError."""
        listener = _bind(address, port)
        bound = (address, int(listener.getsockname()[1]))
        server: asyncio.Server | Acceptor
        if self._route is None:
            accepted = partial(self._accepted, (address, port), tpgt)
            server = await asyncio.get_running_loop().create_server(accepted, sock=listener, backlog=BACKLOG)
        else:
            listener.listen(BACKLOG)
            server = Acceptor(listener, partial(self._arrived, (address, port), tpgt))
        self._servers[bound] = server
        self._groups[bound] = tpgt
        if not ipaddress.ip_address(address.partition("%")[0]).is_loopback:
            await self.follow()
        log.info("listening on %s port %d, portal group %d", *bound, tpgt)
        return bound

    async def follow(self) -> None:
        """Watch the machine's addresses come and go."""
        if not self._following:
            self._following = True
            try:
                await self._machine.start()
            except Exception as error:  # portals listen all the same
                log.warning("the machine's addresses could not be read: %r", error)

    async def close_listener(self, address: str, port: int) -> None:
        """Stop listening on one address; connections that came by it stay."""
        server = self._servers.pop((address, port))
        del self._groups[address, port]
        server.close()

    async def stop(self, logout_time_s: float = 0) -> None:
        """Close the listeners, give initiators `logout_time_s` to log out if asked to, close every connection.  Their
        initiators are told (Async Message, event 3), so that they come back when they can."""
        self._stopping = True
        for server in self._servers.values():
            server.close()
        self._servers.clear()
        self._groups.clear()
        if self._following:
            await self._machine.stop()
            self._following = False
        if logout_time_s and self.connections:
            await self._ask_for_logout(logout_time_s)
        for connection in list(self.connections):
            if isinstance(connection, IscsiTransport) and connection.logged_in:
                connection.core.session.drop(SHUTTING_DOWN)
            else:
                connection.abort(SHUTTING_DOWN)
        await self._until_closed(LAST_WORDS_S)
        for connection in list(self.connections):
            connection.abort(SHUTTING_DOWN)
        for task in self._tasks:
            task.cancel()
        while self.connections:
            await asyncio.sleep(0)
        self._stopping = False

    async def _until_closed(self, time_s: float) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + time_s
        while self.connections and loop.time() < deadline:
            await asyncio.sleep(0.01)

    async def _ask_for_logout(self, time_s: float) -> None:
        for transport in self.connections:
            if isinstance(transport, IscsiTransport) and transport.logged_in:
                announce.logout_request(transport.core, int(time_s))
        await self._until_closed(time_s)

    def _accepted(self, came_by: tuple[str, int], tpgt: int) -> IscsiTransport:
        loop = asyncio.get_running_loop()
        spinner = self._spinners.get(came_by)
        if spinner is None and (spin_us := self.config.spin_us.get(came_by, 0)):
            spinner = self._spinners[came_by] = Spinner(loop, spin_us)
        return IscsiTransport(replace(self._host, tpgt=tpgt), loop, self, self._told, spinner)

    @property
    def _told(self) -> RateLimited:
        if self._notices is None:
            self._notices = RateLimited(log, asyncio.get_running_loop().time)
        return self._notices

    # --- several processes

    def adopt(self, groups: Mapping[tuple[str, int], int]) -> None:
        """Another process listens, on these addresses as portals of these groups."""
        self._groups = dict(groups)

    def take(self, connection: socket.socket, came_by: tuple[str, int], tpgt: int) -> None:
        """Serve a connection that a listener of another process has accepted.  `came_by`: that listener as it was asked
        for."""
        self._run(self._serve(connection, came_by, tpgt))

    async def _serve(self, connection: socket.socket, came_by: tuple[str, int], tpgt: int) -> None:
        connection.setblocking(False)
        try:
            # asyncio sees to it for what it has accepted itself
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            loop = asyncio.get_running_loop()
            await loop.connect_accepted_socket(lambda: self._accepted(came_by, tpgt), connection)
        except OSError as error:
            log.info("a connection ended before it was served: %s", error)
            connection.close()

    def _run(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _arrived(self, came_by: tuple[str, int], tpgt: int, connection: socket.socket) -> None:
        newcomer = Newcomer(connection)
        refusal = self.admit(newcomer)
        if refusal is not None:
            self._told.warning(newcomer.peer[0], "%s: connection refused: %s", newcomer.name, refusal)
            connection.close()
            return
        newcomer.task = self._run(self._direct(newcomer, came_by, tpgt))
        # A callback, because a task that is cancelled before its first step never enters its coroutine.
        newcomer.task.add_done_callback(lambda _: self._gone(newcomer))

    def _gone(self, newcomer: Newcomer) -> None:
        """It is another's by now, or was cut off."""
        self.ended(newcomer)
        newcomer.connection.close()

    async def _direct(self, newcomer: Newcomer, came_by: tuple[str, int], tpgt: int) -> None:
        """Find out whose connection it is.  Until then it has the time and the limits of any login."""
        assert self._route is not None
        connection, source = newcomer.connection, newcomer.peer[0]
        try:
            async with asyncio.timeout(self.config.login_timeout_s):
                name = await target_wanted(connection)
                take = await self._route(name) if name is not None else None
            if take is not None:
                take(connection, came_by, tpgt)
                return
        except TimeoutError:
            self._told.warning(source, "%s: connection closed: login takes too long", newcomer.name)
            return
        except OSError as error:
            self._told.info(source, "%s: connection closed: %s", newcomer.name, error)
            return
        self.ended(newcomer)
        await self._serve(connection.dup(), came_by, tpgt)

    # --- `Gate`

    def admit(self, transport: IscsiTransport | Newcomer) -> str | None:
        if self._stopping:
            return SHUTTING_DOWN
        if len(self.connections) >= self.config.connections_max:
            return f"{self.config.connections_max} connections are open"
        self.connections.add(transport)
        self._logging_in[transport] = None
        self._shed_oldest(transport.peer[0])
        return None

    def _shed_oldest(self, source: str) -> None:
        """Whoever floods with half-open logins loses its own first."""
        same = [each for each in self._logging_in if each.peer[0] == source]
        if len(same) > self.config.logging_in_per_source_max:
            self._shed(same[0], f"the oldest of {len(same)} connections from {source} that have not logged in")
        elif len(self._logging_in) > self.config.logging_in_max:
            count = len(self._logging_in)
            self._shed(next(iter(self._logging_in)), f"the oldest of {count} connections that have not logged in")

    def _shed(self, transport: IscsiTransport | Newcomer, reason: str) -> None:
        del self._logging_in[transport]
        if isinstance(transport, Newcomer):
            self._told.warning(transport.peer[0], "%s: connection closed: %s", transport.name, reason)
        transport.shed(reason)

    def established(self, transport: IscsiTransport) -> None:
        self._logging_in.pop(transport, None)

    def ended(self, transport: IscsiTransport | Newcomer) -> None:
        self.connections.discard(transport)
        if self.busy is transport:
            self.busy = None
        self._logging_in.pop(transport, None)

    def _addresses_changed(self) -> None:
        log.info("the portals answer on %s", ", ".join(self.addresses()) or "no address")


def _bind(address: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.setblocking(False)
        listener.bind((address, port))
    except OSError:
        listener.close()
        raise
    return listener
