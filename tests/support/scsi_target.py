"""The real portal, iSCSI core and SCSI device server over stores in memory: for conformance suites without a volume.

`python -m tests.support.scsi_target [--port N] [--mib N] [--thick] [--block 4096] [--physical 512] [--read-only]
[--removable]`
serves LUN 0 to anybody on 127.0.0.1 until it is interrupted.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Mapping

from target.iscsi.ports import ChapPolicy, LoginRefused
from target.iscsi.registry import Registry
from target.nexus import LogicalUnit, Nexus, TargetDevice
from target.portal.portal import Portal, PortalConfig
from target.scsi.platform import SaveDone
from target.scsi.store import FlushDone
from tests.support.memory_store import MemoryStore

TARGET = "iqn.2026-01.test.lazylun:memory"


class ServedStore(MemoryStore):
    """Flushes end in the loop's next round."""

    def flush(self, done: FlushDone) -> None:
        asyncio.get_running_loop().call_soon(done, None)


class LoopPlatform:
    """Time and turns of the running loop; what is saved is kept in memory."""

    def __init__(self, saved: Mapping[str, bytes]) -> None:
        self.saved = dict(saved)

    def save(self, name: str, value: bytes, done: SaveDone) -> None:
        self.saved[name] = value
        asyncio.get_running_loop().call_soon(done, None)

    def note(self, kind: str, what: str) -> None:
        print(what, flush=True)

    def call_later(self, delay_s: float, call: Callable[[], None]) -> None:
        asyncio.get_running_loop().call_later(delay_s, call)

    def random_bytes(self, size: int) -> bytes:
        return os.urandom(size)

    def now(self) -> float:
        return asyncio.get_running_loop().time()

    def wall_clock(self) -> float:
        return time.time()


class OpenDirectory:
    """One target, everything for everybody."""

    def __init__(self, luns: dict[int, LogicalUnit]) -> None:
        self.device = TargetDevice(TARGET)
        self.luns = luns
        self.portals: list[str] = []

    def chap_policy(self, initiator: str, target: str | None, peer: str) -> ChapPolicy:
        return ChapPolicy()

    def visible_targets(self, initiator: str, local_address: tuple[str, int]) -> list[tuple[str, list[str]]]:
        return [(TARGET, [f"{local_address[0]}:{local_address[1]},1"])]

    def open_nexus(self, initiator: str, isid: bytes, target: str, tpgt: int) -> Nexus:
        if target != TARGET:
            raise LoginRefused(2, 3, "no such target")
        return self.device.open_nexus(initiator, isid, self.luns, tpgt=tpgt)


async def serve(port: int, luns: dict[int, LogicalUnit]) -> None:
    # libiscsi's Sanitize.Reset sleeps for a minute without a look at its socket
    portal = Portal(OpenDirectory(luns), Registry(), PortalConfig(nop_interval_s=300))
    address = await portal.start("127.0.0.1", port)
    print(f"iscsi://{address[0]}:{address[1]}/{TARGET}/0", flush=True)
    try:
        await asyncio.Event().wait()
    finally:
        await portal.stop()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--mib", type=int, default=256)
    parser.add_argument("--block", type=int, default=512)
    parser.add_argument("--physical", type=int, default=4096)
    parser.add_argument("--thick", action="store_true")
    parser.add_argument("--read-only", action="store_true")
    parser.add_argument("--removable", action="store_true")
    chosen = parser.parse_args()
    store = ServedStore(chosen.mib << 20, chosen.block, thin=not chosen.thick)
    store.physical_block_bytes = chosen.physical
    store.read_only = chosen.read_only
    with contextlib.suppress(KeyboardInterrupt):
        platform = LoopPlatform({"removable": b"1"} if chosen.removable else {})
        asyncio.run(serve(chosen.port, {0: LogicalUnit(store, platform)}))


if __name__ == "__main__":
    main()
