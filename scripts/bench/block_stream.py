"""QEMU's way to make a disk independent of its image: `block-stream` into a qcow2 overlay, by qemu-storage-daemon."""

from __future__ import annotations

import json
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scripts.bench.rivals import settle

DAEMON = "qemu-storage-daemon"
START_LIMIT_S = 20.0
JOB_LIMIT_S = 1800.0


class StreamError(Exception):
    """The daemon did not start, or the job failed; what it said."""


def stream_s(base: Path, overlay: Path, before: Callable[[], None]) -> float:
    """Seconds from the start of the job until the overlay, without a backing file, is on the disk.

    `before()` is called when all is ready."""
    overlay.unlink(missing_ok=True)
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", overlay], check=True)
    control = overlay.with_suffix(".sock")
    control.unlink(missing_ok=True)
    process = subprocess.Popen(_command(base, overlay, control), stdin=subprocess.DEVNULL)
    try:
        with _connect(control, process) as line:
            monitor = Monitor(line)
            before()
            begun = time.monotonic()
            monitor.ask("block-stream", {"job-id": "stream", "device": "top"})
            monitor.wait_for_job()
            monitor.ask("quit")
        if process.wait(START_LIMIT_S) != 0:
            raise StreamError(f"{DAEMON} ended with {process.returncode}")
        settle(overlay)
        return time.monotonic() - begun
    finally:
        process.kill()
        process.wait()


def _command(base: Path, overlay: Path, control: Path) -> list[str]:
    def files(name: str, path: Path, driver: str, more: str = "") -> list[str]:
        file = f"driver=file,node-name={name}-file,filename={path}"
        return ["--blockdev", file, "--blockdev", f"driver={driver},node-name={name},file={name}-file{more}"]

    return [
        DAEMON, *files("base", base, "raw"), *files("top", overlay, "qcow2", ",backing=base"),
        "--chardev", f"socket,id=control,path={control},server=on,wait=off", "--monitor", "chardev=control",
    ]  # fmt: skip


def _connect(path: Path, process: subprocess.Popen[bytes]) -> socket.socket:
    deadline = time.monotonic() + START_LIMIT_S
    while True:
        line = socket.socket(socket.AF_UNIX)
        try:
            line.connect(str(path))
        except OSError:
            line.close()
            if process.poll() is not None or time.monotonic() > deadline:
                raise StreamError(f"{DAEMON} did not start") from None
            time.sleep(0.05)
        else:
            line.settimeout(JOB_LIMIT_S)
            return line


class Monitor:
    """QMP: one JSON object a line, answers and events mixed."""

    def __init__(self, line: socket.socket) -> None:
        self._line, self._file = line, line.makefile("rb")
        self._events: list[dict[str, Any]] = []
        self._next()
        self.ask("qmp_capabilities")

    def _next(self) -> dict[str, Any]:
        text = self._file.readline()
        if not text:
            raise StreamError(f"{DAEMON} has closed its monitor")
        answer: dict[str, Any] = json.loads(text)
        return answer

    def ask(self, command: str, arguments: dict[str, Any] | None = None) -> None:
        self._line.sendall(json.dumps({"execute": command, "arguments": arguments or {}}).encode() + b"\n")
        while True:
            answer = self._next()
            if "error" in answer:
                raise StreamError(f"{command}: {answer['error']['desc']}")
            if "return" in answer:
                return
            self._events.append(answer)

    def wait_for_job(self) -> None:
        while True:
            event = self._events.pop(0) if self._events else self._next()
            if event.get("event") == "BLOCK_JOB_COMPLETED":
                if "error" in event["data"]:
                    raise StreamError(event["data"]["error"])
                return
