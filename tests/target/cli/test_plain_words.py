"""What a person reads: help, tables and refusals."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from target.cli.client import Client
from target.cli.main import main
from tests.target.cli.conftest import Lun
from wafl.tools import main as offline_main

TERMINAL = 80


def groups(group: click.Group) -> Iterator[click.Group]:
    yield group
    for command in group.commands.values():
        if isinstance(command, click.Group):
            yield from groups(command)


@pytest.mark.parametrize("group", [*groups(main), *groups(offline_main)], ids=lambda group: group.name)
def test_every_command_is_told_on_one_whole_line_of_a_terminal(group: click.Group) -> None:
    room = TERMINAL - 6 - max(map(len, group.commands))  # click's own margins
    cut = [name for name, each in group.commands.items() if each.get_short_help_str(room).endswith("...")]
    assert cut == []


def test_headings_of_a_wide_table_stay_whole(lun: Lun) -> None:
    status, seen = lun.on_terminal("df", lun.volume, columns=TERMINAL)
    assert status == 0
    for word in ("Available", "Snapshots", "Kept back"):
        assert word in seen


def test_the_maps_of_an_igroup_are_listed_on_a_terminal(lun: Lun) -> None:
    igroup = f"maps-{lun.volume}"
    lun("igroup", "create", igroup)
    for name in ("a", "b"):
        lun("create", "-s", "1m", lun.path(name))
        lun("map", lun.path(name), igroup)
    _, seen = lun.on_terminal("igroup", "show", igroup, columns=120)
    assert f"{lun.path('a')}=0, {lun.path('b')}=1" in seen
    lun("igroup", "destroy", "-f", igroup)


def test_a_secret_that_is_too_short_is_refused_in_words_without_it(lun: Lun, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("short")
    line = lun.refused("iscsi", "security", "add", "-i", "iqn.2000-01.a:b", "-n", "u", "--secret-file", str(secret))
    assert line == "lun: invalid-argument: a CHAP secret has 12 to 255 bytes, not 5"


def test_a_directory_that_is_not_there_is_not_made_for_a_volume(lun: Lun, tmp_path: Path) -> None:
    missing = tmp_path / "not-mounted"
    line = lun.refused("vol", "create", "other", "-s", "8m", "--path", str(missing / "other.img"))
    assert str(missing) in line
    assert not missing.exists()


def test_an_import_that_fails_leaves_no_half_of_an_image(lun: Lun, tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(range(1, 256)) * (90 << 12))  # more than the volume has
    line = lun.refused("import", str(image), lun.path("a"))
    assert line.startswith("lun: no-space: the volume is full")
    assert lun("show", f"/vol/{lun.volume}") == ""


def test_an_import_that_fails_leaves_the_lun_that_was_there(lun: Lun, tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(range(1, 256)) * (90 << 12))
    lun("create", "-s", "100m", "-o", "noreserve", lun.path("a"))
    assert lun.refused("import", str(image), lun.path("a")).startswith("lun: no-space: ")
    assert lun.json("show", lun.path("a"))[0]["size_bytes"] == 100 << 20


def test_where_no_daemon_is_found_the_places_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("target.cli.client.SOCKET_PLACES", (tmp_path / "a.sock", tmp_path / "b.sock"))
    result = CliRunner().invoke(main, ["show"], env={"LUN_SOCKET": None})
    assert result.exit_code == 3
    (line,) = result.stderr.splitlines()
    assert str(tmp_path / "a.sock") in line
    assert str(tmp_path / "b.sock") in line


def test_a_socket_of_somebody_else_is_no_daemon_that_is_not_running() -> None:
    refused = PermissionError(errno.EACCES, "Permission denied")
    wrapped = ConnectionError("of the library")
    wrapped.__cause__ = refused
    assert "become root" in Client("/run/lund.sock")._unreachable(wrapped).message
