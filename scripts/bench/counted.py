"""The hot path alone, in one process and without a socket: what `make bench-guard` counts, and a quick look at times.

    python -m scripts.bench.counted lund read-4k 640            does so many commands (under valgrind: counts them)
    python -m scripts.bench.counted --time read-4k              µs of a command, lund beside the bare loop, in turns

A batch of commands is put into the receive buffer of a real connection to a real volume in a file, as one `recv` would
have done, and the answers are taken as one `send` would.  The bare loop (bare_target.py) gets the same bytes.
"""

from __future__ import annotations

import argparse
import gc
import os
import socket
import statistics
import struct
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from scripts.bench.bare_target import Bare
from target.lun_store import LunStore
from target.nexus import LogicalUnit, Nexus, TargetDevice, lun_field
from tests.support.initiator import Initiator, Link, make_host
from tests.support.manual_platform import ManualPlatform
from tests.support.memory_target import TARGET, MemoryDirectory
from tests.support.volumes import checkpoint
from wafl import FileDevice, Volume, VolumeService

MIB = 1 << 20
LUN_BYTES, VOLUME_BYTES = 64 * MIB, 1024 * MIB
SEGMENT = 256 << 10
READ, WRITE = 0x28, 0x2A
BHS, R2T = 48, 0x31
command = struct.Struct(">BBxxI8sIIIIBBIxHx6x").pack
data_out = struct.Struct(">BBxxI8sIIIIIII4x").pack


@dataclass(frozen=True)
class Work:
    bytes: int
    batch: int
    """Commands that arrive together."""
    write: bool
    digests: bool = False
    luns: int = 1
    """Each command goes to another one of them."""


WORKS = {
    "read-4k": Work(4096, 32, False),
    "write-4k": Work(4096, 32, True),
    "read-64k": Work(64 << 10, 8, False),
    "write-64k": Work(64 << 10, 8, True),
    "read-4k-qd1": Work(4096, 1, False),
    "write-4k-qd1": Work(4096, 1, True),
    "read-256k": Work(256 << 10, 4, False),
    "write-256k": Work(256 << 10, 4, True),
    "read-1m": Work(MIB, 4, False),
    "write-1m": Work(MIB, 4, True),
    "read-4k-luns": Work(4096, 32, False, luns=512),
    "write-4k-luns": Work(4096, 32, True, luns=512),
}
NOISE = os.urandom(MIB)


class Side(Protocol):
    cmd_sn: int

    def feed(self, data: bytes | memoryview) -> list[bytes]:
        """Let it arrive; the R2Ts that came back."""

    def rest(self) -> None:
        """Now and then, not counted."""


def r2ts(out: memoryview) -> list[bytes]:
    found, at = [], 0
    while at < len(out):
        if out[at] == R2T:
            found.append(bytes(out[at : at + BHS]))
        at += BHS + (int.from_bytes(out[at + 5 : at + 8], "big") + 3 & ~3)
    return found


class LundSide:
    """The real thing from the connection down to the file."""

    def __init__(self, path: Path, luns: int = 1) -> None:
        device = FileDevice.open(path, create_bytes=VOLUME_BYTES)
        Volume.format(device, name="vol0")
        self.volume = Volume.mount(device)
        size = LUN_BYTES // luns
        made = [self.volume.create_lun(f"disk{number}", size) for number in range(luns)]
        for lun in made:
            for at in range(0, size, MIB):
                lun.write(at, NOISE[:size])
        checkpoint(self.volume)
        for lun in made:
            for at in range(0, size, MIB):
                lun.write(at, NOISE[:4096])  # the first write to a MiB costs more than those that follow
        target = TargetDevice(TARGET)
        target.before_answers = self.volume.push_log
        self.volume.batch_log()
        service = VolumeService(self.volume)
        units = {number: LogicalUnit(LunStore(lun, service), ManualPlatform()) for number, lun in enumerate(made)}

        class Directory(MemoryDirectory):
            def open_nexus(self, initiator: str, isid: bytes, target_name: str, tpgt: int) -> Nexus:
                return target.open_nexus(initiator, isid, units)

        link = Link(make_host(Directory({TARGET: None})))  # type: ignore[dict-item]
        initiator = Initiator(link)
        initiator.login()
        for number in units:
            while initiator.command(bytes(6), lun=lun_field(number)).status:
                pass  # unit attentions
        self.core = link.core
        self.cmd_sn = initiator.cmd_sn

    def feed(self, data: bytes | memoryview) -> list[bytes]:
        core, view, found = self.core, memoryview(data), []
        while view:
            buffer = core.receive_buffer()
            count = min(len(buffer), len(view))
            buffer[:count] = view[:count]
            view = view[count:]
            core.received(count, 0.0)
            while True:
                out = core.data_to_send()
                if len(out) >= BHS:
                    found += r2ts(out)
                core.data_sent(False)
                if not core.blocked:
                    break
                core.resume(0.0)
        return found


    def rest(self) -> None:
        if self.volume.core.log is not None and self.volume.core.log.fill_bytes > MIB // 8:
            checkpoint(self.volume)


class BareSide:
    """To it all LUNs are one file."""

    def __init__(self, path: Path, luns: int = 1) -> None:
        path.write_bytes(NOISE * (LUN_BYTES // MIB))
        self.bare = Bare(socket.socket(), os.open(path, os.O_RDWR))
        self.cmd_sn = self.bare.exp_cmd_sn

    def feed(self, data: bytes | memoryview) -> list[bytes]:
        bare, view, found = self.bare, memoryview(data), []
        while view:
            count = min(len(bare.view) - bare.end, len(view))
            bare.view[bare.end : bare.end + count] = view[:count]
            bare.end += count
            view = view[count:]
            before = -1
            while bare.end - bare.start != before:
                before = bare.end - bare.start
                bare.run()
                found += r2ts(memoryview(bare.answers)[: bare.used])
                bare.used = 0
        return found


    def rest(self) -> None:
        pass


SIDES = {"lund": LundSide, "bare": BareSide}


class Player:
    """Plays a work to a side, batch after batch."""

    def __init__(self, work: Work, side: Side) -> None:
        self.work, self.side, self.place = work, side, 0
        self.size = LUN_BYTES // work.luns

    def _command(self, tag: int) -> bytes:
        work = self.work
        given = min(work.bytes, SEGMENT) if work.write else 0
        # a stride that meets every place before it comes to one again
        self.place = (self.place + 7919 * work.bytes) % LUN_BYTES
        flags, code = (0xA1, WRITE) if work.write else (0xC1, READ)
        lun, offset = divmod(self.place, self.size)
        header = command(0x01, flags, given, lun_field(lun).to_bytes(8, "big"), tag, work.bytes, self.side.cmd_sn, 1,
                         code, 0, offset // 512, work.bytes // 512)  # fmt: skip
        self.side.cmd_sn += 1
        return header + NOISE[:given]

    def batch(self) -> None:
        for r2t in self.side.feed(b"".join(self._command(tag) for tag in range(self.work.batch))):
            tag, ttt = struct.unpack_from(">II", r2t, 16)
            offset, length = struct.unpack_from(">II", r2t, 40)
            for number, at in enumerate(range(offset, offset + length, SEGMENT)):
                given = min(SEGMENT, offset + length - at)
                last = at + given == offset + length
                header = data_out(0x05, 0x80 if last else 0, given, bytes(8), tag, ttt, 0, 1, 0, number, at)
                self.side.feed(header + NOISE[at : at + given])

    def play(self, commands: int) -> None:
        for _ in range(0, commands, self.work.batch):
            self.batch()


@contextmanager
def player(work: Work, side: str, directory: Path) -> Iterator[Player]:
    playing = Player(work, SIDES[side](directory / f"{side}.img", work.luns))
    gc.collect()
    gc.freeze()
    yield playing


def times(work: Work, directory: Path, seconds: float) -> dict[str, float]:
    """Median µs of processor time for a command."""
    players = {side: Player(work, SIDES[side](directory / f"{side}.img", work.luns)) for side in SIDES}
    gc.collect()
    gc.freeze()
    found: dict[str, list[float]] = {side: [] for side in SIDES}
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for side, playing in players.items():
            begun = time.thread_time_ns()
            playing.batch()
            found[side].append((time.thread_time_ns() - begun) / 1e3 / work.batch)
            playing.side.rest()
    return {side: statistics.median(values) for side, values in found.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description="The hot path alone.")
    parser.add_argument("side", nargs="?", choices=SIDES)
    parser.add_argument("work", nargs="?", choices=WORKS)
    parser.add_argument("commands", nargs="?", type=int, default=0)
    parser.add_argument("--time", action="append", choices=WORKS)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--directory", type=Path, default=None)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.directory) as name:
        for work in options.time or ():
            directory = Path(name) / work
            directory.mkdir()
            found = times(WORKS[work], directory, options.seconds)
            ours, bare = found["lund"], found["bare"]
            print(f"{work}: lund {ours:.2f} µs, bare {bare:.2f} µs, {ours / bare:.2f}")
        if options.side is not None:
            with player(WORKS[options.work], options.side, Path(name)) as playing:
                playing.play(options.commands)
    return 0


if __name__ == "__main__":
    sys.exit(main())
