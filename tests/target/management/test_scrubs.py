"""Scrubs through the API."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import wafl
from tests.target.management.conftest import MIB, Api, Play
from wafl import scrub

BLOCK = wafl.BLOCK_BYTES


async def with_data(api: Api) -> wafl.Volume:
    await api.volume()
    await api.lun(size_bytes=4 * MIB)
    volume = api.core.units["vol0"].volume
    volume.lun("lun0").write(0, b"\xa5" * 2 * MIB)
    await api.core.units["vol0"].service.commit()
    return volume


def spoil(volume: wafl.Volume, fbn: int) -> None:
    pointers = volume.lun("lun0").read_map(fbn >> 8)
    assert pointers is not None
    volume.device.pwrite(pointers.vbns[fbn & 255] * BLOCK, (b"bad",))


async def ended(api: Api) -> Any:
    while (status := await api.get("/volumes/vol0/scrub"))["state"] == "running":
        await api.get(f"/operations/{status['operation']}/wait", timeout=10)
        await asyncio.sleep(0)
    return status


def kinds(api: Api) -> list[str]:
    return [event.kind for event in api.core.events.since(0)]


def test_a_scrub_runs_to_its_end_and_is_remembered(play: Play) -> None:
    async def scene(api: Api) -> None:
        await with_data(api)
        assert (await api.get("/volumes/vol0/scrub"))["state"] == "none"
        started = await api.call("PUT", "/volumes/vol0/scrub", {})
        assert started["state"] == "running"
        status = await ended(api)
        assert (status["state"], status["bad_blocks"]) == ("completed", 0)
        assert (await api.get("/volumes/vol0"))["last_scrub"]["verified_bytes"] >= 2 * MIB
        assert {"volume.scrub.started", "volume.scrub.completed"} <= set(kinds(api))

    async def after(api: Api) -> None:
        status = await api.get("/volumes/vol0/scrub")
        assert (status["state"], status["last"]["state"]) == ("completed", "completed")
        assert "volume.scrub.restarted" not in kinds(api)

    play(scene, after)


def test_bad_blocks_are_events_and_a_result(play: Play) -> None:
    async def scene(api: Api) -> None:
        volume = await with_data(api)
        spoil(volume, 7)
        started = await api.call("PUT", "/volumes/vol0/scrub", {})
        status = await ended(api)
        assert [(bad["lun"], bad["offset"], bad["length"]) for bad in status["bad"]] == [("lun0", 7 * BLOCK, BLOCK)]
        operation = await api.get(f"/operations/{started['operation']}")
        assert operation["result"]["bad_blocks"] == 1
        (event,) = [each for each in api.core.events.since(0) if each.kind == "volume.scrub.bad_block"]
        assert (event.subject, event.data["offset"]) == ("/vol/vol0/lun0", 7 * BLOCK)
        volume.lun("lun0").write(7 * BLOCK, b"\xa5" * BLOCK)  # writing over it heals it
        await api.call("PUT", "/volumes/vol0/scrub", {})
        assert (await ended(api))["bad_blocks"] == 0

    play(scene)


def slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scrub, "SLICE_BYTES", 1)


def test_a_stopped_scrub_stays_stopped_and_one_under_way_starts_again(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    slowly(monkeypatch)

    async def stopped(api: Api) -> None:
        await with_data(api)
        assert (await api.refused("DELETE", "/volumes/vol0/scrub")).name == "no-scrub"
        await api.call("PUT", "/volumes/vol0/scrub", {"limit_bytes_s": 1})
        assert (await api.call("DELETE", "/volumes/vol0/scrub"))["state"] == "stopped"
        assert not api.core.units["vol0"].volume.core.allocator.readers.holding

    async def under_way(api: Api) -> None:
        assert (await api.get("/volumes/vol0/scrub"))["state"] == "stopped"
        await api.call("PUT", "/volumes/vol0/scrub", {"limit_bytes_s": 1})
        again = await api.call("PUT", "/volumes/vol0/scrub", {"limit_bytes_s": 2})
        assert (again["state"], again["limit_bytes_s"]) == ("running", 2)

    async def restarted(api: Api) -> None:
        status = await api.get("/volumes/vol0/scrub")
        assert (status["state"], status["limit_bytes_s"]) == ("running", 2)
        assert "volume.scrub.restarted" in kinds(api)
        await api.call("PATCH", "/volumes/vol0", {"online": False})
        assert (await api.get("/volumes/vol0/scrub"))["state"] == "waiting"
        await api.call("PATCH", "/volumes/vol0", {"online": True})
        assert (await api.get("/volumes/vol0/scrub"))["state"] == "running"
        # Cancelling its operation is the same as stopping it.
        operation = (await api.get("/volumes/vol0/scrub"))["operation"]
        await api.call("DELETE", f"/operations/{operation}")
        assert (await api.get("/volumes/vol0/scrub"))["state"] == "stopped"

    play(stopped, under_way, restarted)


def test_a_volume_that_is_destroyed_takes_its_record_with_it(play: Play) -> None:
    async def scene(api: Api) -> None:
        await with_data(api)
        await api.call("PUT", "/volumes/vol0/scrub", {"limit_bytes_s": 1})
        await api.call("DELETE", "/volumes/vol0", force=True)
        assert not [name for name in api.core.state.settings if name.startswith("scrub.")]
        assert (await api.refused("GET", "/volumes/vol0/scrub")).name == "no-such-volume"

    play(scene)
