"""An initiator without I/O on a network that misbehaves: whole sessions of several connections, played from a seed.

A `Story` has a target in memory, an initiator that keeps many commands going, and between them a network whose every
step is drawn from the seed: which connection goes on, in which direction, by how many bytes.  On its way it loses
PDUs, flips bits (where digests are on), and cuts connections; the target notices later, or never.  The initiator
recovers as error recovery level 0 allows: a connection with the same id, a logout of the lost one by another, a new
session in the place of the old, ABORT TASK, a reset.

What must be so at every step: StatSN, DataSN and R2TSN without gaps unless something was lost, CmdSN windows that
never go back, one answer for each command and by the connection that brought it, none after an abort was confirmed.
In the end: every byte as the last write left it, nothing left over in the target.

Every write that is sent again has other data: were the first one done after it was given up, the end would show it.
"""

from __future__ import annotations

import random
from collections import Counter, deque

from target.iscsi.constants import NO_TAG, Opcode, RejectReason
from target.iscsi.errors import FormatError
from target.iscsi.framing import Framing
from target.iscsi.host import Host
from target.iscsi.pdus import DECLARATIONS, parse_header
from target.iscsi.ports import Response
from target.iscsi.tasks import State
from target.iscsi.window import serial_less
from tests.support.fence_watch import FenceWatch
from tests.support.initiator import READ_10, WRITE_10, Initiator, Link, Reply, cdb_10, make_host
from tests.support.memory_target import one_disk
from tests.support.pipes import Command, Pipe, Work

REGIONS = 48
REGION_BLOCKS = 16
BLOCK = 512
DEPTH = 12
STEPS = 40_000
"""More than any story takes: one that does not end is a fault."""
FLUSH = bytes((0x35,)) + bytes(15)
ABORT_TASK, LUN_RESET, QUERY_TASK, I_T_NEXUS_RESET = 1, 5, 9, 11
QUESTIONS = (QUERY_TASK, 10, 12)
FUNCTIONS = (ABORT_TASK, ABORT_TASK, ABORT_TASK, 2, 4, LUN_RESET)
LEVEL_2 = (*QUESTIONS, I_T_NEXUS_RESET)


class Lost(Exception):
    """The initiator gives a connection up."""


class Story:
    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        directory, self.disk = one_disk(1)
        self.disk.fast = self.dice.random() < 0.7
        self.disk.placing = seed % 2 == 1
        self.host: Host = make_host(directory)
        self.model = bytearray(len(self.disk.data))
        self.digests = self.dice.random() < 0.5
        self.faults = self.dice.choice((0, 1, 2, 4))
        self.work_left = self.dice.randint(20, 60)
        self.todo: deque[Work] = deque()
        self.busy: set[int] = set()
        self.commands: dict[int, Command] = {}
        self.answered: Counter[int] = Counter()
        """Task management functions, 0 for those that nobody waits for any more."""
        self.functions: dict[int, tuple[int, int, Command | None]] = {}
        """Task management: tag -> (function, CmdSN, the command that ABORT TASK names)."""
        self.logouts: dict[int, Pipe] = {}
        self.retired: set[int] = set()
        """Tags of commands whose abort was confirmed."""
        self.keys = {
            "MaxConnections": str(self.dice.randint(1, 4)),
            "HeaderDigest": "CRC32C" if self.digests else "None",
            "DataDigest": "CRC32C" if self.digests else "None",
            "InitialR2T": self.dice.choice(("Yes", "No")),
            "ImmediateData": self.dice.choice(("Yes", "No")),
            "MaxRecvDataSegmentLength": str(self.dice.choice((512, 1024, 4096, 65536))),
            "MaxBurstLength": str(self.dice.choice((512, 2048, 65536))),
            "FirstBurstLength": str(self.dice.choice((512, 2048, 65536))),
            "MaxOutstandingR2T": str(self.dice.choice((1, 2, 8))),
            "DataPDUInOrder": self.dice.choice(("Yes", "No")),
            "iSCSIProtocolLevel": self.dice.choice(("1", "2")),
        }
        self.watch = FenceWatch(self.answer_comes)
        self.segment = self.dice.choice((512, 700, 2048, 65536))
        self.pipes: list[Pipe] = []
        self.leading: Initiator
        self.new_session()

    # --- connections

    def connect(self, initiator: Initiator) -> Pipe | None:
        """Log in (the wire is perfect while that goes on).  None: refused."""
        reply = initiator.login()
        if reply.status_class:
            return None
        initiator.link.core.wake = lambda: None
        pipe = Pipe(initiator, expected_stat_sn=(reply.stat_sn + 1) & 0xFFFFFFFF)
        self.pipes.append(pipe)
        return pipe

    def new_session(self) -> None:
        """A first session, or one in the place of what is left of the old."""
        for pipe in self.pipes:
            pipe.alive = False
        self.pipes.clear()
        self.again(list(self.commands.values()))
        self.functions.clear()
        self.logouts.clear()
        self.retired.clear()
        self.leading = Initiator(Link(self.host), keys=self.keys)
        assert self.connect(self.leading) is not None
        for cid in range(2, int(self.leading.agreed["MaxConnections"]) + 1):
            assert self.connect(self.leading.join(Link(self.host), cid)) is not None

    def again(self, commands: list[Command]) -> None:
        """Commands that were given up: their work is to be done anew, writes with other data."""
        for command in commands:
            del self.commands[command.itt]
            self.watch.forget(command.itt)
            work = command.work
            if work.kind == "write":
                work.data = self.dice.randbytes(len(work.data))
            self.todo.append(work)

    def lose(self, pipe: Pipe) -> None:
        """The initiator finds a connection broken."""
        if not pipe.alive:
            return
        pipe.alive = False
        self.pipes.remove(pipe)
        pipe.outbox.clear()
        pipe.inbox.clear()
        pipe.incoming.clear()
        if self.dice.random() < 0.5:
            pipe.core.lost("the network cut it")
        others = [each for each in self.pipes if each.alive]
        choice = self.dice.random()
        if others and choice < 0.4:
            other = self.dice.choice(others)
            itt = other.initiator.next_itt()
            self.logouts[itt] = pipe
            self.post(other, Opcode.LOGOUT_REQUEST, flags=0x81, itt=itt, cid=pipe.initiator.cid, immediate=True)
            return
        new = None
        if choice < 0.8:
            new = self.connect(self.leading.join(Link(self.host), pipe.initiator.cid))
        if new is None:
            self.new_session()
        else:
            self.replace(pipe, new)

    def answer_comes(self, itt: int) -> bool:
        command = self.commands.get(itt)
        return command is not None and command.pipe.alive and not command.pipe.spoilt

    def replace(self, old: Pipe, new: Pipe) -> None:
        """The target has ended the old connection and its tasks.  CmdSNs that were lost with it are filled up by
        NOP-Outs (4.2.2.1): those that were taken are outside the window by now."""
        mine = [c for c in self.commands.values() if c.pipe is old]
        for command in mine:
            itt = new.initiator.next_itt()
            self.post(new, Opcode.NOP_OUT, itt=itt, ttt=NO_TAG, cmd_sn=command.cmd_sn)
        self.again(mine)
        stranded = [itt for itt, (_, _, named) in self.functions.items() if named is not None and named.pipe is old]
        for itt in stranded:
            del self.functions[itt]

    # --- sending

    def post(self, pipe: Pipe, opcode: Opcode, data: bytes = b"", **fields: object) -> None:
        pipe.outbox.append(pipe.initiator.encode(opcode, data, **fields))  # type: ignore[arg-type]

    def submit(self) -> bool:
        numbers = self.leading.numbers
        if len(self.commands) >= DEPTH or self.logouts or serial_less(numbers.max_cmd_sn, numbers.cmd_sn):
            return False
        work = self.next_work()
        if work is None:
            return False
        pipe = self.dice.choice(self.pipes)
        command = Command(work, pipe.initiator.next_itt(), numbers.cmd_sn, pipe)
        numbers.cmd_sn = (numbers.cmd_sn + 1) & 0xFFFFFFFF
        self.commands[command.itt] = command
        lba = work.region * REGION_BLOCKS
        if work.kind == "flush":
            self.post(pipe, Opcode.SCSI_COMMAND, flags=0x81, itt=command.itt, cdb=FLUSH, cmd_sn=command.cmd_sn)
        elif work.kind == "read":
            cdb = cdb_10(READ_10, lba, work.blocks).ljust(16, b"\0")
            edtl = work.blocks * BLOCK
            fields = {"flags": 0xC1, "itt": command.itt, "edtl": edtl, "cdb": cdb, "cmd_sn": command.cmd_sn}
            self.post(pipe, Opcode.SCSI_COMMAND, **fields)
        else:
            self.post_write(pipe, command, lba)
        return True

    def post_write(self, pipe: Pipe, command: Command, lba: int) -> None:
        data, agreed = command.work.data, self.leading.agreed
        first = min(int(agreed["FirstBurstLength"]), int(agreed["MaxBurstLength"]), len(data))
        immediate = data[: min(first, self.segment)] if agreed["ImmediateData"] == "Yes" else b""
        unsolicited = data[len(immediate) : first] if agreed["InitialR2T"] == "No" else b""
        cdb = cdb_10(WRITE_10, lba, command.work.blocks).ljust(16, b"\0")
        fields = {"itt": command.itt, "edtl": len(data), "cdb": cdb, "cmd_sn": command.cmd_sn}
        self.post(pipe, Opcode.SCSI_COMMAND, immediate, flags=0x21 if unsolicited else 0xA1, **fields)
        if unsolicited:
            self.post_data(pipe, command, NO_TAG, len(immediate), unsolicited)

    def post_data(self, pipe: Pipe, command: Command, ttt: int, offset: int, data: bytes) -> None:
        places = list(range(0, len(data), self.segment))
        if self.keys["DataPDUInOrder"] == "No":
            self.dice.shuffle(places)
        for data_sn, at in enumerate(places):
            piece = data[at : at + self.segment]
            last = data_sn == len(places) - 1
            fields = {"itt": command.itt, "ttt": ttt, "data_sn": data_sn, "buffer_offset": offset + at}
            self.post(pipe, Opcode.DATA_OUT, piece, flags=0x80 if last else 0, **fields)

    def next_work(self) -> Work | None:
        if self.todo:
            return self.todo.popleft()
        free = [region for region in range(REGIONS) if region not in self.busy]
        if not self.work_left or not free:
            return None
        self.work_left -= 1
        region, blocks = self.dice.choice(free), self.dice.randint(1, REGION_BLOCKS)
        kind = self.dice.choice(("read", "read", "write", "write", "write", "flush"))
        self.busy.add(region)
        return Work(region, blocks, kind, self.dice.randbytes(blocks * BLOCK) if kind == "write" else b"")

    def manage(self) -> None:
        """ABORT TASK of any command, the end of the whole task set, or a question of RFC 7144."""
        pipe = self.dice.choice(self.pipes)
        itt, cmd_sn = pipe.initiator.next_itt(), self.leading.cmd_sn
        named = self.dice.choice(list(self.commands.values())) if self.commands else None
        choice = FUNCTIONS + (LEVEL_2 if self.keys["iSCSIProtocolLevel"] == "2" else ())
        function = self.dice.choice(choice) if named else LUN_RESET
        fields = {"flags": 0x80 | function, "itt": itt, "cmd_sn": cmd_sn, "referenced_itt": NO_TAG}
        if function in (ABORT_TASK, QUERY_TASK) and named is not None:
            fields |= {"referenced_itt": named.itt, "ref_cmd_sn": named.cmd_sn}
        self.functions[itt] = (function, cmd_sn, named if function == ABORT_TASK else None)
        self.post(pipe, Opcode.TASK_MANAGEMENT_REQUEST, immediate=True, **fields)

    # --- receiving

    def parse(self, pipe: Pipe) -> None:
        """Every whole PDU that has come.  Raises Lost."""
        framing: Framing = pipe.initiator.link.framing
        while pipe.alive and len(pipe.inbox) >= 48:
            whole = bytes(pipe.inbox)
            try:
                size = framing.size(memoryview(whole), 0)
                if len(whole) < size:
                    return
                pdu = framing.split(memoryview(whole), 0)
            except FormatError:
                raise Lost from None
            if not pdu.data_intact:
                raise Lost
            del pipe.inbox[:size]
            opcode = Opcode(whole[0])
            self.take(pipe, Reply(opcode, parse_header(DECLARATIONS[opcode], whole), bytes(pdu.data), whole[:size]))

    def take(self, pipe: Pipe, reply: Reply) -> None:
        numbers = self.leading.numbers
        if serial_less(numbers.max_cmd_sn, reply.max_cmd_sn):
            numbers.max_cmd_sn = reply.max_cmd_sn
        counted = reply.opcode not in (Opcode.R2T,) and not (reply.opcode is Opcode.DATA_IN and not reply.flags & 1)
        if reply.opcode is Opcode.NOP_IN and reply.itt == NO_TAG:
            counted = False
        if counted:
            assert pipe.spoilt or reply.stat_sn == pipe.expected_stat_sn, "a gap in StatSN"
            pipe.expected_stat_sn = (reply.stat_sn + 1) & 0xFFFFFFFF
        handler = HANDLERS.get(reply.opcode)
        assert handler is not None, reply
        handler(self, pipe, reply)

    def command_of(self, pipe: Pipe, reply: Reply) -> Command | None:
        assert reply.itt not in self.retired, "an answer after its abort was confirmed"
        command = self.commands.get(reply.itt)
        assert command is None or command.pipe is pipe, "an answer by another connection"
        return command

    def r2t(self, pipe: Pipe, reply: Reply) -> None:
        command = self.commands.get(reply.itt)
        if command is None:
            return  # it was on its way when the command was aborted by another connection
        assert command.pipe is pipe
        assert pipe.spoilt or reply.r2t_sn == command.r2t_sn
        command.r2t_sn += 1
        data = command.work.data[reply.buffer_offset :][: reply.desired_length]
        assert len(data) == reply.desired_length
        self.post_data(pipe, command, reply.ttt, reply.buffer_offset, data)

    def data_in(self, pipe: Pipe, reply: Reply) -> None:
        command = self.command_of(pipe, reply)
        if command is None:
            return
        assert (reply.data_sn, reply.buffer_offset) == (command.data_sn, len(command.got))
        command.data_sn += 1
        command.got += reply.data
        if reply.flags & 1:
            self.finished(command, reply.status)

    def response(self, pipe: Pipe, reply: Reply) -> None:
        command = self.command_of(pipe, reply)
        if command is None:
            return
        if reply.status == 2:
            # only what the network did to the data
            assert pipe.spoilt
            assert reply.data[2 + 2] & 15 == 0x0B
            self.again([command])
        else:
            self.finished(command, reply.status)

    def finished(self, command: Command, status: int) -> None:
        assert status == 0
        self.watch.see(command.itt)
        work = command.work
        del self.commands[command.itt]
        at = work.region * REGION_BLOCKS * BLOCK
        if work.kind == "write":
            self.model[at : at + len(work.data)] = work.data
        elif work.kind == "read":
            assert command.got == self.model[at : at + work.blocks * BLOCK], "a read of old data"
        self.busy.discard(work.region)

    def managed(self, pipe: Pipe, reply: Reply) -> None:
        function, cmd_sn, named = self.functions.pop(reply.itt, (0, 0, None))
        self.answered[function] += 1
        if function in QUESTIONS:
            assert reply.response in (0, 7)
        elif function == ABORT_TASK:
            assert reply.response in (0, 1)
            if reply.response == 0 and named is not None and self.commands.get(named.itt) is named:
                self.retired.add(named.itt)
                self.again([named])
        elif function:
            assert reply.response == 0
            ended = [c for c in self.commands.values() if serial_less(c.cmd_sn, cmd_sn)]
            self.retired.update(c.itt for c in ended)
            self.again(ended)

    def logged_out(self, pipe: Pipe, reply: Reply) -> None:
        old = self.logouts.pop(reply.itt, None)
        if old is not None:
            assert reply.response in (0, 1)
            self.replace(old, pipe)

    def nop_in(self, pipe: Pipe, reply: Reply) -> None:
        if reply.ttt != NO_TAG:
            self.post(pipe, Opcode.NOP_OUT, itt=NO_TAG, ttt=reply.ttt, immediate=True)

    def reject(self, pipe: Pipe, reply: Reply) -> None:
        assert pipe.spoilt
        assert reply.reason == RejectReason.DATA_DIGEST_ERROR

    def event(self, pipe: Pipe, reply: Reply) -> None:
        assert reply.async_event in (2, 3)

    # --- the network

    def carry(self) -> bool:
        """Some bytes on some connection, in some direction.  False: nothing is under way."""
        self.collect()
        ways = [(p, out) for p in self.pipes for out in (True, False) if (p.outbox if out else p.incoming)]
        if not ways:
            return False
        pipe, out = self.dice.choice(ways)
        if out:
            self.to_target(pipe)
        else:
            count = self.dice.choice((1, 40, 48, 500, 5000, 1 << 20))
            pipe.inbox += pipe.incoming[:count]
            del pipe.incoming[:count]
            try:
                self.parse(pipe)
            except Lost:
                self.lose(pipe)
        return True

    def collect(self) -> None:
        """What the target has to send gets on its way.  A target that has ended a connection has closed it."""
        for pipe in list(self.pipes):
            core, incoming = pipe.core, pipe.incoming
            if len(incoming) < 200_000:
                incoming += core.data_to_send()
                core.data_sent(kept=False)
                if core.blocked and core.closing is None:
                    core.resume(0.0)
            if core.closing is not None and not incoming:
                self.lose(pipe)

    def to_target(self, pipe: Pipe) -> None:
        pdu = pipe.outbox.popleft()
        count = self.dice.choice((len(pdu), len(pdu), len(pdu), self.dice.randint(1, len(pdu))))
        if count < len(pdu):
            pipe.outbox.appendleft(pdu[count:])
        view = memoryview(pdu)[:count]
        core = pipe.core
        while view and core.closing is None:
            buffer = core.receive_buffer()
            part = min(len(buffer), len(view))
            buffer[:part] = view[:part]
            view = view[part:]
            core.received(part, 0.0)
            self.collect()

    def fault(self) -> None:
        """One thing goes wrong."""
        self.faults -= 1
        pipe = self.dice.choice(self.pipes)
        kind = self.dice.choice(("cut", "lose a PDU", "flip a bit out", "flip a bit in"))
        if kind == "cut" or (not self.digests and kind != "lose a PDU"):
            self.lose(pipe)
            return
        pipe.spoilt = True
        if kind == "lose a PDU" and len(pipe.outbox) > 1:
            del pipe.outbox[self.dice.randrange(1, len(pipe.outbox))]  # the first may be half sent
        elif kind == "flip a bit out" and pipe.outbox:
            number = self.dice.randrange(len(pipe.outbox))
            pdu = bytearray(pipe.outbox[number])
            pdu[self.dice.randrange(len(pdu))] ^= 1 << self.dice.randrange(8)
            pipe.outbox[number] = bytes(pdu)
        elif kind == "flip a bit in" and pipe.incoming:
            incoming = pipe.incoming
            incoming[self.dice.randrange(len(incoming))] ^= 1 << self.dice.randrange(8)

    def stuck(self) -> None:
        """Nothing is under way and something is missing: what a time-out does."""
        if self.disk.later:
            self.flush()
        elif self.dice.random() < 0.5 and not self.logouts:
            self.lose(self.dice.choice(self.pipes))
        else:
            self.new_session()

    def flush(self) -> None:
        waiting, self.disk.later[:] = list(self.disk.later), []
        for tag, done in waiting:
            fenced = self.dice.random() < 0.3
            if done.args[0].state is State.EXECUTING:  # type: ignore[attr-defined]  # else it ended meanwhile
                self.watch.make(tag, fenced)
            done(Response(fenced=fenced))

    def play(self) -> None:
        """To the end, and look at what is left."""
        for _ in range(STEPS):
            chance = self.dice.random()
            if self.faults and chance < 0.01:
                self.fault()
            elif chance < 0.02 and not self.functions and not self.logouts:
                self.manage()
            elif chance < 0.04 and self.disk.later:
                self.flush()
            elif (chance < 0.3 and self.submit()) or self.carry() or self.submit():
                pass
            elif self.commands or self.todo or self.functions or self.logouts:
                self.stuck()
            elif not self.work_left:
                break
        else:
            raise AssertionError("the story does not end")
        assert self.disk.data == self.model
        (session,) = self.host.registry.targets[self.leading.target or ""].sessions.values()
        assert (session.tasks, session.window.outstanding, session.window.early) == ({}, 0, {})
        assert (session.window.functions, session.data_bytes, session.starved) == ([], 0, [])
        assert (session.fence, session.window.frozen, len(session.deferred)) == (None, False, 0)


HANDLERS = {
    Opcode.R2T: Story.r2t,
    Opcode.DATA_IN: Story.data_in,
    Opcode.SCSI_RESPONSE: Story.response,
    Opcode.TASK_MANAGEMENT_RESPONSE: Story.managed,
    Opcode.LOGOUT_RESPONSE: Story.logged_out,
    Opcode.NOP_IN: Story.nop_in,
    Opcode.REJECT: Story.reject,
    Opcode.ASYNC_MESSAGE: Story.event,
}
