"""Portal groups and access states as an administrator sets them, and what hosts make of them over the wire."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable
from typing import Any

import pytest

from target.iscsi.constants import LoginStatus, Opcode
from target.management.names import PortalAddress, parse_listen
from target.management.refusal import Refused
from tests.support.initiator import Initiator, Reply
from tests.support.served_portal import SocketLink
from tests.target.management.conftest import HOST, Api, Play

LUN = "/vol/vol0/lun0"
ALUA = "/alua/vol0/lun0"
ISID = b"\x80\0\0\0\0\1"
REPORT = struct.pack(">BB4xIxB4x", 0xA3, 0x0A, 4096, 0)
SET = struct.pack(">BB4xIxB4x", 0xA4, 0x0A, 8, 0)
READY = bytes(16)
STATE_CHANGED, IN_STANDBY = (6, 0x2A06), (2, 0x040B)


async def two_groups(api: Api) -> tuple[str, int]:
    """A LUN that HOST sees, and a second portal, in group 2.  The target's name and the portal's port."""
    await api.volume()
    target: str = (await api.lun())["target"]
    await api.igroup()
    await api.post("/maps", {"path": LUN, "igroup": "hosts"})
    added = await api.post("/iscsi/portals", {"address": "127.0.0.2:0", "group": 2})
    assert (added["group"], added["listening"]) == (2, True)
    return target, PortalAddress.parse(added["address"]).port


async def on_paths(api: Api, port: int, target: str, act: Callable[[Initiator, Initiator], Any]) -> Any:
    """`act` in a thread with a session through either group."""

    def run() -> Any:
        paths = [
            Initiator(SocketLink(address), name=HOST, target=target)
            for address in (api.daemon.portal.listening[0], ("127.0.0.2", port))
        ]
        for path in paths:
            assert path.login().status_class == 0
            assert sense(send(path, READY)) == (6, 0x2900)
        try:
            return act(*paths)
        finally:
            for path in paths:
                path.link.close()  # type: ignore[attr-defined]

    return await asyncio.to_thread(run)


def send(path: Initiator, cdb: bytes, data: bytes = b"") -> Reply:
    flags, edtl = (0xA1, len(data)) if data else (0xC1, 4096)
    return path.numbered(Opcode.SCSI_COMMAND, data, flags=flags, cdb=cdb, edtl=edtl)[-1]


def sense(reply: Reply) -> tuple[int, int]:
    """Key and code behind the length in front of the sense data."""
    assert reply.status == 2, reply
    return reply.data[4] & 0x0F, int.from_bytes(reply.data[14:16], "big")


def reported(reply: Reply) -> list[tuple[int, int]]:
    """(group, state) of each descriptor, all of one port."""
    data = reply.data
    return [(int.from_bytes(data[at + 2 : at + 4], "big"), data[at]) for at in range(4, len(data), 12)]


# -- portal groups -----------------------------------------------------------------------------------------


def test_discovery_gives_every_portal_with_its_group(play: Play) -> None:
    async def scene(api: Api) -> None:
        _, port = await two_groups(api)
        first = api.daemon.portal.listening[0][1]
        assert api.daemon.portal.addresses() == [f"127.0.0.1:{first},1", f"127.0.0.2:{port},2"]

    play(scene)


def test_a_portal_keeps_its_group_over_a_restart(play: Play) -> None:
    async def before(api: Api) -> None:
        await two_groups(api)

    async def after(api: Api) -> None:
        assert [each["group"] for each in await api.get("/iscsi/portals")] == [1, 2]
        assert [each["group"] for each in await api.get(ALUA)] == [1, 2]

    play(before, after)


def test_the_sessions_of_two_groups_are_two_nexuses(play: Play) -> None:
    async def scene(api: Api) -> None:
        target, port = await two_groups(api)

        def act(one: Initiator, two: Initiator) -> list[list[tuple[int, int]]]:
            return [reported(send(path, REPORT)) for path in (one, two)]

        assert await on_paths(api, port, target, act) == [[(1, 0), (2, 0)]] * 2

    play(scene)


def test_a_session_is_not_joined_through_another_group(play: Play) -> None:
    async def scene(api: Api) -> None:
        target, port = await two_groups(api)

        def act(one: Initiator, two: Initiator) -> int:
            reply = one.join(SocketLink(("127.0.0.2", port))).login()  # type: ignore[arg-type]
            assert send(one, READY).status == 0
            return int(reply.status_class << 8 | reply.status_detail)

        assert await on_paths(api, port, target, act) == LoginStatus.CANNOT_INCLUDE_IN_SESSION

    play(scene)


@pytest.mark.parametrize("group", [0, 65536, -1])
def test_a_group_has_a_number_that_a_port_can_have(play: Play, group: int) -> None:
    async def scene(api: Api) -> None:
        refused = await api.refused("POST", "/iscsi/portals", {"address": "127.0.0.2:0", "group": group})
        assert refused.body["error"] == "invalid-argument"

    play(scene)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("192.0.2.1", ("192.0.2.1:3260", 1)),
        ("192.0.2.1:860,7", ("192.0.2.1:860", 7)),
        ("[2001:db8::1]:3260,65535", ("[2001:db8::1]:3260", 65535)),
        ("*,2", ("0.0.0.0:3260", 2)),
    ],
)
def test_an_address_to_listen_on_may_name_its_group(text: str, expected: tuple[str, int]) -> None:
    address, group = parse_listen(text)
    assert (str(address), group) == expected


@pytest.mark.parametrize("text", ["192.0.2.1,0", "192.0.2.1,65536", "192.0.2.1,", "192.0.2.1,+1", "1.2.3.4,1,2", "1,1"])
def test_what_is_no_address_with_a_group_is_refused(text: str) -> None:
    with pytest.raises(Refused):
        parse_listen(text)


# -- access states -----------------------------------------------------------------------------------------


@pytest.mark.workers
def test_the_administrator_closes_a_path_and_opens_it(play: Play) -> None:
    async def scene(api: Api) -> None:
        target, port = await two_groups(api)
        loop = asyncio.get_running_loop()

        def put(state: str) -> Any:
            asked = api.call("PUT", ALUA, {"group": 2, "state": state})
            return asyncio.run_coroutine_threadsafe(asked, loop).result()

        def act(one: Initiator, two: Initiator) -> None:
            assert [(each["state"], each["changed_by"]) for each in put("standby")] == [
                ("active-optimized", "nobody"), ("standby", "administrator"),
            ]  # fmt: skip
            assert sense(send(one, READY)) == sense(send(two, READY)) == STATE_CHANGED
            assert sense(send(two, READY)) == IN_STANDBY
            assert send(one, READY).status == 0
            assert two.read(0, 1).status == 2
            put("active-non-optimized")
            assert sense(send(two, READY)) == STATE_CHANGED
            assert two.read(0, 1).status == 0

        await on_paths(api, port, target, act)

    play(scene)


def test_what_a_host_sets_is_seen_and_outlives_a_restart(play: Play) -> None:
    async def before(api: Api) -> None:
        target, port = await two_groups(api)

        def act(one: Initiator, two: Initiator) -> None:
            assert send(one, SET, bytes(4) + struct.pack(">BxH", 2, 2)).status == 0
            assert sense(send(two, READY)) == STATE_CHANGED

        await on_paths(api, port, target, act)
        (event,) = [each for each in api.core.events.since(0) if each.kind == "lun.access"]
        assert event.message == f"{LUN}: {HOST} sets target port group 2 standby"

    async def after(api: Api) -> None:
        assert [(each["group"], each["state"], each["changed_by"]) for each in await api.get(ALUA)] == [
            (1, "active-optimized", "nobody"), (2, "standby", "host"),
        ]  # fmt: skip

    play(before, after)


def test_bad_requests_for_a_state_are_refused(play: Play) -> None:
    async def scene(api: Api) -> None:
        await two_groups(api)
        for body, name in (
            ({"group": 3, "state": "standby"}, "no-such-portal-group"),
            ({"group": 2, "state": "offline"}, "invalid-argument"),
            ({"group": 2}, "invalid-argument"),
        ):
            assert (await api.refused("PUT", ALUA, body)).body["error"] == name
        good = {"group": 2, "state": "standby"}
        assert (await api.refused("PUT", "/alua/vol0/no", good)).body["error"] == "no-such-lun"
        assert (await api.refused("GET", "/alua/no/no")).body["error"] == "no-such-volume"

    play(scene)


def test_a_group_goes_with_its_last_portal(play: Play) -> None:
    async def scene(api: Api) -> None:
        _, port = await two_groups(api)
        await api.call("DELETE", f"/iscsi/portals/127.0.0.2:{port}")
        assert [each["group"] for each in await api.get(ALUA)] == [1]

    play(scene)
