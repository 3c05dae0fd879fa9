"""The rounds: in each, every rival does the same work in its turn, so that what else the machine does hits all."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from typing import Any

from rich.console import Console

from scripts.bench.rivals import Arena, Figures
from scripts.bench.works import Kind, Work

START_S = 30.0
"""Images, targets, hosts."""
OVERHEAD_S = 0.2
"""Of one measurement: processes, logins, what waits for the disk."""
TRIAL_S, HOST_S = 1.5, 1.5
"""More for one that needs a LUN of its own, and for one whose client is a process on a Linux host."""

Results = dict[str, dict[str, list[Figures]]]
"""By work and rival, the figures of each round."""


def end_tidily() -> None:
    """SIGTERM is as Ctrl-C: hosts and targets are not left behind.  A child that was forked off, as for a look into
    a network namespace, is ended by it too, and tidies up nothing."""
    ours = os.getpid()

    def end(*_: object) -> None:
        if os.getpid() != ours:
            os._exit(128 + signal.SIGTERM)
        sys.exit(128 + signal.SIGTERM)

    signal.signal(signal.SIGTERM, end)


def expected_s(works: list[Work], rounds: int, warmup_s: float, seconds: float) -> float:
    """How long it will take on a machine that does nothing else."""
    total = 0.0
    for work in works:
        each = warmup_s + seconds + OVERHEAD_S + (HOST_S if work.host else 0)
        total += len(work.rivals) * each + (0 if work.kind is Kind.PLAIN else TRIAL_S)
    return START_S + rounds * total


def run(arena: Arena, works: list[Work], rounds: int, warmup_s: float, seconds: float, end: float,
        console: Console) -> Results:  # fmt: skip
    """Stops beginning works when the clock passes `end`, and says so."""
    found: Results = {}
    for number, work in enumerate(works, 1):
        if time.monotonic() > end:
            console.print(f"[yellow]out of time: left out {', '.join(left.name for left in works[number - 1 :])}[/]")
            break
        results: dict[str, list[Figures]] = {name: [] for name in work.rivals}
        for turn in range(rounds):
            # each begins once as often as the others do
            order = [*work.rivals[turn % len(work.rivals) :], *work.rivals[: turn % len(work.rivals)]]
            for name in order:
                results[name].append(arena.measure(work, name, warmup_s, seconds))
        found[work.name] = results
        told = "  ".join(f"{name} {_median_rate(work, each):,.0f}" for name, each in results.items())
        console.print(f"[dim]{number}/{len(works)}[/] {work.name}: {told} {work.unit}")
    return found


def _median_rate(work: Work, figures: list[Figures]) -> float:
    rates = sorted(figure["mib_s" if work.sequential else "rate"] for figure in figures)
    return float(rates[len(rates) // 2])


def about() -> dict[str, Any]:
    """The machine and the versions, for whoever reads the figures later."""
    packages = {name: version(name) for name in ("uvloop", "numpy", "crc32c")}
    return {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        **packages,
        "tgt": _debian("tgt"),
        "libiscsi": _debian("libiscsi7"),
        "qemu": _debian("qemu-utils"),
        "load": os.getloadavg()[0],
        "argv": sys.argv[1:],
    }


def _processor() -> str:
    with open("/proc/cpuinfo") as file:
        return next((line.partition(":")[2].strip() for line in file if line.startswith("model name")), "unknown")


def _debian(package: str) -> str:
    argv = ["dpkg-query", "-W", "-f", "${Version}", package]
    return subprocess.run(argv, capture_output=True, text=True, check=False).stdout or "absent"
