"""`lund`, the daemon: one process, one event loop, everything put together here.

Start: lock the state directory, open the settings, mount the volumes, start the clones that were wanted, listen,
open the management socket.  Hosts are let in only when every volume that can be mounted is, so that a host that
comes back after a restart finds its LUNs.  Stop (SIGTERM, SIGINT): the reverse, with a last consistency point of
every volume.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import gc
import logging
import os
import secrets
import signal
import socket
import sqlite3
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import target.portal
from cloner import CloneManager
from target.config import Config, ConfigError, read_config
from target.iscsi.registry import Registry
from target.logs import start_logging
from target.management.api import make_app, product_version
from target.management.clone_settings import apply_settings
from target.management.clones import forward_event
from target.management.core import Core
from target.management.directory import Directory
from target.management.events import EventHandler, EventLog, Severity
from target.management.housekeeping import Housekeeping
from target.management.names import PortalAddress, check_nodename, parse_listen
from target.management.operations import Operations
from target.management.refusal import Refused
from target.management.server import ManagementServer
from target.management.services import Services
from target.management.serving import Served, commands_of
from target.management.store import AdminStore, set_setting
from target.portal import Portal, PortalConfig

log = logging.getLogger("lund")

NAMING_AUTHORITY = "iqn.2025-11.io.github.lazylun"
EVENT_NUMBERS = 10_000
"""Event numbers taken from the settings at a time; a crash skips at most so many."""
MIB = 1 << 20


class Daemon:
    def __init__(
        self, directory: Path, listen: Sequence[tuple[PortalAddress, int]], management: Path, config: Config
    ) -> None:
        self.config = config
        self.listen = listen
        self.store = AdminStore(directory / "admin.db")
        self.store.open()
        self._first_start()
        self.events = EventLog(event_numbers(self.store))
        self.served: dict[str, Served] = {}
        self.core = Core(
            directory=directory,
            store=self.store,
            events=self.events,
            operations=Operations(),
            clones=CloneManager(
                lambda event: forward_event(self.events, event), guest_commands=lambda: commands_of(self.served)
            ),
            served=self.served,
            cache_bytes=config.volumes.cache_mib * MIB,
            cp_interval_s=config.volumes.checkpoint_s,
            management_addresses=tuple(config.management.addresses),
        )
        registry = Registry()
        self.directory = Directory(self.core)
        self.portal = Portal(self.directory, registry, portal_config(config))
        self.services = Services(self.core, self.portal, registry)
        self.housekeeping = Housekeeping(self.core, self.services.departures)
        self._notices = EventHandler(self.events, "iscsi.warning")
        logging.getLogger(target.portal.__name__).addHandler(self._notices)
        self.app = make_app(self.services)
        self.server = ManagementServer(self.app, management)

    def _first_start(self) -> None:
        """The node name is made once and kept: hosts know their targets by it."""
        if "nodename" in self.store.state.settings:
            return
        wanted = self.config.iscsi.nodename
        name = check_nodename(wanted) if wanted else f"{NAMING_AUTHORITY}:{secrets.token_hex(5)}"
        self.store.change_now(lambda cursor: set_setting(cursor, "nodename", name))

    async def start(self) -> None:
        apply_settings(self.core, self.config.clones.limit_bytes_s)
        await self.services.volumes.mount_registered()
        await self.services.iscsi.start(self.listen)
        await self.server.start()
        self.housekeeping.start()
        gc.collect()
        # What is there now stays; leaving it out keeps the collector's pauses short.
        gc.freeze()
        text = f"lund {product_version()} is ready, state in {self.core.directory}"
        self.events.emit("lund.started", text, severity=Severity.NOTICE)
        notify_service_manager("READY=1")

    async def stop(self) -> None:
        """Each step is tried whatever became of the one before: the volumes' last consistency points must come."""
        notify_service_manager("STOPPING=1")
        self.events.emit("lund.stopping", "lund is stopping", severity=Severity.NOTICE)
        self.events.close()
        steps: list[Callable[[], object]] = [
            self.housekeeping.stop,
            self.server.stop,
            self.services.iscsi.stop,
            lambda: self.portal.stop(logout_time_s=self.config.iscsi.logout_time_s),
            self.services.volumes.unmount_all,
            self.core.clones.close,
            self.core.operations.close,
        ]
        for step in steps:
            try:
                await step()  # type: ignore[misc]
            except Exception:
                log.exception("stopping")
        logging.getLogger(target.portal.__name__).removeHandler(self._notices)
        last = self.events.last_seq
        self.store.change_now(lambda cursor: set_setting(cursor, "next_event", str(last + 1)))
        self.store.close()


def portal_config(config: Config) -> PortalConfig:
    """Raises Refused."""
    iscsi = config.iscsi
    spin_us = {PortalAddress.parse(text): spin for text, spin in iscsi.spin_us.items()}
    return PortalConfig(
        nop_interval_s=iscsi.nop_interval_s,
        nop_timeout_s=iscsi.nop_timeout_s,
        spin_us={(address.host, address.port): spin for address, spin in spin_us.items()},
    )


def event_numbers(store: AdminStore) -> Iterator[int]:
    """Numbers that no earlier run of the daemon has given out."""
    number = int(store.state.settings.get("next_event", "1"))
    while True:
        limit = number + EVENT_NUMBERS

        def reserve(cursor: sqlite3.Cursor, limit: int = limit) -> None:
            set_setting(cursor, "next_event", str(limit))

        try:
            store.change_now(reserve)
        except (sqlite3.Error, Refused) as error:
            # Events must not fail (sessions open and close with them); after a crash some numbers may come again.
            log.warning("event numbers could not be reserved: %s", error)
        while number < limit:
            yield number
            number += 1


def notify_service_manager(state: str) -> None:
    """sd_notify(3), where systemd asked for it."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as out:
        out.sendto(state.encode(), "\0" + address[1:] if address.startswith("@") else address)


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """One lund per state directory.  The kernel gives the lock back, however the process ends."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(directory / "lund.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise Refused("io-error", f"the state directory {directory}: {error.strerror}") from None
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.pread(fd, 20, 0).decode(errors="replace").strip()
            raise Refused(
                "already-running", f"another lund (pid {pid or 'unknown'}) uses {directory}; stop it or use --state"
            ) from None
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(fd)


async def serve(daemon: Daemon) -> None:
    """Run until a signal.  A second one while stopping changes nothing: the last consistency point is worth it."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        await daemon.start()
        await stop.wait()
    finally:
        await daemon.stop()


def run(directory: Path, listen: Sequence[tuple[PortalAddress, int]], management: Path, config: Config) -> None:
    with locked(directory), asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(_main(directory, listen, management, config))


async def _main(
    directory: Path, listen: Sequence[tuple[PortalAddress, int]], management: Path, config: Config
) -> None:
    await serve(Daemon(directory, listen, management, config))


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop needs about a fifth less CPU per command; asyncio's own loop does as well without it."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="lund", description="The lazylun iSCSI target daemon.")
    parser.add_argument("--state", type=Path, required=True, metavar="DIR", help="settings and volume files")
    parser.add_argument("--listen", action="append", default=[], metavar="ADDR:PORT[,GROUP]", help="as often as wanted")
    parser.add_argument("--socket", type=Path, metavar="PATH", help="management socket (default DIR/lund.sock)")
    parser.add_argument("--config", type=Path, metavar="FILE", help="configuration file, TOML (docs/operating.md)")
    parser.add_argument("--version", action="version", version=f"lund {product_version()}")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 0 stopped as asked, 1 refused (one line on stderr), 2 usage."""
    options = parse(argv)
    directory = options.state.absolute()
    try:
        config = read_config(options.config) if options.config is not None else Config()
        listen = [parse_listen(text) for text in options.listen or config.iscsi.listen]
        syslog = start_logging(config.log.level, syslog=config.log.syslog)
        try:
            run(directory, listen, options.socket or config.management.socket or directory / "lund.sock", config)
        finally:
            if syslog is not None:
                syslog.stop()
    except (Refused, ConfigError) as error:
        print(f"lund: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
