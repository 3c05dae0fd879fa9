"""Redirection: logins to a volume's target are sent to another address (RFC 7143 11.13.5, status 0101h and 0102h).

For a volume that has moved, or is about to.  Only new sessions are redirected, after they have proved who they are;
those that are open stay until they end.
"""

from __future__ import annotations

from target.management import models
from target.management.core import Core
from target.management.names import PortalAddress
from target.management.refusal import Refused
from target.management.state import Redirect
from target.portal import Portal


class Redirects:
    def __init__(self, core: Core, portal: Portal) -> None:
        self.core = core
        self.portal = portal

    def all(self) -> list[models.Redirect]:
        return [self._model(each) for each in self.core.state.redirects.values()]

    async def put(self, volume: str, wanted: models.RedirectPut) -> models.Redirect:
        address = PortalAddress.parse(wanted.address)
        if address.is_wildcard or not address.port:
            raise Refused("invalid-argument", f"{address} is no address that an initiator could go to")
        if (address.host, address.port) in self.portal.listening:
            raise Refused("invalid-argument", f"{address} is this target's own: initiators would go round in circles")
        async with self.core.changing:
            self.core.state.volume(volume)
            row = (volume, address.host, address.port, wanted.permanent)
            await self.core.store.change(
                lambda cursor: cursor.execute("INSERT OR REPLACE INTO redirect VALUES (?, ?, ?, ?)", row)
            )
        text = f"new sessions of {self.core.target_name(volume)} are sent to {address}"
        self.core.events.emit("iscsi.redirect.changed", text, subject=volume)
        return self._model(self.core.state.redirects[volume])

    async def delete(self, volume: str) -> None:
        async with self.core.changing:
            self.core.state.volume(volume)
            if volume not in self.core.state.redirects:
                raise Refused("no-such-redirect", f"volume {volume} is not redirected; see 'lun iscsi redirect show'")
            await self.core.store.change(
                lambda cursor: cursor.execute("DELETE FROM redirect WHERE volume = ?", (volume,))
            )
        text = f"sessions of {self.core.target_name(volume)} are served here again"
        self.core.events.emit("iscsi.redirect.changed", text, subject=volume)

    def _model(self, redirect: Redirect) -> models.Redirect:
        return models.Redirect(
            volume=redirect.volume,
            target=self.core.target_name(redirect.volume),
            address=str(redirect.address),
            permanent=redirect.permanent,
        )
