"""The management socket: uvicorn inside the daemon's own loop, on a Unix socket that only its owner can open."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from target.management.refusal import Refused

SOCKET_MODE = 0o600
SOCKET_PATH_BYTES = 107
"""sun_path of Linux, less its final zero."""
BACKLOG = 128
MAX_CONNECTIONS = 256
"""At the same time; more are answered with 503."""
KEEP_ALIVE_S = 30
STOP_S = 2
"""How long answers under way may take when the daemon stops: hosts are waiting for the next one."""
START_POLL_S = 0.005


class _Server(uvicorn.Server):
    """Signals are the daemon's business."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class ManagementServer:
    def __init__(self, app: FastAPI, path: Path) -> None:
        self.path = path
        self._socket: socket.socket | None = None
        self._task: asyncio.Task[None] | None = None
        self._server = _Server(
            uvicorn.Config(
                app,
                http="h11",
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                limit_concurrency=MAX_CONNECTIONS,
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=STOP_S,
            )
        )

    async def start(self) -> None:
        self._socket = listening_socket(self.path)
        self._task = asyncio.create_task(self._server.serve(sockets=[self._socket]), name="management")
        while not self._server.started:
            if self._task.done():
                self._task.result()
            await asyncio.sleep(START_POLL_S)

    async def stop(self) -> None:
        """Answers under way get a few seconds."""
        if self._task is not None:
            self._server.should_exit = True
            await self._task
        if self._socket is not None:
            self._socket.close()
            with contextlib.suppress(OSError):
                self.path.unlink()


def listening_socket(path: Path) -> socket.socket:
    """Bound with mode 0600 from its first moment.  A socket nobody answers on is left over and replaced."""
    if len(os.fsencode(path)) > SOCKET_PATH_BYTES:
        raise Refused("invalid-path", f"{path} is too long for a Unix socket ({SOCKET_PATH_BYTES} bytes); use --socket")
    _remove_dead_socket(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # Linux gives the name the mode of the socket itself: set before bind(), there is no moment when others could
        # connect (and no process-wide umask to change).
        os.fchmod(listener.fileno(), SOCKET_MODE)
        listener.bind(str(path))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise Refused("io-error", f"the management socket {path}: {error.strerror}") from None
    listener.setblocking(False)
    return listener


def _remove_dead_socket(path: Path) -> None:
    if not path.is_socket():
        if path.exists():
            raise Refused("name-taken", f"{path} is there and is not a socket; remove it or use --socket PATH")
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            path.unlink(missing_ok=True)
            return
    raise Refused("already-running", f"another lund answers on {path}; stop it or use --socket PATH")
