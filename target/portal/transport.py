"""One TCP connection: an asyncio.BufferedProtocol around the sans-I/O connection (DESIGN 6.2).

One `recv_into`, every whole PDU of it, one write; nothing per command happens here.  While the transport has a rest of
it, what comes next is put together in another buffer until that is full; then the socket is not read and no further
command is taken, so memory stays bounded and MaxCmdSN stands still.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Protocol, cast

from target.iscsi.connection import Connection
from target.iscsi.host import Event, Host, LoggedIn, LoginFailed, Rejected
from target.portal.logs import RateLimited
from target.portal.spin import Spinner

log = logging.getLogger("target.portal")

CLOSE_LIMIT_S = 5.0
"""A peer that does not take its last answers within this time is cut off."""


class Gate(Protocol):
    """Who counts connections."""

    busy: IscsiTransport | None
    """Who has received something last, ..."""
    busy_since: float
    """... and since then nobody else, and never READs together with others."""

    def admit(self, transport: IscsiTransport) -> str | None:
        """A connection was accepted: why it is refused, or None."""

    def established(self, transport: IscsiTransport) -> None:
        """It has logged in."""

    def ended(self, transport: IscsiTransport) -> None:
        """It is over."""


class IscsiTransport(asyncio.BufferedProtocol):
    """The adapter between one asyncio transport and one Connection."""

    core: Connection

    def __init__(
        self, host: Host, loop: asyncio.AbstractEventLoop, gate: Gate, notices: RateLimited,
        spinner: Spinner | None = None,
    ) -> None:  # fmt: skip
        self._host = host
        self._loop = loop
        self._gate = gate
        self._notices = notices
        self._spinner = spinner
        self._congested = False
        self._reading = True
        self._kept = False
        self._lost = False
        self._pumping = False
        self._wake_due = False
        self._timer: asyncio.TimerHandle | None = None
        self._transport: asyncio.Transport
        self.peer = ("", 0)
        self.logged_in = False

    # --- asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.peer = (transport.get_extra_info("peername") or ("", 0))[:2]
        local = (transport.get_extra_info("sockname") or ("", 0))[:2]
        self.core = Connection(self._host, self.peer, local, self._loop.time())
        self.core.wake = self._wake
        self.core.push = self._push
        refusal = self._gate.admit(self)
        if refusal is not None:
            self._notices.warning(self.peer[0], "%s: connection refused: %s", self._name, refusal)
            self._transport.abort()
            return
        # Nothing but what the socket did not take: uvloop then sends at once, and the same buffer, which is still in
        # the processor's cache, is filled again.
        self._transport.set_write_buffer_limits(high=0)
        self._arm_timer()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self.core.receive_buffer()

    def buffer_updated(self, nbytes: int) -> None:
        try:
            if self._kept:
                self._reuse_buffers()
            now = self._loop.time()
            gate = self._gate
            if gate.busy is not self:
                gate.busy, gate.busy_since = self, now
            self.core.received(nbytes, now)
            if self.core.crowded:
                gate.busy_since = now
            self._send()
        except Exception as error:
            self._crashed(error)

    def eof_received(self) -> bool:
        return False  # close; nothing useful can follow

    def pause_writing(self) -> None:
        self._congested = True

    def resume_writing(self) -> None:
        self._congested = False
        self.core.heard()  # it takes its answers, however slowly
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._lost = True
        try:
            self.core.lost(f"connection lost: {exc}" if exc else "closed by the initiator")
            self._tell()
        except Exception as error:
            log.exception("%s: closing failed: %r", self._name, error)
        self._gate.ended(self)

    # --- our side

    @property
    def _name(self) -> str:
        host, port = self.peer
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def _send(self) -> None:
        """Send what is ready; take up what waited for room; close when that is due."""
        core, transport = self.core, self._transport
        self._pumping = True
        while True:
            data = core.data_to_send()
            if data and (not self._congested or core.closing is not None):  # there is no later for the last answers
                transport.write(data)
                # it has been sent, or the transport keeps a reference to the rest
                kept = transport.get_write_buffer_size() > 0
                self._kept = self._kept or kept
                core.data_sent(kept)
                if self._spinner is not None:
                    self._spinner.touch()
            if core.closing is not None:
                if data and core.waiting:
                    continue  # the last answers had no room beside others
                break
            if not core.blocked or self._congested or transport.is_closing():
                break  # the last: the peer is gone, and nobody is to read for it
            core.resume(self._loop.time())
        self._pumping = False
        if core.closing is None:
            self._pause_or_resume_reading()
        else:
            self._close()
        if core.has_events:
            self._tell()

    def _reuse_buffers(self) -> None:
        pending = self._transport.get_write_buffer_size()
        self._kept = pending > 0
        self.core.sent_but(pending)

    def _pause_or_resume_reading(self) -> None:
        wanted = not self.core.blocked
        if wanted is not self._reading:
            self._reading = wanted
            if wanted:
                self._transport.resume_reading()
            else:
                self._transport.pause_reading()

    def _close(self) -> None:
        if not self._transport.is_closing():
            # close() still sends what is in the transport
            self._transport.close()
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._loop.call_later(CLOSE_LIMIT_S, self._transport.abort)

    def _wake(self) -> None:
        """The core has something to say, or may go on; once a round of the loop is enough."""
        if not self._wake_due and not self._pumping:
            self._wake_due = True
            self._loop.call_soon(self._woken)

    def _push(self) -> None:
        """As `_wake`, without the round of the loop."""
        if not self._pumping:
            self._woken()

    def _woken(self) -> None:
        self._wake_due = False
        if self._lost:
            return
        try:
            if self._kept:
                self._reuse_buffers()
            if self.core.blocked and not self._congested:
                self.core.resume(self._loop.time())
            self._send()
        except Exception as error:
            self._crashed(error)

    def _arm_timer(self) -> None:
        self._timer = self._loop.call_at(self.core.deadline, self._tick)

    def _tick(self) -> None:
        """Deadlines move without touching the timer: it is armed again when it finds that it came too early."""
        try:
            self.core.tick(self._loop.time())
            self._send()
            if self.core.closing is None:
                self._arm_timer()
        except Exception as error:
            self._crashed(error)

    def _tell(self) -> None:
        while (event := self.core.next_event()) is not None:
            self._log_event(event)
        # a new phase may have an earlier deadline than the one that the timer waits for
        if self._timer is not None and self.core.closing is None and self.core.deadline < self._timer.when():
            self._timer.cancel()
            self._arm_timer()

    def _log_event(self, event: Event) -> None:
        if isinstance(event, LoggedIn):
            self.logged_in = True
            self._gate.established(self)
            who = event.identity
            where = who.target or "discovery"
            self._notices.info(
                self.peer[0], "%s: %s logged in to %s (TSIH %d)", self._name, who.initiator, where, event.tsih
            )
        elif isinstance(event, LoginFailed):
            self._notices.warning(
                self.peer[0], "%s: login of %s refused (status %04xh): %s", self._name, event.who, event.status,
                event.detail,
            )  # fmt: skip
        elif isinstance(event, Rejected):
            self._notices.warning(
                self.peer[0], "%s: a PDU was rejected (reason %02xh): %s", self._name, event.reason, event.detail
            )
        elif event.fault:
            self._notices.warning(self.peer[0], "%s: connection closed: %s", self._name, event.reason)
        elif self.logged_in:
            self._notices.info(self.peer[0], "%s: connection closed: %s", self._name, event.reason)

    def _crashed(self, error: Exception) -> None:
        """A fault of ours: one connection pays for it."""
        self._pumping = False
        self._notices.exception(self.peer[0], error, "%s: connection closed after an internal error", self._name)
        self.abort("internal error")

    def shed(self, reason: str) -> None:
        """Make room for others: a line in the log, no ceremony."""
        self.core.close(reason, fault=True)
        self._tell()
        self._transport.abort()

    def abort(self, reason: str) -> None:
        """End the connection without ceremony."""
        self.core.close(reason)
        self._transport.abort()
