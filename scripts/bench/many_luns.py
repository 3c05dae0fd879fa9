"""`make bench-luns`: what LUNs and sessions cost that nobody uses.

Three lunds side by side with the same data: one has one LUN; one has it and 999 small ones beside it, all mapped to
everybody; one has those and 200 sessions that see all of them and do nothing.  The same work in turns on each: on the
LUN that all have, and on the small ones all over (where there is one LUN, on as much of it).  Then what a host or an
administrator asks for now and then: a login, REPORT LUNS, one LUN more in the maps, the daemon's start.

Needs no root: everything listens on loopback, on ports that the kernel chooses.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from scripts.bench.report import Ratio
from scripts.bench.rivals import BUILD, Figures, resident_mib
from scripts.bench.runner import about, end_tidily
from scripts.bench_scale import Daemon, daemon
from tests.support.lean_initiator import LeanInitiator
from wafl import FileDevice, Volume

MIB = 1 << 20
ONE, MANY, IDLE = "one LUN", "1,000 LUNs", "1,000 LUNs, 200 sessions"
LUNS, SESSIONS = 1000, 200
VOLUME, DISK, SMALL = "vol0", "disk", "small"
SMALL_BYTES = 256 << 10
INITIATOR = "iqn.2026-01.test.host:"
LOGINS, REPORTS, MAPPINGS, STARTS = 20, 50, 5, 3
IDLE_LOOKS = 5
"""A second each; in one of them a consistency point may come to its end."""
CLIENT_LIMIT_S = 120.0
TABLE_WIDTH = 130

WORKS = {
    "read-4k-qd32": ("--read-percent", "100"),
    "write-4k-qd32": ("--read-percent", "0"),
}
EVERYWHERE = " all over"


@dataclass
class Site:
    """One lund, and what has been found out about it."""

    name: str
    lund: Daemon
    luns: int
    disk_bytes: int
    idle: list[LeanInitiator] = field(default_factory=list)
    rounds: dict[str, list[Figures]] = field(default_factory=dict)
    values: dict[str, float] = field(default_factory=dict)
    target: str = ""
    port: int = 0

    @property
    def pid(self) -> int:
        assert self.lund.process is not None
        return self.lund.process.pid

    def enter(self) -> None:
        """Where it listens and what its target is called: a restart may change the port."""
        self.target = self.lund.ask("GET", f"/volumes/{VOLUME}")["target"]
        address: str = self.lund.ask("GET", "/iscsi")["portals"][0]
        self.port = int(address.rpartition(":")[2])

    def log_in(self, name: str) -> LeanInitiator:
        return LeanInitiator(("127.0.0.1", self.port), self.target, 0, initiator=INITIATOR + name)

    def work(self, name: str, everywhere: bool, seconds: float, warmup_s: float) -> None:
        size, luns = (SMALL_BYTES, self.luns - 1) if everywhere and self.luns > 1 else (self.disk_bytes, 1)
        argv = [
            BUILD / "lean_client", "--port", self.port, "--target", self.target, "--depth", 32, *WORKS[name],
            "--lun", 1 if luns > 1 else 0, "--luns", luns, "--size", size, "--pid", self.pid,
            "--seconds", seconds, "--warmup", warmup_s, "--seed", len(self.rounds) + 1,
        ]  # fmt: skip
        done = subprocess.run(
            list(map(str, argv)), capture_output=True, text=True, timeout=CLIENT_LIMIT_S + seconds, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{self.name}: {done.stderr}")
        self.rounds.setdefault(name + EVERYWHERE * everywhere, []).append(json.loads(done.stdout))


def processor_ms(pid: int) -> float:
    """Of all threads of a process, by the scheduler's own account."""
    tasks = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(each.read_text().split()[0]) for each in tasks) / 1e6


def processor_in(pid: int, seconds: float) -> float:
    before = processor_ms(pid)
    time.sleep(seconds)
    return processor_ms(pid) - before


def build(path: Path, disk_bytes: int, luns: int) -> None:
    """A volume in which everything has been written."""
    device = FileDevice.open(path, create_bytes=2 * disk_bytes + luns * SMALL_BYTES + 1024 * MIB)
    Volume.format(device, name=VOLUME)
    volume = Volume.mount(device)
    noise = os.urandom(MIB)
    sizes = {DISK: disk_bytes, **{f"{SMALL}{number:04}": SMALL_BYTES for number in range(1, luns)}}
    for name, size in sizes.items():
        lun = volume.create_lun(name, size, reserved=False)
        for at in range(0, size, MIB):
            lun.write(at, noise[: min(MIB, size - at)])
    volume.close()


def open_site(stack: ExitStack, directory: Path, name: str, disk_bytes: int) -> Site:
    directory.mkdir()
    luns = 1 if name == ONE else LUNS
    build(directory / f"{VOLUME}.img", disk_bytes, luns)
    lund = stack.enter_context(daemon(directory))
    lund.start()
    lund.ask("POST", "/volumes", {"name": VOLUME, "path": str(directory / f"{VOLUME}.img"), "adopt": True})
    lund.ask("POST", "/igroups", {"name": "everyone", "initiators": ["*"]})
    for number, lun in enumerate(lund.ask("GET", "/luns")):
        lund.ask("POST", "/maps", {"path": lun["path"], "igroup": "everyone", "lun_id": number})
    site = Site(name, lund, luns, disk_bytes)
    site.enter()
    return site


def timed(times: int, call: Callable[[], object]) -> float:
    """Median ms."""
    took = []
    for _ in range(times):
        begun = time.perf_counter()
        call()
        took.append((time.perf_counter() - begun) * 1000)
    return statistics.median(took)


def ask(site: Site) -> None:
    """What is asked for now and then."""
    found = site.values
    found["processor time while nothing happens, ms a second"] = statistics.median(
        processor_in(site.pid, 1.0) for _ in range(IDLE_LOOKS)
    )
    found["login, ms"] = timed(LOGINS, lambda: site.log_in("visits").close())
    with site.log_in("asks") as host:
        assert host.report_luns() == site.luns
        found["REPORT LUNS, ms"] = timed(REPORTS, host.report_luns)
    last = site.lund.ask("GET", "/luns")[-1]["path"]
    before = processor_ms(site.pid)
    for _ in range(MAPPINGS):
        site.lund.ask("DELETE", "/maps", path=last, igroup="everyone")
        site.lund.ask("POST", "/maps", {"path": last, "igroup": "everyone"})
    found["processor time of a change of maps, ms"] = (processor_ms(site.pid) - before) / MAPPINGS / 2
    found["list of maps, ms"] = timed(MAPPINGS, lambda: site.lund.ask("GET", "/maps"))
    found["list of LUNs, ms"] = timed(MAPPINGS, lambda: site.lund.ask("GET", "/luns"))
    found["resident MiB"] = resident_mib(site.pid)


def restart(site: Site) -> None:
    for each in site.idle:
        each.close()
    site.idle.clear()

    def once() -> float:
        site.lund.end(signal.SIGTERM)
        return timed(1, site.lund.start)

    site.values["start, ms"] = statistics.median(once() for _ in range(STARTS))


def keep(sites: list[Site]) -> None:
    """Idle sessions answer nothing, so they are heard of before the target wonders whether they are there."""
    for site in sites:
        for each in site.idle:
            each.get_ready()


def measure(options: argparse.Namespace, directory: Path, console: Console) -> list[Site]:
    with ExitStack() as stack:
        sites = [
            open_site(stack, directory / str(number), name, LUNS * SMALL_BYTES)
            for number, name in enumerate((ONE, MANY, IDLE))
        ]
        sites[-1].idle = [sites[-1].log_in(f"idle{number}") for number in range(SESSIONS)]
        for name in WORKS:
            for everywhere in (False, True):
                for turn in range(options.rounds):
                    for site in (*sites[turn % len(sites) :], *sites[: turn % len(sites)]):
                        site.work(name, everywhere, options.seconds, options.warmup)
                keep(sites)
                console.print(f"[dim]{name}{EVERYWHERE * everywhere}[/]")
        for site in sites:
            ask(site)
            keep(sites)
        for site in sites:
            restart(site)
    return sites


# --- telling


def against(site: Site, first: Site, work: str) -> str:
    """Its rate over that of the first one, round by round."""
    ratios = [a["rate"] / b["rate"] for a, b in zip(site.rounds[work], first.rounds[work], strict=True)]
    return str(Ratio(statistics.median(ratios), min(ratios), max(ratios)))


def show(sites: list[Site], console: Console) -> None:
    table = Table(title="with LUNs and sessions that nobody uses")
    for column in ("", *(site.name for site in sites)):
        table.add_column(column, justify="right" if column else "left")
    for work in sites[0].rounds:
        rates = [statistics.median(each["rate"] for each in site.rounds[work]) for site in sites]
        costs = [statistics.median(each["target_cpu_us"] for each in site.rounds[work]) for site in sites]
        table.add_row(f"{work}, /s", *(f"{rate:,.0f}" for rate in rates))
        table.add_row("  over that with one LUN", "", *(against(site, sites[0], work) for site in sites[1:]))
        table.add_row("  processor time of a command, µs", *(f"{cost:.1f}" for cost in costs))
    for what in sites[0].values:
        table.add_row(what, *(f"{site.values[what]:,.2f}" for site in sites))
    console.print(table)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench-luns", description="What idle LUNs and sessions cost.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.6, help="measured each time")
    parser.add_argument("--warmup", type=float, default=0.2, help="seconds before, not counted")
    parser.add_argument("--directory", type=Path, default=None, help="where the files lie (default: TMPDIR)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="every round's figures")
    return parser.parse_args()


def main() -> int:
    options = parse()
    end_tidily()
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = TABLE_WIDTH
    if not (BUILD / "lean_client").exists():
        console.print("bench-luns needs build/bench/lean_client (make bench-tools)")
        return 1
    with tempfile.TemporaryDirectory(dir=options.directory) as name:
        sites = measure(options, Path(name), console)
    show(sites, console)
    if options.json:
        told = {site.name: {"rounds": site.rounds, "values": site.values} for site in sites}
        options.json.write_text(json.dumps({"about": about(), **told}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
