"""Thresholds and autodelete on a real volume."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest

from target.scsi.sense import Asc
from tests.target.management.conftest import HOST, MIB, Api, Play
from wafl import Lun, NoSpace

ISID = b"\x40\x00\x01\x00\x00\x00"
SIZE = 64 * MIB


def events(api: Api, kind: str) -> list[Any]:
    return [event for event in api.core.events.since(0) if event.kind == kind]


def crossings(api: Api) -> list[tuple[int, str]]:
    return [(event.data["level"], event.data["direction"]) for event in events(api, "volume.space.threshold")]


async def at_rest(api: Api, **lun: Any) -> Lun:
    """A volume with a thin LUN, and the daemon's own housekeeping at rest."""
    await api.daemon.housekeeping.stop()
    await api.volume(size_bytes=SIZE)
    await api.lun(size_bytes=SIZE, reserved=False, **lun)
    return api.core.units["vol0"].volume.lun("lun0")


async def settle(api: Api) -> None:
    """A consistency point, what is to be reclaimed given back, and a look."""
    unit = api.core.units["vol0"]
    unit.volume.reclaim_now()
    await unit.service.commit()
    await api.daemon.housekeeping.tick()


async def fill(api: Api, lun: Lun, percent: float) -> None:
    """Write or unmap until the volume is about so full."""
    lun.unmap(0, SIZE)
    await settle(api)
    full = (await api.get("/volumes/vol0"))["full_percent"]
    lun.write(0, b"x" * (int((percent - full) / 100 * SIZE) & ~4095))
    await settle(api)


# -- thresholds


def test_each_crossing_is_one_event_with_its_figures(play: Play) -> None:
    async def scene(api: Api) -> None:
        lun = await at_rest(api)
        for percent in (50, 82, 79, 83, 96, 99, 94.5, 50, 97):
            await fill(api, lun, percent)
            await settle(api)
        # `fill` empties the LUN each time before it writes, so every step begins far below.
        ups = [level for level, direction in crossings(api) if direction == "above"]
        assert ups == [80, 80, 95, 98, 80, 95]
        event = events(api, "volume.space.threshold")[0]
        assert event.severity.name == "WARNING"
        assert event.data["size_bytes"] == SIZE
        assert 80 <= event.data["percent"] < 85
        assert "is 8" in event.message
        assert [e.severity.name for e in events(api, "volume.space.threshold") if e.data["level"] == 98] == ["ERROR"]

    play(scene)


def test_a_volume_that_hovers_about_a_threshold_says_so_once(play: Play) -> None:
    async def scene(api: Api) -> None:
        lun = await at_rest(api)
        await fill(api, lun, 80.5)
        written = int((await api.get("/volumes/vol0"))["active_bytes"]) & ~4095
        for _ in range(4):
            lun.unmap(written - 2 * MIB, MIB // 2)  # below 80, above 78
            await settle(api)
            lun.write(written - 2 * MIB, b"y" * (MIB // 2))
            await settle(api)
        assert crossings(api) == [(80, "above")]
        lun.unmap(0, 8 * MIB)
        await settle(api)
        assert crossings(api) == [(80, "above"), (80, "below")]

    play(scene)


def test_hosts_that_see_a_thin_lun_are_told_once_a_crossing(play: Play) -> None:
    async def scene(api: Api) -> None:
        lun = await at_rest(api)
        await api.lun("/vol/vol0/thick", MIB, reserved=True)
        await api.igroup()
        for path in ("/vol/vol0/lun0", "/vol/vol0/thick"):
            await api.post("/maps", {"path": path, "igroup": "hosts"})
        nexus: Any = api.daemon.directory.open_nexus(HOST, ISID, api.core.target_name("vol0"), 1)
        thin, thick = nexus.itls.values()
        told = Asc.THIN_PROVISIONING_SOFT_THRESHOLD_REACHED
        for itl in (thin, thick):
            itl.attentions.clear()
        await fill(api, lun, 85)
        assert (thin.attentions, thick.attentions) == ([told], [])
        thin.take_attention()
        await settle(api)
        assert thin.attentions == []
        lun.write(SIZE - 10 * MIB, b"z" * 8 * MIB)
        await settle(api)
        assert crossings(api) == [(80, "above"), (95, "above")]
        assert thin.attentions == [told]
        thin.take_attention()
        lun.unmap(0, SIZE)
        await settle(api)
        assert crossings(api)[-1] == (80, "below")
        assert thin.attentions == []
        nexus.close()

    play(scene)


def test_thresholds_of_a_volume_can_be_set_and_outlive_a_restart(play: Play) -> None:
    async def before(api: Api) -> None:
        lun = await at_rest(api)
        assert (await api.get("/volumes/vol0"))["thresholds"] == [80, 95, 98]
        shown = await api.call("PATCH", "/volumes/vol0", {"thresholds": [60, 30, 60]})
        assert shown["thresholds"] == [30, 60]
        for bad in ([0], [101], list(range(1, 11))):
            assert (await api.refused("PATCH", "/volumes/vol0", {"thresholds": bad})).name == "invalid-argument"
        await fill(api, lun, 40)
        assert crossings(api) == [(30, "above")]
        full = (await api.get("/volumes/vol0"))["full_percent"]
        assert f'lund_volume_full_percent{{volume="vol0"}} {full}' in (await api.http.get("/metrics")).text

    async def after(api: Api) -> None:
        await api.daemon.housekeeping.stop()
        assert (await api.get("/volumes/vol0"))["thresholds"] == [30, 60]
        await api.daemon.housekeeping.tick()
        assert crossings(api) == [(30, "above")]
        await api.call("PATCH", "/volumes/vol0", {"thresholds": []})
        await settle(api)
        assert crossings(api) == [(30, "above")]

    play(before, after)


def test_a_volume_on_which_nothing_happens_is_looked_at_now_and_then(play: Play) -> None:
    async def scene(api: Api) -> None:
        await at_rest(api)
        looks = 0
        housekeeping = api.daemon.housekeeping
        space = api.core.units["vol0"].volume.space

        def counted() -> Any:
            nonlocal looks
            looks += 1
            return space()

        await housekeeping.tick()
        api.core.units["vol0"].volume.space = counted  # type: ignore[method-assign]
        for _ in range(120):
            await housekeeping.tick()
        assert looks == 2

    play(scene)


# -- autodelete


async def snapshots_of_8_mib(api: Api, lun: Lun, *names: str) -> None:
    """Each holds 8 MiB that nothing else has."""
    for name in names:
        lun.write(0, name.encode().ljust(16, b".") * (8 * MIB // 16))
        await api.post("/volumes/vol0/snapshots", {"name": name})
    lun.write(0, b"now............." * (8 * MIB // 16))
    await settle(api)


async def snapshot_names(api: Api) -> list[str]:
    return [each["name"] for each in await api.get("/volumes/vol0/snapshots")]


async def turn_on(api: Api, **more: Any) -> Any:
    return await api.call("PATCH", "/volumes/vol0/autodelete", {"enabled": True, **more})


def test_it_is_off_by_default_and_deletes_nothing(play: Play) -> None:
    async def scene(api: Api) -> None:
        lun = await at_rest(api)
        shown = await api.get("/volumes/vol0/autodelete")
        assert (shown["enabled"], shown["trigger_percent"], shown["target_percent"]) == (False, 95, 80)
        assert shown["prefixes"] == ["hourly.", "nightly.", "weekly."]
        await snapshots_of_8_mib(api, lun, *(f"hourly.{n}" for n in range(6)))
        lun.write(16 * MIB, b"f" * 4 * MIB)
        for _ in range(3):
            await settle(api)
        assert len(await snapshot_names(api)) == 6

    play(scene)


def test_the_oldest_go_first_until_the_target_is_reached_and_each_says_why(play: Play) -> None:
    async def scene(api: Api) -> None:
        lun = await at_rest(api)
        await snapshots_of_8_mib(api, lun, "hourly.2", "mine", "hourly.1", "hourly.0")
        await turn_on(api, trigger_percent=60, target_percent=50)
        for _ in range(6):
            await settle(api)
        assert await snapshot_names(api) == ["mine", "hourly.0"]
        deleted = events(api, "snapshot.autodelete.deleted")
        assert [event.subject for event in deleted] == ["vol0:hourly.2", "vol0:hourly.1"]
        assert all("60 %" in event.message and event.data["percent"] >= 60 for event in deleted[:1])
        freed = events(api, "snapshot.autodelete.freed")
        assert [event.data["freed_bytes"] // MIB for event in freed] == [8, 8]
        (done,) = events(api, "snapshot.autodelete.done")
        assert (done.data["deleted"], done.data["percent"] <= 50) == (2, True)

    play(scene)


def test_nothing_more_is_deleted_while_space_is_on_its_way_back(play: Play) -> None:
    async def scene(api: Api) -> None:
        lun = await at_rest(api)
        await snapshots_of_8_mib(api, lun, *(f"hourly.{n}" for n in range(5)))
        unit = api.core.units["vol0"]
        advance = unit.volume.background.advance
        unit.volume.background.advance = lambda: False  # type: ignore[method-assign]
        await turn_on(api, trigger_percent=60, target_percent=55)
        await api.daemon.housekeeping.tick()
        assert unit.volume.reclaim_pending
        for _ in range(5):
            await api.daemon.housekeeping.tick()
        assert len(await snapshot_names(api)) == 4
        unit.volume.background.advance = advance  # type: ignore[method-assign]

    play(scene)


def test_a_snapshot_that_something_depends_on_is_passed_over(play: Play) -> None:
    async def scene(api: Api) -> None:
        lun = await at_rest(api)
        await snapshots_of_8_mib(api, lun, "hourly.3", "hourly.2", "hourly.1", "hourly.0")
        copy = {"path": "/vol/vol0/copy", "backing": {"path": "/vol/vol0/.snapshot/hourly.3/lun0"}, "reserved": False}
        await api.post("/luns", copy)
        await turn_on(api, trigger_percent=40, target_percent=30)
        for _ in range(8):
            await settle(api)
        assert await snapshot_names(api) == ["hourly.3"]
        assert (await api.get("/luns/vol0/copy"))["backing"]["snapshot"] == "hourly.3"

    play(scene)


def test_what_matches_no_prefix_is_never_deleted_and_that_is_said_once(play: Play) -> None:
    async def scene(api: Api) -> None:
        lun = await at_rest(api)
        await snapshots_of_8_mib(api, lun, "before-upgrade", "mine", "hourly")
        await turn_on(api, trigger_percent=40, target_percent=30)
        for _ in range(5):
            await settle(api)
        assert await snapshot_names(api) == ["before-upgrade", "mine", "hourly"]
        (stuck,) = events(api, "snapshot.autodelete.stuck")
        assert "'hourly.'" in stuck.message
        await turn_on(api, prefixes=["mi", "hour"])
        for _ in range(5):
            await settle(api)
        assert "before-upgrade" in await snapshot_names(api)
        assert "mine" not in await snapshot_names(api)

    play(scene)


def test_an_empty_prefix_is_every_snapshot(play: Play) -> None:
    async def scene(api: Api) -> None:
        lun = await at_rest(api)
        await snapshots_of_8_mib(api, lun, "a", "b", "c")
        await turn_on(api, trigger_percent=40, target_percent=1, prefixes=[""])
        for _ in range(8):
            await settle(api)
        assert await snapshot_names(api) == []

    play(scene)


def test_a_write_that_meets_a_full_volume_finds_room_after_the_next_look(play: Play) -> None:
    async def scene(api: Api) -> None:
        lun = await at_rest(api)
        await snapshots_of_8_mib(api, lun, *(f"hourly.{n}" for n in range(4)))
        await turn_on(api)
        at = 8 * MIB
        with suppress(NoSpace):
            for at in range(8 * MIB, SIZE, MIB):
                lun.write(at, b"g" * MIB)
        assert at < SIZE - MIB
        for _ in range(3):
            await settle(api)
        lun.write(at, b"g" * MIB)
        assert len(await snapshot_names(api)) < 4

    play(scene)


def test_it_stops_when_it_is_turned_off(play: Play) -> None:
    async def scene(api: Api) -> None:
        lun = await at_rest(api)
        await snapshots_of_8_mib(api, lun, *(f"hourly.{n}" for n in range(4)))
        await turn_on(api, trigger_percent=40, target_percent=10)
        await settle(api)
        assert len(await snapshot_names(api)) == 3
        await turn_on(api, enabled=False)
        for _ in range(4):
            await settle(api)
        assert len(await snapshot_names(api)) == 3

    play(scene)


@pytest.mark.parametrize(
    "body",
    [
        {"trigger_percent": 80}, {"trigger_percent": 50, "target_percent": 60}, {"target_percent": 0},
        {"trigger_percent": 101}, {"prefixes": []}, {"prefix": ["x"]}, {"prefixes": ["x"] * 33},
    ],
    ids=str,
)  # fmt: skip
def test_a_bad_policy_is_refused_and_the_old_one_stays(play: Play, body: dict[str, Any]) -> None:
    async def scene(api: Api) -> None:
        await at_rest(api)
        before = await turn_on(api, prefixes=["a"])
        assert (await api.refused("PATCH", "/volumes/vol0/autodelete", body)).name == "invalid-argument"
        assert await api.get("/volumes/vol0/autodelete") == before
        assert (await api.refused("GET", "/volumes/none/autodelete")).name == "no-such-volume"

    play(scene)


def test_the_daemon_does_it_by_itself(play: Play) -> None:
    """The one test in which the daemon's own task works: it ends when the event is there."""

    async def scene(api: Api) -> None:
        await api.volume(size_bytes=SIZE)
        await api.lun(size_bytes=SIZE, reserved=False)
        lun = api.core.units["vol0"].volume.lun("lun0")
        lun.write(0, b"h" * 54 * MIB)
        await api.core.units["vol0"].service.commit()
        async for event in api.core.events.follow(0):
            if event.kind == "volume.space.threshold":
                assert event.data["level"] == 80
                break

    play(scene)
