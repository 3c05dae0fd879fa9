"""A network namespace for test hosts: its own loopback, its own taps, its own port 3260.

What it knows: how to make and remove a namespace and the taps in it (pyroute2), and how to start a process inside.

Rules
- Nothing of the machine's own network is touched; every address lives inside the namespace.
- The name carries the pid of the process that made it, so what a killed run left behind is recognised and removed
  by the next one.
- A process started here dies with the thread that started it (PR_SET_PDEATHSIG), so a killed run leaves no orphans.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from pyroute2 import NetNS, netns

PREFIX = "lazylun-"
_serial = itertools.count()


def remove_leftovers() -> None:
    """Removes the namespaces of runs that are gone."""
    for name in netns.listnetns():
        owner = name.removeprefix(PREFIX).partition("-")[0]
        if name.startswith(PREFIX) and owner.isdigit() and not Path(f"/proc/{owner}").exists():
            with contextlib.suppress(OSError):
                netns.remove(name)


class Namespace:
    """`with Namespace() as ns:`; the taps go away with it."""

    def __init__(self) -> None:
        self.name = f"{PREFIX}{os.getpid()}-{next(_serial)}"
        self._taps = itertools.count()

    def __enter__(self) -> Namespace:
        remove_leftovers()
        netns.create(self.name)
        with NetNS(self.name) as ns:
            ns.link("set", index=ns.link_lookup(ifname="lo")[0], state="up")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        netns.remove(self.name)

    def add_tap(self) -> tuple[str, str, str]:
        """A persistent tap, up and with an address: (interface, our address, the guest's address in CIDR form)."""
        number = next(self._taps)
        interface, ours, guests = f"tap{number}", f"10.77.{number}.1", f"10.77.{number}.2/24"
        with NetNS(self.name) as ns:
            ns.link("add", ifname=interface, kind="tuntap", mode="tap")
            index = ns.link_lookup(ifname=interface)[0]
            ns.addr("add", index=index, address=ours, prefixlen=24)
            ns.link("set", index=index, state="up")
        return interface, ours, guests

    def wrap(self, argv: Sequence[str | Path]) -> list[str]:
        inside = ["nsenter", f"--net=/run/netns/{self.name}", "--", *map(str, argv)]
        return ["setpriv", "--pdeathsig", "KILL", "--", *inside]

    def popen(
        self,
        argv: Sequence[str | Path],
        *,
        log: Path,
        env: Mapping[str, str] | None = None,
        pass_fds: Sequence[int] = (),
    ) -> subprocess.Popen[bytes]:
        """Starts a long-lived process in a process group of its own; its output goes to `log`."""
        out: IO[bytes]
        with log.open("ab") as out:
            return subprocess.Popen(
                self.wrap(argv),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=dict(env) if env is not None else None,
                pass_fds=tuple(pass_fds),
                start_new_session=True,
            )

    def run(
        self, argv: Sequence[str | Path], *, timeout_s: float = 60, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command to its end inside the namespace."""
        options = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True, "errors": "replace", **options}
        return subprocess.run(self.wrap(argv), timeout=timeout_s, **options)


def stop_group(process: subprocess.Popen[bytes], *, grace_s: float = 0) -> None:
    """Ends a process and everything it started, by its process group; with a grace time it is asked first."""
    if grace_s and process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(grace_s)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, 9)
    process.wait(30)
