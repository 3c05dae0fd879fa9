"""A real `lund` process for the tests: started, spoken to with the real `lun`, killed, started again.

What it knows: the command lines of `lund` and `lun`, and where their files lie.  Nothing of their insides.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx

from tests.support.netns import Namespace, stop_group

BIN = Path(sys.executable).parent
START_LIMIT_S = 60.0
STOP_LIMIT_S = 60.0
COMMAND_LIMIT_S = 120.0
POLL_S = 0.05
MIB, GIB = 1 << 20, 1 << 30


class LundError(Exception):
    """The daemon did not start or stop, or `lun` failed; with what they said."""


class Refused(Exception):
    """`lun` exited with 1: the body of the refusal, and the line on stderr."""

    def __init__(self, body: dict[str, Any], line: str) -> None:
        super().__init__(line)
        self.name: str = body["error"]
        self.holders: list[str] = body.get("holders", [])
        self.line = line


class Lund:
    """One daemon with its state in `directory`, listening inside `namespace`. """

    def __init__(
        self,
        namespace: Namespace,
        directory: Path,
        listen: Sequence[str] = ("0.0.0.0:3260",),
        *,
        program: Sequence[str | Path] = (BIN / "lund",),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.namespace = namespace
        # These two count from the next start on.
        self.program = program
        self.environment = {**os.environ, **(environment or {})}
        self.directory = directory
        self.socket = directory / "lund.sock"
        self._listen = listen
        self._log = directory.with_suffix(".log")
        self.process: subprocess.Popen[bytes] | None = None
        transport = httpx.HTTPTransport(uds=str(self.socket))
        self.api = httpx.Client(transport=transport, base_url="http://lund", timeout=COMMAND_LIMIT_S, trust_env=False)

    def launch(self) -> None:
        """Starts it and does not wait."""
        self.directory.mkdir(parents=True, exist_ok=True)
        listen = [word for address in self._listen for word in ("--listen", address)]
        argv: list[str | Path] = [*self.program, "--state", self.directory, "--socket", self.socket, *listen]
        self.process = self.namespace.popen(argv, log=self._log, env=self.environment)

    def start(self) -> Lund:
        self.launch()
        return self.wait_until_ready()

    def wait_until_ready(self) -> Lund:
        try:
            wait_until(self._ready, START_LIMIT_S, "lund is ready")
        except AssertionError:
            self.kill()
            raise LundError(f"lund did not start:\n{self.log()}") from None
        return self

    def _ready(self) -> bool:
        if not self.alive:
            raise LundError(f"lund ended with {self.exit_code}:\n{self.log()}")
        try:
            return self.api.get("/v1").status_code == 200
        except httpx.TransportError:
            return False

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    @property
    def exit_code(self) -> int | None:
        return None if self.process is None else self.process.poll()

    def log(self) -> str:
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def stop(self) -> int:
        """SIGTERM, as a service manager does it; the exit status."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            self.kill()
            raise LundError(f"lund did not stop within {STOP_LIMIT_S} s:\n{self.log()}") from None

    def kill(self) -> None:
        """SIGKILL: what was not handed to the kernel is lost."""
        if self.process is not None:
            stop_group(self.process)

    def restart(self) -> None:
        self.stop()
        self.start()

    def __enter__(self) -> Lund:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        try:
            if self.alive:
                code = self.stop()
                if error is None and code != 0:
                    raise LundError(f"lund ended with {code}:\n{self.log()}")
        finally:
            self.kill()
            self.api.close()

    # management

    def lun(self, *argv: str) -> Any:
        """`lun --json ARGV`: its objects.  Refused if the daemon refuses."""
        command: list[str | Path] = [BIN / "lun", "--socket", self.socket, "--json", *argv]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=COMMAND_LIMIT_S, stdin=subprocess.DEVNULL, check=False
        )
        if done.returncode == 1 and done.stdout.strip():
            raise Refused(json.loads(done.stdout), done.stderr.strip())
        if done.returncode != 0:
            raise LundError(f"lun {' '.join(argv)}: exit {done.returncode}\n{done.stderr}\n{self.log()[-2000:]}")
        return json.loads(done.stdout) if done.stdout.strip() else None

    def get(self, path: str) -> Any:
        """One object of the API, for what is asked often."""
        answer = self.api.get(f"/v1/{path}")
        answer.raise_for_status()
        return answer.json()

    def target(self, volume: str = "vol0") -> str:
        """The iSCSI name of the volume's target."""
        name: str = self.get(f"volumes/{volume}")["target"]
        return name

    def post(self, collection: str, **body: Any) -> Any:
        """What the tests set up quickly; what they are about goes through `lun`."""
        answer = self.api.post(f"/v1/{collection}", json=body)
        assert answer.is_success, answer.text
        return answer.json()

    def add_volume(self, name: str = "vol0", size_bytes: int = 2 * GIB) -> None:
        self.post("volumes", name=name, size_bytes=size_bytes)

    def add_lun(self, path: str, size_bytes: int = 256 * MIB, *, igroup: str = "everyone", lun_id: int = 0,
                reserved: bool = False) -> None:  # fmt: skip
        self.post("luns", path=path, size_bytes=size_bytes, reserved=reserved)
        self.map(path, igroup, lun_id)

    def map(self, path: str, igroup: str = "everyone", lun_id: int = 0) -> None:
        if igroup == "everyone" and all(group["name"] != igroup for group in self.get("igroups")):
            self.post("igroups", name=igroup, initiators=["*"])
        self.post("maps", path=path, igroup=igroup, lun_id=lun_id)

    def clone_status(self, path: str) -> dict[str, Any]:
        status: dict[str, Any] = self.get(f"clones/{path.removeprefix('/vol/')}")
        return status

    def wait_for_clone(self, path: str, limit_s: float = 120) -> dict[str, Any]:
        def over() -> bool:
            state = self.clone_status(path)["state"]
            assert state != "failed", self.clone_status(path)
            return bool(state == "completed")

        wait_until(over, limit_s, f"the clone of {path} is complete")
        return self.clone_status(path)


def wait_until(condition: Callable[[], bool], limit_s: float, what: str, *, poll_s: float = POLL_S) -> None:
    """Looks again and again until `condition` holds; fails after `limit_s`."""
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {limit_s:g} s: {what}"
        time.sleep(poll_s)
