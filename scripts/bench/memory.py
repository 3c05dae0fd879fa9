"""`make bench-memory`: what lund keeps in memory, at rest, with 16 sessions of depth 32, over an hour's mixed load.

The load (scripts/bench/mixed_load.py) is held back to a steady rate: what is asked here is whether memory grows with
what is done, not how fast it is done.  The growth is a straight line through the samples after the first ten minutes,
when each kind of work has come by a few times, with the error of its slope.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from scripts.bench.mixed_load import ADDRESS, BUILD, DISK, DISK_LUN, VOLUME, MixedLoad
from scripts.bench.rivals import ROOT, make_image
from scripts.bench.runner import about, end_tidily
from tests.support.initiators import upload, url
from tests.support.lund import MIB, Lund
from tests.support.netns import Namespace

NEEDED = ("qemu-img", "qemu-io", "nsenter")
SESSIONS, DEPTH = 16, 32
REST_S, BURST_S = 5.0, 10.0
EVERY_S, BURST_EVERY_S = 10.0, 0.5
SETTLED = 1 / 6
"""Of the whole time: samples before are left out of the fit, ten minutes of an hour."""
MARKS = (0, 1 / 6, 1 / 2, 1)
TABLE_WIDTH = 130


@dataclass(frozen=True)
class Sample:
    phase: str
    minutes: float
    resident_mib: float
    own_mib: float
    """Without what is mapped from files: heap, stacks, buffers."""
    threads: int
    files: int


@dataclass(frozen=True)
class Growth:
    mib_an_hour: float
    error: float
    """Of the slope: one standard deviation."""


class Watch:
    """Samples of one process."""

    def __init__(self, pid: int) -> None:
        self._process = Path(f"/proc/{pid}")
        self._begun = time.monotonic()
        self.samples: list[Sample] = []

    def take(self, phase: str) -> Sample:
        lines = (self._process / "status").read_text().splitlines()
        fields = {name: rest.split()[0] for name, _, rest in (line.partition(":") for line in lines) if rest.split()}
        found = Sample(
            phase, (time.monotonic() - self._begun) / 60, int(fields["VmRSS"]) / 1024, int(fields["RssAnon"]) / 1024,
            int(fields["Threads"]), len(os.listdir(self._process / "fd")),
        )  # fmt: skip
        self.samples.append(found)
        return found

    def highest(self, phase: str, work: Callable[[], None]) -> None:
        """Of the samples while `work` runs, the highest one."""
        before = len(self.samples)
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(work)
            while not running.done():
                self.take(phase)
                wait([running], BURST_EVERY_S)
        running.result()
        self.samples[before:] = [max(self.samples[before:], key=lambda each: each.resident_mib)]

    def begin(self) -> None:
        """Minutes count from here."""
        self._begun = time.monotonic()


def growth(samples: list[Sample]) -> Growth:
    """A straight line by least squares.  Neighbouring samples are not independent: the error is rather too small."""
    hours = np.array([each.minutes for each in samples]) / 60
    values = np.array([each.resident_mib for each in samples])
    hours = hours - hours.mean()
    square = float((hours**2).sum())
    slope = float((hours * values).sum()) / square
    rest = values - values.mean() - slope * hours
    return Growth(slope, float(np.sqrt((rest**2).sum() / (len(samples) - 2) / square)))


def settled(samples: list[Sample]) -> list[Sample]:
    """Those of the mixed load that count for the growth."""
    mixed = [each for each in samples if each.phase == "mixed load"]
    return [each for each in mixed if each.minutes >= mixed[-1].minutes * SETTLED]


def prepare(lund: Lund, namespace: Namespace, directory: Path, size_bytes: int) -> None:
    image = directory / "disk.img"
    make_image(image, size_bytes)
    lund.add_volume(VOLUME, size_bytes=size_bytes * 6 + 256 * MIB)
    lund.add_lun(DISK, size_bytes, lun_id=DISK_LUN)
    upload(namespace, image, url(lund.target(VOLUME), DISK_LUN))
    image.unlink()


def measure(options: argparse.Namespace, lund: Lund, namespace: Namespace, console: Console, directory: Path) -> Watch:
    assert lund.process is not None
    watch = Watch(lund.process.pid)
    prepare(lund, namespace, directory, options.size * MIB)
    time.sleep(REST_S)
    watch.take("at rest")
    load = MixedLoad(lund, namespace, options.size * MIB, options.rate)
    for what, percent in (("reading", 100), ("writing", 0)):
        for length in (4096, 262144):
            words = ("--sessions", SESSIONS, "--depth", DEPTH, "--read-percent", percent, "--bytes", length)
            watch.highest(
                f"{SESSIONS} sessions {what} {length // 1024} KiB at depth {DEPTH}",
                partial(load.client, "hurries", DISK_LUN, *words, "--seconds", BURST_S),
            )
    time.sleep(REST_S)
    watch.take("at rest again")
    watch.begin()
    end = time.monotonic() + options.minutes * 60
    with load:
        while (left := end - time.monotonic()) > 0:
            tell(console, watch.take("mixed load"))
            time.sleep(min(EVERY_S, left))
        tell(console, watch.take("mixed load"))
    time.sleep(REST_S)
    watch.take("at rest in the end")
    console.print(", ".join(f"{count:,} {what}" for what, count in sorted(load.counted.items())))
    for fault in load.faults:
        console.print(f"[red]went wrong[/]: {fault}")
    return watch


def tell(console: Console, sample: Sample) -> None:
    console.print(f"[dim]{sample.minutes:.1f} min[/] {sample.resident_mib:.1f} MiB")


def rows(samples: list[Sample]) -> list[Sample]:
    """For the table: all but the mixed load, of which a few stand for the rest."""
    mixed = [each for each in samples if each.phase == "mixed load"]
    marked = {id(mixed[round(mark * (len(mixed) - 1))]) for mark in MARKS}
    return [each for each in samples if each.phase != "mixed load" or id(each) in marked]


def show(samples: list[Sample], found: Growth, console: Console) -> None:
    table = Table(title="what lund keeps in memory")
    for column in ("when", "minutes", "resident MiB", "of that its own", "threads", "open files"):
        table.add_column(column, justify="left" if column == "when" else "right")
    for each in rows(samples):
        minutes = f"{each.minutes:.0f}" if each.phase == "mixed load" else ""
        sizes = (f"{each.resident_mib:.1f}", f"{each.own_mib:.1f}")
        table.add_row(each.phase, minutes, *sizes, str(each.threads), str(each.files))
    console.print(table)
    console.print(f"growth under the mixed load: {found.mib_an_hour:+.2f} MiB an hour (± {found.error:.2f})")


def plot(path: Path, samples: list[Sample], found: Growth) -> None:
    """Raises ImportError without matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    mixed = [each for each in samples if each.phase == "mixed load"]
    counted = settled(samples)
    minutes = np.array([each.minutes for each in counted])
    middle = float(np.mean([each.resident_mib for each in counted]))
    figure, axes = pyplot.subplots(figsize=(9, 4), layout="constrained")
    axes.plot([each.minutes for each in mixed], [each.resident_mib for each in mixed], linewidth=1, label="resident")
    axes.plot(
        minutes, middle + found.mib_an_hour / 60 * (minutes - minutes.mean()), linewidth=1.5,
        label=f"{found.mib_an_hour:+.2f} MiB an hour (± {found.error:.2f})",
    )  # fmt: skip
    axes.set_ylim(bottom=0)
    axes.set_xlabel("minutes of mixed load")
    axes.set_ylabel("MiB")
    axes.legend()
    figure.savefig(path, dpi=110)


def write_json(path: Path, samples: list[Sample], found: Growth) -> None:
    told: dict[str, Any] = {"about": about(), "growth": asdict(found), "samples": [asdict(each) for each in samples]}
    path.write_text(json.dumps(told, indent=1) + "\n")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench-memory", description="Whether lund's memory grows with what it does.")
    parser.add_argument("--minutes", type=float, default=60, help="of mixed load")
    parser.add_argument("--rate", type=int, default=1000, help="commands a second of the hosts that stay")
    parser.add_argument("--size", type=int, default=128, help="MiB of the LUN")
    parser.add_argument("--directory", type=Path, default=None, help="where the files lie (default: TMPDIR)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="every sample")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="the mixed load's samples (needs matplotlib)")
    return parser.parse_args()


def main() -> int:
    options = parse()
    end_tidily()
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = TABLE_WIDTH
    lacking = [name for name in NEEDED if shutil.which(name) is None]
    lacking += [] if (BUILD / "lean_client").exists() else ["build/bench/lean_client (make bench-tools)"]
    if os.geteuid() != 0 or lacking:
        console.print("bench-memory needs root (network namespaces) and " + (", ".join(lacking) or "nothing else"))
        return 1
    with (
        tempfile.TemporaryDirectory(dir=options.directory) as name,
        Namespace() as namespace,
        Lund(namespace, Path(name) / "state", [f"{ADDRESS}:3260"], environment={"PYTHONPATH": str(ROOT)}) as lund,
    ):
        samples = measure(options, lund, namespace, console, Path(name)).samples
    found = growth(settled(samples))
    show(samples, found, console)
    if options.json:
        write_json(options.json, samples, found)
    if options.plot:
        plot(options.plot, samples, found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
