"""Families of LUNs through the API: layouts, trees, estimates."""

from __future__ import annotations

import asyncio

import pytest

from tests.target.management.conftest import MIB, Api, Play

COPY = "/vol/vol0/copy"


async def golden(api: Api, copies: int = 1) -> None:
    """lun0 with 64 KiB of data in snapshot base, and LUNs that read through it."""
    await api.volume()
    await api.lun()
    assert (await api.http.put("/v1/data/vol0/lun0?offset=4096", content=b"\x5a" * 65536)).status_code == 204
    await api.post("/volumes/vol0/snapshots", {"name": "base"})
    for number in range(copies):
        path = COPY + (str(number) if number else "")
        await api.post("/luns", {"path": path, "backing": {"path": "/vol/vol0/.snapshot/base/lun0"}})


def test_a_layout_has_as_many_stretches_as_are_asked_for_and_sums_of_them(play: Play) -> None:
    async def scene(api: Api) -> None:
        await golden(api)
        await api.http.put("/v1/data/vol0/copy?offset=8192", content=b"\xa5" * 4096)
        found = await api.get("/layouts/vol0/copy", stretches=2)
        assert [(s["offset"], s["length"], s["own_bytes"], s["backing_bytes"]) for s in found["stretches"]] == [
            (0, MIB // 2, 4096, 61440),
            (MIB // 2, MIB // 2, 0, 0),
        ]
        assert (found["own_bytes"], found["backing_bytes"], found["zero_bytes"]) == (4096, 61440, MIB - 65536)
        assert found["exact"]
        assert found["backing"] == "/vol/vol0/.snapshot/base/lun0"
        # no more than there are blocks
        assert len((await api.get("/layouts/vol0/copy", stretches=4096))["stretches"]) == 256

    play(scene)


@pytest.mark.parametrize(
    ("url", "stretches", "error"),
    [
        ("/layouts/vol0/none", 1, "no-such-lun"),
        ("/layouts/none/copy", 1, "no-such-volume"),
        ("/layouts/vol0/.snapshot/base/lun0", 1, "invalid-path"),
        ("/layouts/vol0/copy", 0, "invalid-argument"),
        ("/layouts/vol0/copy", 4097, "invalid-argument"),
        ("/layouts/vol0/copy", "x", "invalid-argument"),
    ],
)
def test_a_layout_is_refused(play: Play, url: str, stretches: int | str, error: str) -> None:
    async def scene(api: Api) -> None:
        await golden(api)
        assert (await api.refused("GET", url, stretches=stretches)).name == error

    play(scene)


def test_a_volume_that_goes_offline_ends_a_layout_that_is_being_made(play: Play) -> None:
    async def scene(api: Api) -> None:
        await api.volume()
        await api.lun(size_bytes=32 * MIB, reserved=False)
        for at in range(0, 32 * MIB, MIB):
            await api.http.put(f"/v1/data/vol0/lun0?offset={at}", content=b"\x5a" * 4096)
        looking = asyncio.ensure_future(api.refused("GET", "/layouts/vol0/lun0"))
        unit = api.core.units["vol0"]
        while not api.daemon.services.layouts.busy:
            await asyncio.sleep(0)
        unit.closing = True
        try:
            assert (await looking).name == "volume-offline"
        finally:
            unit.closing = False

    play(scene)


def test_a_tree_says_what_frees_each_snapshot(play: Play) -> None:
    async def scene(api: Api) -> None:
        await golden(api, copies=2)
        await api.post("/volumes/vol0/snapshots", {"name": "later"})
        await api.post("/luns", {"path": "/vol/vol0/third", "backing": {"path": "/vol/vol0/.snapshot/later/copy"}})
        await api.call("DELETE", "/luns/vol0/copy")
        await api.post("/volumes/vol0/snapshots", {"name": "last"})
        base, later, last = await api.get("/volumes/vol0/families")
        assert [(d["path"], d["kind"], d["snapshot"], d["missing_bytes"]) for d in base["dependents"]] == [
            ("/vol/vol0/copy1", "lun", None, 65536),
            ("/vol/vol0/.snapshot/later", "snapshot", "later", 0),
            ("/vol/vol0/.snapshot/last", "snapshot", "last", 0),
        ]
        assert [(d["luns"], d["derived"]) for d in base["dependents"][1:]] == [(2, ["/vol/vol0/third"]), (1, [])]
        assert base["clones_needed"] == ["/vol/vol0/copy1", "/vol/vol0/third"]
        assert base["snapshots_in_the_way"] == ["later", "last"]
        assert base["missing_bytes"] == 2 * 65536
        assert (later["clones_needed"], later["snapshots_in_the_way"]) == (["/vol/vol0/third"], ["last"])
        assert later["dependents"][0]["backing"] == "/vol/vol0/.snapshot/later/copy"
        assert (last["dependents"], last["clones_needed"], last["missing_bytes"]) == ([], [], 0)
        # and it is true: exactly that frees the base
        for path in base["clones_needed"]:
            started = await api.call("PUT", f"/clones/{path.removeprefix('/vol/')}", {})
            await api.get(f"/operations/{started['operation']}/wait", timeout=60)
        for name in reversed(base["snapshots_in_the_way"]):
            await api.call("DELETE", f"/volumes/vol0/snapshots/{name}")
        await api.call("DELETE", "/volumes/vol0/snapshots/base")

    play(scene)


def test_an_estimate_of_a_lun_without_a_backing_is_refused(play: Play) -> None:
    async def scene(api: Api) -> None:
        await golden(api)
        assert (await api.get("/estimates/vol0/copy"))["missing_blocks"] == 16
        assert (await api.refused("GET", "/estimates/vol0/lun0")).name == "not-backed"
        assert (await api.refused("GET", "/estimates/vol0/none")).name == "no-such-lun"
        assert (await api.refused("GET", "/volumes/none/families")).name == "no-such-volume"

    play(scene)


def test_metrics_count_jobs_by_state_and_what_they_copied(play: Play) -> None:
    async def scene(api: Api) -> None:
        await golden(api, copies=2)
        api.core.clones.set_overall_limit(1)
        await api.call("PUT", "/volumes/vol0/snapshots/base/departure")
        page = (await api.http.get("/metrics")).text
        assert 'lund_snapshots_leaving{volume="vol0"} 1.0' in page
        assert 'lund_clone_jobs{state="completed"} 0.0' in page
        api.core.clones.set_overall_limit(None)
        for copy in ("copy", "copy1"):
            status = await api.get(f"/clones/vol0/{copy}")
            await api.get(f"/operations/{status['operation']}/wait", timeout=60)
        page = (await api.http.get("/metrics")).text
        assert 'lund_clone_jobs{state="completed"} 2.0' in page
        assert 'lund_clone_jobs{state="running"} 0.0' in page
        for name in ("copied_bytes", "total_bytes"):
            assert f'lund_clone_{name}{{lun="{COPY}",state="completed"}} 65536.0' in page
        assert 'lund_clone_rate_bytes_per_second{lun="/vol/vol0/copy1"' in page

    play(scene)


def test_the_list_of_clones_does_not_name_a_hundred_holders_a_hundred_times(play: Play) -> None:
    async def scene(api: Api) -> None:
        await golden(api)
        backing = {"path": "/vol/vol0/.snapshot/base/lun0"}
        await api.post("/rollouts", {"pattern": "/vol/vol0/vm%d", "count": 99, "backing": backing, "reserved": False})
        for name in ("s1", "s2"):
            await api.post("/volumes/vol0/snapshots", {"name": name})
        listed = await api.get("/clones")
        assert len(listed) == 100
        assert {(len(each["holders"]), each["holder_count"]) for each in listed} == {(8, 102)}
        one = await api.get("/clones/vol0/copy")
        assert (len(one["holders"]), one["holder_count"]) == (102, 102)
        assert one["holders"][-2:] == ["/vol/vol0/.snapshot/s1", "/vol/vol0/.snapshot/s2"]

    play(scene)
