"""A Linux host in User-Mode Linux: a real kernel with open-iscsi, on the machine's own root file system.

What it knows: how to boot `linux.uml` in a `Namespace`, run commands in it over a serial line, and end it.

Rules
- The guest cannot change the machine: its root is hostfs, read-only, and everything writable is a tmpfs of its own.
- Commands go over the serial line, not the network, so a test may cut every cable and still look inside.
- Every wait has a limit, and `close()` leaves no process and no file behind.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import socket
import subprocess
import threading
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, Queue
from types import TracebackType
from typing import Any

from tests.support.netns import Namespace, stop_group

KERNEL = "linux.uml"
INIT = Path(__file__).with_name("uml_init.py")
GUEST_PYTHON = "/usr/bin/python3"  # the first line of INIT; not in a directory that the guest's tmpfs mounts hide
BOOT_LIMIT_S = 60.0
COMMAND_LIMIT_S = 60.0
HALT_LIMIT_S = 5.0
_hosts = itertools.count()


class HostError(Exception):
    """The guest did not boot, answered nothing in time, or a command failed there."""


@dataclass(frozen=True)
class Result:
    argv: tuple[str, ...]
    code: int
    out: str
    err: str

    @property
    def text(self) -> str:
        return self.out + self.err

    def __str__(self) -> str:
        return f"{' '.join(self.argv)}\nexit {self.code}\n{self.out}{self.err}"


class Job:
    """A command that is running in the guest."""

    def __init__(self, host: UmlHost, argv: tuple[str, ...], limit_s: float) -> None:
        self._host, self._argv, self._limit_s = host, argv, limit_s
        self.answer: Queue[dict[str, Any]] = Queue()
        self.lines: list[str] = []
        """What a followed command has printed so far."""
        self._result: Result | None = None

    @property
    def running(self) -> bool:
        return self._result is None and self.answer.empty()

    def wait(self, *, check: bool = True) -> Result:
        if self._result is None:
            try:
                got = self.answer.get(timeout=self._limit_s + 15)
            except Empty:
                raise HostError(f"{self._host.name}: no answer to {self._argv}\n{self._host.console()}") from None
            self._result = Result(self._argv, got["code"], got["out"], got["err"])
        if check and self._result.code != 0:
            raise HostError(f"{self._host.name}: {self._result}\n{self._host.console()[-3000:]}")
        return self._result


class UmlHost:
    """One host with one or more taps in `namespace`.  `with UmlHost(ns, work_dir) as host: host.run("uname", "-r")`."""

    def __init__(
        self, namespace: Namespace, work_dir: Path, *, name: str = "", memory: str = "256M", taps: int = 1
    ) -> None:
        number = next(_hosts)
        self.name = name or f"host{number}"
        self.initiator = f"iqn.2026-01.test.lazylun:{self.name}"
        self.namespace = namespace
        self._dir = work_dir / f"uml-{self.name}-{number}"
        self._dir.mkdir(parents=True)
        self._log = self._dir / "console.log"
        self._memory = memory
        self._ids = itertools.count(1)
        self._jobs: dict[int, Job] = {}
        self._lock = threading.Lock()
        self.interfaces: list[str] = []
        self.portals: list[str] = []
        self._guest_addresses: list[str] = []
        for _ in range(taps):
            interface, ours, guests = namespace.add_tap()
            self.interfaces.append(interface)
            self.portals.append(ours)
            self._guest_addresses.append(guests)

    @property
    def portal(self) -> str:
        """The address at which this host finds the machine."""
        return self.portals[0]

    @property
    def address(self) -> str:
        """The address at which the machine finds this host."""
        return self._guest_addresses[0].partition("/")[0]

    # boot and end

    def start(self) -> UmlHost:
        ours, guests = socket.socketpair()
        with guests:
            self._process = self.namespace.popen(
                self._command_line(guests.fileno()), log=self._log, pass_fds=[guests.fileno()], env=self._environment()
            )
        self._line = ours
        ready = self._jobs[0] = Job(self, ("boot",), BOOT_LIMIT_S)
        self._reader = threading.Thread(target=self._read_answers, name=self.name, daemon=True)
        self._reader.start()
        try:
            ready.wait()
        except HostError:
            self.close()
            raise
        return self

    def _command_line(self, line: int) -> list[str]:
        nets = [
            f"vec{i}:transport=tap,ifname={interface},depth=128,gro=1" for i, interface in enumerate(self.interfaces)
        ]
        addresses = ",".join(f"vec{i}={address}" for i, address in enumerate(self._guest_addresses))
        return [
            shutil.which(KERNEL) or KERNEL, f"mem={self._memory}", f"umid={self.name}", f"uml_dir={self._dir}",
            "root=/dev/root", "rootfstype=hostfs", "rootflags=/", "ro", f"init={INIT}",
            *nets, "con=null", "con0=null,fd:1", f"ssl0=fd:{line},fd:{line}", "ssl=null", "panic=-1", "quiet",
            # Tests look for lines in it, and 32 disks alone say more than the usual 16 KiB.
            "log_buf_len=1M",
            f"GUEST_ADDRESSES={addresses}", f"GUEST_INITIATOR={self.initiator}",
        ]  # fmt: skip

    def _environment(self) -> dict[str, str]:
        # The guest's memory is a deleted file in TMPDIR: a real disk would write it out.
        return {"PATH": os.environ["PATH"], "HOME": "/root", "TMPDIR": "/dev/shm"}

    def _read_answers(self) -> None:
        with contextlib.suppress(OSError), self._line.makefile("rb") as answers:
            for text in answers:
                if not text.endswith(b"\n"):
                    break  # the power went in the middle of it
                answer = json.loads(text)
                if "line" in answer:
                    self._jobs[answer["id"]].lines.append(answer["line"])
                else:
                    self._jobs.pop(answer["id"]).answer.put(answer)
        lost = {"code": 255, "out": "", "err": "the host is gone"}
        for job in list(self._jobs.values()):
            job.answer.put(lost)
        self._jobs.clear()

    def close(self) -> None:
        """Switches the guest off without a sync.  Tests that want a tidy end log out and unmount before."""
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            self._send({"id": 0, "off": True})
            self._process.wait(HALT_LIMIT_S)
        stop_group(self._process)
        with contextlib.suppress(OSError):
            self._line.shutdown(socket.SHUT_RDWR)
        self._reader.join(10)
        self._line.close()

    def cut_power(self) -> None:
        """Gone from one instruction to the next; `start` boots it again."""
        stop_group(self._process)
        self.close()

    def __enter__(self) -> UmlHost:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def console(self) -> str:
        return self._log.read_text(errors="replace")

    def set_link(self, number: int, *, up: bool) -> None:
        """Plugs or pulls the cable of one tap, at this end: the driver does not get over a tap that is down."""
        self.run("ip", "link", "set", f"vec{number}", "up" if up else "down")

    def writes(self, disk: str) -> int:
        """Write requests that a disk (`/dev/sda`) has carried out (Documentation/block/stat: the fifth field)."""
        return int(self.run("cat", f"/sys/block/{disk.rpartition('/')[2]}/stat").out.split()[4])

    # commands

    def spawn(self, *argv: str, limit_s: float = COMMAND_LIMIT_S) -> Job:
        """Starts a command in the guest; `wait()` for it later."""
        return self._start(argv, limit_s, follow=False)

    def follow(self, *argv: str) -> Job:
        """Starts a command whose lines of output come as they are printed, for as long as it runs."""
        return self._start(argv, COMMAND_LIMIT_S, follow=True)

    def _start(self, argv: tuple[str, ...], limit_s: float, *, follow: bool) -> Job:
        job = Job(self, argv, limit_s)
        with self._lock:
            number = next(self._ids)
            self._jobs[number] = job
            self._send({"id": number, "argv": argv, "timeout_s": limit_s, "follow": follow})
        return job

    def _send(self, request: dict[str, Any]) -> None:
        self._line.sendall(json.dumps(request).encode() + b"\n")

    def run(self, *argv: str, limit_s: float = COMMAND_LIMIT_S, check: bool = True) -> Result:
        return self.spawn(*argv, limit_s=limit_s).wait(check=check)

    def sh(self, script: str, *, limit_s: float = COMMAND_LIMIT_S, check: bool = True) -> Result:
        return self.run("/bin/sh", "-ec", script, limit_s=limit_s, check=check)


def missing_parts() -> list[str]:
    """What this machine lacks to run test hosts, in words; empty if nothing."""
    reasons = []
    if os.geteuid() != 0:
        reasons.append("not root")
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        reasons.append("no /dev/net/tun")
    for tool in (KERNEL, "nsenter", "setpriv", "iscsiadm", "iscsid", "ip", "modprobe", "mkfs.ext4", "fio"):
        if shutil.which(tool, path=os.environ["PATH"] + ":/usr/sbin:/sbin") is None:
            reasons.append(f"no {tool}")
    if not Path(GUEST_PYTHON).exists():
        reasons.append(f"no {GUEST_PYTHON}")
    return reasons or _namespace_refused()


def _namespace_refused() -> list[str]:
    tried = subprocess.run(["unshare", "--net", "true"], capture_output=True, text=True, check=False)
    return [] if tried.returncode == 0 else [f"no network namespace: {tried.stderr.strip()}"]
