"""Where `make bench-clone` measures: a daemon with a full LUN, a snapshot of it, a LUN beside it; and who goes when."""

from __future__ import annotations

import argparse
import json
import mmap
import os
import resource
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from scripts.bench.block_stream import stream_s
from scripts.bench.rivals import BUILD, ROOT, cpu_s, drop_from_cache, make_image, settle
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
MADV_POPULATE_WRITE = 23
"""Linux 5.14; the module does not name it yet."""
LIMIT_S = 1800.0
Round = dict[str, Any]


class Site:
    """A daemon with a full LUN, a snapshot of it, and a LUN beside it."""

    def __init__(self, options: argparse.Namespace, namespace: Namespace, directory: Path) -> None:
        self.options, self.namespace, self.directory = options, namespace, directory
        self.size_bytes: int = options.size * MIB
        self.image = directory / "disk.img"
        self.lund = Lund(namespace, directory / "state", environment={"PYTHONPATH": str(ROOT)})

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
        with ThreadPoolExecutor(1) as client:
            reading = client.submit(self.read, lun, depth)
            # In the middle of the warm-up: before, nobody is there to give way to.
            time.sleep(WARMUP_S / 2)
            figures = self.beside_clone(speed, reading.result)
        self.remove_clone()
        return figures

    def beside_clone(self, speed: str, result: Callable[[], Round]) -> Round:
        """Hosts are at work until `result` returns what they measured."""
        if speed != IDLE:
            self.start(full_speed=speed == FULL_SPEED)
        before, begun = self.copied(), time.monotonic()
        figures = result()
        copied, spent = self.copied() - before, time.monotonic() - begun
        state = self.lund.clone_status(CLONE)["state"]
        return {**figures, "copied_mib_s": copied * BLOCK / MIB / spent, "clone_state": state}

    def copied(self) -> int:
        count: int = self.lund.clone_status(CLONE)["completed_blocks"]
        return count

    # --- 2. how fast it copies

    def get_ready(self, source: Path) -> None:
        """Nothing of the source in memory, and as much free memory as a copy takes, already this machine's: a virtual
        machine may have given it back to its host, and then whoever comes first pays for it."""
        drop_from_cache(source)
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        with mmap.mmap(-1, min(2 * self.size_bytes + GIB, free * 3 // 4)) as memory:
            memory.madvise(MADV_POPULATE_WRITE)

    def copy_by_lund(self, *, share: bool = False) -> Round:
        self.make_clone()
        self.get_ready(self.volume)
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
        self.get_ready(self.image)
        cpu, begun = cpu_of_children(), time.monotonic()
        tool(self.namespace, ["cp", "--sparse=never", "--reflink=never", self.image, copy], limit_s=LIMIT_S)
        settle(copy)
        spent = time.monotonic() - begun
        copy.unlink()
        return {"seconds": spent, "cpu_s": cpu_of_children() - cpu}

    def copy_by_stream(self) -> Round:
        overlay = self.directory / "overlay.qcow2"
        cpu = cpu_of_children()
        spent = stream_s(self.image, overlay, lambda: self.get_ready(self.image))
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
