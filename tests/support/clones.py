"""A volume with a golden LUN, a snapshot of it and backed LUNs, and a way to drive a clone step by step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from cloner.copying import copy_level_one
from cloner.job import read_each
from cloner.progress import Progress
from cloner.sharing import share_level_one
from cloner.steps import BeginCommit, Commit, Read, Step, Steps, Turn, WaitForRoom, Work, clone_steps
from tests.support.volume_model import ModelLun
from tests.support.volumes import MIB, Workshop, checkpoint, pattern, take_snapshot
from wafl import BLOCK_BYTES, Lun, Volume, WaflError

GOLDEN_BYTES = 3 * MIB
# Runs, single blocks, holes between them, both sides of a level-1 border.
GOLDEN_BLOCKS = [*range(40), 50, 52, *range(250, 262), 600, 767]


@dataclass
class Family:
    """The volume, the clone, and what the clone must read."""

    volume: Volume
    clone: Lun
    model: ModelLun
    golden: ModelLun = field(default_factory=lambda: ModelLun(GOLDEN_BYTES))

    def write(self, offset: int, data: bytes) -> None:
        self.clone.write(offset, data)
        self.model.write(offset, data)

    def unmap(self, offset: int, length: int) -> None:
        self.clone.unmap(offset, length)
        self.model.unmap(offset, length)

    def reads_right(self) -> bool:
        return read_all(self.clone) == self.model.read(0, self.model.size_bytes)


def make_family(
    workshop: Workshop,
    size_bytes: int = 16 * MIB,
    blocks: list[int] = GOLDEN_BLOCKS,
    log_bytes: int | None = None,
) -> Family:
    volume = workshop.format(size_bytes, log_bytes=log_bytes)
    golden = volume.create_lun("golden", GOLDEN_BYTES)
    model = ModelLun(GOLDEN_BYTES)
    for block in blocks:
        data = pattern(block + 1, BLOCK_BYTES)
        golden.write(block * BLOCK_BYTES, data)
        model.write(block * BLOCK_BYTES, data)
    take_snapshot(volume, "base")
    return Family(volume, add_clone(volume, "clone"), model.copy(), model)


def add_clone(volume: Volume, name: str) -> Lun:
    clone = volume.create_lun(name, None, backing=("base", "golden"))
    checkpoint(volume)
    return clone


def read_all(lun: Lun) -> bytes:
    data = bytearray(lun.size_bytes)
    lun.read_into(0, memoryview(data))
    return bytes(data)


def steps_of(
    volume: Volume, lun: Lun, chunk_blocks: int = 256, *, ignore_bad: bool = False, share: bool = False
) -> tuple[Steps, Progress]:
    progress = Progress(BLOCK_BYTES)
    mode = share_level_one if share else copy_level_one
    work = Work(volume, lun, progress, lambda: 0.0, lambda: chunk_blocks, mode, ignore_bad)
    return clone_steps(work), progress


def drive(
    volume: Volume, steps: Steps, before: Callable[[int, Step], None] = lambda number, step: None
) -> list[type]:
    """Carry out all steps; `before(number, step)` runs ahead of each and may raise to stop.  The kinds of steps."""
    kinds: list[type] = []
    outcome: object = None
    error: Exception | None = None
    while True:
        try:
            step = steps.send(outcome) if error is None else steps.throw(error)
        except StopIteration:
            return kinds
        before(len(kinds), step)
        kinds.append(type(step))
        outcome = error = None
        try:
            outcome = carry_out(volume, step)
        except (WaflError, OSError) as caught:
            error = caught


def carry_out(volume: Volume, step: Step) -> object:
    match step:
        case Read(plans):
            return read_each(plans)
        case Commit() | BeginCommit():
            checkpoint(volume)
        case WaitForRoom(available_bytes):
            raise AssertionError(f"the test made no room: {available_bytes}")
        case Turn():
            pass
    return None
