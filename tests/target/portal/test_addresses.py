"""Which addresses SendTargets gives out."""

from __future__ import annotations

import asyncio
import errno

import pytest

from target.portal.addresses import MachineAddresses, expand, read_addresses
from tests.conftest import unavailable

ADDED = "127.77.0.1"
MACHINE = {"127.0.0.1", "192.0.2.9", "192.0.2.10", "::1", "fe80::1", "2001:db8::7"}


@pytest.mark.parametrize(
    ("listening", "expected"),
    [
        ([("192.0.2.9", 3260, 1)], ["192.0.2.9:3260,1"]),
        ([("0.0.0.0", 3260, 1)], ["192.0.2.9:3260,1", "192.0.2.10:3260,1"]),
        ([("::", 860, 1)], ["[2001:db8::7]:860,1"]),
        ([("127.0.0.1", 3260, 1)], ["127.0.0.1:3260,1"]),
        ([("0.0.0.0", 3260, 1), ("192.0.2.9", 3260, 1)], ["192.0.2.9:3260,1", "192.0.2.10:3260,1"]),
        ([("192.0.2.9", 3260, 1), ("192.0.2.10", 3260, 7)], ["192.0.2.9:3260,1", "192.0.2.10:3260,7"]),
        ([("192.0.2.99", 3260, 1), ("192.0.2.9", 3260, 1)], ["192.0.2.9:3260,1"]),
        ([], []),
    ],
)
def test_wildcards_become_the_machines_addresses(listening: list[tuple[str, int, int]], expected: list[str]) -> None:
    assert expand(listening, MACHINE) == expected


def test_an_address_is_given_out_where_nobody_knows_the_machines() -> None:
    assert expand([("192.0.2.99", 3260, 1)], set()) == ["192.0.2.99:3260,1"]


def test_who_came_somehow_is_told_of_that_way_where_nobody_knows_the_machines_addresses() -> None:
    listening = [("0.0.0.0", 3260, 1), ("::", 3260, 1)]
    assert expand(listening, set(), "192.0.2.7") == ["192.0.2.7:3260,1"]
    assert expand(listening, set(), "2001:db8::7") == ["[2001:db8::7]:3260,1"]


def test_loopback_is_given_out_when_there_is_nothing_else() -> None:
    assert expand([("0.0.0.0", 1, 2), ("::", 1, 2)], {"127.0.0.1", "::1", "fe80::2"}) == ["127.0.0.1:1,2", "[::1]:1,2"]


@pytest.mark.parametrize(
    ("local", "expected"),
    [
        ("127.0.0.1", ["127.0.0.1:1,1", "192.0.2.9:1,1", "192.0.2.10:1,1", "[2001:db8::7]:1,1"]),
        ("127.7.7.7", ["127.7.7.7:1,1", "192.0.2.9:1,1", "192.0.2.10:1,1", "[2001:db8::7]:1,1"]),
        ("::1", ["192.0.2.9:1,1", "192.0.2.10:1,1", "[::1]:1,1", "[2001:db8::7]:1,1"]),
        ("192.0.2.9", ["192.0.2.9:1,1", "192.0.2.10:1,1", "[2001:db8::7]:1,1"]),
    ],
)
def test_who_came_over_loopback_is_told_of_that_address(local: str, expected: list[str]) -> None:
    assert expand([("0.0.0.0", 1, 1), ("::", 1, 1)], MACHINE, local) == expected


def test_the_kernel_tells_the_addresses() -> None:
    assert "127.0.0.1" in read_addresses()


def _set(command: str) -> None:
    from pyroute2 import IPRoute

    with IPRoute() as route:
        (lo,) = route.link_lookup(ifname="lo")
        route.addr(command, index=lo, address=ADDED, prefixlen=32)


def test_a_new_address_is_noticed_and_forgotten_again() -> None:
    async def run() -> None:
        changed = asyncio.Event()
        machine = MachineAddresses(changed.set)
        await machine.start()
        for command, there in (("add", True), ("del", False)):
            changed.clear()
            await asyncio.to_thread(_set, command)
            await asyncio.wait_for(changed.wait(), 10)
            assert (ADDED in machine.current) is there
        await machine.stop()

    try:
        asyncio.run(run())
    except Exception as error:
        if getattr(error, "code", None) == errno.EPERM:
            unavailable("addresses cannot be changed without CAP_NET_ADMIN")
        raise
