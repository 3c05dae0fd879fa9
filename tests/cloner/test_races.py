"""Everything that may happen to a LUN, against the fill of the same blocks: before every step of the job, before every
turn of the event loop, and in shuffled orders.  The guest's data always wins, and no read is ever torn.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Callable
from typing import Any

import pytest

from cloner import DEFAULTS, CloneManager, CloneOptions, JobState
from cloner.steps import Steps
from target.iscsi.ports import Response
from tests.support import tick_loop
from tests.support.clones import drive, steps_of
from tests.support.race_guests import (
    ACTS,
    BLOCKS,
    LUN_BLOCKS,
    LUN_BYTES,
    SECTORS,
    Scene,
    clear,
    compare_write,
    copy_in,
    delete_snapshot,
    offline,
    resize,
    restore,
    snapshot,
    write,
    write_same,
    write_same_zeros,
)
from tests.support.scsi_host import read_16
from wafl import POINTERS, FillPlan, NoSuchLun, VolumeService

CHUNK_BLOCKS = 8
SHARE = CloneOptions(share=True)
SEEDS = int(os.environ.get("LAZYLUN_RACE_SEEDS", "50"))


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cloner.sharing.UPTAKE_BESIDE_GUESTS", 1)
    monkeypatch.setattr("cloner.job.POINTERS", CHUNK_BLOCKS)
    monkeypatch.setattr("cloner.job.RANGES", 1)


async def clone(scene: Scene, options: CloneOptions = DEFAULTS) -> JobState | None:
    """The daemon's way: a service and a manager on the loop."""
    service = VolumeService(scene.volume)
    service.start()
    manager = CloneManager(lambda event: None, clock=asyncio.get_running_loop().time)
    job = manager.start(service, "clone", options)
    assert job.state is JobState.CREATED
    running = manager._jobs[job.lun_uuid]
    await running.wait()
    await manager.close()
    await service.stop()
    return running.state


def turns_of_a_clone(options: CloneOptions = DEFAULTS, *, parent_gone: bool = False) -> int:
    scene = Scene(parent_gone=parent_gone)
    state, turns = tick_loop.run(clone(scene, options))
    assert state is JobState.COMPLETED
    scene.workshop.finish()
    return turns


def check(scene: Scene, name: str, state: JobState | None, where: str) -> None:
    assert scene.reads_right(), where
    if name == "destroy":
        assert state in (JobState.STOPPED, JobState.COMPLETED), where
    else:
        assert state is JobState.COMPLETED, where
        # A LUN that is restored when its clone has ended has a backing again, and the request for another clone.
        assert scene.clone.backing is None or (name == "restore" and scene.clone.clone_requested), where
    scene.workshop.finish()


def before_every_step(name: str, steps_of_clone: Callable[[Scene], Steps], *, parent_gone: bool = False) -> None:
    """The act, before each step of a clone in turn."""
    act, counted = ACTS[name], Scene(parent_gone=parent_gone)
    total = len(drive(counted.volume, steps_of_clone(counted)))
    for wanted in range(total):
        scene = Scene(parent_gone=parent_gone)
        state: JobState | None = JobState.COMPLETED
        try:
            drive(scene.volume, steps_of_clone(scene), lambda n, step, s=scene, w=wanted: act(s) if n == w else None)  # type: ignore[misc]
        except NoSuchLun:
            assert scene.gone
            state = JobState.STOPPED
        check(scene, name, state, f"{name} before step {wanted} of {total}")


@pytest.mark.parametrize("chunk_blocks", [CHUNK_BLOCKS, 2 * POINTERS])
@pytest.mark.parametrize("name", ACTS)
def test_whatever_happens_before_any_step_the_guests_data_wins(name: str, chunk_blocks: int) -> None:
    before_every_step(name, lambda scene: steps_of(scene.volume, scene.clone, chunk_blocks)[0])


@pytest.mark.parametrize(
    ("options", "parent_gone"), [(DEFAULTS, False), (SHARE, False), (SHARE, True)], ids=["copy", "share", "take up"]
)
@pytest.mark.parametrize("name", ACTS)
def test_whatever_happens_before_any_turn_of_the_loop_the_guests_data_wins(
    name: str, options: CloneOptions, *, parent_gone: bool
) -> None:
    total = turns_of_a_clone(options, parent_gone=parent_gone)
    assert total > (20 if options.share else 60)
    for wanted in range(2, total):
        scene = Scene(parent_gone=parent_gone)

        def act(turn: int, scene: Scene = scene, wanted: int = wanted) -> None:
            if turn == wanted:
                ACTS[name](scene)

        state, _ = tick_loop.run(clone(scene, options), act)
        check(scene, name, state, f"{name} before turn {wanted} of {total}")


def test_a_read_at_any_turn_gives_what_is_there() -> None:
    scene = Scene()
    seen: list[bool] = []
    state, _ = tick_loop.run(clone(scene), lambda turn: seen.append(scene.reads_right()))
    assert state is JobState.COMPLETED
    assert len(seen) > 60
    assert all(seen)
    scene.workshop.finish()


def test_a_read_that_begins_at_any_turn_and_ends_after_the_detach_is_whole() -> None:
    """The transport fetches a long read piece by piece, and sends each when the initiator takes it."""
    total = turns_of_a_clone()
    for wanted in range(2, total, 3):
        scene = Scene()
        first, rest = bytearray(LUN_BYTES // 2), bytearray(LUN_BYTES - LUN_BYTES // 2)
        begun: list[Response] = []

        def act(
            turn: int, scene: Scene = scene, at: int = wanted, half: bytearray = first, begun: list[Response] = begun
        ) -> None:
            if turn == at:
                begun.append(scene.send(read_16(0, LUN_BLOCKS * SECTORS)))
                half[:] = fetch(begun[0], 0, len(half))

        tick_loop.run(clone(scene), act)
        assert scene.clone.backing is None
        rest[:] = fetch(begun[0], len(first), len(rest))
        assert first + rest == scene.model.read(0, LUN_BYTES), f"begun before turn {wanted}"
        scene.workshop.finish()


def fetch(response: Response, at: int, length: int) -> bytes:
    assert response.status == 0
    if response.reader is None:
        return bytes(response.data[at : at + length])
    out = bytearray(length)
    response.reader(at, memoryview(out))
    return bytes(out)


def anything(scene: Scene, rng: random.Random) -> None:
    """One act at a random place."""
    sector = rng.randrange(LUN_BLOCKS * SECTORS - 1)
    if rng.random() < 0.5:
        sector -= sector % SECTORS
    sectors = min(rng.choice([1, 3, SECTORS, 5 * SECTORS, 20 * SECTORS]), LUN_BLOCKS * SECTORS - sector)
    seed = rng.randrange(10**9)
    common = [write, write_same, write_same_zeros, copy_in]
    kind = rng.randrange(10)
    if kind < 6:
        rng.choice(common)(scene, seed, sector, sectors)
    elif kind == 6:
        compare_write(scene, seed, sector, min(sectors, SECTORS))
    elif kind == 7:
        clear(scene, sector, sectors)
    elif kind == 8:
        rng.choice([delete_snapshot, offline, restore])(scene)
    elif rng.random() < 0.5:
        resize(scene, max(1, sector))
    else:
        snapshot(scene, seed)


@pytest.mark.parametrize("seed", range(SEEDS))
def test_in_any_order_of_events_the_guests_data_wins(seed: int) -> None:
    rng = random.Random(seed)
    scene = Scene()
    acts = 0

    def act(turn: int) -> None:
        nonlocal acts
        if rng.random() < 0.1 and acts < 20:
            acts += 1
            anything(scene, rng)
        if rng.random() < 0.1:
            assert scene.reads_right(), f"turn {turn}"

    state, _ = tick_loop.run(clone(scene, SHARE if seed % 3 == 0 else DEFAULTS), act, seed)
    assert state is JobState.COMPLETED
    assert scene.reads_right()
    scene.workshop.finish()


async def interrupted(scene: Scene, interrupt: str, turns: int) -> JobState:
    """A job that is interrupted after so many turns, and goes on; how the interruption found it."""
    service = VolumeService(scene.volume)
    service.start()
    manager = CloneManager(lambda event: None, clock=asyncio.get_running_loop().time)
    job = manager._jobs[manager.start(service, "clone").lun_uuid]
    for _ in range(turns):
        await asyncio.sleep(0)
    if interrupt == "stop":
        if job.active:
            await manager.stop(service, "clone")
            assert scene.clone.clone_requested is False
        going_on = scene.clone.backing is not None and bool(manager.start(service, "clone"))
    else:
        await manager.forget(service)
        going_on = manager.restart_requested(service) == ["clone"]
    assert job.state in (JobState.STOPPED, JobState.COMPLETED)
    assert going_on == (job.state is JobState.STOPPED)
    if going_on:
        assert (await manager.wait(service, "clone")).state is JobState.COMPLETED
    await manager.close()
    await service.stop()
    return job.state


@pytest.mark.parametrize("interrupt", ["stop", "volume offline"])
def test_a_job_that_is_interrupted_at_any_turn_goes_on_and_copies_nothing_twice(interrupt: str) -> None:
    ends: list[JobState] = []
    for turns in range(turns_of_a_clone()):
        scene = Scene()
        filled: list[int] = []
        install = scene.clone.install_fill

        def counting(plan: FillPlan, data: bytes, filled: list[int] = filled, install: Any = install) -> int:
            filled.append(install(plan, data))
            return filled[-1]

        scene.clone.install_fill = counting  # type: ignore[method-assign, assignment]
        state, _ = tick_loop.run(interrupted(scene, interrupt, turns))
        ends.append(state)
        assert scene.reads_right()
        assert scene.clone.backing is None
        assert sum(filled) == len(BLOCKS), f"interrupted after {turns} turns"
        scene.workshop.finish()
    assert {JobState.STOPPED, JobState.COMPLETED} == set(ends)
