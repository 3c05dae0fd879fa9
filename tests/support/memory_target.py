"""A SCSI device in memory and a directory of targets, enough to drive the iSCSI side without the rest.

`python -m tests.support.memory_target [PORT] [MIB] [--uvloop]` serves it on 127.0.0.1, for measurements.
"""

from __future__ import annotations

import asyncio
import struct
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from target.iscsi.ports import Aborted, Announce, ChapPolicy, DataInFailed, Done, LoginRefused, Nexus, Response

BLOCK = 512
LUN_0 = 0
TARGET = "iqn.2026-01.test.lazylun:vol0"
_RW10 = struct.Struct(">BBIBHB")
_RW16 = struct.Struct(">BBQIBB")


def sense(key: int, asc: int, ascq: int) -> bytes:
    return bytes((0x70, 0, key, 0, 0, 0, 0, 10, 0, 0, 0, 0, asc, ascq, 0, 0, 0, 0))


def check_condition(key: int, asc: int, ascq: int) -> Response:
    return Response(status=2, sense=sense(key, asc, ascq))


@dataclass
class MemoryDisk:
    """What all nexuses share: the bytes, and switches that tests turn."""

    data: bytearray
    fast: bool = True
    """False: the fast ways are refused, everything goes through `execute`."""
    later: list[tuple[int, Done]] = field(default_factory=list)
    """SYNCHRONIZE CACHE waits here until the test answers it: (tag, done)."""
    bad_offset: int | None = None
    """A READ that touches this byte fails from there on with MEDIUM ERROR."""
    cold: bool = False
    """The fast ways are refused because the disk has to be waited for; the test tells when it has read (`warmed`)."""
    warmers: list[Callable[[], None]] = field(default_factory=list)
    flushers: list[tuple[Callable[[BaseException | None], None], bool]] | None = None
    """If there is a list, plain SYNCHRONIZE CACHEs go the fast way and wait in it: (done, here)."""
    durable: bool = False
    """There is nothing to wait for."""
    placing: bool = False
    """Long WRITEs may be put in their places as they come."""
    placed: list[MemoryPlacing] = field(default_factory=list)
    """Those that were."""
    gathered: list[int] = field(default_factory=list)
    """How many WRITEs were given together, each time."""
    crash: bool = False
    """`execute` raises what no device server should."""
    seen: list[bytes] = field(default_factory=list)
    managed: list[tuple[int, int]] = field(default_factory=list)
    closed: int = 0
    nexuses: list[MemoryNexus] = field(default_factory=list)
    answered: int = 0
    """Batches of answers that left."""
    unlogged: Exception | None = None
    """What stops answers from leaving."""
    attention: bytes = b""

    def __post_init__(self) -> None:
        self.view = memoryview(self.data)

    def flushed(self, error: BaseException | None = None) -> None:
        """Whoever waits for durability is told."""
        assert self.flushers is not None
        waiting, self.flushers[:] = list(self.flushers), []
        for done, _ in waiting:
            done(error)

    def warmed(self) -> None:
        """Whoever waits for the disk is told."""
        waiting, self.warmers[:] = list(self.warmers), []
        for done in waiting:
            done()


class MemoryPlacing:
    """A WRITE on its way."""

    def __init__(self, offset: int, length: int) -> None:
        self.offset, self.data, self.taken, self.dropped, self.broken = offset, bytearray(length), 0, False, False

    def add(self, data: memoryview) -> None:
        if self.broken:
            raise OSError("told to")
        assert not len(data) & 4095
        self.data[self.taken : self.taken + len(data)] = data
        self.taken += len(data)

    def read_back(self, view: memoryview) -> None:
        view[:] = self.data[: len(view)]

    def drop(self) -> None:
        self.dropped = True


class MemoryNexus:
    """One I_T nexus on the disk."""

    def __init__(self, disk: MemoryDisk) -> None:
        self.disk = disk
        self._view = disk.view
        self._size = len(disk.data)
        self.on_abort: Aborted | None = None
        self.on_event: Announce | None = None
        self.protocol_level = 1
        disk.nexuses.append(self)

    def fast_read(self, lun: int, buf: memoryview, cdb_at: int, edtl: int, out: memoryview) -> int:
        code = buf[cdb_at]
        if code == 0x28:
            _, _, lba, _, blocks, _ = _RW10.unpack_from(buf, cdb_at)
        elif code == 0x88:
            _, _, lba, blocks, _, _ = _RW16.unpack_from(buf, cdb_at)
        else:
            return -1
        offset, length = lba * BLOCK, blocks * BLOCK
        if not self.disk.fast or lun or length != edtl or offset + length > self._size:
            return -1
        if self.disk.bad_offset is not None or self.disk.cold:
            return -1
        out[:] = self._view[offset : offset + length]
        return length

    def fast_writes(self, lun: int, buf: memoryview, cdbs: Sequence[int], datas: Sequence[memoryview]) -> bool:
        self.disk.gathered.append(len(cdbs))
        return all(self.fast_write(lun, buf, at, data) for at, data in zip(cdbs, datas, strict=True))

    def fast_flush(self, lun: int, buf: memoryview, cdb_at: int) -> bool:
        return self.disk.flushers is not None and not lun and not buf[cdb_at + 1]

    def when_durable(self, done: Callable[[BaseException | None], None], here: bool) -> bool:
        assert self.disk.flushers is not None
        if not self.disk.durable:
            self.disk.flushers.append((done, here))
        return self.disk.durable

    def when_warm(self, done: Callable[[], None]) -> bool:
        if self.disk.cold:
            self.disk.warmers.append(done)
        return self.disk.cold

    def fast_read_pieces(
        self, lun: int, buf: memoryview, cdb_at: int, edtl: int, pieces: Sequence[memoryview]
    ) -> bool:
        whole = memoryview(bytearray(edtl))
        if self.fast_read(lun, buf, cdb_at, edtl, whole) != edtl:
            return False
        at = 0
        for piece in pieces:
            piece[:] = whole[at : at + len(piece)]
            at += len(piece)
        assert at == edtl
        return True

    def fast_write(self, lun: int, buf: memoryview, cdb_at: int, data: memoryview) -> bool:
        code = buf[cdb_at]
        if code == 0x2A:
            _, flags, lba, _, blocks, _ = _RW10.unpack_from(buf, cdb_at)
        elif code == 0x8A:
            _, flags, lba, blocks, _, _ = _RW16.unpack_from(buf, cdb_at)
        else:
            return False
        offset, length = lba * BLOCK, blocks * BLOCK
        if not self.disk.fast or flags & 8 or lun or length != len(data) or offset + length > self._size:
            return False
        self._view[offset : offset + length] = data
        return True

    def begin_write(self, lun: int, cdb: bytes, length: int) -> MemoryPlacing | None:
        found = _transfer(cdb)
        if not self.disk.placing or lun != LUN_0 or cdb[0] not in (0x2A, 0x8A) or found is None or cdb[1] & 8:
            return None
        offset, wanted = found
        if wanted != length or offset + length > self._size:
            return None
        placing = MemoryPlacing(offset, length)
        self.disk.placed.append(placing)
        return placing

    def end_write(self, lun: int, placing: MemoryPlacing) -> bool:  # type: ignore[override]
        if not self.disk.placing or placing.dropped:
            return False
        assert placing.taken == len(placing.data)
        self._view[placing.offset : placing.offset + placing.taken] = placing.data
        return True

    def data_out_length(self, lun: int, cdb: bytes) -> int:
        found = _transfer(cdb)
        return found[1] if found is not None and lun == LUN_0 and cdb[0] in (0x2A, 0x8A) else 0

    def execute(
        self, lun: int, cdb: bytes, attribute: int, data_out: memoryview, tag: int, done: Done
    ) -> Response | None:
        self.disk.seen.append(cdb)
        if self.disk.crash:
            raise ZeroDivisionError("told to")
        if cdb[0] == 0x35:
            self.disk.later.append((tag, done))
            return None
        if lun != LUN_0 and cdb[0] != 0x12:
            return check_condition(5, 0x25, 0)
        handler = COMMANDS.get(cdb[0])
        return handler(self, cdb, data_out) if handler else check_condition(5, 0x20, 0)

    def abort_task(self, lun: int, tag: int) -> bool:
        before = len(self.disk.later)
        self.disk.later[:] = [item for item in self.disk.later if item[0] != tag]
        return len(self.disk.later) < before

    def manage(self, function: int, lun: int) -> int:
        if lun != LUN_0 and function in (2, 4, 5):
            return 2
        self.disk.managed.append((function, lun))
        self.disk.later.clear()
        own = function in (2, 11)
        for nexus in [self] if own else list(self.disk.nexuses):
            if nexus.on_abort is not None:
                nexus.on_abort(lambda field: field == LUN_0, nexus is not self)
        return 0

    def attention(self, lun: int) -> bytes | None:
        return self.disk.attention if lun == LUN_0 else None

    def before_answers(self) -> None:
        self.disk.answered += 1
        if self.disk.unlogged is not None:
            raise self.disk.unlogged

    def close(self) -> None:
        self.disk.closed += 1
        self.disk.nexuses.remove(self)

    # --- commands

    def ready(self, cdb: bytes, data: memoryview) -> Response:
        return Response()

    def inquiry(self, cdb: bytes, data: memoryview) -> Response:
        body = bytes((0, 0, 5, 2, 31, 0, 0, 2)) + b"LAZYLUN MEMORY          0001"
        return _allocated(body, int.from_bytes(cdb[3:5], "big"))

    def capacity10(self, cdb: bytes, data: memoryview) -> Response:
        return _allocated(struct.pack(">II", self._size // BLOCK - 1, BLOCK), 8)

    def capacity16(self, cdb: bytes, data: memoryview) -> Response:
        return _allocated(
            struct.pack(">QI20x", self._size // BLOCK - 1, BLOCK), int.from_bytes(cdb[10:14], "big")
        )

    def report_luns(self, cdb: bytes, data: memoryview) -> Response:
        return _allocated(struct.pack(">IIQ", 8, 0, 0), int.from_bytes(cdb[6:10], "big"))

    def mode_sense(self, cdb: bytes, data: memoryview) -> Response:
        return _allocated(bytes((3, 0, 0, 0)), cdb[4])

    def read(self, cdb: bytes, data: memoryview) -> Response:
        found = _transfer(cdb)
        assert found is not None
        offset, length = found
        if offset + length > self._size:
            return check_condition(5, 0x21, 0)

        def reader(at: int, out: memoryview) -> None:
            start, bad = offset + at, self.disk.bad_offset
            if bad is not None and start <= bad < start + len(out):
                raise DataInFailed(check_condition(3, 0x11, 0))
            out[:] = self._view[start : start + len(out)]

        return Response(reader=reader, length=length)

    def write(self, cdb: bytes, data: memoryview) -> Response:
        found = _transfer(cdb)
        assert found is not None
        offset, length = found
        if offset + length > self._size:
            return check_condition(5, 0x21, 0)
        self._view[offset : offset + len(data)] = data
        return Response(wanted=length)


COMMANDS: dict[int, Callable[[MemoryNexus, bytes, memoryview], Response]] = {
    0x00: MemoryNexus.ready,
    0x12: MemoryNexus.inquiry,
    0x1A: MemoryNexus.mode_sense,
    0x25: MemoryNexus.capacity10,
    0x28: MemoryNexus.read,
    0x2A: MemoryNexus.write,
    0x88: MemoryNexus.read,
    0x8A: MemoryNexus.write,
    0x9E: MemoryNexus.capacity16,
    0xA0: MemoryNexus.report_luns,
}


def _transfer(cdb: bytes) -> tuple[int, int] | None:
    """(offset, length) in bytes of a READ or WRITE."""
    if cdb[0] in (0x28, 0x2A):
        _, _, lba, _, blocks, _ = _RW10.unpack_from(cdb)
    elif cdb[0] in (0x88, 0x8A):
        _, _, lba, blocks, _, _ = _RW16.unpack_from(cdb)
    else:
        return None
    return lba * BLOCK, blocks * BLOCK


def _allocated(body: bytes, allocation: int) -> Response:
    body = body[:allocation]
    return Response(data=body, length=len(body))


@dataclass
class MemoryDirectory:
    """Targets by name, each a disk; the CHAP policy is one for all."""

    disks: dict[str, MemoryDisk]
    policy: ChapPolicy = field(default_factory=ChapPolicy)
    discovery_policy: ChapPolicy = field(default_factory=ChapPolicy)
    hidden: set[str] = field(default_factory=set)
    """Initiators that see nothing."""
    addresses: list[str] = field(default_factory=list)

    def chap_policy(self, initiator: str, target: str | None, peer: str) -> ChapPolicy:
        return self.discovery_policy if target is None else self.policy

    def visible_targets(self, initiator: str, local_address: tuple[str, int]) -> list[tuple[str, list[str]]]:
        return [] if initiator in self.hidden else [(name, list(self.addresses)) for name in self.disks]

    def open_nexus(self, initiator: str, isid: bytes, target: str, tpgt: int) -> Nexus:
        if target not in self.disks:
            raise LoginRefused(2, 3, f"no target {target}")
        if initiator in self.hidden:
            raise LoginRefused(2, 2, f"{initiator} has nothing here")
        return MemoryNexus(self.disks[target])


def one_disk(mib: int = 1) -> tuple[MemoryDirectory, MemoryDisk]:
    disk = MemoryDisk(bytearray(mib << 20))
    return MemoryDirectory({TARGET: disk}), disk


async def _serve(port: int, mib: int) -> None:
    from target.iscsi.registry import Registry
    from target.portal import Portal

    directory, disk = one_disk(mib)
    portal = Portal(directory, Registry())
    await portal.start("127.0.0.1", port)
    print("listening on", portal.listening, flush=True)
    while True:
        await asyncio.sleep(0.005)
        waiting, disk.later[:] = list(disk.later), []
        for _, done in waiting:
            done(Response())


if __name__ == "__main__":
    numbers = [int(a) for a in sys.argv[1:] if a.isdigit()]
    coroutine = _serve(numbers[0] if numbers else 3260, numbers[1] if len(numbers) > 1 else 256)
    if "--uvloop" in sys.argv:
        import uvloop

        uvloop.run(coroutine)
    else:
        asyncio.run(coroutine)
