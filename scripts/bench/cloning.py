"""`make bench-clone`: what a lazy clone costs hosts, and how fast it copies.

1. Random reads of 4 KiB by the lean client of `make bench`, from the LUN that is cloned and from one beside it: while
   nothing is cloned, during a polite clone, and during one at full speed; and what the clone copied meanwhile.
2. A fully allocated LUN copied at full speed, and shared (`--share`), beside `cp` of a file of that size and QEMU's
   `block-stream` from a raw file into a qcow2 overlay.  Each begins with its source out of the page cache and ends when
   all is on the disk.

All of it in one directory, in turns; figures are medians over the rounds, ratios are taken round by round.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from scripts.bench.block_stream import DAEMON, stream_s
from scripts.bench.rivals import ADDRESS, BUILD, ROOT, cpu_s, drop_from_cache, make_image, settle
from scripts.bench.runner import about
from tests.support.initiators import tool, upload, url
from tests.support.lund import GIB, MIB, Lund, wait_until
from tests.support.netns import Namespace

GOLDEN, CLONE, BESIDE = "/vol/vol0/golden", "/vol/vol0/clone", "/vol/vol0/beside"
SNAPSHOT, BACKING = "base", "/vol/vol0/.snapshot/base/golden"
LUNS = {"the cloned LUN": 1, "a LUN beside it": 2}
IDLE, POLITE, FULL_SPEED = "no clone", "polite", "full speed"
LUND, SHARE, CP, STREAM = "lund", "lund --share", "cp", "block-stream"
SPAN_MIB = 256
"""What is read: it stays in the page cache, so that the disk does not hide the rest."""
WARMUP_S = 0.5
BLOCK = 4096
TABLE_WIDTH = 130
LIMIT_S = 1800.0
Round = dict[str, Any]


class Site:
    """A daemon with a full LUN, a snapshot of it, and a LUN beside it."""

    def __init__(self, options: argparse.Namespace, namespace: Namespace, directory: Path) -> None:
        self.options, self.namespace, self.directory = options, namespace, directory
        self.size_bytes: int = options.size * MIB
        self.image = directory / "disk.img"
        self.lund = Lund(
            namespace, directory / "state", listen=[f"{ADDRESS}:3260"], environment={"PYTHONPATH": str(ROOT)}
        )

    def prepare(self) -> None:
        make_image(self.image, self.size_bytes)
        span = self.directory / "span.img"
        make_image(span, SPAN_MIB * MIB)
        lund = self.lund
        lund.add_volume(size_bytes=self.size_bytes * 3 + 2 * GIB)
        lund.add_lun(GOLDEN, self.size_bytes, lun_id=0)
        lund.add_lun(BESIDE, SPAN_MIB * MIB, lun_id=2)
        upload(self.namespace, self.image, url(lund.target()), limit_s=LIMIT_S)
        upload(self.namespace, span, url(lund.target(), 2))
        lund.post("volumes/vol0/snapshots", name=SNAPSHOT)
        self.volume = lund.directory / Path(lund.get("volumes/vol0")["path"])
        self.active_bytes = lund.get("volumes/vol0")["active_bytes"]

    def make_clone(self) -> None:
        self.lund.post("luns", path=CLONE, backing={"path": BACKING}, reserved=False)
        self.lund.map(CLONE, lun_id=1)

    def start(self, *, full_speed: bool, share: bool = False) -> str:
        """The operation."""
        answer = self.lund.api.put("/v1/clones/vol0/clone", json={"full_speed": full_speed, "share": share})
        answer.raise_for_status()
        operation: str = answer.json()["operation"]
        return operation

    def remove_clone(self) -> None:
        """And wait until its space is free again, so that giving it back disturbs nobody."""
        self.lund.api.delete("/v1/luns/vol0/clone", params={"force": True}).raise_for_status()

        def gone() -> bool:
            active: int = self.lund.get("volumes/vol0")["active_bytes"]
            return active <= self.active_bytes + MIB

        wait_until(gone, LIMIT_S, "the clone's space is free")

    # --- 1. what hosts notice

    def read(self, lun: int, depth: int) -> Round:
        assert self.lund.process is not None
        argv = [
            BUILD / "lean_client", "--bytes", BLOCK, "--read-percent", 100, "--depth", depth,
            "--port", 3260, "--target", self.lund.target(), "--lun", lun, "--pid", self.lund.process.pid,
            "--size", min(SPAN_MIB * MIB, self.size_bytes), "--warmup", WARMUP_S, "--seconds", self.options.seconds,
        ]  # fmt: skip
        figures: Round = json.loads(tool(self.namespace, list(map(str, argv)), limit_s=self.options.seconds + 120))
        return figures

    def latency(self, lun: int, depth: int, speed: str) -> Round:
        self.make_clone()
        # The client's place: what others have left in the page cache is the same for all three.
        self.read(lun, depth)
        settle(self.volume)
        if speed != IDLE:
            self.start(full_speed=speed == FULL_SPEED)
        before, begun = self.copied(), time.monotonic()
        figures = self.read(lun, depth)
        copied, spent = self.copied() - before, time.monotonic() - begun
        state = self.lund.clone_status(CLONE)["state"]
        self.remove_clone()
        return {**figures, "copied_mib_s": copied * BLOCK / MIB / spent, "clone_state": state}

    def copied(self) -> int:
        count: int = self.lund.clone_status(CLONE)["completed_blocks"]
        return count

    # --- 2. how fast it copies

    def copy_by_lund(self, *, share: bool = False) -> Round:
        self.make_clone()
        drop_from_cache(self.volume)
        assert self.lund.process is not None
        cpu, begun = cpu_s(self.lund.process.pid), time.monotonic()
        operation = self.start(full_speed=True, share=share)
        while self.lund.get(f"operations/{operation}/wait?timeout=60")["state"] == "running":
            pass
        spent, cpu = time.monotonic() - begun, cpu_s(self.lund.process.pid) - cpu
        status = self.lund.clone_status(CLONE)
        assert status["state"] == "completed", status
        assert status["shared_blocks" if share else "copied_blocks"] == self.size_bytes // BLOCK, status
        self.remove_clone()
        return {"seconds": spent, "cpu_s": cpu}

    def copy_by_cp(self) -> Round:
        copy = self.directory / "copy.img"
        drop_from_cache(self.image)
        cpu, begun = cpu_of_children(), time.monotonic()
        tool(self.namespace, ["cp", "--sparse=never", "--reflink=never", self.image, copy], limit_s=LIMIT_S)
        settle(copy)
        spent = time.monotonic() - begun
        copy.unlink()
        return {"seconds": spent, "cpu_s": cpu_of_children() - cpu}

    def copy_by_stream(self) -> Round:
        overlay = self.directory / "overlay.qcow2"
        cpu = cpu_of_children()
        spent = stream_s(self.image, overlay, lambda: drop_from_cache(self.image))
        overlay.unlink()
        return {"seconds": spent, "cpu_s": cpu_of_children() - cpu}


def cpu_of_children() -> float:
    """Of those that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def turns(
    work: dict[str, Callable[[], Round]], rounds: int, told: Callable[[str, Round], None]
) -> dict[str, list[Round]]:
    """Each begins as often as the others do."""
    names, found = list(work), {name: list[Round]() for name in work}
    for number in range(rounds):
        first = number % len(names)
        for name in [*names[first:], *names[:first]]:
            found[name].append(work[name]())
            told(name, found[name][-1])
    return found


def ratios(ours: list[Round], theirs: list[Round], key: str) -> dict[str, float]:
    each = [one[key] / other[key] for one, other in zip(ours, theirs, strict=True)]
    return {"median": statistics.median(each), "lowest": min(each), "highest": max(each)}


def median(rounds: list[Round], key: str) -> float:
    return statistics.median(each[key] for each in rounds)


def spread(ratio: dict[str, float]) -> str:
    return f"{ratio['median']:.2f} ({ratio['lowest']:.2f}-{ratio['highest']:.2f})"


def measure_latency(site: Site, console: Console) -> list[Round]:
    table = Table(title="4 KiB random reads: p99 against no clone, and what was copied meanwhile")
    for column in ("reads from", "depth", "clone", "reads/s", "p50 µs", "p99 µs", "p99 / no clone", "copied MiB/s"):
        table.add_column(column, justify="left" if column in ("reads from", "clone") else "right")
    results = []
    for where, lun in LUNS.items():
        for depth in site.options.depth:
            found = turns(
                {
                    speed: lambda lun=lun, depth=depth, speed=speed: site.latency(lun, depth, speed)
                    for speed in (IDLE, POLITE, FULL_SPEED)
                },
                site.options.rounds,
                lambda speed, figures: console.print(f"  {speed}: p99 {figures['p99_us']:,.0f} µs"),
            )
            result: Round = {"reads_from": where, "depth": depth, "rounds": found, "p99_ratio": {}}
            for speed, rounds in found.items():
                ratio = result["p99_ratio"][speed] = ratios(rounds, found[IDLE], "p99_us")
                ended = sum(each["clone_state"] == "completed" for each in rounds)
                note = f" (over in {ended} of {len(rounds)})" if ended else ""
                table.add_row(
                    where, str(depth), speed, f"{median(rounds, 'rate'):,.0f}", f"{median(rounds, 'p50_us'):,.0f}",
                    f"{median(rounds, 'p99_us'):,.0f}", spread(ratio), f"{median(rounds, 'copied_mib_s'):,.0f}{note}",
                )  # fmt: skip
            results.append(result)
    console.print(table)
    return results


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


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="bench-clone", description="Lazy clones: what hosts notice, how fast they copy."
    )
    parser.add_argument("--only", choices=["latency", "copy"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.5, help="of reading, each time")
    parser.add_argument("--depth", type=int, nargs="+", default=[1, 8], help="queue depths of the reads")
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
            if options.only != "copy":
                results["latency"] = measure_latency(site, console)
            if options.only != "latency":
                results["copy"] = measure_copy(site, console)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
