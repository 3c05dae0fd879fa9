"""Scheduled snapshots of a real volume, on a clock that the test turns."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.target.management.conftest import MIB, Api, Play
from wafl import LimitReached, NoSpace

FRIDAY = datetime(2026, 11, 20, 7, 59, tzinfo=UTC).timestamp()
HOUR, DAY = 3600.0, 86400.0


class Clock:
    """Hands to turn."""

    def __init__(self, api: Api) -> None:
        self.api = api
        self.now = FRIDAY
        api.core.clock = lambda: self.now
        api.core.zone = UTC

    async def tick(self) -> None:
        await self.api.daemon.housekeeping.tick()

    async def advance(self, seconds: float, step: float = HOUR) -> None:
        end = self.now + seconds
        while self.now < end:
            self.now = min(end, self.now + step)
            await self.tick()


async def scheduled(api: Api, **counts: Any) -> Clock:
    """A volume with a schedule, and the daemon's own housekeeping at rest."""
    await api.daemon.housekeeping.stop()
    clock = Clock(api)
    await api.volume()
    await api.lun()
    await api.call("PUT", "/volumes/vol0/schedule", counts)
    return clock


async def names(api: Api) -> list[str]:
    """Oldest first."""
    return [each["name"] for each in await api.get("/volumes/vol0/snapshots")]


def events(api: Api, kind: str) -> list[Any]:
    return [event for event in api.core.events.since(0) if event.kind == kind]


def test_a_fortnight_leaves_what_the_schedule_keeps(play: Play) -> None:
    async def scene(api: Api) -> None:
        clock = await scheduled(api, weekly=2, nightly=6, hourly=8, hours=[8, 12, 16, 20])
        await clock.advance(18 * DAY, 2 * HOUR)
        found = set(await names(api))
        assert found == {
            *(f"weekly.{n}" for n in range(2)), *(f"nightly.{n}" for n in range(6)), *(f"hourly.{n}" for n in range(8)),
        }  # fmt: skip
        assert not events(api, "snapshot.schedule.failed")
        for kind, count in (("weekly", 2), ("nightly", 6), ("hourly", 8)):
            ours = [name for name in await names(api) if name.startswith(kind)]
            assert ours == [f"{kind}.{n}" for n in reversed(range(count))]

    play(scene)


def test_a_schedule_is_there_after_a_restart_and_catches_up_with_one(play: Play) -> None:
    async def before(api: Api) -> None:
        clock = await scheduled(api, nightly=3, hourly=2)
        await clock.advance(3 * HOUR)
        assert await names(api) == ["hourly.1", "hourly.0"]

    async def after(api: Api) -> None:
        await api.daemon.housekeeping.stop()
        clock = Clock(api)
        clock.now = FRIDAY + 3 * HOUR + 5 * DAY
        await clock.tick()
        await clock.tick()
        assert await names(api) == ["hourly.1", "hourly.0", "nightly.0"]
        shown = await api.get("/volumes/vol0/schedule")
        assert (shown["nightly"], shown["hourly"], shown["next_at"] - clock.now) == (3, 2, 60)

    play(before, after)


def test_a_new_schedule_catches_up_with_nothing(play: Play) -> None:
    async def scene(api: Api) -> None:
        clock = await scheduled(api, weekly=1, nightly=1, hourly=1)
        await clock.tick()
        assert await names(api) == []

    play(scene)


def test_an_offline_volume_gets_its_snapshot_when_it_is_back(play: Play) -> None:
    async def scene(api: Api) -> None:
        clock = await scheduled(api, hourly=4)
        await api.call("PATCH", "/volumes/vol0", {"online": False})
        await clock.advance(5 * HOUR)
        await api.call("PATCH", "/volumes/vol0", {"online": True})
        await clock.tick()
        assert await names(api) == ["hourly.0"]

    play(scene)


@pytest.mark.parametrize("back", [60.0, HOUR / 2])
def test_a_clock_set_back_a_little_takes_nothing_twice(play: Play, back: float) -> None:
    async def scene(api: Api) -> None:
        clock = await scheduled(api, hourly=5)
        await clock.advance(90, 10)
        assert await names(api) == ["hourly.0"]
        clock.now -= back
        await clock.advance(back + 300, 10)
        assert await names(api) == ["hourly.0"]
        await clock.advance(HOUR, 60)
        assert await names(api) == ["hourly.1", "hourly.0"]

    play(scene)


def test_a_clock_that_was_years_ahead_does_not_end_the_schedule(play: Play) -> None:
    async def scene(api: Api) -> None:
        clock = await scheduled(api, hourly=5)
        clock.now += 1000 * DAY
        await clock.tick()
        await clock.tick()  # which finds nothing due for a while
        assert await names(api) == ["hourly.0"]
        clock.now = FRIDAY
        await clock.tick()
        await clock.advance(2 * HOUR, 600)
        assert await names(api) == ["hourly.2", "hourly.1", "hourly.0"]

    play(scene)


def test_the_oldest_stays_under_another_name_while_a_lun_reads_through_it(play: Play) -> None:
    async def scene(api: Api) -> None:
        clock = await scheduled(api, hourly=2)
        await clock.advance(HOUR)
        await api.post("/luns", {"path": "/vol/vol0/copy", "backing": {"path": "/vol/vol0/.snapshot/hourly.0/lun0"}})
        await clock.advance(2 * HOUR)
        kept, *rest = await names(api)
        assert re.fullmatch(r"hourly\.\d{4}-\d\d-\d\d_\d{4}", kept)
        assert rest == ["hourly.1", "hourly.0"]
        assert (await api.get("/luns/vol0/copy"))["backing"]["snapshot"] == kept
        (event,) = events(api, "snapshot.schedule.kept")
        assert event.data["was"] == "hourly.1"
        assert "/vol/vol0/copy" in event.data["holders"]
        assert kept in event.message
        await clock.advance(5 * HOUR)
        # The later ones hold it too, as long as a LUN in them reads through it.
        assert kept in await names(api)

    play(scene)


def test_a_smaller_count_takes_effect_with_the_next_snapshot_and_zero_leaves_what_is_there(play: Play) -> None:
    async def scene(api: Api) -> None:
        clock = await scheduled(api, hourly=5)
        await clock.advance(6 * HOUR)
        await api.call("PUT", "/volumes/vol0/schedule", {"hourly": 2})
        assert len(await names(api)) == 5
        await clock.advance(HOUR)
        assert await names(api) == ["hourly.1", "hourly.0"]
        await api.call("PUT", "/volumes/vol0/schedule", {})
        await clock.advance(3 * DAY)
        assert await names(api) == ["hourly.1", "hourly.0"]

    play(scene)


def test_a_gap_in_the_rotation_is_filled_before_anything_is_deleted(play: Play) -> None:
    async def scene(api: Api) -> None:
        clock = await scheduled(api, hourly=3)
        await clock.advance(3 * HOUR)
        oldest = (await api.get("/volumes/vol0/snapshots"))[0]["id"]
        await api.call("DELETE", "/volumes/vol0/snapshots/hourly.1")
        await clock.advance(HOUR)
        assert await names(api) == ["hourly.2", "hourly.1", "hourly.0"]
        assert (await api.get("/volumes/vol0/snapshots"))[0]["id"] == oldest

    play(scene)


def test_no_room_is_an_event_leaves_the_old_names_and_is_tried_again_next_time(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene(api: Api) -> None:
        clock = await scheduled(api, hourly=2)
        await clock.advance(2 * HOUR)
        before = await api.get("/volumes/vol0/snapshots")
        volume = api.core.units["vol0"].volume
        with monkeypatch.context() as patched:

            def full(name: str) -> None:
                raise NoSpace("the volume is full")

            patched.setattr(volume, "request_snapshot", full)
            await clock.advance(HOUR, 600)
        assert await api.get("/volumes/vol0/snapshots") == before
        (event,) = events(api, "snapshot.schedule.failed")
        assert (event.data["error"], event.data["schedule"]) == ("no-space", "hourly")
        await clock.advance(HOUR, 600)
        assert await names(api) == ["hourly.1", "hourly.0"]
        assert len(events(api, "snapshot.schedule.failed")) == 1

    play(scene)


def test_at_the_limit_of_snapshots_the_oldest_makes_room_first(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(api: Api) -> None:
        clock = await scheduled(api, hourly=2)
        await clock.advance(2 * HOUR)
        volume = api.core.units["vol0"].volume
        request = volume.request_snapshot

        def limited(name: str) -> None:
            if len(volume.snapshots()) >= 2:
                raise LimitReached("a volume holds 2 snapshots")
            request(name)

        with monkeypatch.context() as patched:
            patched.setattr(volume, "request_snapshot", limited)
            await clock.advance(HOUR)
            assert await names(api) == ["hourly.1", "hourly.0"]
            assert not events(api, "snapshot.schedule.failed")
            await api.call("PUT", "/volumes/vol0/schedule", {"hourly": 4})
            before = await api.get("/volumes/vol0/snapshots")
            await clock.advance(HOUR)
            assert await api.get("/volumes/vol0/snapshots") == before
            (event,) = events(api, "snapshot.schedule.failed")
            assert event.data["error"] == "limit-reached"

    play(scene)


def test_snapshots_with_other_names_are_left_alone(play: Play) -> None:
    async def scene(api: Api) -> None:
        clock = await scheduled(api, hourly=1)
        for name in ("hourly.old", "hourly", "hourly.007", "mine"):
            await api.post("/volumes/vol0/snapshots", {"name": name})
        await clock.advance(4 * HOUR)
        assert await names(api) == ["hourly.old", "hourly", "hourly.007", "mine", "hourly.0"]

    play(scene)


@pytest.mark.parametrize(
    "body",
    [
        {"weekly": -1}, {"hourly": 1, "hours": []}, {"hourly": 1, "hours": [24]}, {"nightly": 256},
        {"weekly": 100, "nightly": 100, "hourly": 100}, {"monthly": 1},
    ],
    ids=str,
)  # fmt: skip
def test_a_bad_schedule_is_refused_and_the_old_one_stays(play: Play, body: dict[str, Any]) -> None:
    async def scene(api: Api) -> None:
        await scheduled(api, hourly=2, hours=[9, 7, 9])
        before = await api.get("/volumes/vol0/schedule")
        assert before["hours"] == [7, 9]
        assert (await api.refused("PUT", "/volumes/vol0/schedule", body)).name == "invalid-argument"
        assert await api.get("/volumes/vol0/schedule") == before
        assert (await api.refused("PUT", "/volumes/none/schedule", {})).name == "no-such-volume"

    play(scene)


def test_a_schedule_goes_with_its_volume(play: Play) -> None:
    async def scene(api: Api) -> None:
        clock = await scheduled(api, hourly=2)
        await api.call("DELETE", "/volumes/vol0", force=True)
        await api.volume(size_bytes=8 * MIB)
        assert (await api.get("/volumes/vol0/schedule"))["hourly"] == 0
        await clock.advance(3 * HOUR)
        assert await names(api) == []

    play(scene)


def test_midnight_goes_by_local_time(play: Play) -> None:
    async def scene(api: Api) -> None:
        from zoneinfo import ZoneInfo

        clock = await scheduled(api, nightly=2)
        api.core.zone = ZoneInfo("Asia/Tokyo")
        await api.call("PUT", "/volumes/vol0/schedule", {"nightly": 2})
        shown = await api.get("/volumes/vol0/schedule")
        assert shown["next_at"] == datetime(2026, 11, 20, 15, tzinfo=UTC).timestamp()
        await clock.advance(timedelta(hours=7, minutes=2).total_seconds(), 60)
        assert await names(api) == ["nightly.0"]

    play(scene)
