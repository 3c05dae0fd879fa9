"""`lun` against a real `lund` process on a temporary socket."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import pty
import re
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner, Result

from target.cli.main import main

START_LIMIT_S = 180
STOP_LIMIT_S = 60


class DaemonProcess:
    def __init__(
        self, directory: Path, *arguments: str, tree: Path | None = None, shell: str = "",
        module: str = "target.daemon", **environ: str,
    ) -> None:  # fmt: skip
        """`tree`: the source tree that it runs from, without one having been installed.  `shell`: done before it."""
        self.directory = directory
        self.socket = directory / "lund.sock"
        self.log = directory.with_suffix(".log")
        argv = [sys.executable, "-m", module, "--state", str(directory), "--listen", "127.0.0.1:0", *arguments]
        if shell:
            argv = ["sh", "-c", f'{shell}; exec "$@"', "sh", *argv]
        # The daemon says when it is ready through the notification socket, as it does to systemd.
        import socket

        notify = directory.with_suffix(".notify")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready, self.log.open("ab") as log:
            ready.bind(str(notify))
            ready.settimeout(START_LIMIT_S)
            env = {"NOTIFY_SOCKET": str(notify), **environment(), **environ}
            if tree is not None:
                del env["PYTHONPATH"]
            self.process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env, cwd=tree)
            try:
                while ready.recv(100) != b"READY=1":
                    pass
            except BaseException:
                self.process.kill()
                self.process.wait()
                raise AssertionError(f"lund did not start:\n{self.log.read_text()}") from None
            finally:
                notify.unlink()

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(STOP_LIMIT_S)
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()


def environment() -> dict[str, str]:
    root = Path(__file__).resolve().parents[3]
    return {**os.environ, "PYTHONPATH": str(root)}


@dataclass
class Lun:
    """Runs `lun` in this process."""

    daemon: DaemonProcess
    volume: str = ""

    def run(self, *argv: str, stdin: str | None = None) -> Result:
        return CliRunner().invoke(main, ["--socket", str(self.daemon.socket), *argv], input=stdin)

    def __call__(self, *argv: str, stdin: str | None = None) -> str:
        result = self.run(*argv, stdin=stdin)
        assert result.exit_code == 0, (argv, result.output, result.stderr, result.exception)
        return result.stdout

    def json(self, *argv: str) -> Any:
        return json.loads(self("--json", *argv))

    def refused(self, *argv: str) -> str:
        """The one line on stderr."""
        result = self.run(*argv)
        assert result.exit_code == 1, (argv, result.output, result.exception)
        (line,) = result.stderr.splitlines()
        return line

    def on_terminal(self, *argv: str, columns: int = 80) -> tuple[int, str]:
        """Exit status, and what a person sees on a terminal so wide, without colours."""
        leader, follower = pty.openpty()
        try:
            termios.tcsetwinsize(follower, (24, columns))
            command = [sys.executable, "-m", "target.cli.main", "--socket", str(self.daemon.socket), *argv]
            env = {**environment(), "TERM": "xterm"}
            env.pop("COLUMNS", None)
            process = subprocess.Popen(command, stdin=follower, stdout=follower, stderr=follower, env=env)
        finally:
            os.close(follower)
        seen = bytearray()
        with contextlib.suppress(OSError):  # the last one has closed the terminal
            while piece := os.read(leader, 65536):
                seen += piece
        os.close(leader)
        return process.wait(STOP_LIMIT_S), re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", seen.decode()).replace("\r\n", "\n")

    def path(self, name: str) -> str:
        return f"/vol/{self.volume}/{name}"


@pytest.fixture(scope="session")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    process = DaemonProcess(tmp_path_factory.mktemp("cli") / "state")
    yield process
    assert process.stop() == 0, process.log.read_text()


_numbers = itertools.count()


@pytest.fixture
def lun(daemon: DaemonProcess) -> Iterator[Lun]:
    """With an empty volume of its own, which is checked and destroyed at the end."""
    made = Lun(daemon, f"v{next(_numbers)}")
    made("vol", "create", made.volume, "-s", "64m")
    yield made
    made("vol", "check", made.volume)
    made("vol", "destroy", "-f", made.volume)


@pytest.fixture
def api(daemon: DaemonProcess) -> Iterator[httpx.Client]:
    transport = httpx.HTTPTransport(uds=str(daemon.socket))
    with httpx.Client(transport=transport, base_url="http://lund", timeout=60) as client:
        yield client
