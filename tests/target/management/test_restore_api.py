"""Restoring from snapshots through the API: who is asked, who is told, and what becomes of jobs and maps."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from target.iscsi.ports import Nexus
from tests.target.management.conftest import HOST, MIB, Api, Play
from tests.target.management.test_access_api import ISID, attentions

OLD, NEW = b"\x5a" * 65536, b"\xa5" * 65536
RESTORE = "/volumes/vol0/snapshots/base/restore"
LUN = "/vol/vol0/lun0"


async def write(api: Api, data: bytes, lun: str = "lun0") -> None:
    assert (await api.http.put(f"/v1/data/vol0/{lun}?offset=4096", content=data)).status_code == 204


async def read(api: Api, lun: str = "lun0") -> bytes:
    answer = await api.http.get(f"/v1/data/vol0/{lun}", params={"offset": 4096, "length": len(OLD)})
    assert answer.status_code in (200, 204)
    return answer.content if answer.status_code == 200 else bytes(len(OLD))


async def golden(api: Api) -> None:
    """lun0 with old data in snapshot base, and new data now."""
    await api.volume()
    await api.lun()
    await write(api, OLD)
    await api.post("/volumes/vol0/snapshots", {"name": "base"})
    await write(api, NEW)


async def session(api: Api) -> Nexus:
    await api.igroup()
    await api.post("/maps", {"path": LUN, "igroup": "hosts"})
    nexus = api.daemon.directory.open_nexus(HOST, ISID, api.core.target_name("vol0"), 1)
    attentions(nexus)
    return nexus


async def clone_ended(api: Api, lun: str = "lun0") -> Any:
    status = await api.get(f"/clones/vol0/{lun}")
    if status["operation"] is not None:
        await api.get(f"/operations/{status['operation']}/wait", timeout=60)
    return await api.get(f"/clones/vol0/{lun}")


@pytest.mark.workers
def test_a_restored_lun_keeps_its_identity_and_is_cloned_until_the_snapshot_is_free(play: Play) -> None:
    known: dict[str, Any] = {}

    async def scene(api: Api) -> None:
        await golden(api)
        await api.call("PATCH", "/luns/vol0/lun0", {"comment": "noted"})
        before = await api.get("/luns/vol0/lun0")
        known.update({key: before[key] for key in ("path", "uuid", "serial", "naa", "comment", "size_bytes", "maps")})
        done = await api.post(RESTORE, {"path": LUN})
        assert (done["restored"], done["returned"], done["destroyed"], done["unmapped"]) == ([LUN], [], [], [])
        assert await read(api) == OLD
        assert (await clone_ended(api))["state"] == "completed"
        await api.call("DELETE", "/volumes/vol0/snapshots/base")
        after = await api.get("/luns/vol0/lun0")
        assert {key: after[key] for key in known} == known
        assert "lun.restored" in [event.kind for event in api.core.events.since(0)]

    async def later(api: Api) -> None:
        assert await read(api) == OLD

    play(scene, later)


def test_a_lun_that_a_host_sees_is_restored_with_force_only_and_the_host_is_told(play: Play) -> None:
    async def scene(api: Api) -> None:
        await golden(api)
        nexus = await session(api)
        refusal = await api.refused("POST", RESTORE, {"path": LUN})
        assert (refusal.name, refusal.body["holders"]) == ("lun-in-use", [HOST])
        assert f"{LUN} is in use by {HOST}; unmount there and use -f" in refusal.body["message"]
        assert await read(api) == NEW
        assert attentions(nexus) == []
        await api.post(RESTORE, {"path": LUN, "force": True})
        assert attentions(nexus) == [0x2800]
        await api.call("PATCH", "/luns/vol0/lun0", {"size_bytes": 2 * MIB})
        assert attentions(nexus) == [0x2A09]
        await api.post(RESTORE, {"path": LUN, "force": True})
        assert attentions(nexus) == [0x2800, 0x2A09]
        assert (await api.get("/luns/vol0/lun0"))["size_bytes"] == MIB
        nexus.close()

    play(scene)


def test_a_lun_that_is_offline_is_not_in_use(play: Play) -> None:
    async def scene(api: Api) -> None:
        await golden(api)
        nexus = await session(api)
        await api.call("PATCH", "/luns/vol0/lun0", {"online": False})
        await api.post(RESTORE, {"path": LUN})
        assert not (await api.get("/luns/vol0/lun0"))["online"]
        await api.call("PATCH", "/luns/vol0/lun0", {"online": True})
        assert attentions(nexus) == [0x2800]
        nexus.close()

    play(scene)


def test_a_running_clone_is_replaced_by_a_new_one_with_its_limit(play: Play) -> None:
    async def scene(api: Api) -> None:
        await golden(api)
        await api.post("/volumes/vol0/snapshots", {"name": "later"})
        await api.post("/volumes/vol0/snapshots/later/restore", {"path": LUN})
        await clone_ended(api)
        await api.post("/volumes/vol0/snapshots", {"name": "last"})
        await api.post(RESTORE, {"path": LUN})
        await api.call("DELETE", "/clones/vol0/lun0")
        first = await api.call("PUT", "/clones/vol0/lun0", {"limit_bytes_s": 4096})
        await api.post("/volumes/vol0/snapshots/last/restore", {"path": LUN})
        assert (await api.get(f"/operations/{first['operation']}/wait", timeout=60))["state"] == "cancelled"
        now = await api.get("/clones/vol0/lun0")
        assert (now["limit_bytes_s"], now["requested"]) == (4096, True)
        assert now["operation"] != first["operation"]
        assert now["backing"] == "/vol/vol0/.snapshot/last/lun0"
        assert await read(api) == NEW
        await api.call("DELETE", "/volumes/vol0/snapshots/base")

    play(scene)


async def fill(api: Api) -> None:
    """All that the volume has for hosts goes to a thin LUN."""
    await api.lun("/vol/vol0/filler", 64 * MIB, reserved=False)
    at = 0
    for piece in (MIB, 65536, 4096):
        while (await api.http.put(f"/v1/data/vol0/filler?offset={at}", content=b"\x77" * piece)).status_code == 204:
            at += piece


def test_a_restore_that_finds_no_room_leaves_the_clone_running(play: Play) -> None:
    """The LUN is reserved, and was larger: all of it would have to be kept back."""

    async def scene(api: Api) -> None:
        await golden(api)
        await api.post("/luns", {"path": "/vol/vol0/copy", "backing": {"path": "/vol/vol0/.snapshot/base/lun0"}})
        await api.call("PATCH", "/luns/vol0/copy", {"size_bytes": 8 * MIB})
        await api.post("/volumes/vol0/snapshots", {"name": "later"})
        await api.call("PATCH", "/luns/vol0/copy", {"size_bytes": MIB, "force": True})
        await api.call("PUT", "/clones/vol0/copy", {"limit_bytes_s": 4096})
        await fill(api)
        before = await read(api, "copy")
        refusal = await api.refused("POST", "/volumes/vol0/snapshots/later/restore", {"path": "/vol/vol0/copy"})
        assert (refusal.name, refusal.status) == ("no-space", 507)
        assert "disable reservations, delete a snapshot or a LUN, or grow the volume" in refusal.body["message"]
        status = await api.get("/clones/vol0/copy")
        assert (status["state"] in ("created", "running"), status["requested"]) == (True, True)
        assert status["limit_bytes_s"] == 4096
        assert await read(api, "copy") == before
        assert (await api.get("/luns/vol0/copy"))["size_bytes"] == MIB
        await api.call("DELETE", "/luns/vol0/filler")
        await settled(api)
        await api.post("/volumes/vol0/snapshots/later/restore", {"path": "/vol/vol0/copy"})
        assert (await api.get("/luns/vol0/copy"))["size_bytes"] == 8 * MIB

    play(scene)


async def settled(api: Api) -> None:
    """Nothing waits to be given back."""
    service = api.core.units["vol0"].service
    while service.volume.reclaim_pending or service.volume.space().freeing:
        await service.commit()


@pytest.mark.parametrize(
    ("url", "body", "error", "words"),
    [
        ("/volumes/none/snapshots/base/restore", {}, "no-such-volume", "no volume"),
        ("/volumes/vol0/snapshots/none/restore", {}, "no-such-snapshot", "no snapshot 'none'"),
        (RESTORE, {"path": "/vol/vol0/none"}, "no-such-lun", "no LUN /vol/vol0/none"),
        (RESTORE, {"path": "/vol/vol0/young"}, "no-such-lun", "LUN young is not in snapshot base"),
        (RESTORE, {"path": "/vol/vol1/lun0"}, "other-volume", "not on volume vol0"),
        (RESTORE, {"path": "/vol/vol0/.snapshot/base/lun0"}, "invalid-path", "inside a snapshot"),
        (RESTORE, {}, "would-lose-luns", "older than /vol/vol0/young: going back destroys it; use -f"),
    ],
)
def test_what_cannot_be_restored_is_refused_in_one_line(
    play: Play, url: str, body: dict[str, Any], error: str, words: str
) -> None:
    async def scene(api: Api) -> None:
        await golden(api)
        await api.lun("/vol/vol0/young")
        refusal = await api.refused("POST", url, body)
        assert refusal.name == error
        assert words in refusal.body["message"]
        assert await read(api) == NEW

    play(scene)


@contextmanager
def settings_cannot_be_written(api: Api) -> Iterator[None]:
    """Another program is at work on admin.db."""
    with closing(sqlite3.connect(api.core.store.path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        yield


def test_a_volume_goes_back_with_its_luns_maps_and_sessions(play: Play) -> None:
    async def scene(api: Api) -> None:
        await api.volume()
        await api.lun()
        await write(api, OLD)
        nexus = await session(api)
        await api.post("/volumes/vol0/snapshots", {"name": "early"})
        for lun in ("gone", "unmapped"):
            await api.lun(f"/vol/vol0/{lun}")
            await write(api, OLD, lun)
        await api.post("/maps", {"path": "/vol/vol0/gone", "igroup": "hosts", "lun_id": 5})
        gone = await api.get("/luns/vol0/gone")
        await api.post("/volumes/vol0/snapshots", {"name": "base"})
        with settings_cannot_be_written(api):  # so the map stays, as when lund is killed there
            refusal = await api.refused("POST", "/volumes/vol0/snapshots/early/restore", {"force": True})
        assert (refusal.name, refusal.status) == ("internal", 500)
        assert [lun["name"] for lun in await api.get("/luns")] == ["lun0"]
        await clone_ended(api)
        await api.call("PATCH", "/luns/vol0/lun0", {"path": "/vol/vol0/renamed"})
        await api.lun("/vol/vol0/young")
        await api.post("/maps", {"path": "/vol/vol0/young", "igroup": "hosts", "lun_id": 7})
        attentions(nexus)
        attentions(nexus, 7)
        refusal = await api.refused("POST", RESTORE, {})
        assert (refusal.name, refusal.body["holders"]) == ("would-lose-luns", ["/vol/vol0/young"])
        done = await api.post(RESTORE, {"force": True})
        assert done == {
            "volume": "vol0",
            "snapshot": "base",
            "restored": [LUN],
            "returned": ["/vol/vol0/gone", "/vol/vol0/unmapped"],
            "destroyed": ["/vol/vol0/young"],
            "unmapped": ["/vol/vol0/unmapped"],
        }
        assert [lun["name"] for lun in await api.get("/luns")] == ["gone", "lun0", "unmapped"]
        for lun in ("lun0", "gone", "unmapped"):
            assert await read(api, lun) == OLD
        back = await api.get("/luns/vol0/gone")
        assert {key: back[key] for key in ("uuid", "serial", "naa", "created_at")} == {
            key: gone[key] for key in ("uuid", "serial", "naa", "created_at")
        }
        assert sorted((m["path"], m["lun_id"]) for m in await api.get("/maps")) == [("/vol/vol0/gone", 5), (LUN, 0)]
        assert sorted(attentions(nexus)) == [0x2800, 0x3F0E]
        assert attentions(nexus, 5) == [0x2900]
        assert attentions(nexus, 7) == [0x2500]
        for lun in ("lun0", "gone", "unmapped"):
            assert (await clone_ended(api, lun))["state"] == "completed"
        await api.call("DELETE", "/volumes/vol0/snapshots/base")
        nexus.close()

    play(scene)


def test_a_volume_whose_luns_hosts_see_goes_back_with_force_only(play: Play) -> None:
    async def scene(api: Api) -> None:
        await golden(api)
        nexus = await session(api)
        refusal = await api.refused("POST", RESTORE, {})
        assert (refusal.name, refusal.body["holders"]) == ("lun-in-use", [HOST])
        assert await read(api) == NEW
        nexus.close()
        await api.post(RESTORE, {})
        assert await read(api) == OLD

    play(scene)


def test_more_clones_start_than_there_are_operations(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(api: Api) -> None:
        await api.volume()
        for lun in ("a", "b", "c"):
            await api.lun(f"/vol/vol0/{lun}")
            await write(api, OLD, lun)
        await api.post("/volumes/vol0/snapshots", {"name": "base"})
        monkeypatch.setattr("target.management.operations.RUNNING_LIMIT", 1)
        await api.post(RESTORE, {})
        operations = [(await api.get(f"/clones/vol0/{lun}"))["operation"] for lun in ("a", "b", "c")]
        assert operations.count(None) == 2
        for lun in ("a", "b", "c"):
            await api.core.clones.wait(api.core.units["vol0"].service, lun)
            assert (await api.get(f"/clones/vol0/{lun}"))["state"] == "completed"

    play(scene)


def test_a_chain_of_backings_has_its_limit_through_the_api(play: Play) -> None:
    """Clones of clones, none of them finished: the seventeenth is refused with the way out."""

    async def scene(api: Api) -> None:
        await api.volume()
        await api.lun("/vol/vol0/l0")
        for depth in range(16):
            await api.post("/volumes/vol0/snapshots", {"name": f"s{depth}"})
            backing = {"path": f"/vol/vol0/.snapshot/s{depth}/l{depth}"}
            await api.post("/luns", {"path": f"/vol/vol0/l{depth + 1}", "backing": backing})
        await api.post("/volumes/vol0/snapshots", {"name": "s16"})
        for method, url, body in (
            ("POST", "/luns", {"path": "/vol/vol0/l17", "backing": {"path": "/vol/vol0/.snapshot/s16/l16"}}),
            ("POST", "/volumes/vol0/snapshots/s16/restore", {"path": "/vol/vol0/l16"}),
        ):
            refusal = await api.refused(method, url, body)
            assert refusal.name == "chain-too-deep"
            assert "would stand on more than 16 snapshots" in refusal.body["message"]
            assert "clone" in refusal.body["message"]

    play(scene)


def test_a_snapshot_of_a_clone_in_the_middle_can_be_restored_from(play: Play) -> None:
    async def scene(api: Api) -> None:
        await golden(api)
        await api.post("/luns", {"path": "/vol/vol0/copy", "backing": {"path": "/vol/vol0/.snapshot/base/lun0"}})
        await api.call("PUT", "/clones/vol0/copy", {"limit_bytes_s": 4096})
        await api.post("/volumes/vol0/snapshots", {"name": "middle"})
        await api.call("DELETE", "/clones/vol0/copy")
        await write(api, NEW, "copy")
        await api.post("/volumes/vol0/snapshots/middle/restore", {"path": "/vol/vol0/copy"})
        assert await read(api, "copy") == OLD
        assert (await clone_ended(api, "copy"))["state"] == "completed"
        refusal = await api.refused("DELETE", "/volumes/vol0/snapshots/base")
        assert refusal.body["holders"] == ["/vol/vol0/.snapshot/middle/copy"]
        await api.call("DELETE", "/volumes/vol0/snapshots/middle")
        await api.call("DELETE", "/volumes/vol0/snapshots/base")
        assert await read(api, "copy") == OLD

    play(scene)


def test_what_older_settings_say_of_luns_that_are_gone_is_forgotten_at_the_next_mount(
    play: Play, tmp_path: Path
) -> None:
    """Brought back from a copy: maps and values of LUNs that have been destroyed since, here and on another volume."""
    settings, copy = tmp_path / "state" / "admin.db", tmp_path / "copy.db"
    uuids: dict[str, str] = {}

    async def before(api: Api) -> None:
        for volume in ("vol0", "vol1"):
            await api.volume(volume)
        await api.igroup()
        for path in (LUN, "/vol/vol0/lost", "/vol/vol1/lost"):
            uuids[path] = (await api.lun(path))["uuid"]
            await api.call("PATCH", f"/luns/{path.removeprefix('/vol/')}", {"removable": True})
        for lun_id, path in enumerate(uuids):
            await api.post("/maps", {"path": path, "igroup": "hosts", "lun_id": lun_id})
        await api.call("PATCH", "/volumes/vol1", {"online": False})

    async def destroyed(api: Api) -> None:
        await api.call("PATCH", "/volumes/vol1", {"online": True})
        for path in ("vol0/lost", "vol1/lost"):
            await api.call("DELETE", f"/luns/{path}", force=True)

    def known(api: Api) -> list[str]:
        return [path for path, uuid in uuids.items() if api.core.state.knows_lun(uuid)]

    async def after(api: Api) -> None:
        # A volume that is offline is its own affair.
        assert known(api) == [LUN, "/vol/vol1/lost"]
        await api.call("PATCH", "/volumes/vol1", {"online": True})
        assert known(api) == [LUN]
        assert [entry["lun_id"] for entry in (await api.get("/luns/vol0/lun0"))["maps"]] == [0]
        await api.lun("/vol/vol0/other")
        await api.post("/maps", {"path": "/vol/vol0/other", "igroup": "hosts", "lun_id": 1})

    play(before)
    assert not list(settings.parent.glob("admin.db-*"))  # all of it is in one file
    shutil.copyfile(settings, copy)
    play(destroyed)
    shutil.copyfile(copy, settings)
    play(after)
