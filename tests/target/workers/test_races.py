"""What happens to volumes, requests and settings at the wrong moment."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from target.config import Config
from target.daemon import Daemon
from target.management.api import Receive, Scope, Send
from target.management.models import VolumeCreate
from target.management.names import PortalAddress
from target.management.refusal import Refused
from target.management.state import VolumeRecord
from target.management.store import set_setting
from target.stack import DESCRIPTORS, OTHER_DESCRIPTORS
from target.workers import channel as channel_module
from target.workers import front as front_module
from target.workers import process
from target.workers.asgi import body_once, whole_answer
from target.workers.channel import Channel, ChannelClosed, pair
from target.workers.front import HOSTS_WAITING, Worker, Workers
from target.workers.messages import Ping, SettingsNow
from target.workers.settings import SharedStore
from tests.target.cli.conftest import environment
from tests.target.workers.conftest import BLOCK, Front, Launch, deaf, eventually, good


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
    # Said twice, the last one counts, for both.
    twice = front.http("GET", "/v1/luns?volume=vol0&volume=vol1")
    assert [each["path"] for each in twice.json()] == ["/vol/vol1/lun0"]
    unmapped = "/v1/maps?path=/vol/vol0/lun0&path=/vol/vol1/lun0&igroup=hosts"
    assert front.http("DELETE", unmapped).status_code < 300
    assert [each["path"] for each in front.json("igroup", "show")[0]["maps"]] == ["/vol/vol0/lun0"]


@pytest.mark.timeout(400)
def test_two_volumes_that_are_given_the_same_serial_number_at_once_do_not_both_get_it(launch: Launch) -> None:
    front = launch()
    for volume in ("vol0", "vol1"):
        front.add(volume)
        front("offline", f"/vol/{volume}/lun0")
    for number in range(10):
        wanted = json.dumps({"serial": f"SAME-{number}"})
        with ThreadPoolExecutor(2) as threads:
            given = threads.map(
                lambda volume: front.http("PATCH", f"/v1/luns/{volume}/lun0", wanted).status_code,  # noqa: B023
                ("vol0", "vol1"),
            )
            assert sorted(given) == [200, 409]
        assert len({each["serial"] for each in front.json("show")}) == 2


@pytest.mark.timeout(400)
def test_front_and_workers_have_descriptors_for_all_their_hosts_if_the_machine_allows_it(launch: Launch) -> None:
    front = launch(shell="ulimit -S -n 512")
    front.add("vol0")
    for pid in (front.daemon.process.pid, front.pid("vol0")):
        limit, most = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        assert limit == min(DESCRIPTORS, most) > 512


def test_connections_leave_descriptors_for_everything_else() -> None:
    asked = "from target.stack import portal_config; from target.config import Config; "
    asked += "print(portal_config(Config()).connections_max)"
    for limit, connections in ((300, 150), (1024, 512), (2048, 2048 - OTHER_DESCRIPTORS)):
        command = ["sh", "-c", f'ulimit -n {limit}; exec "$@"', "sh", sys.executable, "-c", asked]
        done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True)
        assert int(done.stdout) == connections


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


def test_a_worker_that_cannot_be_told_what_became_of_its_change_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would wait for the answer for ever, with the host that wants it."""
    monkeypatch.setattr(channel_module, "QUEUE_LIMIT", 2)

    async def scene() -> None:
        store = SharedStore(tmp_path / "admin.db")
        store.open()
        workers = Workers(store)
        worker, theirs = await deaf()
        with contextlib.suppress(Refused):
            while True:
                worker.channel.send(Ping())
        assert not worker.channel.closed.done()
        await workers._change(worker, 1, b"[]")
        assert worker.channel.closed.done()
        theirs.close()
        store.close()

    asyncio.run(scene())


def test_nobody_is_sent_to_a_worker_that_is_about_to_end(tmp_path: Path) -> None:
    async def scene() -> None:
        workers = Workers(SharedStore(tmp_path / "admin.db"))
        worker, theirs = await deaf()
        worker.ready = True
        workers._all["vol0"] = worker
        assert workers.of("vol0") is worker
        retired = asyncio.ensure_future(workers.retire("vol0"))
        await asyncio.sleep(0)
        assert workers.of("vol0") is None
        assert workers.serving == []
        assert not retired.done()
        worker.gone.set()
        await retired
        worker.channel.close()
        theirs.close()

    asyncio.run(scene())


def test_a_front_that_stops_does_not_wait_for_a_worker_that_is_being_started(tmp_path: Path) -> None:
    async def scene() -> None:
        workers = Workers(SharedStore(tmp_path / "admin.db"))
        worker, theirs = await deaf("sleep", "1000")
        workers._all["vol0"] = worker
        workers._run(workers._watch(worker))
        await workers.stop()
        assert worker.process.returncode == -signal.SIGKILL
        theirs.close()

    asyncio.run(scene())


def test_a_process_that_does_not_even_end_is_not_waited_for_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(front_module, "GONE_S", 0.01)

    async def scene() -> None:
        workers = Workers(SharedStore(tmp_path / "admin.db"))
        worker, theirs = await deaf("sleep", "1000")
        workers._all["vol0"] = worker
        with pytest.raises(Refused, match="worker-silent"):
            await workers.mount(VolumeRecord("vol0", "uuid", "/path", True, ""))
        worker.kill()
        await worker.process.wait()
        worker.channel.close()
        theirs.close()

    asyncio.run(scene())


@pytest.mark.timeout(400)
def test_a_front_that_stops_while_a_worker_is_being_started_leaves_none(tmp_path: Path) -> None:
    async def scene() -> None:
        config = Config.model_validate({"workers": "volumes"})
        daemon = Daemon(tmp_path, [(PortalAddress("127.0.0.1", 0), 1)], tmp_path / "lund.sock", config)
        await daemon.start()
        workers = daemon.workers
        assert workers is not None
        spawn, stops, spawned = workers._spawn, [], []

        async def late(volume: str) -> Worker:
            """The stop comes when the process is there and nobody knows it yet."""
            spawned.append(await spawn(volume))
            stops.append(asyncio.ensure_future(workers.stop()))
            while not workers._stopping:
                await asyncio.sleep(0)
            return spawned[-1]

        workers._spawn = late  # type: ignore[method-assign]
        with pytest.raises(Refused, match="shutting-down"):
            await daemon.services.volumes.create(VolumeCreate(name="vol0", size_bytes=64 << 20))
        await asyncio.gather(*stops)
        assert [each.process.returncode for each in spawned] == [0]
        await daemon.stop()

    asyncio.run(scene())


async def starlette_s_way(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 500, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": b"sorry"})
    raise LookupError


async def without_a_word(scope: Scope, receive: Receive, send: Send) -> None:
    raise LookupError


def test_an_application_that_fails_has_answered_or_has_not() -> None:
    scope: Scope = {"type": "http"}
    answer = asyncio.run(whole_answer(starlette_s_way, scope, body_once(b"")))
    assert answer == (500, "text/plain", b"sorry")
    with pytest.raises(LookupError):
        asyncio.run(whole_answer(without_a_word, scope, body_once(b"")))


def test_settings_that_cannot_be_read_end_a_worker(caplog: pytest.LogCaptureFixture) -> None:
    """It would go on with the old ones."""

    async def scene() -> None:
        ours, theirs = pair()
        worker = process.Worker(theirs)
        front = Channel(ours, None)  # type: ignore[arg-type]
        with pytest.raises(ChannelClosed):
            await front.call(SettingsNow(), b"no database")
        await asyncio.wait_for(worker.live(), 60)
        front.close()

    asyncio.run(scene())
    assert "the settings cannot be read" in caplog.text
