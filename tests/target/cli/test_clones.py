"""`lun clone`: options of a job, of all jobs, and what they show."""

from __future__ import annotations

import time
from pathlib import Path

from tests.target.cli.conftest import Lun
from tests.target.cli.test_family import import_mib


def litter(lun: Lun, tmp_path: Path, *names: str) -> None:
    lun("create", "-s", "2m", lun.path("golden"))
    import_mib(lun, lun.path("golden"), tmp_path / "image", 2)
    lun("snap", "create", lun.volume, "s")
    for name in names:
        lun("clone", "create", lun.path(name), "-b", lun.path("golden"), "s")


def test_a_clone_is_started_with_options_and_changed(lun: Lun, tmp_path: Path) -> None:
    copy = lun.path("copy")
    litter(lun, tmp_path, "copy")
    lun("clone", "start", "--limit", "4k", "--priority", "low", "--policy", "ignore", "--full-speed", copy)
    shown = lun.json("clone", "show", copy)[0]
    assert (shown["limit_bytes_s"], shown["priority"], shown["policy"], shown["full_speed"]) == (
        4096, "low", "ignore", True
    )  # fmt: skip
    lun("clone", "set", "--priority", "high", "--polite", "--policy", "report", copy)
    shown = lun.json("clone", "status", copy)
    assert (shown["limit_bytes_s"], shown["priority"], shown["policy"], shown["full_speed"]) == (
        4096, "high", "report", False
    )  # fmt: skip
    assert lun.json("clone", "set", "--limit", "none", copy)["limit_bytes_s"] is None
    assert lun.json("clone", "status", "-f", copy)["state"] == "completed"


def test_a_clone_may_share_instead_of_copying(lun: Lun, tmp_path: Path) -> None:
    copy = lun.path("copy")
    litter(lun, tmp_path, "copy")
    lun("clone", "start", "--share", copy)
    done = lun.json("clone", "status", "-f", copy)
    assert (done["state"], done["copied_blocks"], done["shared_blocks"]) == ("completed", 0, done["total_blocks"])


def test_clones_beyond_the_number_that_may_run_are_shown_as_queued(lun: Lun, tmp_path: Path) -> None:
    litter(lun, tmp_path, "a", "b", "c")
    assert lun.json("clone", "limits", "--jobs", "1", "--limit", "4k") == {"limit_bytes_s": 4096, "running": 1}
    for name in "abc":
        lun("clone", "start", lun.path(name))
    while "created" in (shown := lun("clone", "show")):
        time.sleep(0.01)
    rows = {row[0]: row[1] for row in (line.split("\t") for line in shown.splitlines())}
    assert rows == {
        lun.path("a"): "running", lun.path("b"): "queued (0 before it)", lun.path("c"): "queued (1 before it)"
    }  # fmt: skip
    assert lun.path("b") in shown.splitlines()[0].split("\t")[-1]
    lun("clone", "limits", "--jobs", "8", "--limit", "none")
    for name in "abc":
        assert lun.json("clone", "status", "-f", lun.path(name))["state"] == "completed"


def test_wrong_options_are_a_matter_of_usage(lun: Lun, tmp_path: Path) -> None:
    litter(lun, tmp_path, "copy")
    copy = lun.path("copy")
    for arguments in (
        ("start", "--priority", "urgent", copy), ("start", "--limit", "none", copy), ("set", copy),
        ("set", "--limit", "fast", copy), ("limits", "--jobs", "0"), ("limits", "--jobs", "1001"),
    ):  # fmt: skip
        assert lun.run("clone", *arguments).exit_code == 2, arguments
    assert "not-cloning" in lun.refused("clone", "set", "--priority", "low", copy)
