"""Management calls that meet in the middle of each other, and changes that fail half way: found by review."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

import wafl
from target.daemon import EVENT_NUMBERS, event_numbers
from target.management import serving
from target.management.events import EventLog
from target.management.store import AdminStore
from tests.target.management.conftest import HOST, Api, Play

Call = Callable[[], Awaitable[Any]]


def pausing(function: Callable[..., Awaitable[Any]], reached: asyncio.Event, go_on: asyncio.Event) -> Any:
    async def paused(*arguments: Any, **named: Any) -> Any:
        reached.set()
        await go_on.wait()
        return await function(*arguments, **named)

    return paused


async def look_while(api: Api, holder: Any, name: str, change: Call) -> Any:
    """Look at everything while `change` waits inside `holder.name`."""
    reached, go_on = asyncio.Event(), asyncio.Event()
    whole = getattr(holder, name)
    setattr(holder, name, pausing(whole, reached, go_on))
    changing = asyncio.ensure_future(change())
    try:
        await asyncio.wait_for(reached.wait(), 10)
        await api.get("/luns")
        await api.get("/volumes")
        assert (await api.http.get("/metrics")).status_code == 200
        if await lun_is_there(api):
            await api.http.put("/v1/data/vol0/lun0", content=bytes(512))
    finally:
        setattr(holder, name, whole)
        go_on.set()
    return await changing


async def lun_is_there(api: Api) -> bool:
    return any(lun["path"] == "/vol/vol0/lun0" for lun in await api.get("/luns"))


def test_what_is_being_made_or_destroyed_can_be_looked_at(play: Play) -> None:
    async def scene(api: Api) -> None:
        await api.volume()
        service = api.core.units["vol0"].service
        await look_while(api, service, "durable", lambda: api.lun())
        await api.igroup()
        await api.post("/maps", {"path": "/vol/vol0/lun0", "igroup": "hosts"})
        await look_while(
            api, api.core.store, "change", lambda: api.call("DELETE", "/luns/vol0/lun0", force="true")
        )
        await api.lun()
        await look_while(api, service, "stop", lambda: api.call("DELETE", "/volumes/vol0", force="true"))

    play(scene)


def test_a_volume_on_its_way_offline_takes_no_more_data(play: Play) -> None:
    """What is written behind the last consistency point would be lost although it was acknowledged."""

    async def scene(api: Api) -> None:
        await api.volume()
        await api.lun()
        service = api.core.units["vol0"].service
        reached, go_on = asyncio.Event(), asyncio.Event()
        service.stop = pausing(service.stop, reached, go_on)  # type: ignore[method-assign]
        going = asyncio.ensure_future(api.call("PATCH", "/volumes/vol0", {"online": False}))
        await reached.wait()
        answer = await api.http.put("/v1/data/vol0/lun0", content=b"x" * 512)
        go_on.set()
        await going
        assert answer.json()["error"] == "volume-offline"

    play(scene)


def fail_volume(api: Api) -> None:
    api.core.units["vol0"].volume.fail(OSError(5, "Input/output error"))


@pytest.mark.parametrize("step", ["create", "destroy"])
def test_a_failed_volume_still_shows_its_luns(play: Play, step: str) -> None:
    async def scene(api: Api) -> None:
        await api.volume()
        await api.lun()
        durable = api.core.units["vol0"].service.durable

        async def failing() -> None:
            fail_volume(api)
            await durable()

        if step == "create":
            api.core.units["vol0"].service.durable = failing  # type: ignore[method-assign]
            await api.refused("POST", "/luns", {"path": "/vol/vol0/other", "size_bytes": 1 << 20})
        else:
            fail_volume(api)
            await api.refused("DELETE", "/luns/vol0/lun0", force="true")
        assert "/vol/vol0/lun0" in [lun["path"] for lun in await api.get("/luns")]

    play(scene)


def test_a_destroy_that_is_refused_by_the_volume_changes_nothing(play: Play) -> None:
    async def scene(api: Api) -> None:
        await api.volume()
        await api.lun()
        await api.igroup()
        await api.post("/maps", {"path": "/vol/vol0/lun0", "igroup": "hosts"})
        fail_volume(api)
        refusal = await api.refused("DELETE", "/luns/vol0/lun0", force="true")
        assert refusal.name == "volume-failed"
        assert list(serving.lun_map(api.core, "vol0", HOST)) == [0]
        assert len(await api.get("/maps")) == 1

    play(scene)


def test_a_lun_that_cannot_be_made_offline_durably_is_offline_for_hosts_all_the_same(play: Play) -> None:
    """What is shown and what hosts get must not differ, whatever the consistency point says."""

    async def scene(api: Api) -> None:
        await api.volume()
        await api.lun()
        await api.igroup()
        await api.post("/maps", {"path": "/vol/vol0/lun0", "igroup": "hosts"})
        nexus: Any = serving.open_nexus(api.core, "vol0", HOST, b"\0" * 6, 1)
        nexus.itls[0].take_attention()
        assert 0 in nexus._readable
        service = api.core.units["vol0"].service

        async def failing() -> None:
            raise wafl.VolumeFailed("told to")

        service.durable = failing  # type: ignore[method-assign]
        await api.refused("PATCH", "/luns/vol0/lun0", {"online": False})
        online = (await api.get("/luns/vol0/lun0"))["online"]
        assert online is (0 in nexus._readable)
        nexus.close()

    play(scene)


def test_events_go_on_when_their_numbers_cannot_be_written(tmp_path: Any) -> None:
    """Sessions open and close with an event: a full state directory must not end that."""
    store = AdminStore(tmp_path / "admin.db")
    store.open()

    def full(change: Any) -> Any:
        raise sqlite3.OperationalError("database or disk is full")

    async def run() -> list[int]:
        events = EventLog(event_numbers(store))
        store.change_now = full  # type: ignore[method-assign]
        return [events.emit("test", "an event").seq for _ in range(EVENT_NUMBERS + 10)]

    try:
        numbers = asyncio.run(run())
        assert len(set(numbers)) == EVENT_NUMBERS + 10
    finally:
        store.close()
