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
