"""Which addresses of this machine a listener answers on, followed as they change (pyroute2).

A listener on one address answers on that one, while the machine has it.  A listener on the wildcard answers on every
address of its family.  The kernel is asked for them over rtnetlink and tells of changes, so that SendTargets never
gives out an address that went away.  Loopback addresses are given out only when there is nothing else, or to whoever
came by one: that one, and before the others.  Link-local IPv6 addresses never are (they mean nothing without an
interface).
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

log = logging.getLogger(__name__)

WILDCARDS = {"0.0.0.0": 4, "::": 6}
RTMGRP_IPV4_IFADDR = 0x10
RTMGRP_IPV6_IFADDR = 0x100


def format_address(host: str, port: int, tpgt: int) -> str:
    """TargetAddress (RFC 7143 13.8): host:port,tag with IPv6 in brackets."""
    return f"[{host}]:{port},{tpgt}" if ":" in host else f"{host}:{port},{tpgt}"


def expand(listening: list[tuple[str, int, int]], machine: set[str], local: str = "") -> list[str]:
    """TargetAddress values of listeners (address, port, portal group), wildcards replaced by the machine's addresses
    of the family.  `machine`: empty if nobody follows them.  `local`: the address by which who asks has come."""
    found: list[str] = []
    for host, port, tpgt in listening:
        family = WILDCARDS.get(host)
        hosts = _alone(machine, host) if family is None else _useful(machine, family, local)
        found += [format_address(h, port, tpgt) for h in hosts]
    return list(dict.fromkeys(found))


def _alone(machine: set[str], host: str) -> list[str]:
    """The address of a listener of its own, unless it has gone away."""
    address = host.partition("%")[0]
    there = not machine or address in machine or ipaddress.ip_address(address).is_loopback
    return [host] if there else []


def _useful(machine: set[str], family: int, local: str) -> list[str]:
    chosen = sorted(
        (a for a in map(ipaddress.ip_address, machine) if a.version == family and not a.is_link_local),
        key=lambda a: (a.is_loopback, int(a)),
    )
    public = [str(a) for a in chosen if not a.is_loopback]
    came_by = ipaddress.ip_address(local.partition("%")[0]) if local else None
    if not machine and came_by is not None and came_by.version == family:
        return [str(came_by)]
    if came_by is not None and came_by.is_loopback and came_by.version == family:
        return [str(came_by), *public]
    return public or [str(a) for a in chosen]


class MachineAddresses:
    """The machine's addresses, kept current while started.  `changed` is called after each change, `noticed` after each
    notice of the kernel: an IPv6 address is there before it can be used."""

    def __init__(
        self, changed: Callable[[], None] = lambda: None, noticed: Callable[[], None] = lambda: None
    ) -> None:
        self.current: set[str] = set()
        self._changed = changed
        self._noticed = noticed
        self._socket: socket.socket | None = None
        self._refreshing: asyncio.Task[None] | None = None
        self._stale = False

    async def start(self) -> None:
        """Listen for changes, and read the addresses.  A machine that refuses rtnetlink is read once."""
        try:
            notices = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE)
            notices.bind((0, RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR))
        except OSError as error:
            log.warning("address changes are not followed: %s", error)
        else:
            self._socket = notices
            asyncio.get_running_loop().add_reader(notices.fileno(), self._notice)
        await self.refresh()

    async def stop(self) -> None:
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket.fileno())
            self._socket.close()
            self._socket = None
        if self._refreshing is not None:
            await self._refreshing

    async def refresh(self) -> None:
        """Ask the kernel, in a thread: pyroute2's blocking interface runs a loop of its own."""
        addresses = await asyncio.to_thread(read_addresses)
        if addresses != self.current:
            self.current = addresses
            self._changed()

    def _notice(self) -> None:
        """Something changed: what, is asked anew, so that a lost notice does no harm."""
        assert self._socket is not None
        try:
            while self._socket.recv(65536):
                pass
        except OSError:
            pass
        self._stale = True
        if self._refreshing is None:
            self._refreshing = asyncio.ensure_future(self._catch_up())

    async def _catch_up(self) -> None:
        try:
            while self._stale:
                self._stale = False
                await self.refresh()
                self._noticed()
        except Exception as error:
            log.warning("the machine's addresses could not be read: %r", error)
        finally:
            self._refreshing = None


def read_addresses() -> set[str]:
    """All IPv4 and IPv6 addresses of the machine.  Takes a millisecond or two."""
    # pyroute2 runs an event loop of its own for each question, which a thread with a running loop does not allow;
    # nor can uvloop's loops open netlink sockets.
    with ThreadPoolExecutor(1, "addresses") as helper:
        return helper.submit(_ask_kernel).result()


def _ask_kernel() -> set[str]:
    # imported here: pyroute2 takes a quarter of a second, and a listener on loopback does not need it
    from pyroute2 import IPRoute

    with IPRoute() as route:
        return {_address(message) for message in route.get_addr()} - {""}


def _address(message: Any) -> str:
    # IFA_LOCAL is this side of a point-to-point link; IPv6 and most IPv4 addresses have IFA_ADDRESS alone or alike
    return str(message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS") or "")
