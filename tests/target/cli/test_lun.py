"""The lun command, against a daemon."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.target.cli.conftest import Lun

HOST = "iqn.2000-01.com.example:host1"


def test_a_lun_is_created_shown_and_destroyed(lun: Lun) -> None:
    assert lun("create", "-s", "1m", lun.path("a")) == ""
    assert lun("show", f"/vol/{lun.volume}").split("\t")[:2] == [lun.path("a"), str(1 << 20)]
    lun("destroy", lun.path("a"))
    assert lun("show", f"/vol/{lun.volume}") == ""


def test_json_prints_the_objects_of_the_api(lun: Lun) -> None:
    made = lun.json("create", "-s", "1m", "-o", "noreserve", "-c", "for tests", lun.path("a"))
    assert (made["size_bytes"], made["reserved"], made["comment"]) == (1 << 20, False, "for tests")
    assert lun.json("show", lun.path("a")) == [made]
    assert json.loads(lun("show", lun.path("a"), "--json")) == [made]


def test_a_pipe_gets_lines_of_tabs_with_exact_numbers_and_no_headings(lun: Lun) -> None:
    lun("create", "-s", "3m", lun.path("a"))
    lun("create", "-s", "1m", lun.path("b"))
    rows = [line.split("\t") for line in lun("show", f"/vol/{lun.volume}").splitlines()]
    assert [(row[0], row[1], row[3]) for row in rows] == [
        (lun.path("a"), str(3 << 20), "online"),
        (lun.path("b"), str(1 << 20), "online"),
    ]


def test_a_volume_grows(lun: Lun) -> None:
    lun("vol", "grow", lun.volume, "96m")
    assert lun("df", lun.volume).split("\t")[1] == str(96 << 20)
    assert lun.json("vol", "grow", lun.volume, "100m")["size_bytes"] == 100 << 20
    assert lun.refused("vol", "grow", lun.volume, "50m") == (
        f"lun: invalid-size: a volume cannot shrink: {lun.volume} has {100 << 20} bytes, not {50 << 20}"
    )


def test_the_story_of_a_clone(lun: Lun) -> None:
    golden, copy = lun.path("golden"), lun.path("copy")
    lun("create", "-s", "1m", golden)
    lun("snap", "create", lun.volume, "monday")
    lun("create", "-b", f"/vol/{lun.volume}/.snapshot/monday/golden", copy)
    assert lun("snap", "usage", lun.volume, "monday") == f"{copy}\n"
    assert copy in lun.refused("snap", "delete", lun.volume, "monday")
    assert [job["path"] for job in lun.json("clone", "show", copy)] == [copy]
    lun("clone", "start", "--limit", "100m", copy)
    assert lun.json("clone", "status", "-f", copy)["state"] == "completed"
    assert lun.json("show", copy)[0]["backing"] is None
    lun("snap", "rename", lun.volume, "monday", "old")
    lun("snap", "delete", lun.volume, "old")
    assert lun("snap", "list", lun.volume) == ""


def test_the_later_words_for_a_clone_do_the_same(lun: Lun) -> None:
    lun("create", "-s", "1m", lun.path("golden"))
    lun("snap", "create", lun.volume, "s")
    lun("clone", "create", lun.path("copy"), "-b", lun.path("golden"), "s")
    lun("clone", "split", "start", lun.path("copy"))
    assert lun.json("clone", "split", "status", "-f", lun.path("copy"))["state"] == "completed"


def test_a_lun_and_a_volume_go_back_to_a_snapshot(lun: Lun, tmp_path: Path) -> None:
    a, young, image, found = lun.path("a"), lun.path("young"), tmp_path / "image", tmp_path / "found"
    image.write_bytes(b"old!" * 65536)
    lun("import", str(image), a)
    lun("snap", "create", lun.volume, "monday")
    image.write_bytes(b"new!" * 65536)
    lun("import", str(image), a)
    assert lun.json("snap", "restore", "-s", "monday", a)["restored"] == [a]
    lun("export", a, str(found))
    assert found.read_bytes() == b"old!" * 65536
    lun("create", "-s", "1m", young)
    assert young in lun.refused("snap", "restore", lun.volume, "monday")
    assert lun.json("snap", "restore", "-f", lun.volume, "monday")["destroyed"] == [young]
    lun("clone", "status", "-f", a)
    lun("snap", "delete", lun.volume, "monday")


def test_maps_and_igroups(lun: Lun) -> None:
    igroup = f"g-{lun.volume}"
    lun("create", "-s", "1m", lun.path("a"))
    lun("igroup", "create", "-t", "linux", igroup, HOST)
    lun("igroup", "add", igroup, "iqn.2000-01.com.example:host2")
    lun("map", lun.path("a"), igroup, "5")
    (entry,) = lun.json("show", "-m", lun.path("a"))
    assert (entry["igroup"], entry["lun_id"]) == (igroup, 5)
    assert lun("igroup", "show", igroup).rstrip("\n").split("\t") == [
        igroup, "linux", f"{HOST},iqn.2000-01.com.example:host2", f"{lun.path('a')}=5",
    ]  # fmt: skip
    assert "igroup-in-use" in lun.refused("igroup", "destroy", igroup)
    assert "lun-mapped" in lun.refused("destroy", lun.path("a"))
    lun("unmap", lun.path("a"), igroup)
    lun("igroup", "remove", igroup, HOST)
    lun("igroup", "destroy", igroup)


def test_properties_of_a_lun(lun: Lun) -> None:
    lun("create", "-s", "1m", lun.path("a"))
    lun("comment", lun.path("a"), "two words")
    lun("resize", lun.path("a"), "2m")
    lun("set", "reservation", lun.path("a"), "disable")
    lun("move", lun.path("a"), lun.path("b"))
    lun("offline", lun.path("b"))
    lun("serial", lun.path("b"), "SER-1")
    assert lun("serial", lun.path("b")) == "SER-1\n"
    (shown,) = lun.json("show", lun.path("b"))
    assert (shown["comment"], shown["size_bytes"], shown["reserved"], shown["online"]) == (
        "two words",
        2 << 20,
        False,
        False,
    )
    lun("online", lun.path("b"))
    assert f"{lun.path('b')}\tSerial\tSER-1\n" in lun("show", "-v", lun.path("b"))


def test_space_of_the_volumes(lun: Lun) -> None:
    name, size, used, free, *_ = lun("df", lun.volume).split("\t")
    assert (name, int(size)) == (lun.volume, 64 << 20)
    assert 0 < int(used) < int(size)
    assert 0 < int(free) < int(size)


def test_secrets_come_from_a_file_and_never_out_again(lun: Lun, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("correct-horse-battery\n")
    lun("iscsi", "security", "add", "-i", HOST, "-n", "u", "--secret-file", str(secret))
    shown = lun("iscsi", "security", "show") + lun("--json", "iscsi", "security", "show")
    assert HOST in shown
    assert "correct-horse-battery" not in shown
    lun("iscsi", "security", "delete", HOST)
    assert "correct-horse" not in lun.daemon.log.read_text()


def test_the_service_has_a_name_and_a_portal(lun: Lun) -> None:
    name = lun("iscsi", "nodename").strip()
    assert name.startswith("iqn.")
    (portal,) = lun.json("iscsi", "portal", "show")
    assert portal["listening"]
    assert lun.json("iscsi", "status")["nodename"] == name
    assert lun.json("vol", "show", lun.volume)["target"] == f"{name}:{lun.volume}"


def test_a_portal_is_added_and_removed(lun: Lun) -> None:
    made = lun.json("iscsi", "portal", "add", "127.0.0.2:0")
    assert made["address"] != "127.0.0.2:0"
    assert made["address"] in lun("iscsi", "portal", "show")
    lun("iscsi", "portal", "remove", made["address"])
    assert made["address"] not in lun("iscsi", "portal", "show")


def test_events_tell_what_happened_in_order(lun: Lun) -> None:
    last = json.loads(lun("--json", "events").splitlines()[-1])["seq"]
    lun("create", "-s", "1m", lun.path("a"))
    lun("destroy", lun.path("a"))
    events = [json.loads(line) for line in lun("--json", "events", "--since", str(last)).splitlines()]
    mine = [event["kind"] for event in events if event["subject"] == lun.path("a")]
    assert mine == ["lun.created", "lun.destroyed"]


def test_an_image_goes_in_and_comes_out_the_same_and_sparse(lun: Lun, tmp_path: Path) -> None:
    image, out = tmp_path / "image", tmp_path / "out"
    with image.open("wb") as file:
        file.write(b"head" * 1000)
        file.seek(5 << 20)
        file.write(b"tail" * 1024)
        file.truncate(9 << 20)
    lun("import", str(image), lun.path("a"))
    (shown,) = lun.json("show", lun.path("a"))
    assert shown["size_bytes"] == 9 << 20
    assert shown["used_bytes"] < 3 << 20
    lun("export", lun.path("a"), str(out))
    assert out.read_bytes() == image.read_bytes()
    assert out.stat().st_blocks * 512 < 4 << 20


def test_an_image_replaces_what_was_in_a_lun(lun: Lun, tmp_path: Path) -> None:
    old, new, out = (tmp_path / name for name in ("old", "new", "out"))
    old.write_bytes(b"\xff" * (3 << 20))
    with new.open("wb") as file:
        file.truncate(2 << 20)
        file.write(b"new!")
    lun("import", str(old), lun.path("a"))
    lun("import", str(new), lun.path("a"))
    lun("export", lun.path("a"), str(out))
    data = out.read_bytes()
    assert data[: 2 << 20] == new.read_bytes()
    assert data[2 << 20 :] == b"\xff" * (1 << 20)


def test_a_lun_comes_out_of_a_snapshot_as_it_was(lun: Lun, tmp_path: Path) -> None:
    old, new, out = (tmp_path / name for name in ("old", "new", "out"))
    old.write_bytes(b"old!" * 4096)
    new.write_bytes(b"new!" * 4096)
    lun("import", str(old), lun.path("a"))
    lun("snap", "create", lun.volume, "s")
    lun("import", str(new), lun.path("a"))
    lun("export", f"/vol/{lun.volume}/.snapshot/s/a", str(out))
    assert out.read_bytes() == old.read_bytes()


@pytest.mark.parametrize(
    "argv",
    [
        ["create", "/vol/v/a"],
        ["create", "-s", "1m", "-b", "/vol/v/.snapshot/s/a", "/vol/v/b"],
        ["create", "-s", "lots", "/vol/v/a"],
        ["create", "-s", "1m", "not-a-path"],
        ["create", "-b", "/vol/v/a", "/vol/v/b"],
        ["clone", "start", "--limit", "0", "/vol/v/a"],
        ["show", "vol0"],
        ["map", "/vol/v/a", "g", "99999"],
        ["iscsi", "security", "add", "-i", HOST],
        ["iscsi", "security", "default", "-s", "none", "-n", "u"],
        ["snap", "restore", "/vol/v/a"],
        ["snap", "restore", "-s", "s", "/vol/v/a", "s"],
        ["snap", "restore", "-s", "s", "v"],
        ["nonsense"],
    ],
    ids=" ".join,
)
def test_what_cannot_be_meant_is_a_usage_error(lun: Lun, argv: list[str]) -> None:
    assert lun.run(*argv).exit_code == 2


@pytest.mark.parametrize(
    ("argv", "error"),
    [
        (["show", "/vol/nowhere/a"], "no-such-volume"),
        (["create", "-s", "1000", "/vol/{}/a"], "invalid-size"),
        (["create", "-s", "1m", "/vol/nowhere/a"], "no-such-volume"),
        (["snap", "delete", "{}", "never"], "no-such-snapshot"),
        (["snap", "restore", "{}", "never"], "no-such-snapshot"),
        (["snap", "restore", "-s", "never", "/vol/{}/a"], "no-such-snapshot"),
        (["clone", "start", "/vol/{}/a"], "no-such-lun"),
        (["map", "/vol/{}/a", "g"], "no-such-lun"),
        (["igroup", "create", "x", "not-an-iqn"], "invalid-name"),
        (["igroup", "show", "no such igroup"], "no-such-igroup"),
        (["snap", "delete", "{}", "a/b"], "invalid-name"),
        (["iscsi", "portal", "add", "no-address"], "invalid-argument"),
        (["iscsi", "session", "close", "x.1"], "no-such-session"),
        (["vol", "show", "nowhere"], "no-such-volume"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value,
)
def test_a_refusal_is_one_line_with_its_name_and_status_1(lun: Lun, argv: list[str], error: str) -> None:
    assert lun.refused(*(word.format(lun.volume) for word in argv)).startswith(f"lun: {error}: ")


def test_a_refusal_is_an_object_too_with_json(lun: Lun) -> None:
    result = lun.run("--json", "show", lun.path("nobody"))
    assert result.exit_code == 1
    assert json.loads(result.stdout)["error"] == "no-such-lun"


def test_without_a_daemon_the_exit_status_is_3(lun: Lun, tmp_path: Path) -> None:
    result = lun.run("--socket", str(tmp_path / "nobody.sock"), "show")
    assert result.exit_code == 3
    assert len(result.stderr.splitlines()) == 1


def test_the_command_starts_without_the_slow_imports(lun: Lun) -> None:
    import subprocess
    import sys

    code = "import sys, target.cli.main; print([m for m in ('httpx', 'rich', 'numpy', 'pydantic') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_volume_is_scrubbed(lun: Lun) -> None:
    lun("create", "-s", "1m", lun.path("a"))
    assert "\tState\tcompleted\n" in lun("vol", "scrub", lun.volume, "start", "-f")
    ended = lun.json("vol", "scrub", lun.volume, "status")
    assert (ended["bad_blocks"], ended["percent"]) == (0, 100.0)
    (line,) = [line for line in lun("vol", "show", lun.volume).splitlines() if "\tLast-scrub\t" in line]
    assert "completed" in line
    assert "no-scrub" in lun.refused("vol", "scrub", lun.volume, "stop")


def test_a_volume_is_redirected_and_comes_back(lun: Lun) -> None:
    assert lun("iscsi", "redirect", "show").strip() in ("", "nothing is redirected")
    made = lun.json("iscsi", "redirect", "set", lun.volume, "192.0.2.1")
    assert (made["volume"], made["address"]) == (lun.volume, "192.0.2.1:3260")
    assert "192.0.2.1:3260" in lun("iscsi", "redirect", "show")
    lun("iscsi", "redirect", "off", lun.volume)
    assert lun.json("iscsi", "redirect", "show") == []


def test_an_account_may_name_networks(lun: Lun, tmp_path: Path) -> None:
    lun("iscsi", "security", "add", "-i", HOST, "-s", "none", "--network", "192.0.2.0/24", "--network", "2001:db8::/64")
    accounts = {a["initiator"]: a for a in lun.json("iscsi", "security", "show")}
    assert accounts[HOST]["networks"] == ["192.0.2.0/24", "2001:db8::/64"]
    assert "192.0.2.0/24" in lun("iscsi", "security", "show")
    lun("iscsi", "security", "delete", HOST)
