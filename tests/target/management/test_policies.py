"""The calendar of schedules and the levels of thresholds: plain values, no volume."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from target.management.policies import Schedule, check_thresholds
from target.management.refusal import Refused
from target.management.schedules import number_of
from target.management.space_watch import level_of

LEVELS = (80, 95, 98)
FRIDAY = datetime(2026, 11, 20, 7, 59, tzinfo=UTC)
ONTAP = Schedule(2, 6, 8, (8, 12, 16, 20))


def at(moment: datetime) -> float:
    return moment.timestamp()


def taken(schedule: Schedule, start: datetime, end: datetime, step: timedelta) -> list[tuple[str, str]]:
    """What a clock that is looked at every `step` makes of it: (kind, day and hour)."""
    found, now, done = [], start, at(start)
    while now <= end:
        slot = Schedule(schedule.weekly, schedule.nightly, schedule.hourly, schedule.hours, done).due(at(now), UTC)
        if slot is not None:
            done = slot.at
            found.append((slot.kind, f"{datetime.fromtimestamp(slot.at, UTC):%a %H}"))
        now += step
    return found


def test_a_week_of_a_schedule() -> None:
    sunday = [("weekly", "Sun 00"), *(("hourly", f"Sun {hour:02}") for hour in (8, 12, 16, 20))]
    found = taken(ONTAP, FRIDAY, FRIDAY + timedelta(days=3), timedelta(seconds=1800))
    hours = [("hourly", f"{{}} {hour:02}") for hour in (8, 12, 16, 20)]
    friday = [(kind, text.format("Fri")) for kind, text in hours]
    saturday = [("nightly", "Sat 00"), *((kind, text.format("Sat")) for kind, text in hours)]
    assert found == [*friday, *saturday, *sunday, ("nightly", "Mon 00")]


def test_midnight_is_weekly_before_nightly_before_hourly() -> None:
    saturday = datetime(2026, 11, 21, 23, 59, tzinfo=UTC)
    for schedule, kinds in (
        (Schedule(1, 1, 1, (0,)), ["weekly", "nightly"]), (Schedule(0, 1, 1, (0,)), ["nightly", "nightly"]),
        (Schedule(0, 0, 1, (0,)), ["hourly", "hourly"]), (Schedule(1, 0, 1, (0,)), ["weekly", "hourly"]),
    ):  # fmt: skip
        found = taken(schedule, saturday, saturday + timedelta(days=2, minutes=-2), timedelta(minutes=1))
        assert [kind for kind, _ in found] == kinds


@pytest.mark.parametrize(
    ("down", "kind", "when"),
    [
        (timedelta(minutes=2), "hourly", "Fri 08"), (timedelta(hours=17), "nightly", "Sat 00"),
        (timedelta(hours=26), "nightly", "Sat 08"), (timedelta(days=3), "weekly", "Mon 00"),
        (timedelta(days=400), "weekly", "Sat 00"),
    ],
    ids=str,
)  # fmt: skip
def test_after_downtime_one_is_taken_of_the_kind_that_counts_most(down: timedelta, kind: str, when: str) -> None:
    schedule = Schedule(2, 6, 8, (8, 12, 16, 20), at(FRIDAY))
    slot = schedule.due(at(FRIDAY + down), UTC)
    assert slot is not None
    assert (slot.kind, f"{datetime.fromtimestamp(slot.at, UTC):%a %H}") == (kind, when)
    done = Schedule(2, 6, 8, (8, 12, 16, 20), slot.at)
    assert done.due(at(FRIDAY + down), UTC) is None


def test_the_next_slot_is_the_first_that_comes_due() -> None:
    now = FRIDAY
    for _ in range(40):
        schedule = Schedule(2, 6, 8, (8, 12, 16, 20), at(now))
        coming = schedule.next(at(now), UTC)
        assert coming is not None
        assert schedule.due(coming - 1, UTC) is None
        slot = schedule.due(coming, UTC)
        assert slot is not None
        assert slot.at == coming
        now = datetime.fromtimestamp(coming, UTC)
    assert Schedule().next(at(now), UTC) is None


def test_days_of_23_and_25_hours_have_each_hour_once_and_midnight_always() -> None:
    zone = ZoneInfo("Europe/Berlin")
    every_hour = Schedule(0, 1, 24, tuple(range(24)))
    for day in (datetime(2026, 3, 29), datetime(2026, 10, 25)):
        slots = list(every_hour.slots(day.date(), zone))
        assert [slot.kind for slot in slots].count("nightly") == 1
        assert sorted(slot.at for slot in slots) == [slot.at for slot in slots]
        local = datetime.fromtimestamp(slots[0].at, zone)
        assert (local.hour, local.day) == (0, day.day)


def test_a_bad_policy_is_refused() -> None:
    for bad in (Schedule(200, 50, 6), Schedule(0, 0, 1, ())):
        with pytest.raises(Refused):
            bad.check()
    for levels in ([0], [101], list(range(1, 10))):
        with pytest.raises(Refused):
            check_thresholds(levels)
    assert check_thresholds([95, 80, 95]) == (80, 95)


def test_names_of_the_rotation() -> None:
    names = {"hourly.0": 0, "hourly.12": 12, "hourly.01": None, "hourly.": None, "hourly.2026-1": None}
    assert {name: number_of(name, "hourly") for name in names} == names
    assert number_of("nightly.0", "hourly") is None


@pytest.mark.parametrize(
    ("percents", "levels"),
    [
        ((70, 79.9, 80, 94.9, 95, 98, 100), (0, 0, 80, 80, 95, 98, 98)),
        ((96, 94, 93.1, 92.9, 79, 78, 77.9), (95, 95, 95, 80, 80, 80, 0)),
        ((79, 80, 79, 80, 78.5, 81, 78, 77), (0, 80, 80, 80, 80, 80, 80, 0)),
        ((99, 10, 99), (98, 0, 98)),
    ],
)
def test_a_volume_that_hovers_about_a_threshold_crosses_it_once(
    percents: tuple[float, ...], levels: tuple[int, ...]
) -> None:
    level, found = 0, []
    for percent in percents:
        level = level_of(LEVELS, percent, level)
        found.append(level)
    assert tuple(found) == levels


def test_without_thresholds_there_is_no_level() -> None:
    assert level_of((), 100, 0) == 0
