"""fio as the client: of qemu-nbd, and on Linux hosts."""

from __future__ import annotations

import json
from typing import Any

from scripts.bench.works import Work

Figures = dict[str, Any]
MIB = 1 << 20


def words(work: Work, seed: int, size_bytes: int, warmup_s: float, seconds: float) -> list[str]:
    """What is the same for every ioengine.  With a warm-up the figures' `count` is without what was done in it.  Times
    are in milliseconds: fio takes 1.4s for one second, and 0.6s for no limit at all."""
    return [
        "fio", "--name=bench", f"--bs={work.bytes}", f"--rw={'' if work.sequential else 'rand'}{_way(work)}",
        f"--iodepth={work.depth}", f"--size={size_bytes}", "--time_based", f"--runtime={round(seconds * 1000)}ms",
        f"--ramp_time={round(warmup_s * 1000)}ms", f"--randseed={seed}", "--output-format=json", "--eta=never",
    ]  # fmt: skip


def figures(work: Work, output: str) -> Figures:
    """From fio's JSON; libraries may have said something before it."""
    found = json.loads(output[output.index("{") :])["jobs"][0]
    assert found["error"] == 0, output
    told = found[_way(work)]
    percentile = told["clat_ns"]["percentile"]
    return {
        "count": told["total_ios"], "rate": told["iops"], "mib_s": told["bw_bytes"] / MIB,
        "p50_us": percentile["50.000000"] / 1e3, "p99_us": percentile["99.000000"] / 1e3,
    }  # fmt: skip


def _way(work: Work) -> str:
    assert work.read_percent in (0, 100), work
    return "write" if work.writes else "read"
