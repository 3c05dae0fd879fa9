"""`make bench-workers`: two volumes served by one process, and by a worker process each (docs/decisions/0014).

Two lean clients at once, one on each volume's LUN, on loopback, the same works as `make bench` has.  Rounds alternate
between the two ways; figures are medians over the rounds.

The clients' own share.  On a machine with two cores clients and target share them, so the plain rate says as much about
the clients as about the target: two workers and two clients want four cores.  So beside it there is what the target
could do if only the clients were elsewhere: commands by second of a process's CPU time, from /proc, while everything
runs at once (what the processes cost each other in caches, memory and kernel locks is in it), summed over processes,
each of which can have one core at most.  That is a rate on as many cores as there are processes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from scripts.bench.rivals import BUILD, ROOT, cpu_s, make_image
from tests.support.initiators import upload, url
from tests.support.lund import BIN, MIB, Lund
from tests.support.netns import Namespace

VOLUMES = ("vol0", "vol1")
ONE, TWO = "one process", "a worker each"
ADDRESSES = {ONE: "127.0.0.1", TWO: "127.0.0.2"}
LIMIT_S = 60.0
WORKS: dict[str, list[str]] = {
    "workers-read-4k-qd32": ["--bytes", "4096", "--depth", "32", "--read-percent", "100"],
    "workers-write-4k-qd32": ["--bytes", "4096", "--depth", "32", "--read-percent", "0"],
    "workers-mix-4k-qd32": ["--bytes", "4096", "--depth", "32", "--read-percent", "70"],
    "workers-read-256k-qd8": ["--bytes", "262144", "--depth", "8", "--read-percent", "100", "--sequential"],
}
"""What each client does."""


@dataclass
class Figures:
    rate: float
    """Commands a second, as they came, of both clients."""
    target_us: float
    """CPU time of the target's processes, by command."""
    ideal: float
    """Commands a second if only the clients had been elsewhere."""


@dataclass
class Way:
    lund: Lund
    address: str
    pids: list[int]
    """Of the process of each volume: the same one twice, or two."""


def serve(stack: ExitStack, namespace: Namespace, directory: Path, name: str, image: Path) -> Way:
    address = ADDRESSES[name]
    config = directory / f"{address}.toml"
    config.write_text(f'workers = "{"volumes" if name == TWO else "none"}"\n')
    lund = Lund(
        namespace, directory / address, listen=[f"{address}:3260"],
        program=[BIN / "lund", "--config", config], environment={"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    stack.enter_context(lund)
    size = image.stat().st_size
    for volume in VOLUMES:
        lund.add_volume(volume, size_bytes=3 * size + 256 * MIB)
        lund.add_lun(f"/vol/{volume}/disk", size)
        upload(namespace, image, url(lund.target(volume), address=address))
    assert lund.process is not None
    lines = lund.api.get("/v1/events").text.splitlines()
    started = [event for event in map(json.loads, lines) if event["kind"] == "volume.worker.started"]
    pids = [event["data"]["pid"] for event in started] or [lund.process.pid] * len(VOLUMES)
    return Way(lund, address, pids)


def work_both(namespace: Namespace, way: Way, argv: list[str], seconds: float, size: int) -> list[dict[str, Any]]:
    """What the clients, one on each volume at the same time, report."""
    running = [
        subprocess.Popen(
            namespace.wrap([
                BUILD / "lean_client", *argv, "--address", way.address, "--target", way.lund.target(volume),
                "--lun", "0", "--size", str(size), "--seconds", str(seconds), "--warmup", "0", "--seed", "1",
            ]),
            stdout=subprocess.PIPE,
        )
        for volume in VOLUMES
    ]  # fmt: skip
    return [json.loads(each.communicate(timeout=seconds + LIMIT_S)[0]) for each in running]


def measure(namespace: Namespace, way: Way, argv: list[str], seconds: float, size: int) -> Figures:
    before = [cpu_s(pid) for pid in way.pids]
    found = work_both(namespace, way, argv, seconds, size)
    used = [cpu_s(pid) - was for pid, was in zip(way.pids, before, strict=True)]
    counts = [float(each["count"]) for each in found]
    total = sum(counts)
    if len(set(way.pids)) == 1:
        used, counts = used[:1], [total]
    return Figures(
        rate=sum(each["rate"] for each in found),
        target_us=sum(used) / total * 1e6,
        ideal=sum(count / cpu for count, cpu in zip(counts, used, strict=True)),
    )


def compare(seconds: float, rounds: int, size_mib: int, only: list[str]) -> dict[str, dict[str, list[Figures]]]:
    results: dict[str, dict[str, list[Figures]]] = {}
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lund-workers-")))
        namespace = stack.enter_context(Namespace())
        image = directory / "disk.img"
        make_image(image, size_mib * MIB)
        ways = {
            name: serve(stack, namespace, directory, name, image) for name in ADDRESSES
        }
        for work in only:
            results[work] = {ONE: [], TWO: []}
            for turn in range(rounds):
                for name in (ONE, TWO) if turn % 2 else (TWO, ONE):
                    figures = measure(namespace, ways[name], WORKS[work], seconds, size_mib * MIB)
                    results[work][name].append(figures)
    return results


def show(results: dict[str, dict[str, list[Figures]]], console: Console) -> None:
    table = Table(title="two volumes, two clients")
    for column in ("work", "served by", "commands/s", "target us", "clients elsewhere/s", "gain (least - most)"):
        table.add_column(column, justify="left" if column in ("work", "served by") else "right")
    for work, ways in results.items():
        gains = [two.ideal / one.ideal for one, two in zip(ways[ONE], ways[TWO], strict=True)]
        for name, rounds in ways.items():
            rate, target_us, ideal = (
                statistics.median(getattr(each, field) for each in rounds) for field in ("rate", "target_us", "ideal")
            )
            gain = f"{statistics.median(gains):.2f} ({min(gains):.2f} - {max(gains):.2f})" if name == TWO else ""
            table.add_row(work, name, f"{rate:,.0f}", f"{target_us:.1f}", f"{ideal:,.0f}", gain)
    console.print(table)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", nargs="+", choices=WORKS, default=list(WORKS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.5)
    parser.add_argument("--size", type=int, default=64, metavar="MIB")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    results = compare(options.seconds, options.rounds, options.size, options.only)
    show(results, Console(width=120))
    if options.json is not None:
        plain = {
            work: {name: [vars(each) for each in rounds] for name, rounds in ways.items()}
            for work, ways in results.items()
        }
        options.json.write_text(json.dumps(plain, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
