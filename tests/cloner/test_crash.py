"""A crash at every write of the life of two clones; and the harnesses of clones, which must see a fault."""

from __future__ import annotations

import os
import random

import numpy as np
import pytest

from cloner.copying import copy_level_one
from cloner.sharing import share_level_one
from tests.cloner.test_races import clone
from tests.support import tick_loop
from tests.support.crash_clones import NAMES, judge_jobs, two_clones
from tests.support.crash_history import History
from tests.support.crash_log import LoggedHistory
from tests.support.race_guests import ACTS, Scene
from tests.support.volumes import MIB
from wafl import FillPlan, Lun

EVERY = int(os.environ.get("LAZYLUN_CRASH_EVERY", "1"))
"""Of the writes: 1 is each one of them."""


def told(kind: type[History], seed: int, *, share: bool = False) -> History:
    history = kind(size_bytes=4 * MIB)
    two_clones(history, random.Random(seed), (copy_level_one, share_level_one if share else copy_level_one))
    return history


def faults(history: History, every: int = EVERY, seed: int = 1) -> list[str]:
    points = range(history.marks[0].durable, history.device.journal.position + 1, every)
    seen, found = set(), []
    for state in history.states(points, seed):
        identity = history.identity(state)
        if identity in seen:
            continue
        seen.add(identity)
        # The jobs first: the verdict changes the image.
        verdict = judge_jobs(state) or history.verdict(state)
        if verdict:
            found.append(verdict)
    assert len(seen) > len(points) / 2
    return found


@pytest.mark.parametrize(("kind", "share"), [(History, False), (LoggedHistory, False), (LoggedHistory, True)])
def test_a_crash_at_any_write_of_two_clones_loses_nothing_and_both_end_afterwards(
    kind: type[History], share: bool
) -> None:
    history = told(kind, 1, share=share)
    for name in NAMES:
        assert history.volume.lun(name).backing is None
    assert faults(history) == []


def test_the_harness_catches_a_detach_that_waits_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fills still on their way when the detach is made."""
    monkeypatch.setattr(Lun, "fills_durable", property(lambda self: True))
    history = History(size_bytes=4 * MIB)
    history.device.slow = lambda offset, data: history.volume.running is None
    two_clones(history, random.Random(1))
    assert faults(history, 2)


def test_the_race_harness_catches_a_fill_that_does_not_look_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a guest wrote between plan and install is written over."""

    monkeypatch.setattr(FillPlan, "_still_missing", lambda plan: np.arange(plan.blocks))
    right = []
    for wanted in range(2, 20):
        scene = Scene()
        tick_loop.run(clone(scene), lambda turn, s=scene, w=wanted: ACTS["WRITE"](s) if turn == w else None)  # type: ignore[misc]
        right.append(scene.reads_right())
        scene.workshop.finish()
    assert not all(right)
    assert any(right)
