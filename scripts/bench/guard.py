"""`make bench-guard`: the hot path counted in instructions, so that the speed and load of the machine do not matter.

valgrind counts the instructions in user space of `counted.py` with commands and without; the difference is what the
commands cost, the same to a thousandth each time (no hash seed, no random addresses, no threads).  The bare loop is
counted in the same interpreter too, and the limits are on the ratio to it: another version of Python moves both.  A
limit is a little above what was found when it was set; who makes the hot path better lowers it.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rich.console import Console
from rich.table import Table

from scripts.bench.counted import SIDES, WORKS

ROOT = Path(__file__).resolve().parent.parent.parent
LIMITS = {"read-4k": 1.4, "write-4k": 1.58, "read-1m": 8.9, "write-1m": 1.45}
"""Instructions of lund over those of the bare loop."""
BATCHES = 20
QUIET = {"PYTHONHASHSEED": "0", "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
COUNT = re.compile(r"I\s+refs:\s+([\d,]+)")
LIMIT_S = 600


def count(side: str, work: str, batches: int) -> int:
    """Instructions of a whole run."""
    argv = [
        "setarch", "-R", "valgrind", "--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null",
        sys.executable, "-m", "scripts.bench.counted", side, work, str(batches * WORKS[work].batch),
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        done = subprocess.run(
            [*argv, "--directory", name], capture_output=True, text=True, timeout=LIMIT_S, check=False, cwd=ROOT,
            env={**os.environ, **QUIET},
        )  # fmt: skip
    found = COUNT.search(done.stderr)
    if done.returncode or found is None:
        raise RuntimeError(f"{side} {work}: exit {done.returncode}\n{done.stderr[-2000:]}")
    return int(found[1].replace(",", ""))


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench-guard", description="Instructions of the hot path, against limits.")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    console = Console(highlight=False)
    if shutil.which("valgrind") is None:
        console.print("bench-guard needs valgrind")
        return 1
    # By the number of LUNs, a work of which nothing is done: what there is without commands.
    idle = {WORKS[work].luns: work for work in reversed(LIMITS)}
    runs = [(side, work, BATCHES) for work in LIMITS for side in SIDES]
    runs += [(side, work, 0) for work in idle.values() for side in SIDES]
    count("bare", next(iter(LIMITS)), 0)  # compiles what has to be compiled
    with ThreadPoolExecutor(options.jobs) as pool:
        counts = dict(zip(runs, pool.map(lambda run: count(*run), runs), strict=True))
    costs = {
        (side, work): (counts[side, work, BATCHES] - counts[side, idle[WORKS[work].luns], 0])
        / (BATCHES * WORKS[work].batch)
        for side, work, batches in runs
        if batches
    }
    table = Table(title="instructions in user space for a command")
    for column in ("work", "lund", "bare loop", "ratio", "limit", ""):
        table.add_column(column, justify="right" if column not in ("work", "") else "left")
    exceeded = False
    for work, limit in LIMITS.items():
        ours, bare = costs["lund", work], costs["bare", work]
        over = ours / bare > limit
        exceeded = exceeded or over
        figures = (f"{ours:,.0f}", f"{bare:,.0f}", f"{ours / bare:.2f}", f"{limit:.2f}")
        table.add_row(work, *figures, "over" if over else "")
    console.print(table)
    return 1 if exceeded else 0


if __name__ == "__main__":
    sys.exit(main())
