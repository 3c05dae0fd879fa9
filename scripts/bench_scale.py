#!/usr/bin/env python3
"""`make bench-scale`: a volume of 1 TiB with 1,000 LUNs and 255 snapshots, and how long things take on it.

The volume is a sparse file, built here without a daemon: blocks in every row of its maps, as an old volume has them,
changes all over between two snapshots, and LUNs that are backed by some of them.  Creating is measured while the number
grows.  Then a real lund serves it: it is killed and started again, asked what people ask, and made to delete most of
the snapshots while a guest reads and notes how long each read takes.

Times are of whole HTTP requests on the management socket where a daemon is asked, and of the call elsewhere.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import httpx  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from wafl import BLOCK_BYTES, FileDevice, Lun, Volume  # noqa: E402

GIB = 1 << 30
PLAIN, BACKED_EACH, BACKED_EVERY = 900, 4, 10
"""LUNs: 900 plain ones, then 4 backed ones after every 10th snapshot until there are 1,000."""
CHANGES = 64
"""Overwrites between two snapshots, all over the volume."""
PLACES = 10
"""Blocks of a LUN that are written, 12 KiB from one to the next."""
START_LIMIT_S, CALM_S = 120, 2.0


@dataclass
class Figures:
    ms: dict[str, list[float]] = field(default_factory=dict)
    values: dict[str, float] = field(default_factory=dict)

    def timed(self, what: str, call: Callable[[], Any]) -> Any:
        began = time.perf_counter()
        found = call()
        self.ms.setdefault(what, []).append((time.perf_counter() - began) * 1000)
        return found


# --- building --------------------------------------------------------------------------------------------------------


class SparseDevice(FileDevice):
    """Allocates nothing in advance: blocks in every row of the maps would take 64 GiB of real disk."""

    def preallocate(self, offset: int, length: int) -> None:
        pass


def go_on_at(volume: Volume, row: int) -> None:
    """The next blocks come from this row of the maps, as they do on a volume that has been written all over."""
    allocator = volume.core.allocator
    allocator.give_back_run()
    allocator._runs.clear()
    allocator._window = row - 1


def build(path: Path, size_bytes: int, snapshots: int, luns: int, figures: Figures) -> None:
    device = SparseDevice.open(path, create_bytes=size_bytes)
    Volume.format(device, name="scale")
    device.close()
    volume = Volume.mount(SparseDevice.open(path))
    rng, data = random.Random(1), os.urandom(BLOCK_BYTES)
    plain = [volume.create_lun(f"dir{n % 10}/lun{n:04d}", GIB, reserved=False) for n in range(luns * PLAIN // 1000)]
    for row in range(volume.core.allocator.chunks):
        go_on_at(volume, row)
        plain[row % len(plain)].write(place(row // len(plain)), data)
        if row % 1000 == 999:
            volume.commit_now()
    for number in range(snapshots):
        go_on_at(volume, rng.randrange(volume.core.allocator.chunks))
        for _ in range(CHANGES):
            rng.choice(plain).write(place(rng.randrange(PLACES)), data)
        volume.commit_now()
        figures.timed(f"snapshot create, {number // 64 * 64} to {number // 64 * 64 + 63} there",
                      lambda number=number: take(volume, number))  # fmt: skip
        if number % BACKED_EVERY == 5:
            add_backed(volume, number, plain, rng, luns)
    volume.close()


def place(number: int) -> int:
    return number % PLACES * 3 * BLOCK_BYTES


def take(volume: Volume, number: int) -> None:
    volume.request_snapshot(f"s{number:03d}")
    volume.commit_now()


def add_backed(volume: Volume, number: int, plain: list[Lun], rng: random.Random, luns: int) -> None:
    for each in range(BACKED_EACH):
        if len(volume.luns()) < luns:
            volume.create_lun(
                f"backed/s{number:03d}-{each}", backing=(f"s{number:03d}", rng.choice(plain).name), reserved=False
            )


# --- a real daemon ---------------------------------------------------------------------------------------------------


class Daemon:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.process: subprocess.Popen[bytes] | None = None
        transport = httpx.HTTPTransport(uds=str(directory / "lund.sock"))
        self.http = httpx.Client(transport=transport, base_url="http://lund/v1", timeout=START_LIMIT_S)

    def start(self) -> None:
        argv = [sys.executable, "-m", "target.daemon", "--state", str(self.directory), "--listen", "127.0.0.1:0"]
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stderr=log, cwd=ROOT)
        deadline = time.monotonic() + START_LIMIT_S
        while not self._ready():
            assert self.process.poll() is None, (self.directory / "log").read_text()
            assert time.monotonic() < deadline, "lund does not answer"
            time.sleep(0.005)

    def _ready(self) -> bool:
        try:
            return self.http.get("").status_code < 500
        except httpx.TransportError:
            return False

    def end(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)
        self.process.wait(START_LIMIT_S)

    def ask(self, method: str, url: str, body: Any = None, **params: Any) -> Any:
        answer = self.http.request(method, url, json=body, params=params)
        answer.raise_for_status()
        return answer.json() if answer.content else None

    def memory_mib(self) -> dict[str, int]:
        """Resident now, and the most it has been."""
        assert self.process is not None
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        found = dict(line.split(":", 1) for line in lines if ":" in line)
        return {key: int(found[key].split()[0]) >> 10 for key in ("VmRSS", "VmHWM")}


@contextmanager
def daemon(directory: Path) -> Iterator[Daemon]:
    served = Daemon(directory)
    try:
        yield served
    finally:
        if served.process is not None and served.process.poll() is None:
            served.end(signal.SIGTERM)
        served.http.close()


def serve(image: Path, directory: Path, snapshots: int, figures: Figures) -> None:
    with daemon(directory) as lund:
        figures.timed("lund starts, no volume", lund.start)
        lund.ask("POST", "/volumes", {"name": "scale", "path": str(image), "adopt": True})
        for number in range(32):
            lund.http.put("/data/scale/dir0/lun0000", params={"offset": place(number)}, content=os.urandom(BLOCK_BYTES))
        lund.end(signal.SIGKILL)
        figures.timed("lund starts after SIGKILL, volume mounted", lund.start)
        figures.values["MiB resident after the mount"] = lund.memory_mib()["VmRSS"]
        figures.values["MiB resident at most in the mount"] = lund.memory_mib()["VmHWM"]
        ask_what_people_ask(lund, snapshots, figures)
        delete_under_a_guest(lund, snapshots, figures)
        figures.values["MiB resident at the end"] = lund.memory_mib()["VmRSS"]


def ask_what_people_ask(lund: Daemon, snapshots: int, figures: Figures) -> None:
    of_volume = "/volumes/scale/snapshots"
    for when in ("first", "again"):
        figures.timed(f"snap list, {when}", lambda: lund.ask("GET", of_volume))
        figures.timed(f"df, {when}", lambda: lund.ask("GET", "/volumes"))
        figures.timed(f"lun show, {when}", lambda: lund.ask("GET", "/luns"))
        figures.timed(f"snap usage, {when}", lambda: lund.ask("GET", f"{of_volume}/s{snapshots // 2:03d}"))
    for _ in range(20):
        figures.timed("snap create, the last one", lambda: lund.ask("POST", of_volume, {"name": "last"}))
        lund.ask("DELETE", f"{of_volume}/last")
    restore = f"{of_volume}/s{snapshots // 2:03d}/restore"
    for number in range(1, 11):
        body = {"path": f"/vol/scale/dir{number % 10}/lun{number:04d}"}
        figures.timed("snap restore of one LUN", lambda body=body: lund.ask("POST", restore, body))


def delete_under_a_guest(lund: Daemon, snapshots: int, figures: Figures) -> None:
    """Reads 4 KiB after 4 KiB over the management socket, alone and then while most snapshots are given back."""
    read_for(lund, "read by a guest, nothing else going on", figures, until=lambda began: began > CALM_S)
    deleted, began = 0, time.perf_counter()
    for info in lund.ask("GET", "/volumes/scale/snapshots"):
        if not info["busy"] and deleted < snapshots * 3 // 4:
            url = f"/volumes/scale/snapshots/{info['name']}"
            figures.timed("snap delete", lambda url=url: lund.ask("DELETE", url))
            deleted += 1
    last = [-1.0, began]

    def settled(_: float) -> bool:
        held = lund.ask("GET", "/volumes/scale")["snapshot_bytes"]
        if held != last[0]:
            last[:] = [held, time.perf_counter()]
        return time.perf_counter() - last[1] > CALM_S

    read_for(lund, "read by a guest, reclaim under way", figures, until=settled)
    figures.values["snapshots given back a second"] = deleted / (last[1] - began)


def read_for(lund: Daemon, what: str, figures: Figures, until: Callable[[float], bool]) -> None:
    began = time.perf_counter()
    number = 0
    while not (number % 100 == 0 and until(time.perf_counter() - began)):
        params = {"offset": place(number), "length": BLOCK_BYTES}
        figures.timed(what, lambda params=params: lund.http.get("/data/scale/dir0/lun0000", params=params))
        number += 1


# --- telling ---------------------------------------------------------------------------------------------------------


def percentile(sorted_ms: list[float], share: float) -> float:
    return sorted_ms[min(len(sorted_ms) - 1, int(len(sorted_ms) * share))]


def summary(ms: list[float]) -> dict[str, float]:
    ordered = sorted(ms)
    return {
        "count": len(ordered), "median_ms": statistics.median(ordered), "p99_ms": percentile(ordered, 0.99),
        "most_ms": ordered[-1],
    }  # fmt: skip


def show(figures: Figures, console: Console) -> None:
    table = Table(title="milliseconds")
    for column in ("what", "times", "median", "p99", "most"):
        table.add_column(column, justify="left" if column == "what" else "right")
    for what, ms in figures.ms.items():
        found = summary(ms)
        table.add_row(what, str(found["count"]), *(f"{found[key]:,.1f}" for key in ("median_ms", "p99_ms", "most_ms")))
    console.print(table)
    for what, value in figures.values.items():
        console.print(f"{what}: {value:,.1f}")


def main() -> int:
    parser = argparse.ArgumentParser(description="A volume of 1 TiB with 1,000 LUNs and 255 snapshots.")
    parser.add_argument("--size", type=int, default=1024, help="GiB of the volume (a sparse file)")
    parser.add_argument("--snapshots", type=int, default=254, help="one more is made later")
    parser.add_argument("--luns", type=int, default=1000)
    parser.add_argument("--directory", type=Path, default=None, help="where the file lies (default: TMPDIR)")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    console = Console(highlight=False)
    figures = Figures()
    with tempfile.TemporaryDirectory(dir=options.directory) as name:
        directory = Path(name)
        image = directory / "scale.img"
        began = time.perf_counter()
        build(image, options.size * GIB, options.snapshots, options.luns, figures)
        console.print(f"built in {time.perf_counter() - began:.0f} s, {image.stat().st_blocks >> 11} MiB on disk")
        os.sync()
        serve(image, directory, options.snapshots, figures)
    show(figures, console)
    if options.json:
        about = {"machine": platform.platform(), "cores": os.cpu_count(), "python": platform.python_version()}
        times = {what: summary(ms) for what, ms in figures.ms.items()}
        options.json.write_text(json.dumps({"about": about, "times": times, "values": figures.values}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
