"""Commands on families of LUNs: where their blocks live, and what binds them to snapshots."""

from __future__ import annotations

import time
from pathlib import Path

from tests.target.cli.conftest import DaemonProcess, Lun

MIB = 1 << 20


def import_mib(lun: Lun, path: str, image: Path, mebibytes: int) -> None:
    image.write_bytes(b"data" * (mebibytes << 18))
    lun("import", str(image), path)


def test_a_map_shows_own_backing_and_zero_blocks(lun: Lun, tmp_path: Path) -> None:
    golden, copy = lun.path("golden"), lun.path("copy")
    lun("create", "-s", "4m", golden)
    import_mib(lun, golden, tmp_path / "image", 2)
    lun("snap", "create", lun.volume, "s")
    lun("clone", "create", copy, "-b", golden, "s")
    (tmp_path / "image").write_bytes(b"new!" * (MIB // 4))
    lun("import", str(tmp_path / "image"), copy)
    shown = lun.json("show", "--map", copy)
    assert (shown["own_bytes"], shown["backing_bytes"], shown["zero_bytes"]) == (MIB, MIB, 2 * MIB)
    assert shown["backing"] == f"/vol/{lun.volume}/.snapshot/s/golden"
    rows = [line.split("\t") for line in lun("show", "--map", copy).splitlines()]
    assert rows[0] == ["0", "65536", "65536", "0"]
    assert rows[16] == [str(MIB), "65536", "0", "65536"]
    assert rows[32] == [str(2 * MIB), "65536", "0", "0"]
    status, seen = lun.on_terminal("show", "--map", copy, columns=73)
    head, *drawn, legend = seen.splitlines()
    assert status == 0
    assert head == f"{copy}: 4m, backed by /vol/{lun.volume}/.snapshot/s/golden"
    # 64 characters a row, 16 rows, one block a character
    assert [row[9:] for row in drawn] == ["#" * 64] * 4 + ["+" * 64] * 4 + ["." * 64] * 8
    assert [row[:7].strip() for row in drawn][::4] == ["0", "1m", "2m", "3m"]
    assert legend.strip() == "# own 1m  + backing 1m  . reads zeros 2m  (4k a character)"


def test_the_map_of_a_large_lun_fits_the_terminal(lun: Lun) -> None:
    lun("create", "-s", "16t", "-o", "noreserve", lun.path("big"))
    status, seen = lun.on_terminal("show", "--map", lun.path("big"), columns=40)
    assert status == 0
    assert max(map(len, seen.splitlines()[1:-1])) <= 40
    assert "own" in seen.splitlines()[-1]
    assert "backing" not in seen


def test_a_map_is_of_one_lun(lun: Lun) -> None:
    assert lun.run("show", "--map").exit_code == 2
    assert lun.run("show", "--map", f"/vol/{lun.volume}").exit_code == 2
    assert "no-such-lun" in lun.refused("show", "--map", lun.path("none"))


def test_an_estimate_says_what_a_clone_takes(lun: Lun, tmp_path: Path) -> None:
    golden, copy = lun.path("golden"), lun.path("copy")
    lun("create", "-s", "4m", golden)
    import_mib(lun, golden, tmp_path / "image", 2)
    lun("clone", "create", copy, "-b", golden, "-o", "noreserve")
    found = lun.json("clone", "estimate", copy)
    assert (found["missing_blocks"], found["missing_bytes"], found["fits"]) == (512, 2 * MIB, True)
    assert 2 * MIB < found["needed_bytes"] < 3 * MIB < found["available_bytes"]
    fields = dict(line.split("\t")[1:] for line in lun("clone", "estimate", copy).splitlines())
    assert (fields["Blocks-to-copy"], fields["Fits"]) == ("512", "yes")
    assert "not-backed" in lun.refused("clone", "estimate", golden)
    lun("clone", "start", copy)
    lun("clone", "status", "-f", copy)
    assert "not-backed" in lun.refused("clone", "estimate", copy)


def test_a_tree_shows_chains_and_free_snapshots(lun: Lun, tmp_path: Path) -> None:
    golden, copy, grandchild = lun.path("golden"), lun.path("copy"), lun.path("grandchild")
    lun("create", "-s", "1m", golden)
    import_mib(lun, golden, tmp_path / "image", 1)
    lun("snap", "create", lun.volume, "s1")
    lun("clone", "create", copy, "-b", golden, "s1")
    lun("snap", "create", lun.volume, "s2")
    lun("clone", "create", grandchild, "-b", copy, "s2")
    lun("snap", "create", lun.volume, "s3")
    v = lun.volume
    assert [line.split("\t") for line in lun("clone", "tree", v).splitlines()] == [
        [f"{v}:s1", copy, f"/vol/{v}/.snapshot/s1/golden", str(MIB), "none"],
        [f"{v}:s1", f"/vol/{v}/.snapshot/s2", "", "0", "none"],
        [f"{v}:s1", f"/vol/{v}/.snapshot/s3", "", "0", "none"],
        [f"{v}:s2", grandchild, f"/vol/{v}/.snapshot/s2/copy", str(MIB), "none"],
        [f"{v}:s2", f"/vol/{v}/.snapshot/s3", "", "0", "none"],
        [f"{v}:s3", "", "", "", ""],
    ]
    status, seen = lun.on_terminal("clone", "tree", v)
    assert status == 0
    lines = seen.splitlines()
    assert "to free it: clone 2 LUNs, 2m to copy; delete s2, s3" in lines[0]
    assert [line.lstrip("│├─└ ") for line in lines[1:5]] == [
        f"{copy}  1m to copy",
        f"/vol/{v}/.snapshot/s2  has 1 LUN of it, until it goes",
        f"{grandchild}  1m to copy",
        f"/vol/{v}/.snapshot/s3  has 1 LUN of it, until it goes",
    ]
    assert lines[3].startswith("│   └── ")
    assert lines[-1].endswith("free: nothing depends on it")
    assert "no-such-volume" in lun.refused("clone", "tree", "nowhere")


def test_a_golden_image_is_rolled_out(lun: Lun) -> None:
    golden, igroup = lun.path("golden"), f"g-{lun.volume}"
    lun("create", "-s", "1m", "-o", "noreserve", golden)
    lun("igroup", "create", igroup)
    made = lun.json("clone", "create", "--count", "12", "--first", "95", "--igroup", igroup, lun.path("vm%02d"),
                    "-b", golden)  # fmt: skip
    assert [each["path"] for each in made] == [lun.path(f"vm{number}") for number in range(95, 107)]
    assert [each["maps"] for each in made] == [[{"igroup": igroup, "lun_id": number}] for number in range(12)]
    twice = ("clone", "create", "--count", "2", "-b", golden)
    assert "name-taken" in lun.refused(*twice, "--first", "106", lun.path("vm%d"))
    assert "invalid-argument" in lun.refused(*twice, lun.path("vm"))
    assert lun.run("clone", "create", "--count", "0", lun.path("vm%d"), "-b", golden).exit_code == 2
    assert lun.run("clone", "create", "--igroup", igroup, lun.path("vm"), "-b", golden).exit_code == 2
    status, seen = lun.on_terminal("clone", "create", "--count", "3", lun.path("again%d"), "-b", golden)
    assert (status, seen) == (0, f"{lun.path('again1')} to {lun.path('again3')}: 3 LUNs\n")
    lun("igroup", "destroy", "-f", igroup)


def test_a_snapshot_goes_with_its_last_lun(lun: Lun, tmp_path: Path) -> None:
    golden, copy, v = lun.path("golden"), lun.path("copy"), lun.volume
    lun("create", "-s", "1m", golden)
    import_mib(lun, golden, tmp_path / "image", 1)
    lun("snap", "create", v, "s")
    lun("clone", "create", copy, "-b", golden, "s")
    # slow enough to look at
    lun("clone", "start", "--limit", "1", copy)
    assert "snapshot-busy" in lun.refused("snap", "delete", v, "s")
    assert lun("snap", "delete", "--detach", v, "s") == ""
    assert lun("snap", "list", v).split("\t")[3] == "leaving"
    path, why = lun("snap", "usage", v, "s").rstrip("\n").split("\t")
    assert path == copy
    assert why.startswith("its clone is ")
    assert "snapshot-leaving" in lun.refused("create", "-b", f"/vol/{v}/.snapshot/s/golden", lun.path("third"))
    assert lun.json("snap", "delete", "--cancel", v, "s")["departure"] is None
    assert lun("snap", "usage", v, "s") == f"{copy}\n"
    assert "not-leaving" in lun.refused("snap", "delete", "--cancel", v, "s")
    assert lun.run("snap", "delete", "--cancel", "--detach", v, "s").exit_code == 2
    lun("clone", "stop", copy)
    lun("snap", "delete", "--detach", v, "s")
    lun("clone", "status", "-f", copy)
    while lun("snap", "list", v):  # housekeeping looks once a second
        pass
    lun("snap", "create", v, "free")
    assert lun.json("snap", "delete", "--detach", v, "free") is None
    assert lun("snap", "list", v) == ""


def test_what_a_snapshot_on_its_way_out_waits_for_besides_its_clones_is_said_at_once(lun: Lun) -> None:
    golden, v = lun.path("golden"), lun.volume
    lun("create", "-s", "1m", golden)
    lun("snap", "create", v, "s")
    lun("clone", "create", lun.path("copy"), "-b", golden, "s")
    lun("snap", "create", v, "later")
    status, seen = lun.on_terminal("snap", "delete", "--detach", v, "s", columns=200)
    assert status == 0
    way_out = f"lun snap delete {v} later"
    assert f"/vol/{v}/.snapshot/later has 1 LUN of it from before: '{way_out}'" in seen.splitlines()
    lun(*way_out.split()[1:])
    while lun("snap", "list", v):  # housekeeping looks once a second
        pass


def test_a_snapshot_on_its_way_out_goes_though_the_daemon_is_killed(tmp_path: Path) -> None:
    first = DaemonProcess(tmp_path / "state")
    lun = Lun(first, "vol0")
    lun("vol", "create", "vol0", "-s", "64m")
    lun("create", "-s", "4m", lun.path("golden"))
    import_mib(lun, lun.path("golden"), tmp_path / "image", 4)
    lun("snap", "create", "vol0", "s")
    lun("clone", "create", "--count", "3", lun.path("vm%d"), "-b", lun.path("golden"), "s")
    lun("clone", "limits", "--limit", "1")
    assert lun.run("snap", "delete", "--limit", "1g", "vol0", "s").exit_code == 2
    assert lun.run("snap", "delete", "-f", "vol0", "s").exit_code == 2
    lun("snap", "delete", "--detach", "--priority", "low", "--limit", "1g", "vol0", "s")
    first.process.kill()
    first.process.wait()
    second = DaemonProcess(tmp_path / "state")
    try:
        lun = Lun(second, "vol0")
        (departure,) = (each["departure"] for each in lun.json("snap", "list", "vol0"))
        assert [wait["path"] for wait in departure["waits_for"]] == [lun.path(f"vm{number}") for number in (1, 2, 3)]
        assert not any(wait["stuck"] for wait in departure["waits_for"])
        jobs = lun.json("clone", "show")
        assert [(job["priority"], job["limit_bytes_s"]) for job in jobs] == [("low", 1 << 30)] * 3
        lun("clone", "limits", "--limit", "none")
        while lun("snap", "list", "vol0"):
            time.sleep(0.05)
        assert [each["backing"] for each in lun.json("show", "/vol/vol0")] == [None] * 4
        lun("vol", "check", "vol0")
    finally:
        assert second.stop() == 0
