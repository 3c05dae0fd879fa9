"""The last step of a login: the session that the connection belongs to is made, or joined (RFC 7143 6.3)."""

from __future__ import annotations

from functools import partial

from target.iscsi.constants import LoginStatus
from target.iscsi.errors import LoginFailure
from target.iscsi.host import Host
from target.iscsi.login import Login
from target.iscsi.manage import tasks_ended
from target.iscsi.session import Identity, Session


def establish(host: Host, login: Login, cid: int, now: float) -> Session:
    """The session of a login that has proved everything.  Raises LoginFailure, LoginRefused."""
    identity, request = login.identity, login.request
    assert identity is not None
    assert request is not None
    if request.tsih:
        return _join(host.registry.joinable(identity, request.tsih), cid)
    host.registry.reinstate(identity)
    return _open(host, login, identity, now)


def _open(host: Host, login: Login, identity: Identity, now: float) -> Session:
    nexus = None
    if identity.target is not None:
        nexus = host.directory.open_nexus(identity.initiator, identity.isid, identity.target, identity.tpgt)
    try:
        session = host.registry.open(identity, nexus, login.cmd_sn, login.negotiation.values, now)
    except LoginFailure:
        if nexus is not None:
            nexus.close()
        raise
    if nexus is not None:
        nexus.on_abort = partial(tasks_ended, session)
        nexus.on_event = session.tell_event
        nexus.protocol_level = session.level
    return session


def _join(session: Session, cid: int) -> Session:
    """6.3.2, 6.3.4: one more connection, or one in the place of the connection with the same id."""
    old = session.connections.get(cid)
    if old is None:
        allowed = int(session.parameters["MaxConnections"])
        if len(session.connections) >= allowed:
            raise LoginFailure(LoginStatus.TOO_MANY_CONNECTIONS, f"the session has {allowed} connections")
        return session
    session.end_tasks_of(old)
    del session.connections[cid]
    old.close("connection reinstatement")
    session.catch_up()
    return session
