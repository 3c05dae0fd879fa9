"""A day's traffic in an hour: what hosts and administrators do to a volume, side by side, for `make bench-memory`.

- Hosts that stay: four sessions, 70 % reads of 4 KiB, at a steady rate.
- Hosts that come and go: sessions of any number, depth and length of command, with and without digests and flushes.
- Hosts that trim: UNMAP here and there, by QEMU's block layer.
- An administrator: each minute a snapshot is made and an old one deleted, and a LUN over the new snapshot is made,
  mapped, read and written, detached by a clone (one that copies, then one that shares), and destroyed.

Each is a thread that begins again until it is told to stop.  What goes wrong is counted and told at the end.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from tests.support.initiators import qemu_io, tool, url
from tests.support.lund import MIB, Lund
from tests.support.netns import Namespace

BUILD = Path(__file__).resolve().parent.parent.parent / "build" / "bench"
ADDRESS = "127.0.0.1"
VOLUME, DISK, CLONE = "vol0", "/vol/vol0/disk", "/vol/vol0/clone"
DISK_LUN, CLONE_LUN = 0, 1
INITIATOR, OTHERS = "iqn.2026-01.test.host:", "others"
STAY_S = 20.0
"""A client that stays is started again so often, so that it can be told to stop."""
SNAPSHOT_EVERY_S, SNAPSHOTS = 60.0, 3
CLONE_S = 20.0
"""A polite clone's limit is such that it takes so long."""
TOOL_LIMIT_S = 600.0
LENGTHS = (4096, 4096, 65536, 262144, 1048576)


class MixedLoad:
    """`with MixedLoad(...)`: it runs; `counted` says what was done, `faults` what went wrong."""

    def __init__(self, lund: Lund, namespace: Namespace, size_bytes: int, rate: int, seed: int = 1) -> None:
        self.lund, self.namespace, self.size_bytes, self.rate = lund, namespace, size_bytes, rate
        self.counted: Counter[str] = Counter()
        self.faults: list[str] = []
        self._random = random.Random(seed)
        self._over = threading.Event()
        self._target = lund.target(VOLUME)
        # The others are told nothing of this LUN: the client takes a unit attention for an error.
        lund.post("igroups", name=OTHERS, initiators=[f"{INITIATOR}clones0"])
        actors = (self._stay, self._come_and_go, self._trim, self._administer)
        self._threads = [threading.Thread(target=self._again, args=(actor,)) for actor in actors]

    def __enter__(self) -> MixedLoad:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _again(self, actor: Callable[[], None]) -> None:
        while not self._over.is_set():
            try:
                actor()
            except Exception as error:  # of any tool: the hour goes on, and the end tells
                self.faults.append(f"{actor.__name__}: {error}")
                self._over.wait(1)

    def client(self, who: str, lun: int, *words: object) -> None:
        argv = [BUILD / "lean_client", "--initiator", INITIATOR + who, "--port", 3260, "--target", self._target,
                "--lun", lun, "--size", self.size_bytes, "--seed", self._random.randrange(1, 1 << 30),
                *words]  # fmt: skip
        tool(self.namespace, list(map(str, argv)), limit_s=TOOL_LIMIT_S)

    def _stay(self) -> None:
        self.client("stays", DISK_LUN, "--sessions", 4, "--depth", 8, "--read-percent", 70,
                    "--limit", self.rate, "--seconds", STAY_S)  # fmt: skip
        self.counted["commands of hosts that stay"] += int(self.rate * STAY_S)

    def _come_and_go(self) -> None:
        choose = self._random
        length, sessions = choose.choice(LENGTHS), choose.randint(1, 8)
        commands = max(self.rate * 4096 // length, 16)
        flags = [flag for flag in ("--flush", "--digests", "--sequential") if choose.random() < 0.3]
        self.client(
            "visits", DISK_LUN, "--bytes", length, "--sessions", sessions, "--depth", choose.choice((1, 8, 32)),
            "--read-percent", 70, "--commands", commands, "--limit", max(self.rate * 4096 // length, 8), *flags,
        )  # fmt: skip
        self.counted["sessions that came and went"] += sessions
        self._over.wait(choose.uniform(0, 5))

    def _trim(self) -> None:
        length = self._random.randint(1, 8 * MIB) & -4096 or 4096
        place = self._random.randrange(0, self.size_bytes - length) & -4096
        qemu_io(self.namespace, url(self._target, DISK_LUN), f"discard {place} {length}", "flush")
        self.counted["UNMAPs"] += 1
        self._over.wait(10)

    def _administer(self) -> None:
        begun, number = time.monotonic(), self.counted["snapshots"]
        self.lund.post(f"volumes/{VOLUME}/snapshots", name=f"minute{number}")
        self.counted["snapshots"] += 1
        if number >= SNAPSHOTS:
            path = f"/v1/volumes/{VOLUME}/snapshots/minute{number - SNAPSHOTS}"
            self.lund.api.delete(path).raise_for_status()
        self.lund.post("luns", path=CLONE, backing={"path": f"/vol/{VOLUME}/.snapshot/minute{number}/disk"})
        try:
            self.lund.map(CLONE, OTHERS, CLONE_LUN)
            self._detach(share=number % 2 == 1)
        finally:
            self.lund.api.delete(f"/v1/luns/{VOLUME}/clone", params={"force": True}).raise_for_status()
        self._over.wait(max(0.0, SNAPSHOT_EVERY_S - (time.monotonic() - begun)))

    def _detach(self, *, share: bool) -> None:
        options = {"share": True} if share else {"limit_bytes_s": int(self.size_bytes / CLONE_S)}
        self.lund.api.put(f"/v1/clones/{VOLUME}/clone", json=options).raise_for_status()
        self.client("clones", CLONE_LUN, "--read-percent", 70, "--depth", 8, "--limit", self.rate, "--seconds", 5)
        self.lund.wait_for_clone(CLONE, TOOL_LIMIT_S)
        self.counted["clones detached"] += 1
