"""Portals whose address comes and goes while the daemon runs."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from tests.conftest import unavailable
from tests.target.management.conftest import Api, Play

ADDRESS = "192.0.2.253"
TURNS, TURN_S = 6000, 0.01


def machine(command: str) -> None:
    """`add` or `del` of the address, on loopback."""
    from pyroute2 import IPRoute

    try:
        with IPRoute() as route:
            (lo,) = route.link_lookup(ifname="lo")
            route.addr(command, index=lo, address=ADDRESS, prefixlen=32)
    except Exception as error:
        if getattr(error, "code", None) == errno.EPERM:
            unavailable("addresses cannot be changed without CAP_NET_ADMIN")
        raise


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(TURNS):
        if condition():
            return
        await asyncio.sleep(TURN_S)
    raise AssertionError("it never comes true")


def given_out(api: Api) -> bool:
    return any(address.startswith(ADDRESS) for address in api.daemon.portal.addresses())


async def portal(api: Api) -> dict[str, Any]:
    (found,) = [each for each in await api.get("/iscsi/portals") if each["address"].startswith(ADDRESS)]
    return dict(found)


def test_a_portal_listens_when_its_address_comes_and_is_not_given_out_when_it_goes(play: Play) -> None:
    async def configured(api: Api) -> None:
        await asyncio.to_thread(machine, "add")
        try:
            await api.post("/iscsi/portals", {"address": f"{ADDRESS}:0", "group": 2})
            assert given_out(api)
        finally:
            await asyncio.to_thread(machine, "del")
        await until(lambda: not given_out(api))

    async def without(api: Api) -> None:
        absent = await portal(api)
        assert (absent["listening"], "cannot listen" in absent["problem"]) == (False, True)
        assert [each["group"] for each in await api.get("/iscsi/portals")] == [1, 2]
        await asyncio.to_thread(machine, "add")
        try:
            await until(lambda: given_out(api))
            there = await portal(api)
            assert (there["listening"], there["problem"], there["group"]) == (True, "", 2)
            host, _, port = there["address"].rpartition(":")
            _, writer = await asyncio.open_connection(host, int(port))
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()
        finally:
            await asyncio.to_thread(machine, "del")
        await until(lambda: not given_out(api))

    play(configured, without)
