#!/usr/bin/env python3
"""`make bench-rollout`: a golden image rolled out as many LUNs, one request each and all in one.

Times are of whole HTTP requests on the management socket.  Each round destroys what it made.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from scripts.bench_scale import Daemon, daemon  # noqa: E402

GIB = 1 << 30
PARENT = {"path": "/vol/gold/golden"}
COUNTS = (10, 100, 250)


def prepare(lund: Daemon) -> None:
    lund.start()
    lund.ask("POST", "/volumes", {"name": "gold", "size_bytes": 8 * GIB})
    lund.ask("POST", "/luns", {"path": PARENT["path"], "size_bytes": 1 << 40, "reserved": False})
    for at in range(256):
        lund.http.put("/data/gold/golden", params={"offset": at << 20}, content=os.urandom(1 << 20))
    lund.ask("POST", "/igroups", {"name": "hosts", "initiators": ["*"]})


def one_by_one(lund: Daemon, count: int) -> None:
    lund.ask("POST", "/volumes/gold/snapshots", {"name": "base"})
    for number in range(count):
        path = f"/vol/gold/vm{number}"
        lund.ask("POST", "/luns", {"path": path, "backing": {**PARENT, "snapshot": "base"}})
        lund.ask("POST", "/maps", {"path": path, "igroup": "hosts"})


def all_in_one(lund: Daemon, count: int) -> None:
    body = {"pattern": "/vol/gold/vm%d", "first": 0, "count": count, "backing": PARENT, "igroup": "hosts"}
    lund.ask("POST", "/rollouts", body)


def clear(lund: Daemon, count: int) -> None:
    for number in range(count):
        lund.ask("DELETE", f"/luns/gold/vm{number}", force=True)
    for snapshot in lund.ask("GET", "/volumes/gold/snapshots"):
        lund.ask("DELETE", f"/volumes/gold/snapshots/{snapshot['name']}")


def timed(call: Callable[[], None]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def main() -> int:
    parser = argparse.ArgumentParser(description="Times of rolling out a golden image.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--directory", type=Path, default=None, help="where the volume lies (default: TMPDIR)")
    parser.add_argument("--json", type=Path, default=None, metavar="FILE", help="write the figures there too")
    options = parser.parse_args()
    ways = {"one request each": one_by_one, "one for all": all_in_one}
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(dir=options.directory) as name, daemon(Path(name)) as lund:
        prepare(lund)
        for _ in range(options.rounds):
            for count in COUNTS:
                for word, way in ways.items():
                    found.setdefault(f"{count} LUNs, {word}", []).append(timed(lambda: way(lund, count)))  # noqa: B023
                    clear(lund, count)
    table = Table("", "median ms", "most ms", "ms per ten")
    for word, times in found.items():
        ms = [1000 * each for each in times]
        ten = statistics.median(ms) / int(word.split()[0]) * 10
        table.add_row(word, f"{statistics.median(ms):.0f}", f"{max(ms):.0f}", f"{ten:.1f}")
    Console().print(table)
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
