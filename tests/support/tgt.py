"""Debian's tgt as the other target: the control that shows what is the harness's fault, and the rival in the bench."""

from __future__ import annotations

import itertools
import os
import subprocess
import time
from pathlib import Path
from types import TracebackType

from tests.support.netns import Namespace, stop_group

TGTD = "/usr/sbin/tgtd"
TGTADM = "/usr/sbin/tgtadm"
START_LIMIT_S = 20.0
_serial = itertools.count()


class Tgt:
    """One tgtd with one target and one LUN (LUN 1) on `backing`, open to every initiator."""

    lun = 1

    def __init__(
        self,
        namespace: Namespace,
        backing: Path,
        *,
        address: str = "0.0.0.0",
        port: int = 3260,
        iqn: str = "iqn.2026-01.test.tgt:disk",
    ) -> None:
        self._namespace, self.backing, self.iqn = namespace, backing, iqn
        self._portal = f"portal={address}:{port}"
        # tgtd's control socket is /run/tgtd/socket.N, whatever the namespace; N is a short integer
        self._control = str(os.getpid() % 8000 * 4 + next(_serial) % 4)
        self._log = backing.with_suffix(".tgtd.log")

    def start(self) -> Tgt:
        Path("/run/tgtd").mkdir(exist_ok=True)
        argv = [TGTD, "-f", "--control-port", self._control, "--iscsi", self._portal]
        self.process = self._namespace.popen(argv, log=self._log)
        deadline = time.monotonic() + START_LIMIT_S
        while self._admin("--mode", "sys", "--op", "show", check=False).returncode != 0:
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise RuntimeError(f"tgtd did not start: {self._log.read_text()}")
            time.sleep(0.05)
        lld = ("--lld", "iscsi")
        self._admin(*lld, "--mode", "target", "--op", "new", "--tid", "1", "-T", self.iqn)
        lun = ("--tid", "1", "--lun", str(self.lun), "-b", str(self.backing))
        self._admin(*lld, "--mode", "logicalunit", "--op", "new", *lun)
        self._admin(*lld, "--mode", "target", "--op", "bind", "--tid", "1", "-I", "ALL")
        return self

    def tune(self, **keys: int | str) -> None:
        """Negotiation limits, by the keys' own names."""
        for key, value in keys.items():
            parameter = ("--name", key, "--value", str(value))
            self._admin("--lld", "iscsi", "--mode", "target", "--op", "update", "--tid", "1", *parameter)

    def _admin(self, *argv: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self._namespace.run([TGTADM, "--control-port", self._control, *argv], check=check)

    def stop(self) -> None:
        stop_group(self.process)
        for left in (f"socket.{self._control}", f"socket.{self._control}.lock"):
            (Path("/run/tgtd") / left).unlink(missing_ok=True)

    def __enter__(self) -> Tgt:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()
