"""`lun clone status -f`: what a person and a pipe see, and the exit status for each way it can end."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.target.cli.conftest import Lun, environment

MIB = 1 << 20
DATA = b"to be cloned, and found in the volume's file...." * 4
SLOW = ("--limit", "1")
"""Bytes a second: after its first turns the clone waits."""


def copy_of_golden(lun: Lun, tmp_path: Path) -> str:
    golden, copy = lun.path("golden"), lun.path("copy")
    (tmp_path / "image").write_bytes((DATA * (4 * MIB // len(DATA) + 1))[: 4 * MIB])
    lun("create", "-s", "4m", golden)
    lun("import", str(tmp_path / "image"), golden)
    lun("clone", "create", copy, "-b", golden)
    return copy


def follow(lun: Lun, *argv: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "target.cli.main", "--socket", str(lun.daemon.socket), "clone", "status", "-f"]
    return subprocess.Popen(
        [*command, *argv], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, list[list[str]], str]:
    """Exit status, the rest of the lines, what was said on stderr."""
    out, err = process.communicate()
    return process.returncode, [line.split("\t") for line in out.splitlines()], err


def test_a_pipe_gets_a_line_for_each_change_and_the_last_one_is_the_end(lun: Lun, tmp_path: Path) -> None:
    copy = copy_of_golden(lun, tmp_path)
    lun("clone", "start", *SLOW, copy)
    process = follow(lun, copy)
    assert process.stdout is not None
    first = process.stdout.readline().split("\t")
    assert first[0] == copy
    assert first[1] in ("created", "queued", "running")
    lun("clone", "stop", copy)
    status, lines, err = ended(process)
    told = f"lun: clone-stopped: the clone of {copy} was stopped; 'lun clone start {copy}' goes on\n"
    assert (status, err) == (1, told)
    assert lines[-1][1] == "stopped"
    lun("clone", "start", copy)
    status, lines, err = ended(follow(lun, copy))
    assert (status, err, lines[-1][:3]) == (0, "", [copy, "completed", "100.0"])
    said = [(line[1], line[2].split(".")[0]) for line in lines]
    assert len(set(said)) == len(said)


def test_a_person_sees_a_bar_and_then_how_it_ended(lun: Lun, tmp_path: Path) -> None:
    copy = copy_of_golden(lun, tmp_path)
    lun("clone", "start", copy)
    status, seen = lun.on_terminal("clone", "status", "-f", copy, columns=120)
    assert status == 0
    assert f"{copy} completed" in seen
    assert "100%" in seen
    assert [line.split()[1:] for line in seen.splitlines() if line.startswith("  State")] == [["completed"]]


def test_a_failed_clone_says_why(lun: Lun, tmp_path: Path) -> None:
    copy = copy_of_golden(lun, tmp_path)
    image = lun.daemon.directory / "volumes" / f"{lun.volume}.img"
    contents = image.read_bytes()
    bad = contents.index(DATA)
    with image.open("r+b") as file:
        file.seek(bad)
        file.write(b"X")
    try:
        lun("clone", "start", copy)
        status, lines, err = ended(follow(lun, copy))
        assert (status, lines[-1][1]) == (1, "failed")
        assert err.startswith("lun: clone-failed: ")
        status, seen = lun.on_terminal("clone", "status", "-f", copy)
        assert status == 1
        assert "lun: clone-failed: " in seen
        result = lun.run("--json", "clone", "status", "-f", copy)
        assert (result.exit_code, json.loads(result.stdout)["error"]) == (1, "clone-failed")
    finally:
        with image.open("r+b") as file:
            file.seek(bad)
            file.write(DATA[:1])


def test_what_is_not_cloned_does_not_end_well_unless_it_stands_on_its_own(lun: Lun, tmp_path: Path) -> None:
    copy = copy_of_golden(lun, tmp_path)
    assert "lun clone start" in lun.refused("clone", "status", "-f", copy)
    assert lun.json("clone", "status", copy)["state"] == "none"
    assert lun.json("clone", "status", "-f", lun.path("golden"))["state"] == "none"
    assert "no-such-lun" in lun.refused("clone", "status", "-f", lun.path("none"))


def test_a_lun_that_is_destroyed_meanwhile_is_an_end_too(lun: Lun, tmp_path: Path) -> None:
    copy = copy_of_golden(lun, tmp_path)
    lun("clone", "start", *SLOW, copy)
    process = follow(lun, copy)
    assert process.stdout is not None
    process.stdout.readline()
    lun("destroy", copy)
    status, _, err = ended(process)
    assert status == 1
    assert "no-such-lun" in err
