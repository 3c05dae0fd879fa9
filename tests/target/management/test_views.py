"""Each session has the map that its initiator has, whatever changed, and who is not concerned is not looked at."""

from __future__ import annotations

import contextlib
import random

import pytest

from target.iscsi.ports import Nexus
from target.management import serving
from target.nexus import Nexus as OpenNexus
from target.nexus import lun_field
from tests.target.management.conftest import MIB, Api, Play, Refusal
from tests.target.management.test_access_api import ISID, attentions

HOSTS = [f"iqn.2000-01.com.example:host{number}" for number in range(4)]
GROUPS = ["red", "green", "blue"]
LUNS = [f"/vol/vol0/lun{number}" for number in range(5)]
CHANGES = 120
READ = bytes((0x28, 0, 0, 0, 0, 0, 0, 0, 8, 0))


async def change(api: Api, dice: random.Random) -> None:
    """Something that may change what initiators see; much of it is refused."""
    group, lun, host = dice.choice(GROUPS), dice.choice(LUNS), dice.choice([*HOSTS, "*"])
    name = lun.rpartition("/")[2]
    steps = {
        lambda: api.post("/igroups", {"name": group, "initiators": [host]}): 4,
        lambda: api.post(f"/igroups/{group}/initiators", {"initiators": [host]}): 4,
        lambda: api.call("DELETE", f"/igroups/{group}/initiators/{host}", force=True): 2,
        lambda: api.call("DELETE", f"/igroups/{group}", force=True): 1,
        lambda: api.lun(lun): 4,
        lambda: api.call("DELETE", f"/luns/vol0/{name}", force=True): 2,
        lambda: api.post("/maps", {"path": lun, "igroup": group}): 8,
        lambda: api.post("/maps", {"path": lun, "igroup": group, "lun_id": dice.randrange(6)}): 4,
        lambda: api.call("DELETE", "/maps", path=lun, igroup=group): 2,
    }
    with contextlib.suppress(Refusal):
        await dice.choices(list(steps), list(steps.values()))[0]()


@pytest.mark.parametrize("seed", range(4))
def test_sessions_have_their_initiators_maps_after_every_change(play: Play, seed: int) -> None:
    async def scene(api: Api) -> None:
        dice = random.Random(seed)
        await api.volume()
        for lun in LUNS[:3]:
            await api.lun(lun)
        for group, host in zip(GROUPS, HOSTS, strict=False):
            await api.igroup(group, host)
        sessions = [serving.open_nexus(api.core, "vol0", host, ISID, 1) for host in HOSTS]
        seen = 0
        for _ in range(CHANGES):
            await change(api, dice)
            for host, nexus in zip(HOSTS, sessions, strict=True):
                assert isinstance(nexus, OpenNexus)
                wanted = serving.lun_map(api.core, "vol0", host)
                assert {itl.lun: itl.lu for itl in nexus.itls.values()} == wanted
                assert nexus.inventory() == sorted(map(lun_field, wanted))
                seen += len(wanted)
        assert seen > CHANGES, "the changes came to something"
        for nexus in sessions:
            nexus.close()

    play(scene)


def fast(nexus: Nexus, lun: int) -> bool:
    """A read goes past the router."""
    out = memoryview(bytearray(4096))
    return nexus.fast_read(lun_field(lun), memoryview(READ), 0, 4096, out) == 4096


def test_who_is_not_concerned_is_not_looked_at(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand LUNs in each of two hundred sessions are more than one loop should look at for a map of one host."""
    looked: list[str] = []
    set_map = OpenNexus.set_map

    def noted(nexus: OpenNexus, *words: object) -> bool:
        looked.append(nexus.initiator)
        return set_map(nexus, *words)  # type: ignore[arg-type]

    async def scene(api: Api) -> None:
        await api.volume()
        for group, host in zip(GROUPS, HOSTS, strict=False):
            await api.igroup(group, host)
        for lun in LUNS[:2]:
            await api.lun(lun, MIB)
            await api.post("/maps", {"path": lun, "igroup": "red"})
        red, green = (serving.open_nexus(api.core, "vol0", host, ISID, 1) for host in HOSTS[:2])
        for lun in range(2):
            assert attentions(red, lun) == [0x2900]
            assert fast(red, lun)
        monkeypatch.setattr(OpenNexus, "set_map", noted)
        await api.lun(LUNS[2], MIB)
        await api.post("/maps", {"path": LUNS[2], "igroup": "blue"})
        assert looked == []
        await api.post("/maps", {"path": LUNS[2], "igroup": "green"})
        assert looked == [HOSTS[1]]
        assert fast(red, 0)
        assert fast(red, 1)
        await api.call("DELETE", "/maps", path=LUNS[1], igroup="red")
        assert looked == HOSTS[1::-1]
        # Told before anything else is done.
        assert not fast(red, 0)
        assert not fast(red, 1)
        assert attentions(red) == [0x3F0E]
        assert fast(red, 0)
        await api.call("DELETE", "/luns/vol0/lun2", force=True)
        assert set(looked[2:]) == {HOSTS[1]}
        for nexus in (red, green):
            nexus.close()

    play(scene)


def test_names_of_mapped_luns_are_not_searched_for(play: Play) -> None:
    """A list of a thousand maps would go through a thousand LUNs a thousand times."""

    async def scene(api: Api) -> None:
        await api.volume()
        await api.igroup()
        for lun in LUNS:
            await api.lun(lun, MIB)
            await api.post("/maps", {"path": lun, "igroup": "hosts"})
        await api.call("PATCH", "/luns/vol0/lun0", {"path": "/vol/vol0/renamed"})
        volume = api.core.units["vol0"].volume
        volume.luns = None  # type: ignore[assignment,method-assign]
        paths = [LUNS[0].replace("lun0", "renamed"), *LUNS[1:]]
        assert [each["path"] for each in await api.get("/maps")] == paths
        assert [each["path"] for each in (await api.get("/igroups/hosts"))["maps"]] == paths
        del volume.luns  # type: ignore[attr-defined]

    play(scene)
