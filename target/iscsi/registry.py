"""Targets and their sessions: who is logged in where.  What management lists and disconnects.

Session identifiers, reinstatement and joining follow RFC 7143 6.3 (and 4.2.6 for the I_T nexus): a leading login
(TSIH 0) with initiator name, ISID and portal group of a living session replaces that session; one with its TSIH and
a connection id in use replaces that connection; others are refused.
"""

from __future__ import annotations

from collections.abc import Callable

from target.iscsi import announce, limits
from target.iscsi.buffers import BufferPool
from target.iscsi.constants import LoginStatus
from target.iscsi.errors import LoginFailure
from target.iscsi.keys import Value
from target.iscsi.ports import Nexus
from target.iscsi.session import Identity, Session, SessionInfo
from target.iscsi.window import CommandWindow


class Target:
    """One IQN and its sessions, by TSIH."""

    def __init__(self, name: str | None) -> None:
        self.name = name
        self.sessions: dict[int, Session] = {}
        self._next_tsih = 1

    def find(self, initiator: str, isid: bytes, tpgt: int) -> Session | None:
        """The session of one I_T nexus (4.2.6: initiator name and ISID, target name and portal group)."""
        for session in self.sessions.values():
            who = session.identity
            if (who.initiator, who.isid, who.tpgt) == (initiator, isid, tpgt):
                return session
        return None

    def allot(self) -> int:
        """A TSIH that no living session has; never 0."""
        if len(self.sessions) >= limits.SESSIONS_PER_TARGET:
            raise LoginFailure(LoginStatus.OUT_OF_RESOURCES, f"{len(self.sessions)} sessions are open")
        while True:
            tsih = self._next_tsih
            self._next_tsih = tsih % 0xFFFF + 1
            if tsih not in self.sessions:
                return tsih

    def forget(self, session: Session) -> None:
        self.sessions.pop(session.tsih, None)


class Registry:
    """All targets of a process; discovery sessions are kept under a target without a name."""

    def __init__(self) -> None:
        self.targets: dict[str, Target] = {}
        self.discovery = Target(None)
        self.pool = BufferPool()

    def target(self, name: str) -> Target:
        """The target's record, made when it is first needed."""
        return self.targets.setdefault(name, Target(name))

    def sessions(self, target: str | None = None) -> list[SessionInfo]:
        """Every session, or those of one target; discovery sessions only when no target is named."""
        chosen = [self.targets[target]] if target in self.targets else []
        if target is None:
            chosen = [*self.targets.values(), self.discovery]
        return [session.info() for t in chosen for session in t.sessions.values()]

    def disconnect(
        self, target: str | None, tsih: int | None = None, reason: str = "disconnected by management"
    ) -> int:
        """End one session of a target (None: discovery), or all of them.  How many there were."""
        return self._each(target, tsih, lambda session: session.drop(reason))

    def request_logout(self, target: str | None, tsih: int | None = None, time_s: int = 10) -> int:
        """Ask initiators to log out (Async Message, event 1) within `time_s`.  How many were asked."""

        def ask(session: Session) -> None:
            for connection in session.connections.values():
                announce.logout_request(connection, time_s)

        return self._each(target, tsih, ask)

    def _each(self, target: str | None, tsih: int | None, action: Callable[[Session], None]) -> int:
        where = self.discovery if target is None else self.targets.get(target)
        if where is None:
            return 0
        chosen = [s for s in where.sessions.values() if tsih in (None, s.tsih)]
        for session in chosen:
            action(session)
        return len(chosen)

    # --- login's side

    def joinable(self, identity: Identity, tsih: int) -> Session:
        """The session that a login with this TSIH wants to join (6.3.2, 6.3.4)."""
        where = self.targets.get(identity.target) if identity.target is not None else None
        session = where.sessions.get(tsih) if where is not None else None
        who = (identity.initiator, identity.isid)
        if session is None or (session.identity.initiator, session.identity.isid) != who:
            raise LoginFailure(LoginStatus.SESSION_DOES_NOT_EXIST, f"no session with TSIH {tsih}")
        if session.identity.tpgt != identity.tpgt:
            # 4.4.4: a session's connections are within one portal group
            raise LoginFailure(LoginStatus.CANNOT_INCLUDE_IN_SESSION, f"TSIH {tsih} is of another portal group")
        return session

    def reinstate(self, identity: Identity) -> None:
        """6.3.5: an authenticated leading login of the same nexus ends the old session first."""
        where = self.targets.get(identity.target) if identity.target is not None else None
        old = where.find(identity.initiator, identity.isid, identity.tpgt) if where is not None else None
        if old is not None:
            old.close("session reinstatement")

    def open(
        self, identity: Identity, nexus: Nexus | None, cmd_sn: int, parameters: dict[str, Value], now: float
    ) -> Session:
        """A new session.  Raises LoginFailure when there are too many."""
        where = self.discovery if identity.target is None else self.target(identity.target)
        session = Session(
            identity=identity,
            tsih=where.allot(),
            opened_at=now,
            pool=self.pool,
            window=CommandWindow(cmd_sn),
            parameters=parameters,
            target=where,
            nexus=nexus,
        )
        where.sessions[session.tsih] = session
        return session
