"""Two clones side by side on a crash device, told step by step; and what must hold of the jobs after any crash.

Beside what every crash state must be (crash_history): a clone whose request is there has its backing, and ends, when it
is started again, reading what it read before and without copying a block that the mounted volume had of its own.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from cloner.copying import copy_level_one
from cloner.job import read_each
from cloner.progress import Progress
from cloner.steps import BeginCommit, Commit, Filling, Read, Step, Steps, Turn, Unsynced, Work, clone_steps
from tests.support.clones import drive, read_all
from tests.support.crash_device import CrashState, MemoryDevice
from tests.support.crash_history import History
from tests.support.crash_log import LoggedHistory
from tests.support.volumes import MIB, problems
from wafl import BLOCK_BYTES, POINTERS, Lun, Volume, WaflError

Fills = tuple[Callable[[Work, int], Filling], Callable[[Work, int], Filling]]
NAMES = ("first", "second")
LUN_BYTES = MIB + 64 * BLOCK_BYTES
BLOCKS = [*range(6), 9, *range(253, 259), 300]
CHUNK_BLOCKS = 4
UNSYNCED_BYTES = 4 * CHUNK_BLOCKS * BLOCK_BYTES


def two_clones(history: History, rng: random.Random, fills: Fills = (copy_level_one, copy_level_one)) -> None:
    """Golden, two clones of one snapshot, both jobs to their ends, guests between any two steps."""
    history.create("golden", LUN_BYTES)
    for block in BLOCKS:
        history.write("golden", block * BLOCK_BYTES, BLOCK_BYTES)
    history.checkpoint(snapshot="base")
    for name in NAMES:
        history.create_backed(name, "base", "golden")
    jobs = Jobs(history, rng, dict(zip(NAMES, fills, strict=True)))
    while jobs.active:
        jobs.step(rng.choice(sorted(jobs.active)))
    history.destroy("golden")
    history.delete_snapshot("base")
    history.checkpoint()
    history.reclaim()
    history.write("second", 0, 20 * BLOCK_BYTES)
    history.checkpoint()


@dataclass
class Jobs:
    history: History
    rng: random.Random
    fills: dict[str, Callable[[Work, int], Filling]]
    active: dict[str, tuple[Steps, object]] = field(init=False)
    """Each with the outcome of its last step."""
    deferred: dict[str, Step] = field(default_factory=dict)
    unsynced: Unsynced = field(default_factory=Unsynced)

    def __post_init__(self) -> None:
        self.active = {name: (self._begin(name), None) for name in NAMES}

    def _begin(self, name: str) -> Steps:
        lun = self.history.volume.lun(name)
        self._tell_history(lun)
        lun.set_clone_requested(True)
        return clone_steps(
            Work(
                self.history.volume, lun, Progress(BLOCK_BYTES), lambda: 0.0, lambda: CHUNK_BLOCKS, self.fills[name],
                unsynced=self.unsynced, unsynced_limit=lambda: UNSYNCED_BYTES,
            )
        )  # fmt: skip

    def _tell_history(self, lun: Lun) -> None:
        """What the job does to its LUN goes by the history, which keeps the model in step."""
        request = lun.set_clone_requested

        def detach() -> None:
            del lun.detach  # type: ignore[attr-defined]
            self.history.detach(lun.name)

        def set_requested(wanted: bool) -> None:
            if isinstance(self.history, LoggedHistory):
                self.history._logged(lambda: request(wanted), lambda: lambda model: None)
            else:
                request(wanted)

        lun.detach = detach  # type: ignore[method-assign]
        lun.set_clone_requested = set_requested  # type: ignore[method-assign]

    def step(self, name: str, *, beside: bool = False) -> None:
        """`beside` a consistency point that is being made: one that the job itself asks for comes after it."""
        if name in self.deferred and not beside:
            self._done(name, self._carry_out(name, self.deferred.pop(name)))
        elif name in self.active and name not in self.deferred:
            steps, outcome = self.active[name]
            try:
                step = steps.send(outcome)
            except StopIteration:
                del self.active[name]
                return
            if beside and isinstance(step, Commit | BeginCommit):
                self.deferred[name] = step
            else:
                self._done(name, self._carry_out(name, step))

    def _done(self, name: str, outcome: object) -> None:
        self.active[name] = self.active[name][0], outcome

    def _carry_out(self, name: str, step: Step) -> object:
        match step:
            case Read(plans):
                return read_each(plans)
            case Commit():
                self._commit()
            case BeginCommit():
                turns = iter(range(4))
                (other,) = set(NAMES) - {name}
                self._commit(lambda: self.step(other, beside=True) if next(turns, None) is not None else None)
            case Turn():
                self._guest(name)
        return None

    def _commit(self, between: Callable[[], None] | None = None) -> None:
        begun = self.unsynced.begin()
        self.history.checkpoint(between)
        self.unsynced.end(begun)

    def _guest(self, name: str) -> None:
        if self.rng.random() < 0.15:
            block = self.rng.choice(BLOCKS)
            if self.rng.random() < 0.5:
                self.history.write(name, block * BLOCK_BYTES + 512, 1024)
            else:
                self.history.unmap(name, block * BLOCK_BYTES, BLOCK_BYTES)


def judge_jobs(state: CrashState) -> str | None:
    """What is wrong with the jobs of a crash state, or None."""
    try:
        return _judge_jobs(state)
    except (WaflError, OSError) as error:
        return f"{state}: {error}"


def _judge_jobs(state: CrashState) -> str | None:
    device = MemoryDevice(bytearray(state.image))
    volume = Volume.mount(device)
    for lun in [lun for lun in volume.luns() if lun.name in NAMES]:
        before, own = read_all(lun), own_blocks(lun)
        if lun.clone_requested:
            if lun.backing is None:
                return f"{state}: {lun.name} has no backing, and its clone is wanted"
            copied, now = go_on_with(volume, lun), own_blocks(lun)
            if copied != len(now) - len(own) or any(now[block] != vbn for block, vbn in own.items()):
                return f"{state}: {lun.name} had {len(own)} of {len(now)} blocks, and {copied} were copied"
        if read_all(lun) != before:
            return f"{state}: {lun.name} reads otherwise when its clone has ended"
    volume.close()
    found = problems(device)
    return f"{state}: {found[0]}" if found else None


def go_on_with(volume: Volume, lun: Lun) -> int:
    """The job after the crash; blocks that it copied."""
    progress = Progress(BLOCK_BYTES)
    drive(volume, clone_steps(Work(volume, lun, progress, lambda: 0.0, lambda: POINTERS, copy_level_one)))
    assert lun.backing is None
    return progress.copied_blocks


def own_blocks(lun: Lun) -> dict[int, int]:
    found: dict[int, int] = {}
    for index in range(lun.level_one_count):
        vbns, _ = lun.load_level_one_buf(index)
        found |= {index << 8 | slot: int(vbn) for slot, vbn in enumerate(vbns) if vbn > 1}
    return found
