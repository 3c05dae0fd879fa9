"""A front with workers as real processes, and hosts that log in to their volumes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from target.workers.channel import Channel, Received, pair
from target.workers.front import Worker
from tests.support.initiator import Initiator, Outcome
from tests.support.lund import wait_until
from tests.support.served_portal import SocketLink
from tests.target.cli.conftest import DaemonProcess, Lun

LIMIT_S = 120.0
BLOCK = 512
TEST_UNIT_READY = bytes(6)


class Front(Lun):
    """`lun`, and what else there is to know of the processes."""

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.json("iscsi", "portal", "show")[0]["address"].rpartition(":")
        return host, int(port)

    def http(self, method: str, url: str, body: str = "") -> httpx.Response:
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(self.daemon.socket)), timeout=LIMIT_S) as client:
            headers = {"content-type": "application/json"} if body else {}
            return client.request(method, f"http://lund{url}", content=body, headers=headers)

    def events(self, kind: str, subject: str = "") -> list[dict[str, Any]]:
        found = self("--json", "events").splitlines()
        return [e for e in map(json.loads, found) if e["kind"] == kind and subject in ("", e["subject"])]

    def pid(self, volume: str) -> int:
        return int(self.events("volume.worker.started", volume)[-1]["data"]["pid"])

    def kill(self, volume: str) -> int:
        pid = self.pid(volume)
        os.kill(pid, signal.SIGKILL)
        return pid

    def add(self, volume: str, lun: str = "lun0") -> None:
        self("vol", "create", volume, "-s", "64m")
        self("create", "-s", "8m", f"/vol/{volume}/{lun}")
        if not self.json("igroup", "show"):
            self("igroup", "create", "hosts", "*")
        self("map", f"/vol/{volume}/{lun}", "hosts")

    def way_to(self, volume: str) -> tuple[tuple[str, int], str]:
        """A portal and the target's name."""
        return self.address, self.json("vol", "show", volume)["target"]

    def login(self, volume: str, *, isid: bytes = b"\x80\0\0\0\0\1") -> Initiator:
        return login(*self.way_to(volume), isid=isid)

    def state(self, volume: str) -> str:
        return str(self.json("vol", "show", volume)["state"])


def login(address: tuple[str, int], target: str, *, isid: bytes = b"\x80\0\0\0\0\1") -> Initiator:
    """A host's session, its first unit attention taken.  Raises OSError."""
    initiator = Initiator(SocketLink(address), target=target, isid=isid)
    reply = initiator.login()
    if reply.status_class:
        raise ConnectionError(f"status {reply.status_class}, {reply.status_detail}")
    assert initiator.command(TEST_UNIT_READY).sense_code == (6, 0x29, 0)
    return initiator


Launch = Callable[..., Front]


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Launch]:
    """Starts fronts, one after the other on the same state; the last one must end well."""
    config = tmp_path / "lund.toml"
    config.write_text('workers = "volumes"\n')
    started: list[DaemonProcess] = []

    def start(**more: str) -> Front:
        started.append(DaemonProcess(tmp_path / "state", "--config", str(config), **more))
        return Front(started[-1])

    yield start
    assert started[-1].stop() == 0
    assert left_over(tmp_path / "state") == []


async def deaf(*program: str) -> tuple[Worker, socket.socket]:
    """A worker whose process takes nothing; without a program it has ended."""
    ours, theirs = pair()
    process = await asyncio.create_subprocess_exec(*program or ("true",))
    if not program:
        await process.wait()

    async def nothing(received: Received) -> None:
        raise AssertionError(received)

    return Worker("vol0", process, Channel(ours, nothing)), theirs


def left_over(directory: Path) -> list[int]:
    """Processes that still hold a file of the state directory."""
    found = []
    for each in Path("/proc").iterdir():
        if not each.name.isdigit():
            continue
        try:
            if any(os.readlink(fd).startswith(f"{directory}/") for fd in (each / "fd").iterdir()):
                found.append(int(each.name))
        except OSError:
            continue
    return found


def good(outcome: Outcome) -> bytes:
    assert outcome.status == 0, outcome
    return outcome.data


def eventually(condition: Callable[[], bool], what: str) -> None:
    wait_until(condition, LIMIT_S, what)
