#!/usr/bin/env python3
"""How long the instant things take: a snapshot of a volume with data, and a clone of a LUN of 1 TiB.

The times are of the whole HTTP request on the management socket, as `lun` makes it: the daemon's own share is less.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.support.initiators import qemu_io, url  # noqa: E402
from tests.support.lund import GIB, Lund  # noqa: E402
from tests.support.netns import Namespace  # noqa: E402

ROUNDS = 10


def timed_ms(lund: Lund, path: str, body: dict[str, Any]) -> float:
    began = time.perf_counter()
    answer = lund.api.post(f"/v1/{path}", json=body)
    spent = time.perf_counter() - began
    answer.raise_for_status()
    return spent * 1000


def report(what: str, times_ms: list[float]) -> None:
    print(f"{what}: median {statistics.median(times_ms):.1f} ms, most {max(times_ms):.1f} ms, of {len(times_ms)}")


def main() -> int:
    parser = argparse.ArgumentParser(description="Times of snapshot and clone creation.")
    parser.add_argument("--fill", type=int, default=10, help="GiB of data in the volume")
    parser.add_argument("--directory", type=Path, default=None, help="where the volume lies (default: TMPDIR)")
    options = parser.parse_args()
    if os.geteuid() != 0:
        print("needs root: it runs in a network namespace", file=sys.stderr)
        return 1
    with (
        tempfile.TemporaryDirectory(dir=options.directory) as name,
        Namespace() as namespace,
        Lund(namespace, Path(name) / "state", listen=["127.0.0.1:3260"]) as lund,
    ):
        lund.add_volume(size_bytes=(options.fill * 5 // 4 + 2) * GIB)
        lund.add_lun("/vol/vol0/full", options.fill * GIB)
        lund.lun("create", "-s", "1t", "-o", "noreserve", "/vol/vol0/sparse")
        for gib in range(options.fill):
            qemu_io(namespace, url(lund.target()), f"write -P {gib + 1} {gib}G 1G")
        report(
            f"snapshot with {options.fill} GiB in the volume",
            [timed_ms(lund, "volumes/vol0/snapshots", {"name": f"s{n}"}) for n in range(ROUNDS)],
        )
        clones = [
            {"path": f"/vol/vol0/clone{n}", "backing": {"path": "/vol/vol0/.snapshot/s0/sparse"}, "reserved": False}
            for n in range(ROUNDS)
        ]
        report("snapshot-backed LUN of 1 TiB", [timed_ms(lund, "luns", body) for body in clones])
    return 0


if __name__ == "__main__":
    sys.exit(main())
