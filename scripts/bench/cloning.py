"""`make bench-clone`: what a lazy clone costs hosts, and how fast it copies.

1. Random reads of 4 KiB by the lean client of `make bench`, from the LUN that is cloned and from one beside it: while
   nothing is cloned, during a polite clone, and during one at full speed; and what the clone copied meanwhile.
2. The same as a Linux host sees it: fio in User-Mode Linux with the kernel's own initiator, with no clone and during a
   polite one.
3. A fully allocated LUN copied at full speed, and shared (`--share`), beside `cp` of a file of that size and QEMU's
   `block-stream` from a raw file into a qcow2 overlay.  Each begins with its source out of the page cache and ends when
   all is on the disk.

All of it in one directory, in turns; figures are medians over the rounds, ratios are taken round by round.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from scripts.bench.block_stream import DAEMON
from scripts.bench.clone_host import measure_host
from scripts.bench.clone_latency import compare
from scripts.bench.clone_site import (
    CP,
    FULL_SPEED,
    IDLE,
    LUND,
    POLITE,
    SHARE,
    STREAM,
    Round,
    Site,
    median,
    ratios,
    spread,
    turns,
)
from scripts.bench.rivals import BUILD
from scripts.bench.runner import about, end_tidily
from tests.support.lund import GIB, MIB
from tests.support.netns import Namespace

TABLE_WIDTH = 130


def measure_latency(site: Site, console: Console) -> list[Round]:
    title = "4 KiB random reads: p99 against no clone, and what was copied meanwhile"
    return compare(site, site.latency, (IDLE, POLITE, FULL_SPEED), title, console)


def measure_copy(site: Site, console: Console) -> Round:
    work: dict[str, Callable[[], Round]] = {
        LUND: site.copy_by_lund, SHARE: lambda: site.copy_by_lund(share=True), CP: site.copy_by_cp,
    }  # fmt: skip
    if shutil.which(DAEMON):
        work[STREAM] = site.copy_by_stream
    else:
        console.print(f"without {STREAM}: no {DAEMON} (Debian: qemu-system-common)")
    found = turns(
        work, site.options.rounds, lambda name, figures: console.print(f"  {name}: {figures['seconds']:.1f} s")
    )
    table = Table(title=f"a full copy of {site.options.size} MiB, cold, until it is on the disk")
    for column in ("by", "median s", "lowest", "highest", "MiB/s", "CPU s", "lund's speed / its"):
        table.add_column(column, justify="left" if column == "by" else "right")
    against = {}
    for name, rounds in found.items():
        seconds = [each["seconds"] for each in rounds]
        against[name] = ratios(rounds, found[LUND], "seconds")
        speed = site.options.size / statistics.median(seconds)
        cells = (statistics.median(seconds), min(seconds), max(seconds))
        cpu = f"{median(rounds, 'cpu_s'):.2f}"
        table.add_row(name, *(f"{cell:.2f}" for cell in cells), f"{speed:,.0f}", cpu, spread(against[name]))
    console.print(table)
    return {"rounds": found, "lund_speed_ratio": against}


PARTS: dict[str, Callable[[Site, Console], object]] = {
    "latency": measure_latency, "host": measure_host, "copy": measure_copy,
}  # fmt: skip


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="bench-clone", description="Lazy clones: what hosts notice, how fast they copy."
    )
    parser.add_argument("--only", choices=["latency", "host", "copy"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.5, help="of reading, each time")
    parser.add_argument("--depth", type=int, nargs="+", default=[1, 32], help="queue depths of the reads")
    parser.add_argument("--size", type=int, default=4096, help="MiB of the LUN that is cloned")
    parser.add_argument("--directory", type=Path, default=None, help="where the files lie (default: TMPDIR)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="every round's figures")
    return parser.parse_args()


def lacking(options: argparse.Namespace) -> list[str]:
    missing = [name for name in ("qemu-img", "nsenter", "cp") if shutil.which(name) is None]
    if not (BUILD / "lean_client").exists():
        missing.append("build/bench/lean_client (make bench-tools)")
    free = shutil.disk_usage(options.directory or tempfile.gettempdir()).free
    needed = 5 * options.size * MIB + 2 * GIB
    if free < needed:
        missing.append(f"{needed / GIB:.0f} GiB of disk")
    return missing + ([] if os.geteuid() == 0 else ["root (network namespaces)"])


def main() -> int:
    options = parse()
    end_tidily()
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = TABLE_WIDTH
    if missing := lacking(options):
        console.print("bench-clone needs " + ", ".join(missing))
        return 1
    results: Round = {"about": about()}
    with tempfile.TemporaryDirectory(dir=options.directory) as name, Namespace() as namespace:
        site = Site(options, namespace, Path(name))
        with site.lund:
            site.prepare()
            for part, measure in PARTS.items():
                if options.only in (None, part):
                    results[part] = measure(site, console)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
