"""Space through the API: reservations, what is kept back, what snapshots hold."""

from __future__ import annotations

from tests.target.management.conftest import MIB, Api, Play


def test_a_lun_is_reserved_unless_it_is_told_otherwise(play: Play) -> None:
    async def scene(api: Api) -> None:
        await api.volume()
        kept = await api.lun("/vol/vol0/kept", 8 * MIB)
        thin = await api.lun("/vol/vol0/thin", 8 * MIB, reserved=False)
        assert (kept["reserved"], thin["reserved"]) == (True, False)
        assert 8 * MIB <= kept["kept_bytes"] < 9 * MIB
        assert thin["kept_bytes"] == 0
        volume = await api.get("/volumes/vol0")
        assert volume["kept_bytes"] == kept["kept_bytes"]
        assert volume["size_bytes"] == sum(volume[f"{part}_bytes"] for part in ("used", "free", "kept", "reserved"))
        assert volume["overcommitted_bytes"] == volume["shared_bytes"] == 0

    play(scene)


def test_a_lun_made_from_a_snapshot_is_what_its_parent_is(play: Play) -> None:
    async def scene(api: Api) -> None:
        await api.volume()
        await api.lun("/vol/vol0/kept", MIB)
        await api.lun("/vol/vol0/thin", MIB, reserved=False)
        await api.post("/volumes/vol0/snapshots", {"name": "s"})
        made = {}
        for name, parent, more in (("a", "kept", {}), ("b", "thin", {}), ("c", "kept", {"reserved": False})):
            body = {"path": f"/vol/vol0/{name}", "backing": {"path": f"/vol/vol0/.snapshot/s/{parent}"}, **more}
            made[name] = (await api.post("/luns", body))["reserved"]
        assert made == {"a": True, "b": False, "c": False}

    play(scene)


def test_what_does_not_fit_is_refused_with_one_line_that_says_what_is_missing(play: Play) -> None:
    async def scene(api: Api) -> None:
        await api.volume()
        refused = await api.refused("POST", "/luns", {"path": "/vol/vol0/big", "size_bytes": 1024 * MIB})
        assert (refused.status, refused.body["error"]) == (507, "no-space")
        assert "MiB more than there is" in refused.body["message"]
        assert "-o noreserve" in refused.body["message"]
        await api.lun("/vol/vol0/big", 1024 * MIB, reserved=False)
        refused = await api.refused("PATCH", "/luns/vol0/big", {"reserved": True})
        assert refused.body["error"] == "no-space"
        assert (await api.get("/luns/vol0/big"))["reserved"] is False
        await api.call("PATCH", "/luns/vol0/big", {"size_bytes": MIB, "force": True})
        assert (await api.call("PATCH", "/luns/vol0/big", {"reserved": True}))["kept_bytes"] > MIB

    play(scene)


def test_what_snapshots_hold_is_shown_alone_and_together(play: Play) -> None:
    async def scene(api: Api) -> None:
        await api.volume()
        await api.lun(size_bytes=8 * MIB, reserved=False)
        lun = api.core.units["vol0"].volume.lun("lun0")
        lun.write(0, b"x" * 2 * MIB)
        for name in ("s1", "s2"):
            await api.post("/volumes/vol0/snapshots", {"name": name})
        lun.write(0, b"y" * 2 * MIB)
        plain = await api.get("/volumes/vol0/snapshots")
        assert [each["reclaimable_bytes"] for each in plain] == [None, None]
        shown = await api.get("/volumes/vol0/snapshots", space=True)
        assert [each["name"] for each in shown] == ["s1", "s2"]
        for each in shown:
            alone = await api.get(f"/volumes/vol0/snapshots/{each['name']}")
            assert alone["reclaimable_bytes"] == each["reclaimable_bytes"] < MIB
            assert alone["referenced_bytes"] == each["referenced_bytes"] > 2 * MIB
        together = await api.get("/volumes/vol0/reclaimable", snapshot=["s1", "s2"])
        assert together["reclaimable_bytes"] > 2 * MIB
        refused = await api.refused("GET", "/volumes/vol0/reclaimable", snapshot=["s1", "never"])
        assert refused.body["error"] == "no-such-snapshot"

    play(scene)
