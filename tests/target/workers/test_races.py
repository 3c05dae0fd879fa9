"""What happens to volumes, requests and settings at the wrong moment."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import threading
from functools import partial
from pathlib import Path

import pytest

from target.management.store import set_setting
from target.workers import channel as channel_module
from target.workers.channel import Channel, Received, pair
from target.workers.front import HOSTS_WAITING, Worker, Workers
from target.workers.settings import SharedStore
from tests.target.workers.conftest import BLOCK, Front, Launch, eventually, good


def workers_of(front: Front) -> list[int]:
    """Processes whose parent is the front."""
    found = []
    for each in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(each.read_text().rpartition(")")[2].split()[1]) == front.daemon.process.pid:
                found.append(int(each.parent.name))
    return found


def raw_status(front: Front, request: str) -> int:
    """Of a request whose address nobody tidies up on the way."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as link:
        link.settimeout(60)
        link.connect(str(front.daemon.socket))
        link.sendall(f"{request} HTTP/1.1\r\nHost: lund\r\nConnection: close\r\n\r\n".encode("latin-1"))
        return int(link.makefile("rb").readline().split()[1])


@pytest.mark.timeout(400)
def test_a_worker_that_dies_while_it_starts_is_started_again(launch: Launch) -> None:
    front = launch()
    front.add("vol0")
    good(front.login("vol0").write(3, b"3" * BLOCK))
    first = front.kill("vol0")
    second: list[int] = []
    eventually(lambda: bool(second.extend(set(workers_of(front)) - {first}) or second), "it is started again")
    os.kill(second[0], signal.SIGKILL)
    eventually(lambda: len(front.events("volume.worker.died", "vol0")) == 2, "both deaths are told")
    eventually(lambda: front.state("vol0") == "online", "the third serves")
    assert good(front.login("vol0").read(3, 1)) == b"3" * BLOCK


@pytest.mark.timeout(400)
def test_a_volume_made_while_one_of_its_name_is_being_destroyed_is_served(launch: Launch) -> None:
    front = launch()
    front.add("vol0")
    sessions = [front.login("vol0")]
    destroyed = threading.Thread(target=front.http, args=("DELETE", "/v1/volumes/vol0?force=true"))
    destroyed.start()
    eventually(lambda: front.run("vol", "create", "vol0", "-s", "64m").exit_code == 0, "the name is free")
    destroyed.join()
    assert front.state("vol0") == "online"
    front("create", "-s", "8m", "/vol/vol0/lun1")
    assert not front.events("volume.worker.died")
    sessions.clear()


@pytest.mark.timeout(400)
def test_a_request_means_the_same_to_the_front_and_to_the_worker(launch: Launch) -> None:
    front = launch()
    front.add("vol0")
    front.add("vol1")
    for other in ("volumes/vol0/x/../../vol1", "volumes/vol0/x/../../vol0", "luns/vol0/lun0/../../vol1/lun0"):
        assert raw_status(front, f"DELETE /v1/{other}?force=true") == 404
    assert raw_status(front, "DELETE /v1/luns/vol0/lun0#x?force=true") == 404
    assert raw_status(front, "GET /v1/luns/vol0/%01") == 404
    assert raw_status(front, "GET /v1/luns/vol0/%6cun0") == 200
    assert raw_status(front, "GET /metrics?%ff") == 200
    assert [each["state"] for each in front.json("vol", "show")] == ["online", "online"]
    assert len(front.json("show")) == 2


async def deaf() -> tuple[Worker, socket.socket]:
    """A worker whose process takes nothing."""
    ours, theirs = pair()
    process = await asyncio.create_subprocess_exec("true")
    await process.wait()

    async def nothing(received: Received) -> None:
        raise AssertionError(received)

    return Worker("vol0", process, Channel(ours, nothing)), theirs


def test_hosts_of_a_worker_that_takes_nothing_do_not_use_up_the_front_s_descriptors() -> None:
    async def scene() -> None:
        worker, theirs = await deaf()
        host, other = socket.socketpair()
        before = len(os.listdir("/proc/self/fd"))
        with contextlib.suppress(ConnectionAbortedError):
            for _ in range(3000):
                worker.take(host, ("::1", 3260), 1)
        assert len(os.listdir("/proc/self/fd")) - before <= HOSTS_WAITING
        for each in (theirs, host, other):
            each.close()
        worker.channel.close()

    asyncio.run(scene())


def test_a_worker_that_cannot_be_told_the_settings_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would go on with the old ones."""
    monkeypatch.setattr(channel_module, "QUEUE_LIMIT", 2)

    async def scene() -> None:
        store = SharedStore(tmp_path / "admin.db")
        store.open()
        workers = Workers(store)
        worker, theirs = await deaf()
        worker.silent = True  # so that nobody waits for it
        workers._all["vol0"] = worker
        number = 0
        while not worker.channel.closed.done():
            number += 1
            await store.change(partial(set_setting, name="x", value=str(number)))
            assert number < 10_000
        theirs.close()
        store.close()

    asyncio.run(scene())
