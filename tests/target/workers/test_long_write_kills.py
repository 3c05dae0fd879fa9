"""lund is killed, or loses its power, at a Data-Out of a long WRITE, after long ones that were answered and after
flushes one behind the other: with one process and with two.

Raw initiators on both volumes, so that the moment is a Data-Out, not a time.  `LAZYLUN_KILLS` says how often,
`LAZYLUN_SEED` makes sizes, places and moments the same again.
"""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from target.iscsi.constants import NO_TAG, Opcode
from tests.support.initiator import WRITE_10, Initiator, cdb_10
from tests.target.cli.conftest import DaemonProcess
from tests.target.workers.conftest import LIMIT_S, Front, eventually, good, login
from wafl import FileDevice, check

KILLS = int(os.environ.get("LAZYLUN_KILLS", "2"))
SEED = int(os.environ.get("LAZYLUN_SEED", random.SystemRandom().randrange(1 << 31)))
BLOCK, SECTORS = 4096, 8
BLOCKS = 8 * 256
"""Of a LUN."""
PIECE = 16
"""Blocks of a Data-Out."""
VOLATILE = "tests.support.volatile_lund"
SYNCHRONIZE_CACHE = bytes((0x35,)) + bytes(9)


def content(volume: str, block: int, version: int) -> bytes:
    return f"{volume} {block:6} {version:8} ".encode().ljust(32, b"-") * (BLOCK // 32)


class Host:
    """Writes numbered versions of blocks, and knows what may be there."""

    def __init__(self, volume: str, rng: random.Random) -> None:
        self.volume, self.rng = volume, rng
        self.versions = 0
        self.durable: dict[int, int] = {}
        """Block -> its version that must survive, or a later one."""
        self.latest: dict[int, int] = {}
        """That was sent."""
        self.sent: dict[int, set[int]] = {}
        self.session: Initiator

    def log_in(self, front: Front) -> None:
        self.session = login(*front.way_to(self.volume))
        self.session.link.socket.settimeout(LIMIT_S)  # type: ignore[attr-defined]

    def place(self) -> tuple[int, int]:
        blocks = self.rng.choice((64, 100, 256))
        return self.rng.randrange(BLOCKS - blocks), blocks

    def data(self, first: int, blocks: int) -> bytes:
        self.versions += 1
        return b"".join(content(self.volume, block, self.versions) for block in range(first, first + blocks))

    def write(self, first: int, blocks: int) -> None:
        for block in range(first, first + blocks):
            self.sent.setdefault(block, {0}).add(self.versions + 1)
        good(self.session.write(first * SECTORS, self.data(first, blocks)))
        self.latest.update(dict.fromkeys(range(first, first + blocks), self.versions))

    def flush(self) -> None:
        good(self.session.command(SYNCHRONIZE_CACHE))
        self.durable = dict(self.latest)

    def begin(self) -> None:
        """A long WRITE of which some Data-Outs have reached the daemon, and no more will: nobody will see any of it."""
        first, blocks = self.place()
        data = self.data(first, blocks)
        session, edtl = self.session, blocks * BLOCK
        cdb = cdb_10(WRITE_10, first * SECTORS, blocks * SECTORS).ljust(16, b"\0")
        (r2t,) = session.numbered(Opcode.SCSI_COMMAND, flags=0xA1, edtl=edtl, cdb=cdb)
        most = (r2t.desired_length // BLOCK - 1) // PIECE
        for number in range(self.rng.randint(1, most)):
            at = number * PIECE * BLOCK
            session.link.socket.sendall(session.encode(  # type: ignore[attr-defined]
                Opcode.DATA_OUT, data[at : at + PIECE * BLOCK], flags=0, itt=r2t.itt, ttt=r2t.ttt, data_sn=number,
                buffer_offset=r2t.buffer_offset + at,
            ))  # fmt: skip
        (answer,) = session.request(Opcode.NOP_OUT, immediate=True, itt=session.next_itt(), ttt=NO_TAG)
        assert answer.opcode is Opcode.NOP_IN, "what was sent before it has been taken"

    def work(self) -> None:
        for _ in range(self.rng.randint(1, 3)):
            self.write(*self.place())
        for _ in range(self.rng.randint(0, 6)):  # a database's log: a block, a flush, a block, a flush
            self.write(self.rng.randrange(BLOCKS), 1)
            self.flush()
        for _ in range(self.rng.randint(0, 2)):
            self.write(*self.place())
        self.begin()

    def verify(self, *, killed: bool) -> None:
        """Each block has what was promised, or what was sent after that; and that is what it has from now on."""
        promised = self.latest if killed else self.durable
        for first in range(0, BLOCKS, 64):
            data = good(self.session.read(first * SECTORS, 64 * SECTORS))
            for block in range(first, first + 64):
                found = data[(block - first) * BLOCK :][:BLOCK]
                may_be = {version for version in self.sent.get(block, {0}) if version >= promised.get(block, 0)}
                there = {v for v in may_be if found == (content(self.volume, block, v) if v else bytes(BLOCK))}
                assert there, f"{self.volume}, block {block}: {found[:32]!r}, should be one of {sorted(may_be)}"
                self.sent[block] = there
                self.latest[block] = self.durable[block] = there.pop()
                self.sent[block] = {self.latest[block]}


Start = Callable[..., Front]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """lund on the same state, again and again; in the end it stops well, and nothing is wrong with its volumes."""
    started: list[DaemonProcess] = []
    config = tmp_path / "lund.toml"

    def launch(workers: str = "none", **more: str) -> Front:
        config.write_text(f'workers = "{workers}"\n')
        started.append(DaemonProcess(tmp_path / "state", "--config", str(config), **more))
        return Front(started[-1])

    yield launch
    assert started[-1].stop() == 0
    images = sorted((tmp_path / "state").rglob("vol*.img"))
    assert len(images) == 2
    for path in images:
        with contextlib.closing(FileDevice.open(path)) as device:
            assert check(device) == []


def kill(front: Front) -> None:
    front.daemon.process.kill()
    front.daemon.process.wait()


def both(front: Front, rng: random.Random) -> list[Host]:
    hosts = []
    for volume in ("vol0", "vol1"):
        front.add(volume)
        hosts.append(Host(volume, rng))
        hosts[-1].log_in(front)
    return hosts


@pytest.mark.timeout(400 + 60 * KILLS)
@pytest.mark.parametrize("workers", ["none", "volumes"])
def test_a_kill_at_a_data_out_loses_nothing_acknowledged(start: Start, workers: str) -> None:
    print(f"LAZYLUN_SEED={SEED}")
    front = start(workers)
    hosts = both(front, random.Random(SEED))
    for _ in range(KILLS):
        for host in hosts:
            host.work()
        kill(front)
        front = start(workers)
        for host in hosts:
            host.log_in(front)
            host.verify(killed=True)


@pytest.mark.timeout(400 + 60 * KILLS)
def test_a_power_cut_at_a_data_out_loses_nothing_flushed(start: Start) -> None:
    """The volumes' devices keep in memory what was not synced."""
    print(f"LAZYLUN_SEED={SEED}")
    front = start(module=VOLATILE, LAZYLUN_VOLATILE_SEED=f"{SEED}")
    hosts = both(front, random.Random(SEED))
    for number in range(KILLS):
        for host in hosts:
            host.work()
        kill(front)
        front = start(module=VOLATILE, LAZYLUN_VOLATILE_SEED=f"{SEED} {number}")
        for host in hosts:
            host.log_in(front)
            host.verify(killed=False)


@pytest.mark.timeout(400)
def test_the_test_sees_a_disk_that_lies_about_syncs(start: Start) -> None:
    lies = {"LAZYLUN_LOSE_SYNCS": "1", "LAZYLUN_EARLY": "0"}
    front = start(module=VOLATILE)
    hosts = both(front, random.Random(1))
    front.daemon.stop()
    front = start(module=VOLATILE, **lies)
    for host in hosts:
        host.log_in(front)
        host.write(0, 64)
        host.flush()
    kill(front)
    front = start()
    for host in hosts:
        host.log_in(front)
        with pytest.raises(AssertionError, match="should be one of"):
            host.verify(killed=False)


@pytest.mark.timeout(400)
def test_a_worker_killed_at_a_data_out_loses_nothing_and_the_other_one_goes_on(start: Start) -> None:
    print(f"LAZYLUN_SEED={SEED}")
    front = start("volumes")
    hurt, other = both(front, random.Random(SEED))
    for _ in range(2):  # a third death within a minute leaves it offline
        hurt.work()
        other.begin()
        other.session.link.close()  # type: ignore[attr-defined]
        other.log_in(front)
        before = front.kill("vol0")
        eventually(lambda: front.pid("vol0") != before, "it has another process")  # noqa: B023
        other.work()
        other.log_in(front)
        hurt.log_in(front)
        for host in (hurt, other):
            host.verify(killed=True)
