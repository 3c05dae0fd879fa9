#!/usr/bin/env python3
"""`make bench`: 4 KiB random reads at queue depth 32 with libiscsi's `iscsi-perf`, lund beside tgt.

Both serve a LUN of the same size with the same content, from files in the same directory, on loopback in a network
namespace; the rounds alternate after a warm-up, so that what else the machine does hits both.  The figures are
medians; the ratio is taken round by round.  The target's CPU time per read says more than the rate where the client
is the bottleneck or the machine has other work.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import statistics
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from tests.support.initiators import tool, upload, url  # noqa: E402
from tests.support.lund import MIB, Lund  # noqa: E402
from tests.support.netns import Namespace  # noqa: E402
from tests.support.tgt import Tgt  # noqa: E402

AVERAGE = re.compile(r"^iops average (\d+)", re.MULTILINE)
TGT_PORT = 3261


def iscsi_perf(namespace: Namespace, lun_url: str, options: argparse.Namespace) -> int:
    argv = ["iscsi-perf", "-r", "-b", str(options.block // 512), "-m", str(options.depth), "-t", str(options.seconds)]
    found = AVERAGE.findall(tool(namespace, [*argv, lun_url], limit_s=options.seconds + 60))
    return int(found[-1])


def cpu_seconds(pid: int) -> float:
    """User and system time of all threads of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def make_image(path: Path, size_bytes: int) -> None:
    with path.open("wb") as file:
        for _ in range(size_bytes >> 20):
            file.write(os.urandom(1 << 20))


@dataclass
class Rounds:
    url: str
    pid: int
    rates: list[int] = field(default_factory=list)
    cpu_us: list[float] = field(default_factory=list)
    """The target's CPU time for one read."""

    def measure(self, namespace: Namespace, options: argparse.Namespace) -> None:
        before = cpu_seconds(self.pid)
        rate = iscsi_perf(namespace, self.url, options)
        self.rates.append(rate)
        self.cpu_us.append((cpu_seconds(self.pid) - before) * 1e6 / (rate * options.seconds))


def measure(options: argparse.Namespace, console: Console) -> dict[str, Rounds]:
    with tempfile.TemporaryDirectory(dir=options.directory) as name, Namespace() as namespace:
        directory = Path(name)
        image = directory / "disk.img"
        make_image(image, options.size << 20)
        lund = Lund(namespace, directory / "state", listen=["127.0.0.1:3260"])
        with lund, Tgt(namespace, image, address="127.0.0.1", port=TGT_PORT) as tgt:
            lund.add_volume(size_bytes=(options.size * 2 + 256) * MIB)
            lund.add_lun("/vol/vol0/disk", options.size * MIB)
            assert lund.process is not None
            rivals = {
                "lund": Rounds(url(lund.target()), lund.process.pid),
                "tgt": Rounds(f"iscsi://127.0.0.1:{TGT_PORT}/{tgt.iqn}/{tgt.lun}", tgt.process.pid),
            }
            upload(namespace, image, rivals["lund"].url)
            for number in range(options.rounds + 1):
                for who, rounds in rivals.items():
                    rounds.measure(namespace, options)
                    name = f"round {number}" if number else "warm-up"
                    console.print(f"  {name}: {who} {rounds.rates[-1]:,}/s, {rounds.cpu_us[-1]:.1f} µs CPU a read")
    for rounds in rivals.values():
        del rounds.rates[0], rounds.cpu_us[0]
    return rivals


def main() -> int:
    parser = argparse.ArgumentParser(description="iscsi-perf against lund and tgt, interleaved.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=3, help="length of one round")
    parser.add_argument("--depth", type=int, default=32)
    parser.add_argument("--block", type=int, default=4096, help="bytes a read")
    parser.add_argument("--size", type=int, default=256, help="MiB of the LUN")
    parser.add_argument("--directory", type=Path, default=None, help="where the files lie (default: TMPDIR)")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    console = Console(highlight=False)
    lacking = [name for name in ("iscsi-perf", "qemu-img", "tgtd") if shutil.which(name) is None]
    if os.geteuid() != 0 or lacking:
        console.print("bench needs root (network namespaces) and " + (", ".join(lacking) or "nothing else"))
        return 1
    rivals = measure(options, console)
    pairs = zip(rivals["lund"].rates, rivals["tgt"].rates, strict=True)
    ratio = statistics.median(ours / theirs for ours, theirs in pairs)
    table = Table(title=f"{options.block} byte random reads, queue depth {options.depth}, {options.size} MiB LUN")
    for column in ("target", "median /s", "lowest", "highest", "CPU µs a read"):
        table.add_column(column, justify="left" if column == "target" else "right")
    for who, rounds in rivals.items():
        rates = (statistics.median(rounds.rates), min(rounds.rates), max(rounds.rates))
        table.add_row(who, *(f"{rate:,.0f}" for rate in rates), f"{statistics.median(rounds.cpu_us):.1f}")
    console.print(table)
    console.print(f"lund / tgt: {ratio:.2f}")
    if options.json:
        about = {"machine": platform.platform(), "cores": os.cpu_count(), "python": platform.python_version()}
        figures = {who: {"rates": rounds.rates, "cpu_us": rounds.cpu_us} for who, rounds in rivals.items()}
        options.json.write_text(json.dumps({"about": about, **figures, "ratio": ratio}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
