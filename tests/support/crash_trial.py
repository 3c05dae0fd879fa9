"""One story told once, and the volume crashed at many places of it: what the tests and `scripts/crash.py` share.

A trial is named by its story and a seed, and the same names give the same crashes again.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from tests.support.crash_history import History
from tests.support.crash_log import LoggedHistory
from tests.support.crash_log_stories import LOG_STORIES
from tests.support.crash_stories import STORIES, at_random
from tests.support.volumes import MIB

AT_RANDOM = "at_random"
LOG_AT_RANDOM = "log at_random"
LOG_STORY_NAMES = {f"{kind} {tell.__name__}": tell for kind in ("log", "batched log") for tell in LOG_STORIES}
"""Records written one by one, and those of each command together, as the daemon has it."""
FAULTS_SHOWN = 5
"""Of one trial: where one crash goes wrong, its neighbours mostly do too."""


@dataclass
class Trial:
    story: str
    seed: int
    states: int = 0
    """Different crash states that were judged."""
    faults: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return f"story {self.story}, seed {self.seed}"


def told(story: str, seed: int) -> History:
    """The history of a story by its name."""
    if story == AT_RANDOM:
        history = History()
        at_random(history, random.Random(seed))
    elif story == LOG_AT_RANDOM:
        history = LoggedHistory(size_bytes=6 * MIB, batched=seed % 2 == 1)
        at_random(history, random.Random(seed))
    elif story in LOG_STORY_NAMES:
        logged = history = LoggedHistory(batched=story.startswith("batched"))
        LOG_STORY_NAMES[story](logged)
    else:
        history = History()
        next(tell for tell in STORIES if tell.__name__ == story)(history)
    return history


def judge(history: History, points: int | None, seed: int) -> tuple[int, list[str]]:
    """Crashes at `points` places of a history (None: at every one): how many different states, and their faults."""
    states = history.states(None if points is None else history.some_points(points, seed), seed)
    seen, faults = set(), []
    for state in states:
        identity = history.identity(state)
        if identity in seen:
            continue
        seen.add(identity)
        if verdict := history.verdict(state):
            faults.append(verdict)
    return len(seen), faults


def attempt(story: str, seed: int, points: int | None) -> Trial:
    trial = Trial(story, seed)
    try:
        history = told(story, seed)
        trial.states, faults = judge(history, points, seed)
        trial.faults += faults[:FAULTS_SHOWN]
    except Exception as error:  # the run goes on with the other trials, and names this one at its end
        trial.faults.append(f"{type(error).__name__}: {error}")
    return trial
