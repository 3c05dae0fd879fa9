"""LUNs, snapshots and clones through the API, on a real volume."""

from __future__ import annotations

import pytest

from target.scsi.unit import SWITCHES
from tests.target.management.conftest import HOST, MIB, Api, Play

BACKED = {"path": "/vol/vol0/copy", "backing": {"path": "/vol/vol0/.snapshot/base/lun0"}}


async def golden(api: Api) -> None:
    await api.volume()
    await api.lun()
    written = await api.http.put("/v1/data/vol0/lun0?offset=4096", content=b"\x5a" * 65536)
    assert written.status_code == 204
    await api.post("/volumes/vol0/snapshots", {"name": "base"})


@pytest.mark.workers
def test_a_lun_keeps_its_identity_over_rename_and_restart(play: Play) -> None:
    seen = {}

    async def before(api: Api) -> None:
        await api.volume()
        lun = await api.lun()
        seen.update({key: lun[key] for key in ("uuid", "serial", "naa")})
        moved = await api.call("PATCH", "/luns/vol0/lun0", {"path": "/vol/vol0/new"})
        assert moved["path"] == "/vol/vol0/new"

    async def after(api: Api) -> None:
        (lun,) = await api.get("/luns")
        assert {key: lun[key] for key in seen} == seen

    play(before, after)


def test_a_rename_takes_the_maps_along(play: Play) -> None:
    async def scene(api: Api) -> None:
        await api.volume()
        await api.lun()
        await api.igroup()
        await api.post("/maps", {"path": "/vol/vol0/lun0", "igroup": "hosts"})
        await api.call("PATCH", "/luns/vol0/lun0", {"path": "/vol/vol0/new"})
        assert [(m["path"], m["lun_id"]) for m in await api.get("/maps")] == [("/vol/vol0/new", 0)]
        await api.call("PATCH", "/volumes/vol0", {"online": False})
        assert [m["path"] for m in await api.get("/maps")] == ["/vol/vol0/new"]

    play(scene)


@pytest.mark.parametrize(
    ("method", "url", "body", "error"),
    [
        ("POST", "/luns", {"path": "/vol/vol0/lun0", "size_bytes": MIB}, "name-taken"),
        ("POST", "/luns", {"path": "/vol/none/x", "size_bytes": MIB}, "no-such-volume"),
        ("POST", "/luns", {"path": "lun", "size_bytes": MIB}, "invalid-path"),
        ("POST", "/luns", {"path": "/vol/vol0/x", "size_bytes": 1000}, "invalid-size"),
        ("POST", "/luns", {"path": "/vol/vol0/x", "size_bytes": 0}, "invalid-size"),
        ("POST", "/luns", {"path": "/vol/vol0/x", "size_bytes": 512, "block_bytes": 4096}, "invalid-size"),
        ("POST", "/luns", {"path": "/vol/vol0/x"}, "invalid-size"),
        ("POST", "/luns", {"path": "/vol/vol0/x", "size_bytes": MIB, "ostype": "dos"}, "invalid-argument"),
        ("POST", "/luns", {**BACKED, "size_bytes": MIB}, "invalid-argument"),
        (
            "POST",
            "/luns",
            {"path": "/vol/vol0/x", "backing": {"path": "/vol/vol0/.snapshot/no/lun0"}},
            "no-such-snapshot",
        ),
        ("POST", "/luns", {"path": "/vol/vol0/x", "backing": {"path": "/vol/vol0/.snapshot/base/no"}}, "no-such-lun"),
        ("POST", "/luns", {"path": "/vol/vol0/x", "backing": {"path": "/vol/vol1/.snapshot/base/no"}}, "other-volume"),
        ("PATCH", "/luns/vol0/nobody", {"online": False}, "no-such-lun"),
        ("PATCH", "/luns/vol0/lun0", {"size_bytes": 1000}, "invalid-size"),
        ("PATCH", "/luns/vol0/lun0", {"size_bytes": 512}, "would-lose-data"),
        ("PATCH", "/luns/vol0/lun0", {"path": "/vol/other/lun0"}, "other-volume"),
        ("PATCH", "/luns/vol0/lun0", {"serial": "new"}, "lun-online"),
        ("DELETE", "/luns/vol0/nobody", None, "no-such-lun"),
        ("PUT", "/clones/vol0/lun0", {}, "not-backed"),
        ("DELETE", "/clones/vol0/lun0", None, "not-cloning"),
        ("POST", "/volumes/vol0/snapshots", {"name": "base"}, "name-taken"),
        ("POST", "/volumes/vol0/snapshots", {"name": "a/b"}, "invalid-name"),
        ("DELETE", "/volumes/vol0/snapshots/no", None, "no-such-snapshot"),
        ("PATCH", "/volumes/vol0/snapshots/no", {"name": "x"}, "no-such-snapshot"),
        ("GET", "/nothing", None, "no-such-resource"),
        ("PUT", "/volumes", {}, "method-not-allowed"),
    ],
    ids=str,
)
def test_a_refusal_changes_nothing(
    play: Play, method: str, url: str, body: dict[str, object] | None, error: str
) -> None:
    async def scene(api: Api) -> None:
        await golden(api)
        before = await api.get("/luns"), await api.get("/volumes/vol0/snapshots"), await api.get("/maps")
        assert (await api.refused(method, url, body)).name == error
        assert (await api.get("/luns"), await api.get("/volumes/vol0/snapshots"), await api.get("/maps")) == before

    play(scene)


@pytest.mark.workers
def test_a_mapped_lun_is_destroyed_only_with_force_and_takes_its_maps_along(play: Play) -> None:
    async def scene(api: Api) -> None:
        await api.volume()
        await api.lun()
        await api.igroup()
        await api.post("/maps", {"path": "/vol/vol0/lun0", "igroup": "hosts"})
        refusal = await api.refused("DELETE", "/luns/vol0/lun0")
        assert (refusal.name, refusal.body["holders"]) == ("lun-mapped", ["igroup hosts"])
        await api.call("DELETE", "/luns/vol0/lun0", force=True)
        assert await api.get("/luns") == []
        assert await api.get("/maps") == []

    play(scene)


def test_a_backed_lun_has_its_parents_size_and_its_own_identity(play: Play) -> None:
    async def scene(api: Api) -> None:
        await golden(api)
        parent = await api.get("/luns/vol0/lun0")
        copy = await api.post("/luns", BACKED)
        assert copy["size_bytes"] == parent["size_bytes"]
        assert copy["backing"]["path"] == "/vol/vol0/.snapshot/base/lun0"
        for key in ("uuid", "serial", "naa"):
            assert copy[key] != parent[key]

    play(scene)


def test_a_busy_snapshot_names_every_holder(play: Play) -> None:
    async def scene(api: Api) -> None:
        await golden(api)
        for name in ("a", "b"):
            await api.post("/luns", {**BACKED, "path": f"/vol/vol0/{name}"})
        await api.post("/volumes/vol0/snapshots", {"name": "later"})
        refusal = await api.refused("DELETE", "/volumes/vol0/snapshots/base")
        assert refusal.name == "snapshot-busy"
        holders = set(refusal.body["holders"])
        assert {"/vol/vol0/a", "/vol/vol0/b"} <= holders
        assert any("later" in holder for holder in holders)
        assert all(holder in refusal.body["message"] for holder in holders)

    play(scene)


@pytest.mark.workers
def test_a_clone_runs_to_its_end_and_frees_the_snapshot(play: Play) -> None:
    async def scene(api: Api) -> None:
        await golden(api)
        await api.post("/luns", BACKED)
        job = await api.call("PUT", "/clones/vol0/copy", {})
        ended = await api.get(f"/operations/{job['operation']}/wait", timeout=60)
        assert (ended["state"], ended["percent"]) == ("done", 100.0)
        assert (await api.get("/clones/vol0/copy"))["state"] == "completed"
        assert (await api.get("/luns/vol0/copy"))["backing"] is None
        await api.call("DELETE", "/volumes/vol0/snapshots/base")
        answer = await api.http.get("/v1/data/vol0/copy", params={"offset": 4096, "length": 65536})
        assert answer.content == b"\x5a" * 65536
        kinds = [event.kind for event in api.core.events.since(0)]
        assert "lun.clone.completed" in kinds

    play(scene)


def test_a_clone_that_was_stopped_keeps_its_backing_and_can_go_on(play: Play) -> None:
    async def scene(api: Api) -> None:
        await golden(api)
        await api.post("/luns", BACKED)
        job = await api.call("PUT", "/clones/vol0/copy", {"limit_bytes_s": 4096})
        cancelled = await api.call("DELETE", f"/operations/{job['operation']}")
        assert cancelled["state"] == "cancelled"
        status = await api.get("/clones/vol0/copy")
        assert (status["state"], status["requested"]) == ("stopped", False)
        assert status["backing"] == "/vol/vol0/.snapshot/base/lun0"
        job = await api.call("PUT", "/clones/vol0/copy", {})
        assert (await api.get(f"/operations/{job['operation']}/wait", timeout=60))["state"] == "done"

    play(scene)


@pytest.mark.workers
def test_a_clone_that_was_wanted_goes_on_after_a_restart(play: Play) -> None:
    async def before(api: Api) -> None:
        await golden(api)
        await api.post("/luns", BACKED)
        await api.call("PUT", "/clones/vol0/copy", {"limit_bytes_s": 4096})

    async def after(api: Api) -> None:
        status = await api.get("/clones/vol0/copy")
        assert (await api.get(f"/operations/{status['operation']}/wait", timeout=60))["state"] == "done"

    play(before, after)


def test_a_parent_outside_any_snapshot_gets_one_made(play: Play) -> None:
    async def scene(api: Api) -> None:
        await golden(api)
        copy = await api.post("/luns", {"path": "/vol/vol0/copy", "backing": {"path": "/vol/vol0/lun0"}})
        assert copy["backing"]["snapshot"].startswith("clone_lun0_")
        older = {"path": "/vol/vol0/older", "backing": {"path": "/vol/vol0/lun0", "snapshot": "base"}}
        assert (await api.post("/luns", older))["backing"]["snapshot"] == "base"

    play(scene)


def test_a_full_volume_refuses_with_no_space_and_stays_usable(play: Play) -> None:
    async def scene(api: Api) -> None:
        await api.volume(size_bytes=16 * MIB)
        await api.lun(size_bytes=64 * MIB, reserved=False)
        statuses = []
        for offset in range(0, 32 * MIB, MIB):
            answer = await api.http.put(f"/v1/data/vol0/lun0?offset={offset}", content=b"\x11" * MIB)
            statuses.append(answer.status_code)
        assert statuses[0] == 204
        assert statuses[-1] == 507
        assert answer.json()["error"] == "no-space"
        await api.call("DELETE", "/luns/vol0/lun0", force=True)
        assert await api.get("/luns") == []

    play(scene)


def test_a_resize_is_seen_and_a_smaller_one_needs_force(play: Play) -> None:
    async def scene(api: Api) -> None:
        await golden(api)
        assert (await api.call("PATCH", "/luns/vol0/lun0", {"size_bytes": 2 * MIB}))["size_bytes"] == 2 * MIB
        small = {"size_bytes": MIB // 2, "force": True}
        assert (await api.call("PATCH", "/luns/vol0/lun0", small))["size_bytes"] == MIB // 2

    play(scene)


def test_a_change_of_several_things_that_fails_changes_none_of_them(play: Play) -> None:
    async def scene(api: Api) -> None:
        await golden(api)
        before = await api.get("/luns")
        body = {"path": "/vol/vol0/new", "comment": "new", "online": False, "size_bytes": 1 << 60}
        assert (await api.refused("PATCH", "/luns/vol0/lun0", body)).name == "invalid-size"
        assert await api.get("/luns") == before

    play(scene)


@pytest.mark.workers
def test_an_offline_lun_may_get_another_serial(play: Play) -> None:
    async def scene(api: Api) -> None:
        await api.volume()
        await api.lun()
        await api.call("PATCH", "/luns/vol0/lun0", {"online": False})
        changed = await api.call("PATCH", "/luns/vol0/lun0", {"serial": "ABC-123", "online": True})
        assert (changed["serial"], changed["online"]) == ("ABC-123", True)

    play(scene)


def test_data_of_a_lun_a_host_uses_is_not_overwritten(play: Play) -> None:
    async def scene(api: Api) -> None:
        await api.volume()
        await api.lun()
        await api.igroup()
        await api.post("/maps", {"path": "/vol/vol0/lun0", "igroup": "hosts"})
        target = (await api.get("/luns/vol0/lun0"))["target"]
        nexus = api.daemon.directory.open_nexus(HOST, b"\x40\x00\x01\x00\x00\x00", target, 1)
        answer = await api.http.put("/v1/data/vol0/lun0", content=bytes(512))
        assert answer.json()["error"] == "lun-in-use"
        nexus.close()
        assert (await api.http.put("/v1/data/vol0/lun0", content=bytes(512))).status_code == 204

    play(scene)


def test_what_hosts_are_shown_lasts_until_the_lun_is_gone(play: Play) -> None:
    async def set_all(api: Api) -> None:
        await api.volume()
        await api.lun()
        changed = await api.call("PATCH", "/luns/vol0/lun0", dict.fromkeys(SWITCHES, True))
        assert all(changed[name] is True for name in SWITCHES)

    async def look(api: Api) -> None:
        found = await api.get("/luns/vol0/lun0")
        assert all(found[name] is True for name in SWITCHES)
        (unit,) = api.core.served["vol0"].luns.values()
        assert unit.medium.removable
        assert unit.write_protected
        assert not unit.thin
        assert unit.physical_block_bytes == 512
        await api.call("PATCH", "/luns/vol0/lun0", {"write_protected": False})
        assert not unit.write_protected
        await api.call("DELETE", "/luns/vol0/lun0")
        assert not api.core.state.lun_values

    play(set_all, look)
