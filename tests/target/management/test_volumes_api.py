"""Volumes through the API."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.target.management.conftest import MIB, Api, Play


def test_a_volume_is_there_after_a_restart(play: Play) -> None:
    async def before(api: Api) -> None:
        made = await api.volume()
        assert made["state"] == "online"
        assert made["size_bytes"] == 64 * MIB
        assert made["target"].endswith(":vol0")

    async def after(api: Api) -> None:
        (volume,) = await api.get("/volumes")
        assert (volume["name"], volume["state"]) == ("vol0", "online")

    play(before, after)


@pytest.mark.workers
def test_an_offline_volume_stays_offline_over_a_restart_and_comes_back_with_its_luns(play: Play) -> None:
    async def before(api: Api) -> None:
        await api.volume()
        await api.lun()
        assert (await api.call("PATCH", "/volumes/vol0", {"online": False}))["state"] == "offline"
        assert (await api.refused("GET", "/luns/vol0/lun0")).name == "volume-offline"

    async def after(api: Api) -> None:
        assert (await api.get("/volumes/vol0"))["state"] == "offline"
        assert await api.get("/luns") == []
        assert (await api.call("PATCH", "/volumes/vol0", {"online": True}))["state"] == "online"
        assert [lun["path"] for lun in await api.get("/luns")] == ["/vol/vol0/lun0"]

    play(before, after)


@pytest.mark.parametrize(
    ("body", "error", "status"),
    [
        ({"name": "vol0", "size_bytes": 64 * MIB}, "name-taken", 409),
        ({"name": "Vol1", "size_bytes": 64 * MIB}, "invalid-name", 400),
        ({"name": "vol1"}, "invalid-size", 400),
        ({"name": "vol1", "size_bytes": 1000}, "invalid-size", 400),
        ({"name": "vol1", "size_bytes": 64 * MIB, "path": "relative"}, "invalid-path", 400),
        ({"name": "vol1", "size_bytes": 64 * MIB, "path": "/tmp/a\nb"}, "invalid-path", 400),
        ({"name": "vol1", "size_bytes": 64 * MIB, "path": "/dev/null/x"}, "io-error", 500),
        ({"name": "vol1", "size_bytes": "big"}, "invalid-argument", 400),
        ({"name": "vol1", "size_bytes": 64 * MIB, "sise": 1}, "invalid-argument", 400),
        ({"name": "vol1", "path": "/nowhere/image", "adopt": True}, "io-error", 500),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_bad_volume_is_refused_and_nothing_is_made(
    play: Play, body: dict[str, object], error: str, status: int
) -> None:
    async def scene(api: Api) -> None:
        await api.volume()
        before = await api.get("/volumes")
        refusal = await api.refused("POST", "/volumes", body)
        assert (refusal.name, refusal.status) == (error, status)
        assert await api.get("/volumes") == before
        assert [path.name for path in (api.core.directory / "volumes").iterdir()] == ["vol0.img"]

    play(scene)


def test_a_file_that_is_there_is_never_overwritten(play: Play, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_bytes(b"data" * 1000)

    async def scene(api: Api) -> None:
        body = {"name": "vol1", "size_bytes": 64 * MIB, "path": str(precious)}
        assert (await api.refused("POST", "/volumes", body)).name == "name-taken"
        assert (await api.refused("POST", "/volumes", {**body, "adopt": True})).name == "not-a-volume"

    play(scene)
    assert precious.read_bytes() == b"data" * 1000


@pytest.mark.workers
def test_a_volume_with_luns_is_destroyed_only_with_force(play: Play) -> None:
    async def scene(api: Api) -> None:
        await api.volume()
        await api.lun()
        refusal = await api.refused("DELETE", "/volumes/vol0")
        assert refusal.name == "volume-in-use"
        assert refusal.body["holders"] == ["/vol/vol0/lun0"]
        await api.call("DELETE", "/volumes/vol0", force=True)
        assert await api.get("/volumes") == []
        assert list((api.core.directory / "volumes").iterdir()) == []

    play(scene)


@pytest.mark.workers
def test_a_volume_that_cannot_be_mounted_stays_offline_with_its_reason_and_the_others_serve(play: Play) -> None:
    async def before(api: Api) -> None:
        await api.volume("good")
        await api.volume("bad")

    async def damage(api: Api) -> None:
        image = api.core.directory / "volumes" / "bad.img"
        await api.call("PATCH", "/volumes/bad", {"online": False})
        image.rename(image.with_suffix(".away"))
        assert (await api.refused("PATCH", "/volumes/bad", {"online": True})).name == "io-error"

    async def after(api: Api) -> None:
        volumes = {volume["name"]: volume for volume in await api.get("/volumes")}
        assert volumes["good"]["state"] == "online"
        assert volumes["bad"]["state"] == "offline"
        assert "bad.img" in volumes["bad"]["problem"]
        assert "bad.img" in (await api.refused("GET", "/volumes/bad/snapshots")).body["message"]

    play(before, damage, after)


def test_a_volume_is_adopted_with_its_luns(play: Play) -> None:
    async def scene(api: Api) -> None:
        await api.volume()
        uuid = (await api.lun())["uuid"]
        image = api.core.directory / "volumes" / "vol0.img"
        await api.call("PATCH", "/volumes/vol0", {"online": False})
        kept = image.with_name("kept")
        image.rename(kept)
        await api.call("DELETE", "/volumes/vol0", force=True)
        wrong = {"name": "other", "path": str(kept), "adopt": True}
        assert "vol0" in (await api.refused("POST", "/volumes", wrong)).body["message"]
        await api.post("/volumes", {"name": "vol0", "path": str(kept), "adopt": True})
        assert (await api.get("/luns/vol0/lun0"))["uuid"] == uuid
        await api.call("PATCH", "/volumes/vol0", {"online": False})
        kept.rename(image)

    play(scene)


@pytest.mark.workers
def test_a_check_is_an_operation_with_its_findings(play: Play) -> None:
    async def scene(api: Api) -> None:
        await api.volume()
        operation = await api.post("/volumes/vol0/check")
        ended = await api.get(f"/operations/{operation['id']}/wait", timeout=60)
        assert (ended["state"], ended["result"]) == ("done", {"findings": [], "count": 0})

    play(scene)


def test_a_log_of_its_own_is_made_used_moved_and_dropped_with_its_volume(play: Play, tmp_path: Path) -> None:
    log, other = tmp_path / "log", tmp_path / "other"

    async def before(api: Api) -> None:
        body = {"name": "vol1", "size_bytes": 64 * MIB, "nvlog": str(log)}
        made = await api.call("POST", "/volumes", body)
        assert (made["state"], made["nvlog"]) == ("online", str(log))
        assert api.core.units["vol1"].volume.nvlog.place.name == "SEPARATE"
        assert (await api.refused("POST", "/volumes", {**body, "name": "vol2"})).name == "log-mismatch"
        assert (await api.refused("PATCH", "/volumes/vol1", {"nvlog": str(other)})).name == "volume-online"
        assert not other.exists()

    async def moved(api: Api) -> None:
        assert (await api.get("/volumes/vol1"))["nvlog"] == str(log)
        await api.call("PATCH", "/volumes/vol1", {"online": False})
        await api.call("PATCH", "/volumes/vol1", {"nvlog": str(other)})
        await api.call("PATCH", "/volumes/vol1", {"online": True})
        assert api.core.units["vol1"].volume.nvlog.place.name == "SEPARATE"
        await api.call("PATCH", "/volumes/vol1", {"online": False})
        await api.call("PATCH", "/volumes/vol1", {"nvlog": ""})
        await api.call("PATCH", "/volumes/vol1", {"online": True})
        assert api.core.units["vol1"].volume.nvlog.place.name == "REGION"
        await api.call("PATCH", "/volumes/vol1", {"online": False})
        await api.call("PATCH", "/volumes/vol1", {"nvlog": str(log), "online": True})
        await api.call("DELETE", "/volumes/vol1", force="true")
        assert not log.exists()

    play(before, moved)


def test_a_log_that_is_not_the_volumes_is_refused(play: Play, tmp_path: Path) -> None:
    strange, small = tmp_path / "strange", tmp_path / "small"
    strange.write_bytes(b"precious" * 100_000)
    small.write_bytes(bytes(4096))

    async def scene(api: Api) -> None:
        for log in (strange, small):
            body = {"name": f"vol-{log.name}", "size_bytes": 64 * MIB, "nvlog": str(log)}
            assert (await api.refused("POST", "/volumes", body)).name == "log-mismatch"
        assert strange.read_bytes() == b"precious" * 100_000
        assert [path.name for path in (api.core.directory / "volumes").iterdir()] == []
        assert await api.get("/volumes") == []

    play(scene)
