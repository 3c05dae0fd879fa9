"""`lun alua` and `lun iscsi portal add --group`, against a daemon."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.target.cli.conftest import Lun


@pytest.fixture
def group_2(lun: Lun) -> Iterator[str]:
    """A portal in group 2, as long as the test."""
    added = lun.json("iscsi", "portal", "add", "--group", "2", "127.0.0.3:0")
    yield str(added["address"])
    lun("iscsi", "portal", "remove", added["address"])


def test_states_are_shown_and_set_for_several_luns_at_once(lun: Lun, group_2: str) -> None:
    paths = [lun.path("a"), lun.path("b")]
    for path in paths:
        lun("create", "-s", "1m", path)
    shown = lun("alua", "show", paths[0]).splitlines()
    assert [line.split("\t")[:3] for line in shown] == [[group, "active-optimized", "nobody"] for group in ("1", "2")]
    assert group_2 in shown[1]
    lun("alua", "set", *paths, "--group", "2", "--state", "active-non-optimized")
    for path in paths:
        states = [each["state"] for each in lun.json("alua", "show", path)]
        assert states == ["active-optimized", "active-non-optimized"]


def test_what_is_no_state_or_no_group_is_refused(lun: Lun, group_2: str) -> None:
    lun("create", "-s", "1m", lun.path("a"))
    assert lun.run("alua", "set", lun.path("a"), "--group", "2", "--state", "offline").exit_code == 2
    assert lun.run("alua", "set", lun.path("a"), "--group", "0", "--state", "standby").exit_code == 2
    assert lun.refused("alua", "set", lun.path("a"), "--group", "9", "--state", "standby") == (
        "lun: no-such-portal-group: no portal is in group 9; see 'lun iscsi portal show'"
    )


def test_the_list_of_portals_shows_groups(lun: Lun, group_2: str) -> None:
    assert [group_2, "2"] in [line.split("\t")[:2] for line in lun("iscsi", "portal", "show").splitlines()]
