"""`lun snap sched`, `lun snap autodelete`, `lun vol thresholds`, against a daemon."""

from __future__ import annotations

import pytest

from tests.target.cli.conftest import Lun


def test_a_schedule_is_set_shown_and_ended(lun: Lun) -> None:
    assert lun("snap", "sched", lun.volume).split("\t")[:4] == [lun.volume, "0", "0", "0"]
    lun("snap", "sched", lun.volume, "2", "6", "8@20,8,12,16")
    assert lun("snap", "sched", lun.volume).split("\t")[:4] == [lun.volume, "2", "6", "8@8,12,16,20"]
    (shown,) = lun.json("snap", "sched", lun.volume)
    assert (shown["weekly"], shown["nightly"], shown["hourly"], shown["hours"]) == (2, 6, 8, [8, 12, 16, 20])
    assert shown["next_at"] > 0
    assert lun.json("snap", "sched", lun.volume, "0", "0", "24")["hours"] == list(range(24))
    assert lun("snap", "sched", lun.volume).split("\t")[:4] == [lun.volume, "0", "0", "24"]
    lun("snap", "sched", lun.volume, "0")
    assert lun.json("snap", "sched", lun.volume)[0]["next_at"] is None
    assert lun.volume in lun("snap", "sched")


@pytest.mark.parametrize("hourly", ["x", "8@", "8@24", "8@a", "-1", "8@1,,2"])
def test_a_bad_hourly_count_is_a_usage_error(lun: Lun, hourly: str) -> None:
    assert lun.run("snap", "sched", lun.volume, "--", "1", "1", hourly).exit_code == 2
    assert lun.json("snap", "sched", lun.volume)[0]["weekly"] == 0


def test_autodelete_is_set_in_parts(lun: Lun) -> None:
    assert lun("snap", "autodelete", lun.volume).split("\t")[:4] == [lun.volume, "off", "95", "80"]
    lun("snap", "autodelete", lun.volume, "on", "--trigger", "90", "--target", "70")
    assert lun("snap", "autodelete", lun.volume) == f"{lun.volume}\ton\t90\t70\thourly.,nightly.,weekly.\n"
    made = lun.json("snap", "autodelete", lun.volume, "--prefix", "hourly.", "--prefix", "tmp")
    assert (made["enabled"], made["prefixes"]) == (True, ["hourly.", "tmp"])
    assert lun.refused("snap", "autodelete", lun.volume, "--target", "95") == (
        "lun: invalid-argument: autodelete begins at a trigger of up to 100 % and ends at a lower target, not 90 and 95"
    )
    lun("snap", "autodelete", lun.volume, "off")
    assert lun.json("snap", "autodelete", lun.volume)[0]["enabled"] is False
    assert lun.volume in lun("snap", "autodelete")


def test_thresholds_are_set_and_shown(lun: Lun) -> None:
    assert lun("vol", "thresholds", lun.volume).split("\t")[:2] == [lun.volume, "80,95,98"]
    lun("vol", "thresholds", lun.volume, "90", "70")
    assert lun.json("vol", "thresholds", lun.volume)[0]["thresholds"] == [70, 90]
    lun("vol", "thresholds", lun.volume, "--none")
    assert lun.json("vol", "thresholds", lun.volume)[0]["thresholds"] == []
    assert lun.run("vol", "thresholds", lun.volume, "--none", "50").exit_code == 2


def test_an_unknown_volume_is_refused(lun: Lun) -> None:
    for argv in (("snap", "sched", "none", "1"), ("snap", "autodelete", "none", "on"), ("vol", "thresholds", "none")):
        assert lun.refused(*argv).startswith("lun: no-such-volume")
