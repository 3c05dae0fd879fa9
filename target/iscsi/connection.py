"""One connection of the target, without any I/O: bytes and the time in, bytes and events out.

    view = connection.receive_buffer()      fill its beginning ...
    connection.received(count, now)         ... and say how much
    data = connection.data_to_send()        send it, then
    connection.data_sent(kept)              kept: whoever sends it still holds the buffer,
    connection.sent_but(pending)            until so many, the last of them, are left
    connection.resume(now)                  while `blocked`: there is room for answers again
    connection.tick(now), .deadline         time-outs
    connection.next_event()                 LoggedIn, LoginFailed, Rejected, Closed
    connection.lost(reason)                 the transport is gone

`wake` is called when there is something to send although nothing was received (a command finished later, another
session's login ended this one), `push` when nothing else is being done and it is to leave at once.  Rules: nothing but
IscsiErrors for what a peer sends, and those never leave; an answer waits in `waiting` while the output buffer is full,
and until it is out no further PDU is taken.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto

from target.iscsi import commands, fence, hotpath, limits
from target.iscsi.answers import Answer, Message
from target.iscsi.buffers import OutputBuffer, ReceiveBuffer
from target.iscsi.constants import NO_TAG, Opcode, RejectReason
from target.iscsi.direct import DirectData, begin_direct
from target.iscsi.errors import FormatError, LoginFailure, PduRejected
from target.iscsi.establish import establish
from target.iscsi.fence import Fence
from target.iscsi.framing import Framing, Pdu
from target.iscsi.fullfeature import HANDLERS, SEQUENCED
from target.iscsi.host import Closed, Event, Host, LoggedIn, LoginFailed, Rejected
from target.iscsi.keys import Value
from target.iscsi.login import Login, LoginReply
from target.iscsi.session import ConnectionInfo, Session
from target.iscsi.tasks import Task
from target.iscsi.text import Pairs
from target.iscsi.texting import TextExchange, send_targets
from target.iscsi.window import MASK, Arrival, CommandWindow, Held


class Phase(Enum):
    LOGIN = auto()
    FULL_FEATURE = auto()
    ENDING = auto()
    """Nothing is taken any more; what is made is sent, then the transport closes."""
    CLOSED = auto()


@dataclass
class Rules:
    """The negotiated values that the data phase looks at."""

    immediate_data: bool = True
    initial_r2t: bool = True
    first_burst: int = 65536
    max_burst: int = 262144
    max_outstanding_r2t: int = 1
    data_pdu_in_order: bool = True


class Connection:
    """The target's end of one TCP connection."""

    session: Session

    def __init__(self, host: Host, peer: tuple[str, int], local: tuple[str, int], now: float) -> None:
        self.host = host
        self.peer = peer
        self.local = local
        self.phase = Phase.LOGIN
        self.full_feature = False
        self.wake: Callable[[], None] = lambda: None
        self.push: Callable[[], None] = lambda: None
        self.rx = ReceiveBuffer(limits.LOGIN_RECEIVE_BYTES)
        self.output = OutputBuffer(limits.LOGIN_RECEIVE_BYTES)
        self.framing = Framing(limits.LOGIN_DATA_SEGMENT_BYTES)
        self.rules = Rules()
        self.stat_sn = 1
        self.waiting: deque[Answer] = deque()
        self.blocked = False
        self.crowded = False
        """Several commands came together, a READ among them."""
        self.closing: str | None = None
        self.cid = 0
        self.immediate_outstanding = 0
        self.fences: dict[int, Fence] = {}
        """Fences that wait for the initiator to have what was sent here, by the tag of the NOP-In that asks."""
        self._fence_asked_at = now
        self.send_data_max = limits.LOGIN_DATA_SEGMENT_BYTES
        self.max_burst = self.rules.max_burst
        self.plain_read_max = self.plain_write_max = 0
        self._login: Login | None = Login(host.directory, host.entropy, host.tpgt, self._establish, peer[0])
        self._login_window = CommandWindow(0)
        self._before_answers: Callable[[], None] = lambda: None
        """The nexus's, once there is one; also for what leaves at the very end."""
        self._direct: DirectData | None = None
        self._events: deque[Event] = deque()
        self._rejected: set[RejectReason] = set()
        self.now = now
        self._heard_at = now
        self._ping_sent: float | None = None
        self.deadline = now + host.login_timeout_s

    # --- bytes in

    def receive_buffer(self) -> memoryview:
        """Where the next bytes go; never empty."""
        if self._direct is not None:
            return self._direct.free()
        if self.full_feature and not self.framing.data_digest and self.session.gathering:
            return self.rx.free_for_next(limits.GATHERING_RECEIVE_BYTES)
        return self.rx.free()

    def received(self, count: int, now: float) -> None:
        """`count` bytes were put at the beginning of `receive_buffer()`."""
        self.now = now
        if self._direct is None:
            self.rx.end += count
        elif self._direct.took(count):
            direct, self._direct = self._direct, None
            direct.finish(self)
        self.resume(now)

    def resume(self, now: float) -> None:
        """Take what has arrived, as far as there is room for answers."""
        self.now = now
        try:
            self._process()
        except FormatError as error:
            self.close(str(error), fault=True)

    def _process(self) -> None:
        self.blocked = False
        if self.waiting and not self._pump():
            self.blocked = True
            return
        while not self.blocked and self._direct is None:
            phase, before = self.phase, self.rx.end - self.rx.start
            if self.full_feature:
                hotpath.run(self)
            elif phase is Phase.LOGIN:
                self._take_login()
            else:
                self.rx.start = self.rx.end
            if self.waiting and not self._pump():
                self.blocked = True
            left = self.rx.end - self.rx.start
            # in full feature phase every whole PDU has been taken
            if not left or (self.phase is phase and (left == before or phase is Phase.FULL_FEATURE)):
                break
        self._prepare_receive()

    def _prepare_receive(self) -> None:
        """See to it that the rest of a PDU that has arrived in part has room."""
        rx = self.rx
        left = rx.end - rx.start
        if self.blocked or self._direct is not None:
            return
        if left < limits.BHS_BYTES:
            rx.make_room(limits.BHS_BYTES + limits.AHS_BYTES)
            return
        size = self.framing.size(rx.view, rx.start)
        if self.full_feature and size - left >= limits.DIRECT_RECEIVE_BYTES and self.session.gathering:
            self._direct = begin_direct(self, size)
            if self._direct is not None:
                rx.start = rx.end = 0
                return
        rx.make_room(size)

    # --- bytes out

    def data_to_send(self) -> memoryview:
        """Everything that is ready; the same bytes until `data_sent` is called."""
        if self.waiting and not self._pump():
            self.blocked = True  # late answers, made while nothing was received: `resume` goes on with them
        used = self.output.used
        if used:
            self._before_answers()
        return self.output.view[:used]

    def data_sent(self, kept: bool) -> None:
        """The bytes of `data_to_send` are on their way; `kept`: their buffer is still being sent from."""
        if kept:
            self.output.rotate()
        else:
            self.output.reset()

    def sent_but(self, pending: int) -> None:
        """Of the bytes that were kept all but the last `pending` are out."""
        self.output.sent(pending)

    def emit(self, answer: Answer) -> None:
        """Send an answer now, or in its turn when there is room."""
        if self.phase is not Phase.CLOSED and (self.waiting or not answer.produce(self)):
            self.waiting.append(answer)

    def _pump(self) -> bool:
        while self.waiting:
            if not self.waiting[0].produce(self):
                return False
            self.waiting.popleft()
        return True

    def numbers(self, counts: bool) -> tuple[int, int, int]:
        """StatSN, ExpCmdSN, MaxCmdSN of the next PDU; `counts`: it uses up its StatSN."""
        window = self.session.window if self.full_feature else self._login_window
        stat_sn = self.stat_sn
        if counts:
            self.stat_sn = (stat_sn + 1) & MASK
        return stat_sn, window.exp_cmd_sn, window.max_cmd_sn

    # --- full feature phase

    def dispatch(self, view: memoryview, at: int) -> None:
        """One whole PDU that the hot path leaves to the rest."""
        self._take(self.framing.split(view, at))
        window = self.session.window
        if window.early or window.functions:
            self.session.catch_up(self)

    def take_held(self, held: Held) -> None:
        """A PDU of this connection whose turn has come."""
        if not self.full_feature:
            self.session.window.advance()
            return
        try:
            for pdu in (held.pdu, *held.data):
                self._take(self.framing.split(memoryview(pdu), 0))
        except FormatError as error:
            self.close(str(error), fault=True)

    def _take(self, pdu: Pdu) -> None:
        self.heard()
        handler = HANDLERS.get(pdu.opcode)
        try:
            if handler is None:
                raise PduRejected(RejectReason.COMMAND_NOT_SUPPORTED, f"opcode {pdu.opcode:#x}")
            if pdu.opcode in SEQUENCED and not pdu.immediate and not self._in_order(pdu):
                return
            handler(self, pdu)
        except PduRejected as refused:
            self.reject(pdu, refused.reason, str(refused))

    def command_aside(self, view: memoryview, at: int) -> None:
        """A SCSI Command whose CmdSN the hot path has taken already."""
        pdu = self.framing.split(view, at)
        try:
            commands.scsi_command(self, pdu)
        except PduRejected as refused:
            self.reject(pdu, refused.reason, str(refused))

    def _in_order(self, pdu: Pdu) -> bool:
        """4.2.2.1: take the CmdSN, hold what is early, ignore what is outside the window."""
        window = self.session.window
        cmd_sn = int.from_bytes(pdu.header[24:28], "big")
        arrival = window.arrival(cmd_sn)
        if arrival is Arrival.IN_ORDER:
            window.advance()
            return True
        if arrival is Arrival.EARLY:
            window.keep(Held(self, cmd_sn, pdu.encoded(self.framing)))
        return False

    def reject(self, pdu: Pdu, reason: RejectReason, detail: str) -> None:
        """11.17: the header comes back with the reason.  The log hears of each reason once a connection."""
        self.session.counters.rejects += 1
        if reason not in self._rejected:
            self._rejected.add(reason)
            self._events.append(Rejected(reason, detail))
        self.emit(Message(Opcode.REJECT, bytes(pdu.header), reason=reason, itt=NO_TAG))

    def ask_for_fence(self, waiting: Fence) -> None:
        """Tell it when the initiator has everything that was sent here until now."""
        tag = self.session.tags.take()
        self.fences[tag] = waiting
        self._fence_asked_at = self.now
        fence.ask(self, tag)

    def fence_passed(self, tag: int) -> None:
        """A NOP-Out that answers."""
        waiting = self.fences.pop(tag, None)
        if waiting is not None:
            waiting.passed(self)

    def finish(self, task: Task) -> None:
        self.session.finish(task)

    def ask_for_data(self, task: Task) -> None:
        commands.ask_for_data(self, task)

    # --- login

    def _take_login(self) -> None:
        rx = self.rx
        if rx.end - rx.start < limits.BHS_BYTES:
            return
        # 6.3: anything but a Login Request before login is a protocol error; say nothing to whoever it is
        if rx.view[rx.start] & 0x3F != Opcode.LOGIN_REQUEST:
            raise FormatError("something other than a Login Request before login")
        size = self.framing.size(rx.view, rx.start)
        if rx.end - rx.start < size:
            return
        pdu = self.framing.split(rx.view, rx.start)
        rx.start += size
        assert self._login is not None
        login = self._login
        try:
            reply = login.step(pdu)
            if login.done:
                self._login_window = self.session.window
            else:
                self._login_window.exp_cmd_sn = login.cmd_sn
        except LoginFailure as failure:
            self._login_window.exp_cmd_sn = int.from_bytes(pdu.header[24:28], "big")
            self._events.append(LoginFailed(login.who, failure.status, str(failure)))
            self._send_login(login.refusal(pdu, failure))
            self._end(f"login failed: {failure}", fault=False)
            return
        self._send_login(reply)
        if login.done:
            self._enter_full_feature(login)

    def _send_login(self, reply: LoginReply) -> None:
        self.emit(Message(Opcode.LOGIN_RESPONSE, reply.data, **reply.fields))

    def _establish(self, login: Login) -> int:
        """The last step of login.  The TSIH.  Raises LoginFailure, LoginRefused."""
        assert login.request is not None
        self.cid = login.request.cid
        self.session = establish(self.host, login, self.cid, self.now)
        self.session.connections[self.cid] = self
        return self.session.tsih

    def _enter_full_feature(self, login: Login) -> None:
        values, session = login.negotiation.values, self.session
        if login.request is not None and login.request.tsih:
            values = {**session.parameters, **_connection_values(values)}
        self._apply(values)
        self.phase = Phase.FULL_FEATURE
        self.full_feature = True
        self._login = None
        if session.nexus is not None:
            self._before_answers = session.nexus.before_answers
        self._text = TextExchange(login.negotiation, self._list_targets, session.tags.take)
        self.rx = self.rx.grown(limits.RECEIVE_BYTES)
        self.output = self.output.grown(limits.OUTPUT_BYTES)
        self._heard_at = self.now
        self.deadline = self.now + self.host.nop_interval_s
        self._values = values
        self._events.append(LoggedIn(session.identity, session.tsih))

    def _apply(self, values: dict[str, Value]) -> None:
        self.rules = Rules(
            immediate_data=bool(values["ImmediateData"]),
            initial_r2t=bool(values["InitialR2T"]),
            # 13.14: FirstBurstLength must not exceed MaxBurstLength
            first_burst=min(int(values["FirstBurstLength"]), int(values["MaxBurstLength"])),
            max_burst=int(values["MaxBurstLength"]),
            max_outstanding_r2t=int(values["MaxOutstandingR2T"]),
            data_pdu_in_order=bool(values["DataPDUInOrder"]),
        )
        self.max_burst = self.rules.max_burst
        self.framing = Framing(
            limits.MAX_RECV_DATA_SEGMENT_BYTES, values["HeaderDigest"] == "CRC32C", values["DataDigest"] == "CRC32C"
        )
        self.apply_segment_length(int(values["MaxRecvDataSegmentLength"]))
        if self.rules.immediate_data:
            self.plain_write_max = min(self.rules.first_burst, limits.MAX_RECV_DATA_SEGMENT_BYTES)

    def apply_segment_length(self, declared: int) -> None:
        """The initiator's MaxRecvDataSegmentLength; our PDUs stay below our own output buffer as well."""
        self.send_data_max = min(declared, limits.MAX_RECV_DATA_SEGMENT_BYTES)
        self.plain_read_max = min(self.send_data_max, self.max_burst)

    # --- text

    def text(self, pdu: Pdu) -> None:
        """A Text Request."""
        answer = self._text.receive(pdu, self.send_data_max)
        self.apply_segment_length(int(self._values["MaxRecvDataSegmentLength"]))
        self.emit(answer)

    def _list_targets(self, value: str) -> Pairs:
        return send_targets(self.host, self.session.identity, self.local, value)

    # --- time and end

    def heard(self) -> None:
        """A whole PDU came: the initiator is alive."""
        self._heard_at = self.now
        self._ping_sent = None

    def tick(self, now: float) -> None:
        """Time has passed; `deadline` says when to call next."""
        self.now = now
        self.output.trim()
        if self.phase is Phase.LOGIN and now >= self.deadline:
            self.close("login took too long", fault=True)
        elif self.phase is Phase.FULL_FEATURE:
            self._keep_alive(now)

    def _keep_alive(self, now: float) -> None:
        if self.fences and now >= self._fence_asked_at + self.host.nop_timeout_s:
            self.close("no answer to NOP-In", fault=True)
        elif self._ping_sent is not None:
            if now >= self._ping_sent + self.host.nop_timeout_s:
                self.close("no answer to NOP-In", fault=True)
                return
            self.deadline = self._ping_sent + self.host.nop_timeout_s
        elif now >= self._heard_at + self.host.nop_interval_s:
            self._ping_sent = now
            self.deadline = now + self.host.nop_timeout_s
            self.rx.rest()
            self.output.rest()
            self.emit(Message(Opcode.NOP_IN, counts=False, itt=NO_TAG, ttt=self.session.tags.take()))
        else:
            self.deadline = self._heard_at + self.host.nop_interval_s

    def finish_and_close(self, reason: str) -> None:
        """Send what there is, then close: an ordinary end."""
        self._end(reason, fault=False)

    def _end(self, reason: str, fault: bool) -> None:
        if self.phase in (Phase.LOGIN, Phase.FULL_FEATURE):
            self.phase = Phase.ENDING
            self.full_feature = False
            self.closing = reason
            self._events.append(Closed(reason, fault))

    def close(self, reason: str, fault: bool = False) -> None:
        """Over, at once.  Safe to call twice."""
        if self.phase is Phase.CLOSED:
            return
        if self.phase is not Phase.ENDING:
            self._events.append(Closed(reason, fault))
        self.phase = Phase.CLOSED
        self.full_feature = False
        self.closing = reason
        self.waiting.clear()
        self._leave_session(reason, fault)
        self.wake()

    def lost(self, reason: str) -> None:
        """The transport is gone."""
        self.close(reason)

    def _leave_session(self, reason: str, fault: bool) -> None:
        session = getattr(self, "session", None)
        self.fences.clear()
        if session is not None:
            session.leave(self, reason, announce=fault)

    @property
    def has_events(self) -> bool:
        return bool(self._events)

    def next_event(self) -> Event | None:
        return self._events.popleft() if self._events else None

    def info(self) -> ConnectionInfo:
        """What management lists."""
        return ConnectionInfo(
            cid=self.cid,
            peer=_address(self.peer),
            local=_address(self.local),
            header_digest="CRC32C" if self.framing.header_digest else "None",
            data_digest="CRC32C" if self.framing.data_digest else "None",
        )


def _address(address: tuple[str, int]) -> str:
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _connection_values(values: dict[str, Value]) -> dict[str, Value]:
    """13: the keys with connection scope."""
    return {name: values[name] for name in ("HeaderDigest", "DataDigest", "MaxRecvDataSegmentLength")}


