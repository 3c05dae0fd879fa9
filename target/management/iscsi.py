"""The iSCSI service as an administrator sees it: node name, portals, sessions.

Portals come from the command line or the configuration file (fixed for this run) and from
`lun iscsi portal add` (kept in the settings).  If there are none at all, the target listens everywhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from target.iscsi.registry import Registry
from target.iscsi.session import SessionInfo
from target.management import models, serving
from target.management.core import Core
from target.management.directory import DISCOVERY_SETTING
from target.management.events import Severity
from target.management.names import PortalAddress, check_nodename
from target.management.refusal import Refused
from target.management.state import PORTAL_LIMIT
from target.management.store import set_setting
from target.portal import Portal

log = logging.getLogger("lund.iscsi")

EVERYWHERE = (PortalAddress("0.0.0.0"), PortalAddress("::"))
DISCOVERY_SESSION = "_discovery"
"""Stands where a session's id has its volume; no volume can be called so."""


@dataclass
class Listener:
    wanted: PortalAddress
    group: int
    fixed: bool
    actual: PortalAddress | None = None
    """With the real port; None while it cannot listen."""
    problem: str = ""


class Iscsi:
    def __init__(self, core: Core, portal: Portal, registry: Registry) -> None:
        self.core = core
        self.portal = portal
        self.registry = registry
        self.listeners: dict[PortalAddress, Listener] = {}
        self._trying: asyncio.Task[None] | None = None

    # -- portals -----------------------------------------------------------------------------------------

    async def start(self, fixed: Sequence[tuple[PortalAddress, int]]) -> None:
        """Listen on addresses with their portal groups.  One from the command line that cannot be bound is fatal, one
        from the settings is tried again when the machine's addresses change."""
        self.portal.on_addresses = self._addresses_changed
        for address, group in fixed:
            await self._listen(Listener(address, group, True))
        for address, group in self.core.state.portals.items():
            if address not in self.listeners:
                try:
                    await self._listen(Listener(address, group, False))
                except Refused as refused:
                    self.listeners[address] = Listener(address, group, False, problem=refused.message)
                    self._groups_changed()
                    self.core.events.emit(
                        "iscsi.portal.failed", refused.message, subject=str(address), severity=Severity.ERROR
                    )
        if not fixed and not self.core.state.portals:
            await self._listen_everywhere()
        if self._absent():
            await self.portal.follow()

    async def stop(self) -> None:
        """Before the portals close: none is opened any more."""
        self.portal.on_addresses = lambda: None
        if self._trying is not None:
            self._trying.cancel()
            await asyncio.gather(self._trying, return_exceptions=True)

    def _absent(self) -> list[Listener]:
        return [listener for listener in self.listeners.values() if listener.actual is None]

    def _addresses_changed(self) -> None:
        if self._absent() and (self._trying is None or self._trying.done()):
            self._trying = asyncio.ensure_future(self._try_again())

    async def _try_again(self) -> None:
        """Addresses that could not be listened on may be there now."""
        async with self.core.changing:
            for listener in self._absent():
                with contextlib.suppress(Refused):
                    await self._listen(listener)
                    listener.problem = ""

    async def _listen_everywhere(self) -> None:
        await self._listen(Listener(EVERYWHERE[0], 1, True))
        try:
            await self._listen(Listener(EVERYWHERE[1], 1, True))
        except Refused as refused:
            # A machine without IPv6 is no reason not to start.
            log.info("%s", refused.message)

    async def _listen(self, listener: Listener) -> None:
        wanted = listener.wanted
        try:
            _host, port = await self.portal.start(wanted.host, wanted.port, listener.group)
        except OSError as error:
            raise Refused(
                "address-unavailable", f"cannot listen on {wanted}: {error.strerror or error}; choose another address"
            ) from None
        listener.actual = PortalAddress(wanted.host, port)
        self.listeners[wanted] = listener
        self._groups_changed()
        self.core.events.emit("iscsi.portal.started", f"listening on {listener.actual}", subject=str(listener.actual))

    def _groups_changed(self) -> None:
        """Every group with a portal is a target port, whether it can listen now or not."""
        serving.tell_port_groups(self.core, tuple(sorted({each.group for each in self.listeners.values()})) or (1,))
        if self.core.elsewhere is not None:
            self.core.elsewhere.portals_changed()

    def adopt(self, listeners: Sequence[Listener]) -> None:
        """Another process listens there."""
        self.listeners = {each.wanted: each for each in listeners}
        actual = ((each.actual, each.group) for each in listeners)
        self.portal.adopt({(address.host, address.port): group for address, group in actual if address is not None})
        self._groups_changed()

    def portals(self) -> list[models.Portal]:
        return [self._portal_model(listener) for listener in self.listeners.values()]

    def _portal_model(self, listener: Listener) -> models.Portal:
        origin: Literal["command line", "administrator"] = "command line" if listener.fixed else "administrator"
        return models.Portal(
            address=str(listener.actual or listener.wanted),
            group=listener.group,
            listening=listener.actual is not None,
            configured_by=origin,
            problem=listener.problem,
        )

    async def add_portal(self, text: str, group: int) -> models.Portal:
        address = PortalAddress.parse(text)
        async with self.core.changing:
            known = self._find(address)
            if known is not None and known.actual is not None:
                raise Refused("name-taken", f"the target listens on {address} already")
            if len(self.listeners) >= PORTAL_LIMIT:
                raise Refused("limit-reached", f"{PORTAL_LIMIT} portals are the limit")
            listener = Listener(address, group, False)
            await self._listen(listener)
            insert = "INSERT OR REPLACE INTO portal VALUES (?, ?, ?)"
            await self.core.store.change(lambda cursor: cursor.execute(insert, (address.host, address.port, group)))
        return self._portal_model(listener)

    async def remove_portal(self, text: str) -> None:
        address = PortalAddress.parse(text)
        async with self.core.changing:
            listener = self._find(address)
            if listener is None:
                raise Refused("no-such-portal", f"the target does not listen on {address}; see 'lun iscsi portal show'")
            if listener.fixed:
                raise Refused(
                    "portal-fixed", f"{address} comes from lund's command line or configuration file; remove it there"
                )
            wanted = listener.wanted
            delete = "DELETE FROM portal WHERE host = ? AND port = ?"
            await self.core.store.change(lambda cursor: cursor.execute(delete, (wanted.host, wanted.port)))
            if listener.actual is not None:
                await self.portal.close_listener(listener.actual.host, listener.actual.port)
            del self.listeners[wanted]
            self._groups_changed()
        self.core.events.emit("iscsi.portal.stopped", f"not listening on {address} any more", subject=str(address))

    def _find(self, address: PortalAddress) -> Listener | None:
        return next((each for each in self.listeners.values() if address in (each.wanted, each.actual)), None)

    # -- status and settings -----------------------------------------------------------------------------

    def status(self) -> models.IscsiStatus:
        sessions = self.registry.sessions()
        return models.IscsiStatus(
            nodename=self.core.state.nodename,
            portals=[str(each.actual) for each in self.listeners.values() if each.actual is not None],
            targets=[self.core.target_name(name) for name in self.core.state.volumes],
            sessions=len(sessions),
            connections=sum(len(session.connections) for session in sessions),
            discovery_authentication=self.core.state.settings.get(DISCOVERY_SETTING) == "1",
        )

    async def patch(self, wanted: models.IscsiPatch) -> models.IscsiStatus:
        async with self.core.changing:
            if wanted.nodename is not None:
                await self._rename(check_nodename(wanted.nodename))
            if wanted.discovery_authentication is not None:
                value = "1" if wanted.discovery_authentication else "0"
                await self.core.store.change(lambda cursor: set_setting(cursor, DISCOVERY_SETTING, value))
        return self.status()

    async def _rename(self, nodename: str) -> None:
        """Targets are named after the node: their names change with it, so nobody may be using them."""
        if nodename == self.core.state.nodename:
            return
        here = [session.initiator for session in self.registry.sessions() if session.target is not None]
        there = [] if self.core.elsewhere is None else await self.core.elsewhere.sessions()
        users = sorted({*here, *(initiator for initiator, _target in there)})
        if users:
            raise Refused(
                "sessions-open", f"the targets' names would change under {', '.join(users)}; log out there first", users
            )
        await self.core.store.change(lambda cursor: set_setting(cursor, "nodename", nodename))
        serving.rename_targets(self.core)
        self.core.events.emit("iscsi.nodename.changed", f"the node name is {nodename}", subject=nodename)

    # -- sessions ----------------------------------------------------------------------------------------

    def sessions(self) -> list[models.Session]:
        return [self._session_model(info) for info in self.registry.sessions()]

    def _session_id(self, info: SessionInfo) -> str:
        volume = DISCOVERY_SESSION if info.target is None else info.target.rpartition(":")[2]
        return f"{volume}.{info.tsih}"

    def _session_model(self, info: SessionInfo) -> models.Session:
        session_id = self._session_id(info)
        age_s = asyncio.get_running_loop().time() - info.opened_at
        return models.Session(
            id=session_id,
            kind="discovery" if info.target is None else "normal",
            initiator=info.initiator,
            initiator_alias=info.initiator_alias,
            isid=info.isid,
            tsih=info.tsih,
            target=info.target or "",
            authenticated_as=info.chap_name,
            created_at=time.time() - age_s,
            tasks=info.tasks,
            counters=dict(info.counters),
            parameters={key: _plain(value) for key, value in info.parameters.items()},
            connections=[
                models.Connection(
                    session=session_id,
                    cid=each.cid,
                    initiator=info.initiator,
                    target=info.target or "",
                    local_address=each.local,
                    peer_address=each.peer,
                    header_digest=each.header_digest,
                    data_digest=each.data_digest,
                )
                for each in info.connections
            ],
        )

    async def close_session(self, session_id: str) -> None:
        info = self._find_session(session_id)
        self.registry.disconnect(info.target, info.tsih, "closed by the administrator")
        text = f"session {session_id} of {info.initiator} was closed by the administrator"
        self.core.events.emit("iscsi.session.disconnected", text, subject=session_id)

    async def ask_for_logout(self, session_id: str, time_s: int) -> models.Session:
        """RFC 7143 11.9.1, event 1; the session is closed if it is still there when the time is over."""
        info = self._find_session(session_id)
        self.registry.request_logout(info.target, info.tsih, time_s)
        asyncio.get_running_loop().call_later(time_s, self._overdue, session_id, info.opened_at)
        return self._session_model(info)

    def _overdue(self, session_id: str, opened_at: float) -> None:
        for info in self.registry.sessions():
            # the number may belong to a new session by now
            if self._session_id(info) == session_id and info.opened_at == opened_at:
                self.registry.disconnect(info.target, info.tsih, "the initiator was asked to log out and did not")

    def _find_session(self, session_id: str) -> SessionInfo:
        for info in self.registry.sessions():
            if self._session_id(info) == session_id:
                return info
        raise Refused("no-such-session", f"there is no session {session_id[:100]!r}; see 'lun iscsi session show'")


def _plain(value: Any) -> Any:
    """A negotiated value as JSON can have it."""
    return value if isinstance(value, bool | int | str) else str(value)
