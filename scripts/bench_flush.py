#!/usr/bin/env python3
"""`make bench-flush`: what durability costs, beside tgt on the same disk.

1. A 4 KiB write and a SYNCHRONIZE CACHE after it, at queue depth 1 and 32: lund and tgt.
2. 4 KiB random writes at queue depth 32, never flushed: lund with its log, lund on a volume without one, tgt.
3. Write latency of lund while a consistency point runs (99th percentile) and while none runs (median).

All serve LUNs of the same size, filled alike, from files in the same directory, on loopback in a network namespace, to
the same lean initiator.  Rounds alternate after a warm-up; figures are medians over the rounds, ratios are taken round
by round.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import numpy.typing as npt  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from scripts.bench.rivals import make_image  # noqa: E402
from tests.support.initiators import tool, upload, url  # noqa: E402
from tests.support.lund import MIB, Lund  # noqa: E402
from tests.support.netns import Namespace  # noqa: E402
from tests.support.tgt import Tgt  # noqa: E402
from wafl import FileDevice, Volume  # noqa: E402

TGT_PORT = 3261
LOGGED, PLAIN, TGT = "lund", "lund without a log", "tgt"
Times = npt.NDArray[np.float64]
"""Two rows: when each began, how long it took, in seconds."""


@dataclass(frozen=True)
class Rival:
    port: int
    target: str
    lun: int


@dataclass(frozen=True)
class Work:
    title: str
    depth: int
    flush: bool
    rivals: tuple[str, ...]


WORKS = (
    Work("write + flush, depth 1", 1, True, (LOGGED, TGT)),
    Work("write + flush, depth 32", 32, True, (LOGGED, TGT)),
    Work("write, depth 32", 32, False, (LOGGED, PLAIN, TGT)),
)


@dataclass
class Figures:
    """Of one rival at one work, a figure a round."""

    rates: list[float] = field(default_factory=list)
    median_us: list[float] = field(default_factory=list)
    p99_us: list[float] = field(default_factory=list)

    def add(self, times: Times, seconds: float) -> None:
        self.rates.append(times.shape[1] / seconds)
        self.median_us.append(float(np.median(times[1])) * 1e6)
        self.p99_us.append(float(np.percentile(times[1], 99)) * 1e6)


class Bench:
    def __init__(self, options: argparse.Namespace, namespace: Namespace, directory: Path, console: Console) -> None:
        self.options, self.namespace, self.directory, self.console = options, namespace, directory, console
        self.checkpoints = directory / "checkpoints"
        self.checkpoints.touch()
        self.rivals: dict[str, Rival] = {}

    def client(self, who: str, depth: int, flush: bool) -> tuple[Times, float]:
        rival, times = self.rivals[who], self.directory / "times.npy"
        argv = [
            sys.executable, ROOT / "tests/support/lean_initiator.py",
            "--port", str(rival.port), "--target", rival.target, "--lun", str(rival.lun),
            "--depth", str(depth), "--seconds", str(self.options.seconds), "--size", str(self.options.size),
            "--times", times, *(["--flush"] if flush else []),
        ]  # fmt: skip
        told = json.loads(tool(self.namespace, argv, limit_s=self.options.seconds + 60))
        return np.load(times), told["seconds"]

    def prepare(self, lund: Lund, tgt: Tgt, image: Path) -> None:
        """The same LUN three times, with the same data."""
        volume_bytes = (self.options.size * 3 + 256) * MIB
        plain = self.directory / "plain.img"
        device = FileDevice.open(plain, create_bytes=volume_bytes)
        Volume.format(device, name="plain", log_bytes=0)
        device.close()
        lund.add_volume(size_bytes=volume_bytes)
        lund.post("volumes", name="plain", path=str(plain), adopt=True)
        for volume, who in (("vol0", LOGGED), ("plain", PLAIN)):
            lund.add_lun(f"/vol/{volume}/disk", self.options.size * MIB)
            target = lund.target(volume)
            upload(self.namespace, image, url(target))
            self.rivals[who] = Rival(3260, target, 0)
        self.rivals[TGT] = Rival(TGT_PORT, tgt.iqn, tgt.lun)

    def compare(self, work: Work) -> dict[str, Figures]:
        found = {who: Figures() for who in work.rivals}
        for number in range(self.options.rounds + 1):
            for who, figures in found.items():
                times, seconds = self.client(who, work.depth, work.flush)
                if number:
                    figures.add(times, seconds)
                    self.console.print(f"  {work.title}, round {number}: {who} {figures.rates[-1]:,.0f}/s")
        return found

    def around_checkpoints(self, depth: int) -> dict[str, list[float]]:
        """Per round, in µs: the 99th percentile of writes that met a consistency point, the median of the others."""
        found: dict[str, list[float]] = {"during_p99_us": [], "outside_median_us": [], "count": []}
        for _ in range(self.options.rounds):
            times, _ = self.client(LOGGED, depth, flush=False)
            met = self._met(times)
            if not met.any() or met.all():
                continue  # a round too short to see both
            during, outside = times[1, met] * 1e6, times[1, ~met] * 1e6
            found["during_p99_us"].append(float(np.percentile(during, 99)))
            found["outside_median_us"].append(float(np.median(outside)))
            found["count"].append(int(met.sum()))
        return found

    def _met(self, times: Times) -> npt.NDArray[np.bool_]:
        begun, ended = times[0], times[0] + times[1]
        met = np.zeros(begun.size, bool)
        for line in self.checkpoints.read_text().splitlines():
            start, end = map(float, line.split())
            met |= (begun < end) & (ended > start)
        return met


def measure(options: argparse.Namespace, console: Console) -> dict[str, object]:
    with tempfile.TemporaryDirectory(dir=options.directory) as name, Namespace() as namespace:
        directory = Path(name)
        image = directory / "disk.img"
        make_image(image, options.size << 20)
        bench = Bench(options, namespace, directory, console)
        often = directory / "often.toml"
        often.write_text(f"[volumes]\ncheckpoint_s = {options.checkpoint}\n")
        lund = Lund(
            namespace, directory / "state", listen=["127.0.0.1:3260"], environment={"PYTHONPATH": str(ROOT)}
        )
        with lund, Tgt(namespace, image, address="127.0.0.1", port=TGT_PORT) as tgt:
            bench.prepare(lund, tgt, image)
            found: dict[str, object] = {}
            for work in WORKS:
                figures = bench.compare(work)
                show(work, figures, console)
                found[work.title] = {who: vars(of) for who, of in figures.items()}
            lund.stop()
            lund.program = (sys.executable, "-m", "tests.support.timed_lund", bench.checkpoints, "--config", often)
            lund.start()
            for depth in (1, 32):
                around = bench.around_checkpoints(depth)
                show_around(depth, around, console)
                found[f"around consistency points, depth {depth}"] = around
    return found


def ratio(ours: list[float], theirs: list[float]) -> float:
    return statistics.median(one / other for one, other in zip(ours, theirs, strict=True))


def show(work: Work, found: dict[str, Figures], console: Console) -> None:
    table = Table(title=f"4 KiB {work.title}")
    for column in ("target", "median /s", "lowest", "highest", "median µs", "99 % µs", "lund / it"):
        table.add_column(column, justify="left" if column == "target" else "right")
    for who, of in found.items():
        rates = (statistics.median(of.rates), min(of.rates), max(of.rates))
        latencies = (statistics.median(of.median_us), statistics.median(of.p99_us))
        against = f"{ratio(found[LOGGED].rates, of.rates):.2f}"
        table.add_row(who, *(f"{figure:,.0f}" for figure in (*rates, *latencies)), against)
    console.print(table)


def show_around(depth: int, found: dict[str, list[float]], console: Console) -> None:
    if not found["count"]:
        console.print(f"writes, depth {depth}: no consistency point fell into a round; use longer ones")
        return
    during, outside = statistics.median(found["during_p99_us"]), statistics.median(found["outside_median_us"])
    times = ratio(found["during_p99_us"], found["outside_median_us"])
    console.print(
        f"writes, depth {depth}: 99 % take at most {during:,.0f} µs while a consistency point runs "
        f"({sum(found['count']):,.0f} writes); the median outside is {outside:,.0f} µs: {times:.1f} times"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description="Flushes and writes, lund beside tgt, interleaved.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4, help="length of one round")
    parser.add_argument("--size", type=int, default=256, help="MiB of the LUN")
    parser.add_argument("--checkpoint", type=int, default=1, help="seconds between the consistency points of part 3")
    parser.add_argument("--directory", type=Path, default=None, help="where the files lie (default: TMPDIR)")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    console = Console(highlight=False)
    lacking = [name for name in ("qemu-img", "tgtd") if shutil.which(name) is None]
    if os.geteuid() != 0 or lacking:
        console.print("bench-flush needs root (network namespaces) and " + (", ".join(lacking) or "nothing else"))
        return 1
    found = measure(options, console)
    if options.json:
        about = {"machine": platform.platform(), "cores": os.cpu_count(), "python": platform.python_version()}
        options.json.write_text(json.dumps({"about": about, **found}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
