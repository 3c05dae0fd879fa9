"""A fuzz target for what becomes of WRITEs: a session on LUNs of a real volume, down to its blocks.

The input is a sequence of moves, of a host that has several commands under way and may break the rules of Data-Out, of
an administrator, and of the disk.  Whatever they are: what was answered GOOD is on the LUN, nothing else has changed
it, a READ gives what is there, no block stays promised to a WRITE that has ended, and the volume is whole then and
after a kill.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache

from target.iscsi import limits
from target.iscsi.constants import NO_TAG, Opcode, TaskFunction
from tests.support.initiator import Initiator, Link, Reply
from tests.support.scsi_host import unmap, unmap_list
from tests.support.sleepy_device import SleepyDevice
from tests.support.volume_model import BLOCK
from tests.support.volumes import MIB, checkpoint, pattern, problems
from tests.support.write_scene import WriteScene, image_of
from wafl import Volume

SECTOR = 512
LUN_BYTES = 80 * BLOCK
OLD = {"a": pattern(1, LUN_BYTES), "b": pattern(2, LUN_BYTES)}
PLACED_BYTES = 4 * BLOCK
"""Instead of 256 KiB: inputs stay small, and both ways are taken."""
MOVES, COMMANDS = 60, 8
SENT_TOGETHER = 6
KEYS = (
    {"InitialR2T": "Yes", "ImmediateData": "No", "MaxBurstLength": "32768"},
    {"InitialR2T": "No", "ImmediateData": "Yes", "FirstBurstLength": "16384", "MaxBurstLength": "65536"},
    {"InitialR2T": "Yes", "ImmediateData": "Yes", "MaxOutstandingR2T": "4", "MaxBurstLength": "16384"},
    {"HeaderDigest": "CRC32C", "DataDigest": "CRC32C", "InitialR2T": "Yes", "MaxBurstLength": "32768"},
    {"InitialR2T": "Yes", "DataPDUInOrder": "No", "DataSequenceInOrder": "No", "MaxOutstandingR2T": "4",
     "MaxBurstLength": "32768"},
)  # fmt: skip


@cache
def image() -> bytes:
    return bytes(image_of(8 * MIB, OLD, "before", log_bytes=64 << 10))


class Moves:
    """The input, byte by byte; zeros behind its end."""

    def __init__(self, data: bytes) -> None:
        self._bytes = iter(data)
        self.left = len(data)

    def byte(self) -> int:
        self.left -= 1
        return next(self._bytes, 0)


@dataclass
class Run:
    """Data that an R2T asked for, or that goes without being asked."""

    ttt: int
    at: int
    end: int
    data_sn: int = 0


@dataclass
class Command:
    lun: int
    offset: int
    data: bytes
    write: bool
    fua: bool = False
    emptied: tuple[int, int] | None = None
    """Of an UNMAP, whose data is a list: (offset, end)."""
    runs: list[Run] = field(default_factory=list)
    answer: bytearray = field(default_factory=bytearray)

    @property
    def blocks(self) -> range:
        return range(self.offset // BLOCK, -(-(self.offset + len(self.data)) // BLOCK))


class Game:
    def __init__(self, flags: int) -> None:
        self.scene = WriteScene(SleepyDevice(bytearray(image())))
        self.keys = KEYS[flags % len(KEYS)]
        self.models = {0: bytearray(OLD["a"]), 1: bytearray(OLD["b"])}
        self.names = {0: "a", 1: "b"}
        self.commands: dict[int, Command] = {}
        self.unsure: dict[int, set[int]] = {0: set(), 1: set()}
        """Blocks of a FUA WRITE, which may have happened long before it is answered, or without an answer."""
        self.seed = 10
        self.tame = True
        """False: the host has sent what may have been any command, so nobody knows what is on the LUNs."""
        self.host: Initiator
        self.log_in()

    # -- the session

    def log_in(self) -> None:
        for command in self.commands.values():
            self.forget(command)
        self.commands.clear()
        self.host = Initiator(Link(self.scene.host), keys=dict(self.keys))
        assert self.host.login().status_class == 0
        for lun in self.scene.units:
            for _ in range(4):
                self.host.command(bytes(6), lun=lun << 48)
        self.scene.service.read()
        self.take()

    def leave(self, how: int) -> None:
        old = self.host.link
        if how == 1:
            self.host.request(Opcode.LOGOUT_REQUEST, itt=self.host.next_itt(), immediate=True, cid=1)
        elif how == 2:
            old.core.session.drop("told to")
        elif how == 3:
            old.core.lost("cut")
        self.log_in()
        assert old.closed, "the session was reinstated"

    def send(self, wire: bytes) -> None:
        self.heard(self.host.link.send(wire))

    def take(self) -> None:
        self.host.link.collect()
        self.heard(self.host.link.take())

    def heard(self, replies: list[Reply]) -> None:
        """The answers, in their order: what each says is so from there on."""
        for reply in replies:
            command = self.commands.get(getattr(reply.fields, "itt", NO_TAG))
            if command is None:
                continue
            if reply.opcode is Opcode.R2T:
                end = reply.buffer_offset + reply.desired_length
                assert end <= len(command.data)
                command.runs.append(Run(reply.ttt, reply.buffer_offset, end))
            elif reply.opcode is Opcode.DATA_IN:
                command.answer += reply.data
                if reply.flags & 1:
                    self.ended(reply, command)
            elif reply.opcode is Opcode.SCSI_RESPONSE:
                self.ended(reply, command)

    def ended(self, reply: Reply, command: Command) -> None:
        del self.commands[reply.itt]
        self.forget(command)
        if reply.status or not self.tame:
            return
        if command.emptied is not None:
            start, end = command.emptied
            assert end <= len(self.models[command.lun])
            self.models[command.lun][start:end] = bytes(end - start)
        elif not command.write:
            self.same(command.answer, command.lun, command.offset)
        elif not command.fua:
            model, end = self.models[command.lun], command.offset + len(command.data)
            assert end <= len(model)
            model[command.offset : end] = command.data

    def forget(self, command: Command) -> None:
        if command.fua:
            self.unsure[command.lun].update(command.blocks)

    def same(self, found: bytes | bytearray, lun: int, offset: int) -> None:
        """What was found there is what must be there."""
        unsure = self.unsure[lun].union(*(each.blocks for each in self.commands.values() if each.fua))
        for at in range(0, len(found), BLOCK):
            number = (offset + at) // BLOCK
            expected = self.models[lun][offset + at :][:BLOCK]
            assert number in unsure or found[at : at + BLOCK] == expected, f"LUN {lun}, block {number}"

    # -- its commands

    def begin(self, moves: Moves) -> bytes:
        control, lba, blocks = moves.byte(), moves.byte(), moves.byte()
        odd = SECTOR if control & 2 else 0
        offset, length = lba % 80 * BLOCK + odd, (1 + blocks % 40) * BLOCK + odd
        self.seed += 1
        fua = bool(control & 4)
        command = Command(control & 1, offset, pattern(self.seed, length), write=True, fua=fua)
        flags, data = 0xA1, b""
        agreed = self.host.agreed
        if control & 16 and agreed.get("ImmediateData") == "Yes":
            data = command.data[: min(int(agreed["FirstBurstLength"]), int(agreed["MaxRecvDataSegmentLength"]), length)]
        if control & 32 and agreed.get("InitialR2T") == "No" and len(data) < length:
            flags = 0x21
            command.runs.append(Run(NO_TAG, len(data), min(int(agreed["FirstBurstLength"]), length)))
        return self.command(command, flags, data, 0x2A, 0x8A, fua=fua, long=bool(control & 8))

    def command(
        self, command: Command, flags: int, data: bytes, short_code: int, long_code: int, *, fua: bool = False,
        long: bool = False,
    ) -> bytes:  # fmt: skip
        lba, sectors = command.offset // SECTOR, len(command.data) // SECTOR
        if long:
            cdb = bytes((long_code, fua << 3)) + lba.to_bytes(8, "big") + sectors.to_bytes(4, "big") + bytes(2)
        else:
            cdb = bytes((short_code, fua << 3)) + lba.to_bytes(4, "big") + b"\0" + sectors.to_bytes(2, "big")
        itt = self.host.next_itt()
        self.commands[itt] = command
        wire = self.host.encode(
            Opcode.SCSI_COMMAND, data, flags=flags, lun=command.lun << 48, itt=itt, edtl=len(command.data),
            cdb=cdb.ljust(16, b"\0"),
        )  # fmt: skip
        self.host.cmd_sn = (self.host.cmd_sn + 1) & 0xFFFFFFFF
        return wire

    def write(self, moves: Moves) -> None:
        if len(self.commands) < COMMANDS:
            self.send(self.begin(moves))

    def write_together(self, moves: Moves) -> None:
        """One-block and longer ones in one go, with their data."""
        wire = b""
        for _ in range(1 + moves.byte() % SENT_TOGETHER):
            wire += self.begin(moves)
        self.send(wire)

    def unmap(self, moves: Moves) -> None:
        control, lba, blocks = moves.byte(), moves.byte(), moves.byte()
        odd = SECTOR if control & 2 else 0
        start, length = lba % 80 * BLOCK + odd, (1 + blocks % 40) * BLOCK + odd
        listed = unmap_list((start // SECTOR, length // SECTOR))
        command = Command(control & 1, 0, listed, write=True, emptied=(start, start + length))
        data = listed if self.host.agreed.get("ImmediateData") == "Yes" else b""
        itt = self.host.next_itt()
        self.commands[itt] = command
        wire = self.host.encode(
            Opcode.SCSI_COMMAND, data, flags=0xA1, lun=command.lun << 48, itt=itt, edtl=len(listed),
            cdb=unmap(len(listed)).ljust(16, b"\0"),
        )  # fmt: skip
        self.host.cmd_sn = (self.host.cmd_sn + 1) & 0xFFFFFFFF
        self.send(wire)

    def early(self, moves: Moves) -> None:
        """A command, and its unsolicited data if it has any, before the one whose turn it is."""
        first, second = self.begin(moves), self.begin(moves)
        self.send(second)
        for _ in range(moves.byte() % 4):
            self.data_out(moves)
        self.send(first)

    def read(self, moves: Moves) -> None:
        control, lba, blocks = moves.byte(), moves.byte(), moves.byte()
        command = Command(control & 1, lba % 80 * BLOCK, bytes((1 + blocks % 16) * BLOCK), write=False)
        self.send(self.command(command, 0xC1, b"", 0x28, 0x88, fua=bool(control & 4), long=bool(control & 8)))

    def flush(self, moves: Moves) -> None:
        self.send(self.host.encode(
            Opcode.SCSI_COMMAND, flags=0x81, lun=(moves.byte() & 1) << 48, itt=self.host.next_itt(),
            cdb=b"\x35".ljust(16, b"\0"),
        ))  # fmt: skip
        self.host.cmd_sn = (self.host.cmd_sn + 1) & 0xFFFFFFFF

    def data_out(self, moves: Moves) -> None:
        """The next of one of the commands, or one that is wrong in some way."""
        which, amount, wrong = moves.byte(), moves.byte(), moves.byte()
        waiting = [(itt, command) for itt, command in self.commands.items() if command.runs]
        if not waiting:
            return
        itt, command = waiting[which % len(waiting)]
        run = command.runs[which // 16 % len(command.runs)]
        length = min(run.end - run.at, amount * 2048 or run.end)
        offset = min(run.at + (BLOCK if wrong & 2 else 0), len(command.data))
        final = (run.at + length == run.end or bool(wrong & 4)) and not wrong & 8
        wire = bytearray(self.host.encode(
            Opcode.DATA_OUT, command.data[offset : offset + length], flags=0x80 if final else 0,
            lun=(command.lun ^ (wrong >> 7)) << 48, itt=itt, ttt=run.ttt ^ (wrong >> 4 & 1),
            data_sn=run.data_sn + (wrong & 1), buffer_offset=offset,
        ))  # fmt: skip
        if wrong & 64:
            wire[-5] ^= 1
            # without digests nobody can know
            self.tame = self.tame and self.keys.get("DataDigest") == "CRC32C"
        run.at, run.data_sn = run.at + length, run.data_sn + 1
        if final or run.at >= run.end:
            command.runs.remove(run)
        self.host.link.piece = 1500 if wrong & 32 else 1 << 30
        self.send(bytes(wire))
        self.host.link.piece = 1 << 30

    def task_management(self, moves: Moves) -> None:
        function, which = moves.byte(), moves.byte()
        tags = list(self.commands) or [0]
        one = tags[which % len(tags)]
        function %= 13
        self.heard(self.host.request(
            Opcode.TASK_MANAGEMENT_REQUEST, flags=0x80 | function, itt=self.host.next_itt(), immediate=True,
            lun=(which & 1) << 48, referenced_itt=one if function == TaskFunction.ABORT_TASK else NO_TAG,
            ref_cmd_sn=self.host.cmd_sn - 1,
        ))  # fmt: skip

    def end_session(self, moves: Moves) -> None:
        self.leave(moves.byte() % 4)

    def anything(self, moves: Moves) -> None:
        """A PDU of the fuzzer's own, its CmdSN in turn."""
        self.tame = False
        header = bytearray(moves.byte() for _ in range(limits.BHS_BYTES))
        header[4:8] = bytes(4)
        header[24:28] = self.host.cmd_sn.to_bytes(4, "big")
        self.host.link.core.wake = lambda: None
        self.host.link.framing = self.host.link.core.framing
        core = self.host.link.core
        self.raw(bytes(header) + (b"\0" * 4 if core.framing.header_digest else b""))
        self.log_in()

    def raw(self, wire: bytes) -> None:
        core = self.host.link.core
        buffer = core.receive_buffer()
        buffer[: len(wire)] = wire
        core.received(len(wire), self.host.link.now)
        core.data_to_send()
        core.data_sent(kept=False)

    # -- the administrator

    def administer(self, moves: Moves) -> None:
        what, lun = moves.byte(), 1
        volume, unit = self.scene.volume, self.scene.units[lun]
        name = self.names[lun]
        if what % 6 == 0:
            size = LUN_BYTES // 2 if len(self.models[lun]) == LUN_BYTES else LUN_BYTES
            volume.resize_lun(name, size)
            unit.capacity_changed()
            self.models[lun] = self.models[lun][:size].ljust(size, b"\0")
        elif what % 6 == 1:
            volume.lun(name).set_online(not volume.lun(name).online)
            unit.state_changed()
        elif what % 6 == 2 and name == "b":
            resized = len(self.models[lun]) != LUN_BYTES
            volume.restore("before", name)
            unit.contents_changed(resized=resized)
            self.models[lun] = bytearray(OLD["b"])
        elif what % 6 == 3:
            self.scene.target.refresh(lambda _: {0: self.scene.units[0]})
        elif what % 6 == 4:
            self.scene.target.refresh(lambda _: self.scene.units)
        elif what % 6 == 5:
            volume.destroy_lun(name)
            self.names[lun] = name + "x"
            volume.create_lun(name + "x", LUN_BYTES)
            self.scene.units[lun] = self.scene.unit(name + "x")
            self.scene.target.refresh(lambda _: self.scene.units)
            self.models[lun] = bytearray(LUN_BYTES)
        self.take()

    # -- the disk

    def disk(self, moves: Moves) -> None:
        what, volume = moves.byte() % 5, self.scene.volume
        device = volume.device
        assert isinstance(device, SleepyDevice)
        if what == 0:
            self.scene.service.read()
        elif what == 1:
            self.scene.service.sync()
        elif what == 2:
            device.forget()
        elif what == 3:
            checkpoint(volume, self.scene.service.read)
        else:
            volume.core.cool()
            checkpoint(volume)
            for _ in range(2 * len(volume.core._queue)):
                if volume.core._queue:
                    volume.core._evict_oldest()
            device.forget()
        self.take()

    # -- the end

    def end(self) -> None:
        self.host.link.core.lost("the input ends")
        volume = self.scene.volume
        while self.scene.service.warmers:
            self.scene.service.read()
        self.scene.service.sync()
        assert volume.core.allocator.promised == 0
        device = volume.device
        assert isinstance(device, SleepyDevice)
        self.compare(volume)
        killed = SleepyDevice(bytearray(device.image))
        self.compare(Volume.mount(killed))
        volume.close()
        assert problems(device) == []
        device.image = killed.image = bytearray()  # what is left of the game may stay for a while

    def compare(self, volume: Volume) -> None:
        if not self.tame:
            return
        for lun, name in self.names.items():
            found = bytearray(volume.lun(name).size_bytes)
            volume.lun(name).read_into(0, memoryview(found))
            assert len(found) == len(self.models[lun])
            self.same(found, lun, 0)


MOVE: tuple[Callable[[Game, Moves], None], ...] = (
    Game.data_out, Game.write, Game.data_out, Game.write_together, Game.read, Game.task_management, Game.flush,
    Game.disk, Game.end_session, Game.administer, Game.data_out, Game.early, Game.disk, Game.data_out, Game.unmap,
    Game.anything,
)  # fmt: skip


def writes(data: bytes) -> None:
    """Whatever a host, an administrator and a disk do in between, WRITEs happen whole or not at all."""
    before, limits.PLACED_BYTES = limits.PLACED_BYTES, PLACED_BYTES
    try:
        moves = Moves(data)
        game = Game(moves.byte())
        for _ in range(MOVES):
            if moves.left <= 0:
                break
            MOVE[moves.byte() % len(MOVE)](game, moves)
            if game.host.link.closed:
                game.log_in()
        game.end()
    finally:
        limits.PLACED_BYTES = before


# -- the corpus

DATA, WRITE, TOGETHER, READ, TASKS, FLUSH, DISK, SESSION, ADMIN, EARLY, UNMAP, ANY = (
    0,
    1,
    3,
    4,
    5,
    6,
    7,
    8,
    9,
    11,
    14,
    15,
)
LONG = bytes((WRITE, 1, 3, 31))
"""Of 32 blocks to LUN 1."""


def data_out(amount: int = 0, which: int = 0, wrong: int = 0) -> bytes:
    return bytes((DATA, which, amount, wrong))


def writes_seeds() -> Iterator[bytes]:
    look = bytes((READ, 1, 0, 15, READ, 1, 16, 15))
    rest = data_out() * 10
    for flags in range(len(KEYS)):
        start = bytes((flags,))
        yield start + LONG + rest + look
        yield start + LONG + data_out(8) * 16 + look
        yield start + LONG + data_out(3) * 8 + rest + look + bytes((DISK, 1))
        yield start + bytes((WRITE, 48, 9, 39)) + rest + bytes((READ, 0, 9, 15))
        yield start + LONG + LONG + (data_out(8, 0) + data_out(8, 1)) * 8 + rest + look
        yield (
            start + bytes((TOGETHER, 5)) + bytes((16, 1, 0, 16, 2, 0, 16, 9, 0, 16, 10, 1, 16, 12, 1, 16, 5, 0)) + look
        )
        yield start + bytes((DISK, 4)) + LONG + rest + bytes((DISK, 0)) * 3 + look + bytes((DISK, 0)) * 3
        together = bytes((TOGETHER, 5, 16, 1, 0, 16, 2, 0, 16, 9, 0, 16, 10, 1, 16, 12, 1, 16, 5, 0)) + bytes((DISK, 0))
        yield start + together * 3 + bytes((DISK, 3)) + together + look
        yield (
            start
            + bytes((UNMAP, 1, 5, 9, DISK, 0, UNMAP, 3, 60, 30, DISK, 0))
            + data_out()
            + look
            + bytes((DISK, 0)) * 2
        )
        yield start + bytes((EARLY, 49, 3, 31, 49, 20, 31, 1, 16, 0, 0)) + rest + look
        for wrong in (1, 2, 4, 8, 16, 32, 64, 128):
            yield start + LONG + data_out(8) + data_out(8, 0, wrong) + rest + look
        for function in (1, 2, 4, 5, 6, 7, 11):
            yield start + LONG + data_out(8) + bytes((TASKS, function, 1)) + rest + LONG + rest + look
        for how in range(4):
            yield start + LONG + data_out(8) + bytes((SESSION, how)) + rest + LONG + rest + look
        for what in range(6):
            admin = bytes((ADMIN, what))
            yield start + LONG + data_out(8) + admin + rest + look + bytes((ADMIN, 4)) + LONG + rest + look
        for disk in range(5):
            yield (
                start
                + LONG
                + data_out(8)
                + bytes((DISK, disk))
                + rest
                + bytes((DISK, 0)) * 4
                + look
                + bytes((FLUSH, 1))
            )
        yield start + LONG + data_out(8) + bytes((ANY, 0x05, 0x80)) + bytes(46) + rest
