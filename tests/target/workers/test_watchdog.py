"""A worker that hangs: found out, killed, and started again; one that does not is left alone."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from target.workers.channel import Channel, ChannelClosed, Received, pair
from target.workers.messages import Answer
from target.workers.watchdog import DEATHS, DEATHS_WITHIN_S, HUNG_S, LOOK_S, LOOKS, LOOKS_AT_START, Deaths, until_hung
from tests.support.lund import wait_until
from tests.target.workers.conftest import BLOCK, Launch, eventually, good
from tests.target.workers.test_processes import Writer

SHORT_S = 0.001
FOUND_OUT_LIMIT_S = 400.0
HANGS = """
import pathlib, signal, time
def hang(*_):
    pathlib.Path({marker!r}).touch()
    while True:
        time.sleep(1)
signal.signal(signal.SIGUSR1, hang)
"""
"""Python runs handlers between two steps of the main thread: that is the loop's, and it gets no further."""


@pytest.mark.timeout(600)
def test_a_hung_worker_is_killed_and_its_volume_is_served_by_another(launch: Launch, tmp_path: Path) -> None:
    marker = tmp_path / "hangs"
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "sitecustomize.py").write_text(HANGS.format(marker=str(marker)))
    root = Path(__file__).resolve().parents[3]
    front = launch(PYTHONPATH=f"{tmp_path / 'path'}:{root}")
    for volume in ("vol0", "vol1"):
        front.add(volume)
    other = Writer(front, "vol1")
    good(front.login("vol0").write(1, b"1" * BLOCK))
    hung = front.pid("vol0")
    os.kill(hung, signal.SIGUSR1)
    eventually(marker.exists, "it hangs")
    assert "worker-ended" in front.refused("show", "/vol/vol0/lun0")  # who asks now waits until it is found out
    wait_until(lambda: front.state("vol0") == "online", FOUND_OUT_LIMIT_S, "another process serves vol0")
    assert front.pid("vol0") != hung
    (told,) = front.events("volume.worker.hung")
    assert told["subject"] == "vol0"
    assert f"({hung}) has not answered" in told["message"]
    (died,) = front.events("volume.worker.died")
    assert "killed by signal 9" in died["message"]
    assert "sitecustomize.py" in front.daemon.log.read_text()
    assert good(front.login("vol0").read(1, 1)) == b"1" * BLOCK
    other.verify()
    assert other.logins == 1
    assert other.strange == []


async def _answers(channel: Channel, received: Received) -> None:
    channel.send(Answer(id=received.message.id))


async def _none(channel: Channel, received: Received) -> None:
    del channel, received


Scene = Callable[[Channel, Channel], Awaitable[None]]


def watched(scene: Scene, answer: Callable[[Channel, Received], Awaitable[None]]) -> None:
    async def main() -> None:
        ours, theirs = pair()
        there: Channel
        here = Channel(ours, lambda received: _none(here, received))
        there = Channel(theirs, lambda received: answer(there, received))
        try:
            await scene(here, there)
        finally:
            here.close()
            there.close()

    asyncio.run(main())


def test_who_never_answers_hangs() -> None:
    async def scene(here: Channel, there: Channel) -> None:
        await until_hung(here, SHORT_S)

    watched(scene, _none)


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Each time that is waited for something, and how long at most."""
    found: list[float] = []
    wait = asyncio.wait

    async def counted(*arguments: Any, **more: Any) -> Any:
        found.append(more["timeout"])
        return await wait(*arguments, **more)

    monkeypatch.setattr(asyncio, "wait", counted)
    return found


def test_who_answers_once_and_never_again_hangs(looks: list[float]) -> None:
    answered: list[int] = []

    async def once(channel: Channel, received: Received) -> None:
        if not answered:
            answered.append(received.message.id)
            looks.clear()
            await _answers(channel, received)

    async def scene(here: Channel, there: Channel) -> None:
        await until_hung(here, SHORT_S)

    watched(scene, once)
    assert answered
    assert LOOKS < len(looks) < LOOKS_AT_START


def test_who_is_gone_does_not_hang() -> None:
    async def scene(here: Channel, there: Channel) -> None:
        looking = asyncio.ensure_future(until_hung(here, 1000))
        await asyncio.sleep(0)
        there.close()
        with pytest.raises(ChannelClosed):
            await looking

    watched(scene, _none)


def test_a_front_that_was_held_up_itself_kills_nobody() -> None:
    """Its loop stands still for longer than the limit, again and again; the answers are there when it goes on."""
    asked: list[int] = []

    async def counted(channel: Channel, received: Received) -> None:
        asked.append(received.message.id)
        await _answers(channel, received)

    async def scene(here: Channel, there: Channel) -> None:
        looking = asyncio.ensure_future(until_hung(here, SHORT_S))
        for _ in range(10):
            before = len(asked)
            while len(asked) == before:
                await asyncio.sleep(0)
            time.sleep(2 * LOOKS * SHORT_S)
        assert not looking.done()
        looking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await looking

    watched(scene, counted)


def test_a_worker_that_has_much_to_start_has_more_time(looks: list[float]) -> None:
    """Its first answer is looked for more often than any later one."""

    async def scene(here: Channel, there: Channel) -> None:
        await until_hung(here, SHORT_S)

    watched(scene, _none)
    assert len(looks) == LOOKS_AT_START > LOOKS


def test_the_third_death_in_a_minute_is_one_too_many() -> None:
    deaths = Deaths()
    assert [deaths.too_many(now, hung=False) for now in (0, 1, DEATHS_WITHIN_S - 1)] == [False, False, True]
    assert not deaths.too_many(10 * DEATHS_WITHIN_S, hung=False)


def test_who_hangs_each_time_it_is_started_is_given_up() -> None:
    each_s = HUNG_S + LOOK_S
    deaths = Deaths()
    assert [deaths.too_many(each_s * number, hung=True) for number in range(1, DEATHS + 1)] == [False, False, True]


def test_who_hangs_once_in_an_hour_is_not() -> None:
    deaths = Deaths()
    assert not any(deaths.too_many(3600 * number, hung=True) for number in range(10))
