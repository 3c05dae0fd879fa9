"""A golden image rolled out: many LUNs and their maps, all or none, whatever stands in the way."""

from __future__ import annotations

from typing import Any

import pytest

from target.iscsi.ports import Nexus
from target.management.refusal import Refused
from tests.target.management.conftest import HOST, MIB, Api, Play, transactions
from tests.target.management.test_access_api import ISID, attentions

WANTED = {"pattern": "/vol/vol0/vm%03d", "count": 10, "backing": {"path": "/vol/vol0/lun0"}}
NAMED = {**WANTED, "backing": {"path": "/vol/vol0/.snapshot/base/lun0"}}


async def golden(api: Api) -> None:
    await api.volume()
    await api.lun(reserved=False, ostype="windows")
    assert (await api.http.put("/v1/data/vol0/lun0?offset=4096", content=b"\x5a" * 65536)).status_code == 204
    await api.post("/volumes/vol0/snapshots", {"name": "base"})
    await api.igroup()


async def state(api: Api) -> Any:
    """All that a refused rollout must leave as it was."""
    return (
        [lun["path"] for lun in await api.get("/luns")],
        [each["name"] for each in await api.get("/volumes/vol0/snapshots")],
        await api.get("/maps"),
    )


async def session(api: Api) -> Nexus:
    await api.post("/maps", {"path": "/vol/vol0/lun0", "igroup": "hosts"})
    nexus = api.daemon.directory.open_nexus(HOST, ISID, api.core.target_name("vol0"), 1)
    attentions(nexus)
    return nexus


@pytest.mark.workers
def test_they_share_one_snapshot_and_are_mapped(play: Play) -> None:
    async def scene(api: Api) -> None:
        await golden(api)
        await api.post("/maps", {"path": "/vol/vol0/lun0", "igroup": "hosts", "lun_id": 2})
        made = await api.post("/rollouts", {**WANTED, "first": 98, "igroup": "hosts", "comment": "rolled out"})
        assert [lun["path"] for lun in made] == [f"/vol/vol0/vm{number:03}" for number in range(98, 108)]
        assert [lun["maps"][0]["lun_id"] for lun in made] == [0, 1, 3, 4, 5, 6, 7, 8, 9, 10]
        assert {(lun["ostype"], lun["reserved"], lun["comment"]) for lun in made} == {("windows", False, "rolled out")}
        (snapshot,) = {lun["backing"]["snapshot"] for lun in made}
        assert {each["name"] for each in await api.get("/volumes/vol0/snapshots")} == {"base", snapshot}
        assert len({lun["serial"] for lun in made}) == 10
        assert made == (await api.get("/luns"))[1:]
        kinds = [event.kind for event in api.core.events.since(0)]
        assert (kinds.count("lun.created"), kinds.count("lun.mapped")) == (1 + 10, 1 + 10)
        answer = await api.http.get("/v1/data/vol0/vm100", params={"offset": 4096, "length": 4096})
        assert answer.content == b"\x5a" * 4096

    async def later(api: Api) -> None:
        assert len(await api.get("/luns")) == 11
        assert len(await api.get("/maps")) == 11

    play(scene, later)


def test_a_hundred_cost_what_one_costs(play: Play) -> None:
    """In consistency points and in transactions."""

    async def scene(api: Api) -> None:
        await golden(api)
        nexus = await session(api)
        changes = transactions(api)
        volume = api.core.units["vol0"].volume
        costs = []
        for count in (1, 100):
            await api.core.units["vol0"].service.commit()
            before = volume.generation
            changes.clear()
            body = {**NAMED, "pattern": f"/vol/vol0/of{count}_%d", "count": count, "igroup": "hosts"}
            await api.post("/rollouts", body)
            costs.append((volume.generation - before, len(changes)))
            assert attentions(nexus) == [0x3F0E]
        assert costs == [(1, 1), (1, 1)]
        before = volume.generation
        await api.post("/rollouts", {**WANTED, "count": 100})
        # that of the snapshot comes on top
        assert volume.generation - before == 2
        assert len(volume.luns()) == 202
        nexus.close()

    play(scene)


@pytest.mark.parametrize(
    ("changed", "error"),
    [
        ({"pattern": "/vol/vol0/vm"}, "invalid-argument"),
        ({"pattern": "/vol/vol0/vm%d%d"}, "invalid-argument"),
        ({"pattern": "/vol/vol0/vm%s"}, "invalid-argument"),
        ({"pattern": "/vol/vol0/vm%100d"}, "invalid-argument"),
        ({"pattern": "/vol/vol0/vm%0d"}, "invalid-argument"),
        ({"pattern": "/vol/vol0/vm%%"}, "invalid-argument"),
        ({"pattern": "/vol/vol%d/vm"}, "invalid-path"),
        ({"pattern": "vm%d"}, "invalid-path"),
        ({"pattern": "/vol/vol0/.snapshot/base/vm%d"}, "invalid-path"),
        ({"pattern": "/vol/vol0/lun%d", "first": 0}, "name-taken"),
        ({"pattern": "/vol/vol0/a//%d"}, "invalid-path"),
        ({"pattern": "/vol/vol0/lun0/%d"}, "name-taken"),
        ({"pattern": "/vol/none/vm%d"}, "no-such-volume"),
        ({"count": 0}, "invalid-argument"),
        ({"count": 251}, "invalid-argument"),
        ({"first": -1}, "invalid-argument"),
        ({"igroup": "nobody"}, "no-such-igroup"),
        ({"ostype": "dos"}, "invalid-argument"),
        ({"size_bytes": MIB}, "invalid-argument"),
        ({"reserved": True, "count": 200}, "no-space"),
        ({"backing": {"path": "/vol/vol0/.snapshot/no/lun0"}}, "no-such-snapshot"),
        ({"backing": {"path": "/vol/vol0/.snapshot/base/no"}}, "no-such-lun"),
        ({"backing": {"path": "/vol/vol0/no"}}, "no-such-lun"),
        ({"backing": {"path": "/vol/vol1/lun0"}}, "other-volume"),
    ],
)
def test_what_is_refused_leaves_no_lun_no_map_and_no_snapshot(play: Play, changed: dict[str, Any], error: str) -> None:
    async def scene(api: Api) -> None:
        await golden(api)
        before = await state(api)
        assert (await api.refused("POST", "/rollouts", {**WANTED, "igroup": "hosts", **changed})).name == error
        assert await state(api) == before

    play(scene)


def test_maps_that_cannot_be_made_take_the_luns_back(play: Play) -> None:
    async def scene(api: Api) -> None:
        await golden(api)
        nexus = await session(api)
        before = await state(api)

        async def broken(change: object) -> None:
            raise Refused("io-error", "the settings cannot be written")

        change = api.core.store.change
        api.core.store.change = broken  # type: ignore[assignment, method-assign]
        try:
            assert (await api.refused("POST", "/rollouts", {**WANTED, "igroup": "hosts"})).name == "io-error"
        finally:
            api.core.store.change = change  # type: ignore[method-assign]
        assert await state(api) == before
        assert attentions(nexus) == []
        assert not api.core.served["vol0"].luns.keys() - {(await api.get("/luns/vol0/lun0"))["uuid"]}
        nexus.close()
        assert len(await api.post("/rollouts", {**WANTED, "igroup": "hosts"})) == 10

    play(scene)


def test_ids_that_would_hide_a_lun_are_not_given(play: Play) -> None:
    async def scene(api: Api) -> None:
        await golden(api)
        await api.igroup("all", "*")
        await api.post("/maps", {"path": "/vol/vol0/lun0", "igroup": "all", "lun_id": 1})
        made = await api.post("/rollouts", {**WANTED, "count": 3, "igroup": "hosts"})
        assert [lun["maps"][0]["lun_id"] for lun in made] == [0, 2, 3]

    play(scene)


def test_a_refused_single_clone_leaves_no_snapshot_either(play: Play) -> None:
    async def scene(api: Api) -> None:
        await golden(api)
        before = await state(api)
        body = {"path": "/vol/vol0/bad//name", "backing": {"path": "/vol/vol0/lun0"}}
        await api.refused("POST", "/luns", body)
        body = {"path": "/vol/vol0/" + "x" * 300, "backing": {"path": "/vol/vol0/lun0"}}
        assert (await api.refused("POST", "/luns", body)).name == "invalid-name"
        assert await state(api) == before

    play(scene)


def test_a_volume_holds_so_many(play: Play) -> None:
    async def scene(api: Api) -> None:
        await golden(api)
        for first in (0, 250, 500):
            await api.post("/rollouts", {**NAMED, "first": first, "count": 250})
        before = await state(api)
        refusal = await api.refused("POST", "/rollouts", {**WANTED, "first": 750, "count": 250})
        assert (refusal.name, refusal.body["message"]) == (
            "limit-reached", "a volume holds 1000 LUNs, and has 751: no room for 250 more",
        )  # fmt: skip
        assert await state(api) == before
        await api.post("/rollouts", {**NAMED, "first": 750, "count": 249})

    play(scene)
