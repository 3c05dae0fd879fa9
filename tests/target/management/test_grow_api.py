"""A volume grows through the API while hosts use it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.target.management.conftest import HOST, MIB, Api, Play


def test_a_volume_grows_under_its_hosts_sessions(play: Play) -> None:
    async def scene(api: Api) -> None:
        await api.volume(size_bytes=16 * MIB)
        await api.lun(size_bytes=64 * MIB, reserved=False)
        await api.igroup()
        await api.post("/maps", {"path": "/vol/vol0/lun0", "igroup": "hosts"})
        nexus = api.daemon.directory.open_nexus(HOST, b"\x40\x00\x01\x00\x00\x00", api.core.target_name("vol0"), 1)
        (seen,) = nexus.itls.values()  # type: ignore[attr-defined]
        seen.take_attention()
        unit = api.core.units["vol0"]
        unit.volume.lun("lun0").write(0, b"x" * MIB)

        grown = await api.call("PATCH", "/volumes/vol0", {"size_bytes": 128 * MIB})
        assert grown["size_bytes"] == 128 * MIB
        assert grown["free_bytes"] > 100 * MIB
        unit.volume.lun("lun0").write(0, b"y" * 48 * MIB)

        assert seen.attentions == []  # nothing that a host can see has changed
        assert list(api.core.served["vol0"].device.nexuses) == [nexus]
        (event,) = [each for each in api.core.events.since(0) if each.kind == "volume.grown"]
        assert event.data == {"size_bytes": 128 * MIB, "before_bytes": 16 * MIB}
        nexus.close()

    async def after_a_restart(api: Api) -> None:
        assert (await api.get("/volumes/vol0"))["size_bytes"] == 128 * MIB

    play(scene, after_a_restart)


@pytest.mark.parametrize("size", [8 * MIB, 16 * MIB, 16 * MIB + 4096, 1 << 60], ids=str)
def test_a_size_that_is_not_larger_or_too_large_is_refused(play: Play, tmp_path: Path, size: int) -> None:
    async def scene(api: Api) -> None:
        await api.volume(size_bytes=16 * MIB)
        before = await api.get("/volumes/vol0")
        refusal = await api.refused("PATCH", "/volumes/vol0", {"size_bytes": size})
        assert (refusal.name, refusal.status) == ("invalid-size", 400)
        after = await api.get("/volumes/vol0")
        assert {**after, "generation": 0} == {**before, "generation": 0}
        assert Path(before["path"]).stat().st_size == 16 * MIB

    play(scene)


def test_an_offline_volume_does_not_grow(play: Play) -> None:
    async def scene(api: Api) -> None:
        await api.volume()
        await api.call("PATCH", "/volumes/vol0", {"online": False})
        assert (await api.refused("PATCH", "/volumes/vol0", {"size_bytes": 128 * MIB})).name == "volume-offline"

    play(scene)
