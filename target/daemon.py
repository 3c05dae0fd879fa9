"""`lund`, the daemon: one process, one event loop (or, with workers, one and one more for each volume).

Start: lock the state directory, open the settings, mount the volumes, start the clones that were wanted, listen,
open the management socket.  Hosts are let in only when every volume that can be mounted is (or, with workers, when a
minute is over), so that a host that comes back after a restart finds its LUNs.  Stop (SIGTERM, SIGINT): the reverse,
with a last consistency point of every volume.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import faulthandler
import fcntl
import logging
import os
import secrets
import signal
import sqlite3
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from target import service_manager
from target.config import Config, ConfigError, read_config
from target.logs import start_logging
from target.management.api import product_version
from target.management.events import EventLog, Severity
from target.management.names import PortalAddress, check_nodename, parse_listen
from target.management.operations import Operations
from target.management.refusal import Refused
from target.management.server import ManagementServer
from target.management.store import AdminStore, set_setting
from target.stack import Stack, loop_factory, room_for_connections
from target.workers import END_LIMIT_S

if TYPE_CHECKING:
    from target.workers.front import Workers

log = logging.getLogger("lund")

NAMING_AUTHORITY = "iqn.2025-11.io.github.lazylun"
ORPHANS_LIMIT_S, ORPHANS_LOOK_S = END_LIMIT_S + 15, 0.1
"""For the workers of a lund that is gone, at the start of the next one."""
EVENT_NUMBERS = 10_000
"""Event numbers taken from the settings at a time; a crash skips at most so many."""


class Daemon(Stack):
    def __init__(
        self,
        directory: Path,
        listen: Sequence[tuple[PortalAddress, int]],
        management: Path,
        config: Config,
        lock: int | None = None,
    ) -> None:
        """`lock`: the descriptor of the state directory's lock.  Raises Refused."""
        self.listen = listen
        self.running = False
        """Started, and not stopping."""
        self.workers: Workers | None = None
        self.store: AdminStore
        route = around = None
        if config.workers == "volumes":
            # Here, not at the top: a daemon of one process starts without them.
            from target.workers.forward import Forward
            from target.workers.front import Workers
            from target.workers.settings import SharedStore

            self.store = shared = SharedStore(directory / "admin.db")
            self.workers = Workers(shared, lock)
            route, around = self.workers.route, partial(Forward, workers=self.workers)
        else:
            self.store = AdminStore(directory / "admin.db")
        self.store.open()
        _first_start(self.store, config)
        events = EventLog(event_numbers(self.store))
        super().__init__(directory, config, self.store, events, Operations(), route, around)
        if self.workers is not None:
            self.workers.attach(self)
        self.server = ManagementServer(self.app, management)

    async def start(self) -> None:
        self.apply_settings()
        await self.services.volumes.mount_registered()
        await self.services.iscsi.start(self.listen)
        await self.server.start()
        self.settle()
        text = f"lund {product_version()} is ready, state in {self.core.directory}"
        self.events.emit("lund.started", text, severity=Severity.NOTICE)
        self.running = True
        service_manager.notify("READY=1")

    async def stop(self) -> None:
        self.running = False
        service_manager.notify("STOPPING=1")
        self.events.emit("lund.stopping", "lund is stopping", severity=Severity.NOTICE)
        self.events.close()
        others = [self.workers.stop] if self.workers is not None else []
        await self.end([self.housekeeping.stop, self.server.stop, *self.ending(), *others])
        last = self.events.last_seq
        self.store.change_now(lambda cursor: set_setting(cursor, "next_event", str(last + 1)))
        self.store.close()


def _first_start(store: AdminStore, config: Config) -> None:
    """The node name is made once and kept: hosts know their targets by it."""
    if "nodename" in store.state.settings:
        return
    wanted = config.iscsi.nodename
    name = check_nodename(wanted) if wanted else f"{NAMING_AUTHORITY}:{secrets.token_hex(5)}"
    store.change_now(lambda cursor: set_setting(cursor, "nodename", name))


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


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[int]:
    """One lund per state directory: the descriptor of the lock that its workers hold with it.

    `lund.pid` is locked by lund itself and by none of its workers, so whoever is refused it is told of a process that
    lives; the number in it is for people, and nothing is decided by it.  `lund.lock` is held until the last worker is
    gone.  The kernel gives both back, however a process ends.
    """
    with contextlib.ExitStack() as files:
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            own, shared = (_lock_file(files, directory / name) for name in ("lund.pid", "lund.lock"))
        except FileExistsError:
            raise Refused("invalid-path", f"the state directory {directory} is not a directory") from None
        except OSError as error:
            raise Refused("io-error", f"the state directory {directory}: {error.strerror}") from None
        if not _try_lock(own):
            pid = os.pread(own, 20, 0).decode(errors="replace").strip() or "unknown"
            raise Refused("already-running", f"another lund (pid {pid}) uses {directory}; stop it or use --state")
        os.ftruncate(own, 0)
        os.pwrite(own, f"{os.getpid()}\n".encode(), 0)
        _wait_for_orphans(shared, directory)
        yield shared


def _lock_file(files: contextlib.ExitStack, path: Path) -> int:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    files.callback(os.close, fd)
    return fd


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _wait_for_orphans(shared: int, directory: Path) -> None:
    """The lund before this one is gone, or it would have `lund.pid`; its workers may be closing their volumes."""
    deadline = time.monotonic() + ORPHANS_LIMIT_S
    said = False
    while not _try_lock(shared):
        if not said:
            log.warning("waiting for the workers of the lund before this one to close their volumes")
            service_manager.notify(service_manager.more_time(ORPHANS_LIMIT_S))
            said = True
        if time.monotonic() > deadline:
            raise Refused(
                "already-running",
                f"workers of the lund before this one still use {directory}; see what they wait for, or kill them",
            )
        time.sleep(ORPHANS_LOOK_S)


async def serve(daemon: Daemon) -> None:
    """Run until a signal.  A second one while stopping changes nothing: the last consistency point is worth it."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    life = loop.create_task(service_manager.show_life(lambda: daemon.running))
    try:
        await daemon.start()
        await stop.wait()
    finally:
        await daemon.stop()
        life.cancel()


def run(directory: Path, listen: Sequence[tuple[PortalAddress, int]], management: Path, config: Config) -> None:
    if sys.stderr is not None:
        faulthandler.enable()  # where it was when a watchdog, or the kernel, ended it
    room_for_connections()
    with locked(directory) as lock, asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(_main(directory, listen, management, config, lock))


async def _main(
    directory: Path, listen: Sequence[tuple[PortalAddress, int]], management: Path, config: Config, lock: int
) -> None:
    await serve(Daemon(directory, listen, management, config, lock))


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="lund", description="The lazylun iSCSI target daemon.")
    parser.add_argument("--state", type=Path, required=True, metavar="DIR", help="settings and volume files")
    parser.add_argument("--listen", action="append", default=[], metavar="ADDR:PORT[,GROUP]", help="as often as wanted")
    parser.add_argument("--socket", type=Path, metavar="PATH", help="management socket (default DIR/lund.sock)")
    parser.add_argument("--config", type=Path, metavar="FILE", help="configuration file, TOML (docs/operating.md)")
    parser.add_argument("--version", action="version", version=f"lund {product_version()}")
    return parser.parse_args(argv)


def _open_standard_files() -> None:
    """Started without them, a volume would be open as number 2, where a crash and whoever inherits it write."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 0 stopped as asked, 1 refused (one line on stderr), 2 usage."""
    _open_standard_files()
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
