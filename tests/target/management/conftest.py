"""A management of real parts: SQLite, a real volume on a file, the API in the test's own loop.

The volume is checked after every test that made one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

import wafl
from target.config import Config
from target.daemon import Daemon
from target.management.names import PortalAddress

GIB, MIB = 1 << 30, 1 << 20
HOST = "iqn.2000-01.com.example:host1"


class Refusal(Exception):
    def __init__(self, status: int, body: dict[str, Any]) -> None:
        super().__init__(f"{status} {body}")
        self.status = status
        self.body = body
        self.name: str = body["error"]


class Api:
    """The API without a socket in between, and the daemon behind it."""

    def __init__(self, daemon: Daemon, http: httpx.AsyncClient) -> None:
        self.daemon = daemon
        self.core = daemon.core
        self.http = http

    async def call(self, method: str, url: str, body: Any = None, **params: Any) -> Any:
        answer = await self.http.request(method, f"/v1{url}", json=body, params=params)
        if answer.status_code >= 400:
            raise Refusal(answer.status_code, answer.json())
        return answer.json() if answer.content else None

    async def get(self, url: str, **params: Any) -> Any:
        return await self.call("GET", url, **params)

    async def post(self, url: str, body: Any = None) -> Any:
        return await self.call("POST", url, body or {})

    async def volume(self, name: str = "vol0", size_bytes: int = 64 * MIB) -> Any:
        return await self.post("/volumes", {"name": name, "size_bytes": size_bytes})

    async def lun(self, path: str = "/vol/vol0/lun0", size_bytes: int = MIB, **more: Any) -> Any:
        return await self.post("/luns", {"path": path, "size_bytes": size_bytes, **more})

    async def igroup(self, name: str = "hosts", *initiators: str) -> Any:
        return await self.post("/igroups", {"name": name, "initiators": list(initiators or (HOST,))})

    async def refused(self, method: str, url: str, body: Any = None, **params: Any) -> Refusal:
        with pytest.raises(Refusal) as caught:
            await self.call(method, url, body, **params)
        assert "\n" not in caught.value.body["message"]
        return caught.value


Scene = Callable[[Api], Awaitable[None]]
Play = Callable[..., None]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Tests marked `workers` run with a process for everything, and with one more for each volume."""
    if metafunc.definition.get_closest_marker("workers") is not None:
        metafunc.parametrize("workers", ["none", "volumes"])


@pytest.fixture
def workers() -> str:
    return "none"


@pytest.fixture
def play(tmp_path: Path, workers: str) -> Play:
    """Runs scenes, each with a daemon of its own start on the same state: a restart between them."""

    def run(*scenes: Scene) -> None:
        for scene in scenes:
            asyncio.run(_one(scene, tmp_path / "state", workers))
            for image in (tmp_path / "state" / "volumes").glob("*.img"):
                check(image)

    return run


async def _one(scene: Scene, directory: Path, workers: str) -> None:
    directory.mkdir(exist_ok=True)
    config = Config.model_validate({"workers": workers})
    daemon = Daemon(directory, [(PortalAddress("127.0.0.1", 0), 1)], directory / "lund.sock", config)
    try:
        await daemon.start()
        transport = httpx.ASGITransport(daemon.app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://lund") as http:
            await scene(Api(daemon, http))
    finally:
        await daemon.stop()


def transactions(api: Api) -> list[object]:
    """What is put into admin.db from now on, a transaction each."""
    made: list[object] = []
    transact = api.core.store._transact

    def counting(change: Any) -> Any:
        made.append(change)
        return transact(change)

    api.core.store._transact = counting  # type: ignore[method-assign]
    return made


def check(image: Path) -> None:
    device = wafl.FileDevice.open(image, read_only=True)
    try:
        assert [found for found in wafl.check(device) if found.severity > wafl.Severity.NOTE] == []
    finally:
        device.close()
