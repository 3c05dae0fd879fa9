#!/usr/bin/env python3
"""`make crash`: the long form of everything that crashes, with seeds, counts and one verdict at the end.

1. states: stories told to a volume on a device in memory, crashed at their writes with the unsynced ones lost, kept,
   reordered or torn; each different image is mounted, compared with the model, checked, and used further.
2. harness: the tests of the harness itself, with orders that are wrong on purpose.
3. model: the Hypothesis state machine with many more examples.
4. hosts: Linux hosts under User-Mode Linux, with `lund` killed under fio, and cut from power under ext4; raw initiators
   on two volumes, with `lund` or a worker killed, or cut from power, at a Data-Out of a long WRITE.

The seed is printed; `--seed` gives the same run again (the moments at which a process is killed are the same by the
clock, not by the instruction).
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from itertools import count, islice
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from rich.console import Console  # noqa: E402
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn  # noqa: E402

from tests.support.crash_stories import STORIES  # noqa: E402
from tests.support.crash_trial import AT_RANDOM, LOG_AT_RANDOM, LOG_STORY_NAMES, Trial, attempt  # noqa: E402

RANDOM_POINTS = 60
"""Places to crash in one random story: more stories find more than more places."""
REPORT_S = 60.0
"""Without a terminal: a line this often."""
HOST_TESTS = (
    "tests/real/test_daemon_crash.py", "tests/real/test_power_cut.py", "tests/target/workers/test_long_write_kills.py",
)  # fmt: skip
MODEL_TESTS = ("tests/wafl/test_model.py",)
CRASH_TESTS = ("tests/wafl/test_crash.py", "tests/wafl/test_nvlog.py")

Wanted = tuple[str, int, int | None]


def trials(seed: int) -> Iterator[Wanted]:
    """Every named story at every write once; random ones without end."""
    for name in [*(tell.__name__ for tell in STORIES), *LOG_STORY_NAMES]:
        yield name, seed, None
    for number in count(seed):
        yield AT_RANDOM, number, RANDOM_POINTS
        yield LOG_AT_RANDOM, number, RANDOM_POINTS


class Tally:
    """What the trials came to, as they end."""

    def __init__(self, goal: int, console: Console) -> None:
        self.goal, self.console = goal, console
        self.states = self.trials = 0
        self.bad: list[Trial] = []
        self._begun = self._said = time.monotonic()

    def add(self, trial: Trial) -> None:
        self.states += trial.states
        self.trials += 1
        if trial.faults:
            self.bad.append(trial)
            self.console.print(f"FAULT {trial}: {trial.faults[0]}")
        if not self.console.is_terminal and time.monotonic() - self._said > REPORT_S:
            self._said = time.monotonic()
            self.console.print(f"  {self}")

    def __str__(self) -> str:
        spent = time.monotonic() - self._begun
        return f"{self.states:,} crash states in {self.trials:,} trials, {len(self.bad)} with faults, {spent:.0f} s"


def crash_states(options: argparse.Namespace, console: Console) -> bool:
    """Trials side by side until enough different states have been tried."""
    tally = Tally(options.states, console)
    columns = (TextColumn("crash states"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    wanted = trials(options.seed)
    with (
        ProcessPoolExecutor(options.workers) as pool,
        Progress(*columns, console=console, disable=not console.is_terminal) as progress,
    ):
        bar = progress.add_task("", total=options.states)
        running: set[Future[Trial]] = set()
        while tally.states < options.states or running:
            if tally.states < options.states:
                more = 2 * options.workers - len(running)
                running |= {pool.submit(attempt, *names) for names in islice(wanted, more)}
            ended, running = wait(running, return_when=FIRST_COMPLETED)
            for future in ended:
                tally.add(future.result())
            progress.update(bar, completed=min(tally.states, options.states))
    console.print(f"states: {tally}")
    for trial in tally.bad:
        console.print(f"  {trial}:", *trial.faults, sep="\n    ")
    return not tally.bad


def pytest(tests: tuple[str, ...], environment: dict[str, object], *more: str) -> subprocess.Popen[bytes]:
    argv = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *more, *tests]
    # What cannot run here is a failure, not a skip.
    texts = {name: str(value) for name, value in {"LAZYLUN_CI": 1, **environment}.items()}
    return subprocess.Popen(argv, cwd=ROOT, env={**os.environ, **texts})


def harness(options: argparse.Namespace, console: Console) -> bool:
    """Orders that are wrong on purpose: a harness that finds nothing must have been able to."""
    return pytest(CRASH_TESTS, {}, "-q", "-k", "catches").wait() == 0


def model(options: argparse.Namespace, console: Console) -> bool:
    """One process a core, each with a seed of its own."""
    wanted = {"LAZYLUN_MODEL_EXAMPLES": -(-options.examples // options.workers)}
    seeds = range(options.seed, options.seed + options.workers)
    running = [pytest(MODEL_TESTS, wanted, "-q", "--timeout=14400", f"--hypothesis-seed={seed}") for seed in seeds]
    return {process.wait() for process in running} == {0}


def hosts(options: argparse.Namespace, console: Console) -> bool:
    wanted = {"LAZYLUN_KILLS": options.kills, "LAZYLUN_CUTS": options.cuts, "LAZYLUN_SEED": options.seed}
    return pytest(HOST_TESTS, wanted, "-q", "-s").wait() == 0


PARTS: dict[str, Callable[[argparse.Namespace, Console], bool]] = {
    "states": crash_states,
    "harness": harness,
    "model": model,
    "hosts": hosts,
}


def main() -> int:
    parser = argparse.ArgumentParser(description="Crash everything, for long.")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all without any")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 31))
    parser.add_argument("--states", type=int, default=100_000, help="crash states to try at least")
    parser.add_argument("--examples", type=int, default=2000, help="runs of the state machine")
    parser.add_argument("--kills", type=int, default=20, help="of lund under fio")
    parser.add_argument("--cuts", type=int, default=50, help="of power under ext4")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    parts = options.parts or list(PARTS)
    if unknown := [part for part in parts if part not in PARTS]:
        parser.error(f"no part {unknown[0]}")
    console = Console(highlight=False)
    console.print(f"seed {options.seed}, {options.workers} workers")
    results = {}
    for part in parts:
        console.rule(part)
        results[part] = PARTS[part](options, console)
    console.rule("crash")
    for part, passed in results.items():
        console.print(f"{part}: {'passed' if passed else 'FAILED'}")
    return 0 if all(results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
