"""Clone jobs by the API: what each is asked for, what all obey together, and what of it survives a restart."""

from __future__ import annotations

import asyncio
import functools
from pathlib import Path
from typing import Any

import pytest

from target.management.clone_settings import CLONE, remembered
from target.management.lun_values import set_value
from target.scsi.cdbs import READ_10
from tests.target.management.conftest import HOST, MIB, Api, Play
from tests.target.management.test_access_api import ISID, attentions

SLOW = {"limit_bytes_s": 4096}
OPTIONS = ("limit_bytes_s", "priority", "full_speed", "policy")


async def litter(api: Api, *names: str, mebibytes: int = 2) -> None:
    """LUNs that read through a snapshot of golden."""
    await api.volume()
    await api.lun("/vol/vol0/golden", mebibytes * MIB, reserved=False)
    for offset in range(0, mebibytes * MIB, MIB):
        await api.http.put(f"/v1/data/vol0/golden?offset={offset}", content=b"g" * MIB)
    await api.post("/volumes/vol0/snapshots", {"name": "base"})
    for name in names:
        backing = {"path": "/vol/vol0/golden", "snapshot": "base"}
        await api.post("/luns", {"path": f"/vol/vol0/{name}", "backing": backing})


async def start(api: Api, name: str, **options: Any) -> Any:
    return await api.call("PUT", f"/clones/vol0/{name}", options)


async def change(api: Api, name: str, **options: Any) -> Any:
    return await api.call("PATCH", f"/clones/vol0/{name}", options)


async def ended(api: Api, name: str) -> Any:
    status = await api.get(f"/clones/vol0/{name}")
    await api.get(f"/operations/{status['operation']}/wait", timeout=60)
    return await api.get(f"/clones/vol0/{name}")


async def states(api: Api) -> dict[str, str]:
    """Once every request is durable and not more than one works."""
    while True:
        found = {each["path"].rpartition("/")[2]: each["state"] for each in await api.get("/clones")}
        if "created" not in found.values() and list(found.values()).count("running") <= 1:
            return found
        await asyncio.sleep(0.01)


@pytest.mark.workers
def test_what_a_job_is_asked_for_is_shown_changed_and_there_after_a_restart(play: Play) -> None:
    wanted = {"limit_bytes_s": 4096, "priority": "high", "full_speed": True, "policy": "ignore"}

    async def scene(api: Api) -> None:
        await litter(api, "copy")
        await api.call("PATCH", "/clone-settings", {"limit_bytes_s": 4096})  # so that it is not over before the stop
        shown = await start(api, "copy")
        assert {key: shown[key] for key in OPTIONS} == {
            "limit_bytes_s": None, "priority": "normal", "full_speed": False, "policy": "report"
        }  # fmt: skip
        await api.call("DELETE", "/clones/vol0/copy")
        await api.call("PATCH", "/clone-settings", {"limit_bytes_s": 0})
        await start(api, "copy", **SLOW)
        shown = await change(api, "copy", priority="high", full_speed=True, policy="ignore")
        assert {key: shown[key] for key in OPTIONS} == wanted

    async def after(api: Api) -> None:
        shown = await api.get("/clones/vol0/copy")
        assert {key: shown[key] for key in OPTIONS} == wanted
        assert shown["state"] in ("created", "running")
        assert (await change(api, "copy", limit_bytes_s=0))["limit_bytes_s"] is None
        assert (await ended(api, "copy"))["state"] == "completed"

    play(scene, after)


def test_the_limits_of_all_jobs_and_the_order_of_the_queue_are_there_after_a_restart(play: Play) -> None:
    async def scene(api: Api) -> None:
        await litter(api, "a", "b", "c", "d")
        assert await api.get("/clone-settings") == {"limit_bytes_s": None, "running": 8}
        settings = {"limit_bytes_s": 8192, "running": 1}
        assert await api.call("PATCH", "/clone-settings", settings) == settings
        for name in ("c", "a", "d", "b"):
            await start(api, name, priority="high" if name == "d" else "normal")
        assert await states(api) == {"a": "queued", "b": "queued", "c": "queued", "d": "running"}

    async def after(api: Api) -> None:
        assert await api.get("/clone-settings") == {"limit_bytes_s": 8192, "running": 1}
        assert await states(api) == {"a": "queued", "b": "queued", "c": "queued", "d": "running"}
        places = {each["path"][-1]: each["queue_place"] for each in await api.get("/clones")}
        assert places == {"a": 1, "b": 2, "c": 0, "d": None}
        assert await api.call("PATCH", "/clone-settings", {"limit_bytes_s": 0}) == {
            "limit_bytes_s": None, "running": 1
        }  # fmt: skip
        for name in "dcab":
            assert (await ended(api, name))["state"] == "completed"

    async def at_last(api: Api) -> None:
        assert await api.get("/clone-settings") == {"limit_bytes_s": None, "running": 1}
        finished = [each["path"][-1] for each in await api.get("/clones") if each["state"] == "completed"]
        assert finished == []

    play(scene, after, at_last)


def test_what_a_stopped_clone_was_asked_for_is_not_taken_up_again(play: Play) -> None:
    async def scene(api: Api) -> None:
        await litter(api, "copy")
        await start(api, "copy", **SLOW)
        assert (await api.call("DELETE", "/clones/vol0/copy"))["state"] == "stopped"

    async def after(api: Api) -> None:
        assert (await api.get("/clones/vol0/copy"))["state"] == "none"
        assert (await start(api, "copy"))["limit_bytes_s"] is None
        await ended(api, "copy")

    play(scene, after)


def test_a_clone_that_shares_says_so_and_is_remembered_so(play: Play) -> None:
    async def scene(api: Api) -> None:
        await litter(api, "copy", "other")
        await start(api, "copy", share=True)
        done = await ended(api, "copy")
        assert (done["state"], done["share"], done["copied_blocks"]) == ("completed", True, 0)
        assert done["shared_blocks"] == done["total_blocks"] > 0
        assert (await api.get("/volumes/vol0"))["shared_bytes"] == 4096  # one subtree
        await start(api, "other", share=True)
        assert remembered(api.core, api.core.find("/vol/vol0/other")[1])[0].share
        assert not remembered(api.core, api.core.find("/vol/vol0/golden")[1])[0].share

    play(scene)


def test_options_that_cannot_be_read_are_left_aside(play: Play) -> None:
    async def scene(api: Api) -> None:
        await litter(api, "copy")
        await start(api, "copy", **SLOW)
        uuid = (await api.get("/luns/vol0/copy"))["uuid"]
        await api.core.store.change(
            functools.partial(set_value, volume="vol0", uuid=uuid, name=CLONE, value=b'{"priority": "urgent"}')
        )

    async def after(api: Api) -> None:
        assert (await api.get("/clones/vol0/copy"))["priority"] == "normal"
        assert (await ended(api, "copy"))["state"] == "completed"

    play(scene, after)


def test_wrong_options_are_refused_and_change_nothing(play: Play) -> None:
    async def scene(api: Api) -> None:
        await litter(api, "copy")
        for wrong in (
            {"limit_bytes_s": 0}, {"limit_bytes_s": -1}, {"limit_bytes_s": 1 << 80}, {"priority": "urgent"},
            {"policy": "stop"}, {"full_speed": "very"}, {"speed": 1},
        ):  # fmt: skip
            assert (await api.refused("PUT", "/clones/vol0/copy", wrong)).name == "invalid-argument"
        for wrong in ({"running": 0}, {"running": 1001}, {"limit_bytes_s": -1}, {"jobs": 3}):
            assert (await api.refused("PATCH", "/clone-settings", wrong)).name == "invalid-argument"
        assert (await api.refused("PATCH", "/clones/vol0/copy", {"priority": "low"})).name == "not-cloning"
        assert (await api.refused("PATCH", "/clones/vol0/none", {"priority": "low"})).name == "no-such-lun"
        assert (await api.refused("PUT", "/clones/vol0/golden", {})).name == "not-backed"
        assert (await api.get("/clones/vol0/copy"))["state"] == "none"
        assert await api.get("/clone-settings") == {"limit_bytes_s": None, "running": 8}

    play(scene)


def test_a_clone_that_does_not_fit_is_refused_unless_it_is_forced(play: Play) -> None:
    async def scene(api: Api) -> None:
        await litter(api, "copy", mebibytes=8)
        await api.lun("/vol/vol0/filler", 64 * MIB, reserved=False)
        offset = 0
        while (await api.get("/volumes/vol0"))["free_bytes"] > 6 * MIB:
            await api.http.put(f"/v1/data/vol0/filler?offset={offset}", content=b"f" * MIB)
            offset += MIB
        assert (await api.refused("PUT", "/clones/vol0/copy", {})).name == "does-not-fit"
        assert not (await api.get("/clones/vol0/copy"))["requested"]
        assert (await start(api, "copy", force=True))["requested"]
        while (await api.get("/clones/vol0/copy"))["state"] != "paused":
            await asyncio.sleep(0.01)
        await api.call("DELETE", "/luns/vol0/filler")
        assert (await ended(api, "copy"))["state"] == "completed"

    play(scene)


def test_who_holds_the_backing_snapshot_is_shown(play: Play) -> None:
    async def scene(api: Api) -> None:
        await litter(api, "a", "b")
        await api.post("/volumes/vol0/snapshots", {"name": "later"})
        holders = ["/vol/vol0/a", "/vol/vol0/b", "/vol/vol0/.snapshot/later"]
        for shown in (*await api.get("/clones"), await api.get("/clones/vol0/a")):
            assert sorted(shown["holders"]) == sorted(holders)

    play(scene)


def test_a_clone_goes_on_while_its_lun_is_offline_or_unmapped(play: Play) -> None:
    async def scene(api: Api) -> None:
        await litter(api, "copy")
        await api.igroup()
        await api.post("/maps", {"path": "/vol/vol0/copy", "igroup": "hosts"})
        await start(api, "copy", **SLOW)
        await api.call("DELETE", "/maps", path="/vol/vol0/copy", igroup="hosts")
        await api.call("PATCH", "/luns/vol0/copy", {"online": False})
        await change(api, "copy", limit_bytes_s=0)
        assert (await ended(api, "copy"))["state"] == "completed"
        assert (await api.get("/luns/vol0/copy"))["backing"] is None

    play(scene)


def test_a_daemon_that_takes_a_volume_over_goes_on_with_its_clones(play: Play, tmp_path: Path) -> None:
    """What was asked for is in the volume; with which limit, only the first daemon knew.  So is a stop."""

    async def first(api: Api) -> None:
        await litter(api, "copy", "stopped")
        for name in ("copy", "stopped"):
            await start(api, name, **SLOW)
        await api.call("DELETE", "/clones/vol0/stopped")

    async def second(api: Api) -> None:
        assert await api.get("/volumes") == []
        await api.post("/volumes", {"name": "vol0", "path": str(state / "volumes" / "vol0.img"), "adopt": True})
        assert (await ended(api, "copy"))["state"] == "completed"
        assert "lun.clone.restarted" in [event.kind for event in api.core.events.since(0)]
        left = await api.get("/clones/vol0/stopped")
        assert (left["state"], left["requested"]) == ("none", False)

    state = tmp_path / "state"
    play(first)
    (state / "admin.db").unlink()
    play(second)


def test_commands_of_hosts_are_what_makes_clones_give_way(play: Play) -> None:
    async def scene(api: Api) -> None:
        await litter(api, "copy")
        await api.igroup()
        await api.post("/maps", {"path": "/vol/vol0/golden", "igroup": "hosts"})
        nexus = api.daemon.directory.open_nexus(HOST, ISID, api.core.target_name("vol0"), 1)
        attentions(nexus)
        watch = api.core.clones._shared.guests
        now = watch._clock() + 1
        watch._clock = lambda: now  # type: ignore[assignment]
        assert watch.commands_s() == 0
        cdb = memoryview(READ_10.struct.pack(READ_10.opcode, 0, 0, 8, 0))
        for _ in range(100):
            assert nexus.fast_read(0, cdb, 0, 4096, memoryview(bytearray(4096))) == 4096
        now += 1
        assert 90 < watch.commands_s() < 110
        now += 1
        assert watch.commands_s() == 0

    play(scene)


def test_a_clone_names_no_operation_that_is_forgotten_and_dead_luns_leave_none(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("target.management.operations.FINISHED_KEPT", 2)

    async def scene(api: Api) -> None:
        await litter(api, "first", *(f"copy{number}" for number in range(6)), mebibytes=1)
        await start(api, "first")
        await ended(api, "first")
        for number in range(6):
            await start(api, f"copy{number}")
            await ended(api, f"copy{number}")
            await api.call("DELETE", f"/luns/vol0/copy{number}")
        shown = await api.get("/clones/vol0/first")
        assert (shown["state"], shown["operation"]) == ("completed", None)
        assert len(api.daemon.services.clones._operations) <= 3

    play(scene)
