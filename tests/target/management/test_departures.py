"""Snapshots on their way out: what holds one is cloned, then it goes; over restarts, failures and changes of mind."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from target.management.refusal import Refused
from tests.target.management.conftest import MIB, Api, Play, transactions

BASE = "/volumes/vol0/snapshots/base"
DEPARTURE = f"{BASE}/departure"
BLOCK = 4096


async def golden(api: Api, copies: int = 2, size_bytes: int = MIB) -> None:
    """lun0 with data in snapshot base, and LUNs copy0, copy1 … that read through it."""
    await api.volume()
    await api.lun(size_bytes=size_bytes, reserved=False)
    for at in range(0, size_bytes, MIB):
        assert (await api.http.put(f"/v1/data/vol0/lun0?offset={at}", content=b"\x5a" * 65536)).status_code == 204
    await api.post("/volumes/vol0/snapshots", {"name": "base"})
    for number in range(copies):
        await backed(api, f"copy{number}")


async def backed(api: Api, name: str, snapshot: str = "base", parent: str = "lun0") -> Any:
    backing = {"path": f"/vol/vol0/.snapshot/{snapshot}/{parent}"}
    return await api.post("/luns", {"path": f"/vol/vol0/{name}", "backing": backing})


async def clones_ended(api: Api) -> None:
    for status in await api.get("/clones"):
        if status["operation"] is not None:
            await api.get(f"/operations/{status['operation']}/wait", timeout=60)


async def look(api: Api) -> None:
    """What housekeeping does once a second."""
    await api.daemon.services.departures.look(api.core.units["vol0"])


async def names(api: Api) -> list[str]:
    return [each["name"] for each in await api.get("/volumes/vol0/snapshots")]


def events(api: Api, kind: str = "snapshot.detach") -> list[str]:
    return [event.kind.removeprefix("snapshot.") for event in api.core.events.since(0) if event.kind.startswith(kind)]


def spoil(api: Api, block: int) -> None:
    """Damage a block of lun0 as the snapshot has it."""
    volume = api.core.units["vol0"].volume
    pointers = volume.snapshot_lun("base", "lun0").read_map(block >> 8)
    assert pointers is not None
    volume.device.pwrite(pointers.vbns[block & 255] * BLOCK, (b"bad",))


def slow(api: Api) -> None:
    """Clones wait for their limit after the first turns."""
    api.core.clones.set_overall_limit(1)


def test_the_luns_are_cloned_and_the_snapshot_goes(play: Play) -> None:
    async def scene(api: Api) -> None:
        await golden(api, size_bytes=4 * MIB)
        slow(api)
        asked = await api.call("PUT", DEPARTURE)
        departure = asked["departure"]
        assert [wait["path"] for wait in departure["waits_for"]] == ["/vol/vol0/copy0", "/vol/vol0/copy1"]
        assert not any(wait["stuck"] for wait in departure["waits_for"])
        assert all("its clone is " in wait["why"] for wait in departure["waits_for"])
        assert 0 < departure["missing_bytes"] <= 2 * 4 * 65536
        assert [each["departure"] is not None for each in await api.get("/volumes/vol0/snapshots")] == [True]
        assert [each["leaving"] for each in await api.get("/volumes/vol0/families")] == [True]
        await look(api)
        assert await names(api) == ["base"]
        api.core.clones.set_overall_limit(None)
        await clones_ended(api)
        await look(api)
        assert await names(api) == []
        assert events(api) == ["detach.started", "detach.completed"]
        assert events(api, "snapshot.deleted") == ["deleted"]
        assert not any(name.startswith("departures") for name in api.core.state.settings)
        for copy in ("copy0", "copy1"):
            assert (await api.get(f"/luns/vol0/{copy}"))["backing"] is None

    play(scene)


def test_housekeeping_looks_by_itself(play: Play) -> None:
    async def scene(api: Api) -> None:
        await golden(api)
        await api.call("PUT", DEPARTURE)
        await clones_ended(api)
        await api.daemon.housekeeping.tick()
        assert await names(api) == []

    play(scene)


def test_a_snapshot_that_nothing_holds_goes_at_once(play: Play) -> None:
    async def scene(api: Api) -> None:
        await golden(api, copies=0)
        assert await api.call("PUT", DEPARTURE) is None
        assert await names(api) == []
        assert (await api.refused("PUT", DEPARTURE)).name == "no-such-snapshot"

    play(scene)


def test_the_wish_survives_restarts_and_a_rename(play: Play) -> None:
    async def asked(api: Api) -> None:
        await golden(api)
        slow(api)
        await api.call("PUT", DEPARTURE)
        await api.call("PATCH", BASE, {"name": "renamed"})

    async def offline(api: Api) -> None:
        assert (await api.get("/volumes/vol0/snapshots/renamed"))["departure"] is not None
        await api.call("PATCH", "/volumes/vol0", {"online": False})

    async def done(api: Api) -> None:
        await api.call("PATCH", "/volumes/vol0", {"online": True})
        await clones_ended(api)
        await look(api)
        assert await names(api) == []

    play(asked, offline, done)


def test_a_crash_between_deletion_and_forgetting_leaves_no_wish_behind(play: Play) -> None:
    async def scene(api: Api) -> None:
        await golden(api)
        await api.call("PUT", DEPARTURE)
        await clones_ended(api)

        async def broken(change: object) -> None:
            raise Refused("io-error", "the settings cannot be written")

        change = api.core.store.change
        api.core.store.change = broken  # type: ignore[assignment, method-assign]
        with pytest.raises(Refused):
            await look(api)
        api.core.store.change = change  # type: ignore[method-assign]
        assert await names(api) == []
        assert any(name.startswith("departures") for name in api.core.state.settings)

    async def later(api: Api) -> None:
        # another one of that name is another one
        await api.post("/volumes/vol0/snapshots", {"name": "base"})
        assert (await api.get(BASE))["departure"] is None
        await look(api)
        assert await names(api) == ["base"]
        assert not any(name.startswith("departures") for name in api.core.state.settings)

    play(scene, later)


@pytest.mark.parametrize("ahead", [True, False])
def test_nothing_new_may_depend_on_it(play: Play, ahead: bool) -> None:
    async def scene(api: Api) -> None:
        await golden(api)
        slow(api)
        await api.call("PUT", DEPARTURE)
        backing = {"path": "/vol/vol0/.snapshot/base/lun0"} if ahead else {"path": "/vol/vol0/lun0", "snapshot": "base"}
        for url, body in (
            ("/luns", {"path": "/vol/vol0/third", "backing": backing}),
            ("/rollouts", {"pattern": "/vol/vol0/vm%d", "count": 2, "backing": backing}),
            (f"{BASE}/restore", {"path": "/vol/vol0/lun0", "force": True}),
            (f"{BASE}/restore", {"force": True}),
        ):
            refusal = await api.refused("POST", url, body)
            assert (refusal.name, refusal.status) == ("snapshot-leaving", 409)
            assert "'lun snap delete --cancel vol0 base' keeps it" in refusal.body["message"]
        await api.call("DELETE", DEPARTURE)
        await backed(api, "third")

    play(scene)


def test_a_change_of_mind_keeps_the_snapshot_and_the_clones_go_on(play: Play) -> None:
    async def scene(api: Api) -> None:
        await golden(api)
        slow(api)
        await api.call("PUT", DEPARTURE)
        stays = await api.call("DELETE", DEPARTURE)
        assert (stays["name"], stays["departure"]) == ("base", None)
        assert [status["requested"] for status in await api.get("/clones")] == [True, True]
        api.core.clones.set_overall_limit(None)
        await clones_ended(api)
        await look(api)
        assert await names(api) == ["base"]
        assert events(api) == ["detach.started", "detach.cancelled"]
        assert (await api.refused("DELETE", DEPARTURE)).name == "not-leaving"
        assert (await api.refused("DELETE", "/volumes/vol0/snapshots/no/departure")).name == "no-such-snapshot"

    play(scene)


def test_a_failing_clone_is_told_once_and_the_wish_waits_until_it_is_mended(play: Play) -> None:
    async def scene(api: Api) -> None:
        await golden(api)
        spoil(api, 3)
        await api.call("PUT", DEPARTURE)
        await clones_ended(api)
        for _ in range(3):
            await look(api)
        assert events(api) == ["detach.started", "detach.waiting"]
        shown = (await api.get(BASE))["departure"]["waits_for"]
        assert [wait["stuck"] for wait in shown] == [True, True]
        assert all(wait["why"].startswith("its clone failed: ") for wait in shown)
        # writing over the bad block heals; asking again starts the clones again
        for copy in ("lun0", "copy0", "copy1"):
            await api.http.put(f"/v1/data/vol0/{copy}?offset={3 * BLOCK}", content=b"\xa5" * BLOCK)
        await api.call("PUT", DEPARTURE)
        await clones_ended(api)
        await look(api)
        assert await names(api) == []
        assert events(api) == ["detach.started", "detach.waiting", "detach.started", "detach.completed"]
        assert await api.get("/volumes/vol0/snapshots") == []

    play(scene)


def test_a_clone_that_a_person_stopped_stays_stopped_over_a_restart(play: Play) -> None:
    async def stopped(api: Api) -> None:
        await golden(api, copies=1)
        slow(api)
        await api.call("PUT", DEPARTURE)
        await api.call("DELETE", "/clones/vol0/copy0")
        await look(api)
        assert events(api) == ["detach.started", "detach.waiting"]

    async def later(api: Api) -> None:
        await look(api)
        (wait,) = (await api.get(BASE))["departure"]["waits_for"]
        assert (wait["stuck"], wait["why"]) == (True, "its clone is stopped: 'lun clone start /vol/vol0/copy0'")
        await api.call("PUT", "/clones/vol0/copy0", {})
        await clones_ended(api)
        await look(api)
        assert await names(api) == []

    play(stopped, later)


def test_a_later_snapshot_with_such_a_lun_is_waited_for(play: Play) -> None:
    async def scene(api: Api) -> None:
        await golden(api, copies=1)
        await api.post("/volumes/vol0/snapshots", {"name": "later"})
        await api.call("PUT", DEPARTURE)
        await clones_ended(api)
        await look(api)
        (wait,) = (await api.get(BASE))["departure"]["waits_for"]
        assert wait["path"] == "/vol/vol0/.snapshot/later"
        assert wait["why"] == "has 1 LUN of it from before: 'lun snap delete vol0 later'"
        assert (await api.refused("DELETE", BASE)).name == "snapshot-busy"
        # the one in the way can be on its way out too
        assert await api.call("PUT", "/volumes/vol0/snapshots/later/departure") is None
        await look(api)
        assert await names(api) == []

    play(scene)


def test_two_leave_in_whatever_order_they_become_free(play: Play) -> None:
    async def scene(api: Api) -> None:
        await golden(api, copies=1)
        await api.post("/volumes/vol0/snapshots", {"name": "later"})
        await backed(api, "grandchild", "later", "copy0")
        slow(api)
        await api.call("PUT", DEPARTURE)
        await api.call("PUT", "/volumes/vol0/snapshots/later/departure")
        api.core.clones.set_overall_limit(None)
        await clones_ended(api)
        await look(api)
        await look(api)
        assert await names(api) == []

    play(scene)


def test_a_destroyed_lun_holds_nothing(play: Play) -> None:
    async def scene(api: Api) -> None:
        await golden(api, copies=1)
        slow(api)
        await api.call("PUT", DEPARTURE)
        await api.call("DELETE", "/luns/vol0/copy0")
        await look(api)
        assert await names(api) == []

    play(scene)


def test_a_clone_that_does_not_fit_says_why(play: Play) -> None:
    async def scene(api: Api) -> None:
        await golden(api, copies=1, size_bytes=16 * MIB)
        for at in range(0, 16 * MIB, MIB):
            await api.http.put(f"/v1/data/vol0/copy0?offset={at + 65536}", content=b"\xa5" * (MIB - 65536))
        await api.lun("/vol/vol0/filler", 64 * MIB, reserved=False)
        filler = api.core.units["vol0"].volume.lun("filler")
        at = 0
        while (await api.get("/estimates/vol0/copy0"))["fits"]:
            filler.write(at, b"\xff" * MIB)
            at += MIB
        asked = await api.call("PUT", DEPARTURE)
        (wait,) = asked["departure"]["waits_for"]
        assert wait["stuck"]
        assert wait["why"].startswith("its clone could not be started: ")
        assert (await api.get("/clones/vol0/copy0"))["state"] == "none"
        await api.call("PUT", "/clones/vol0/copy0", {"force": True, "limit_bytes_s": 4096})
        await look(api)
        await api.call("DELETE", "/clones/vol0/copy0")
        (wait,) = (await api.get(BASE))["departure"]["waits_for"]
        assert wait["why"].startswith("its clone is stopped: ")
        await api.call("DELETE", "/luns/vol0/filler")
        while not (await api.get("/estimates/vol0/copy0"))["fits"]:
            await asyncio.sleep(0.01)
        asked = await api.call("PUT", DEPARTURE)
        assert not asked["departure"]["waits_for"][0]["stuck"]
        await clones_ended(api)
        await look(api)
        assert await names(api) == []

    play(scene)


def test_a_volume_that_is_destroyed_takes_its_wishes_along(play: Play) -> None:
    async def scene(api: Api) -> None:
        await golden(api)
        slow(api)
        await api.call("PUT", DEPARTURE)
        await api.call("DELETE", "/volumes/vol0", force=True)
        assert not any(name.startswith("departures") for name in api.core.state.settings)

    play(scene)


def test_many_luns_are_asked_for_at_once_and_few_are_named(play: Play) -> None:
    async def scene(api: Api) -> None:
        await golden(api, copies=0)
        body = {"pattern": "/vol/vol0/vm%d", "count": 40, "backing": {"path": "/vol/vol0/.snapshot/base/lun0"}}
        await api.post("/rollouts", body)
        spoil(api, 3)
        changes = transactions(api)
        await api.call("PUT", DEPARTURE)
        # what the clones are asked for, and the wish
        assert len(changes) == 2
        await clones_ended(api)
        await look(api)
        (told,) = (event for event in api.core.events.since(0) if event.kind == "snapshot.detach.waiting")
        assert told.message.count("its clone failed") == 5
        assert told.message.endswith("; and 35 more")
        for lun in ("lun0", *(f"vm{number}" for number in range(1, 41))):
            await api.http.put(f"/v1/data/vol0/{lun}?offset={3 * BLOCK}", content=b"\xa5" * BLOCK)
        await api.call("PUT", DEPARTURE)
        await clones_ended(api)
        await look(api)
        assert await names(api) == []

    play(scene)


def test_a_snapshot_that_is_held_by_a_later_one_is_looked_at_only_when_something_changed(play: Play) -> None:
    async def scene(api: Api) -> None:
        await golden(api, copies=1)
        await api.post("/volumes/vol0/snapshots", {"name": "later"})
        await api.call("PUT", DEPARTURE)
        await clones_ended(api)
        volume = api.core.units["vol0"].volume
        await api.core.units["vol0"].service.commit()
        await look(api)
        asked = 0
        snapshots = volume.snapshots

        def counting() -> Any:
            nonlocal asked
            asked += 1
            return snapshots()

        volume.snapshots = counting  # type: ignore[method-assign]
        for _ in range(5):
            await look(api)
        assert asked == 0
        del volume.snapshots  # type: ignore[method-assign]
        await api.call("DELETE", "/volumes/vol0/snapshots/later")
        await look(api)
        assert await names(api) == []

    play(scene)
