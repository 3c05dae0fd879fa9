"""What serves volumes, put together: one object, whoever starts it.

It has the volumes, the sessions of their targets, the clones, and the API over all of it.  Where the settings are kept
and where events and operations get their numbers it is told.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import resource
from collections.abc import Awaitable, Callable
from pathlib import Path

import target.portal
from cloner import CloneManager
from target.config import Config
from target.iscsi import limits
from target.iscsi.registry import Registry
from target.management.api import Around, make_app
from target.management.clone_settings import apply_settings
from target.management.clones import forward_event
from target.management.core import Core, Settings
from target.management.directory import Directory
from target.management.events import EventHandler, EventLog
from target.management.housekeeping import Housekeeping
from target.management.names import PortalAddress
from target.management.operations import Operations
from target.management.services import Services
from target.management.serving import Served, commands_of
from target.portal import Portal, PortalConfig
from target.portal.newcomers import Route

log = logging.getLogger("lund")

MIB = 1 << 20
DESCRIPTORS = 2 * limits.CONNECTIONS
"""That a process may have open, where the machine allows it."""
OTHER_DESCRIPTORS = 640
"""Of them, those that are not a host's: volumes, or workers, 256 of either and two each; the management socket."""


class Stack:
    def __init__(
        self,
        directory: Path,
        config: Config,
        store: Settings,
        events: EventLog,
        operations: Operations,
        route: Route | None = None,
        around: Around | None = None,
    ) -> None:
        """Where other processes serve volumes, `route` has their connections and `around` their requests."""
        self.config = config
        self.events = events
        self.served: dict[str, Served] = {}
        self.core = Core(
            directory=directory,
            store=store,
            events=events,
            operations=operations,
            clones=CloneManager(
                lambda event: forward_event(events, event), guest_commands=lambda: commands_of(self.served)
            ),
            served=self.served,
            cache_bytes=config.volumes.cache_mib * MIB,
            cp_interval_s=config.volumes.checkpoint_s,
            management_addresses=tuple(config.management.addresses),
        )
        registry = Registry()
        self.directory = Directory(self.core)
        self.portal = Portal(self.directory, registry, portal_config(config), route)
        self.services = Services(self.core, self.portal, registry)
        self.housekeeping = Housekeeping(self.core, self.services.departures)
        self._notices = EventHandler(events, "iscsi.warning")
        logging.getLogger(target.portal.__name__).addHandler(self._notices)
        self.app = make_app(self.services, around)

    def apply_settings(self) -> None:
        apply_settings(self.core, self.config.clones.limit_bytes_s)

    def settle(self) -> None:
        """Everything has started."""
        self.housekeeping.start()
        gc.collect()
        # What is there now stays; leaving it out keeps the collector's pauses short.
        gc.freeze()

    def ending(self) -> list[Callable[[], Awaitable[object]]]:
        """The steps of its end, in order: hosts go first, volumes have their last consistency points."""
        return [
            self.services.iscsi.stop,
            lambda: self.portal.stop(logout_time_s=self.config.iscsi.logout_time_s),
            self.services.volumes.unmount_all,
            self.core.clones.close,
            self.core.operations.close,
        ]

    async def end(self, steps: list[Callable[[], Awaitable[object]]]) -> None:
        """Each step is tried whatever became of the one before: the volumes' last consistency points must come."""
        for step in steps:
            try:
                await step()
            except Exception:
                log.exception("stopping")
        logging.getLogger(target.portal.__name__).removeHandler(self._notices)


def portal_config(config: Config) -> PortalConfig:
    """Raises Refused."""
    iscsi = config.iscsi
    spin_us = {PortalAddress.parse(text): spin for text, spin in iscsi.spin_us.items()}
    return PortalConfig(
        nop_interval_s=iscsi.nop_interval_s,
        nop_timeout_s=iscsi.nop_timeout_s,
        connections_max=_connections_max(),
        spin_us={(address.host, address.port): spin for address, spin in spin_us.items()},
    )


def room_for_connections() -> None:
    """As many descriptors as the machine allows."""
    limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit < min(DESCRIPTORS, most):
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(DESCRIPTORS, most), most))


def _connections_max() -> int:
    """However many hosts come, there are descriptors for what the process has to do besides."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return min(limits.CONNECTIONS, max(limit - OTHER_DESCRIPTORS, limit // 2))


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop needs about a fifth less CPU per command; asyncio's own loop does as well without it."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop
