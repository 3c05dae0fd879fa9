"""Who is measured.  All serve the same data from files in one directory, on loopback in a network namespace."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from scripts.bench import fio
from scripts.bench.linux_host import LinuxHosts
from scripts.bench.works import C_LOOP, LIO, LUND, NBD, PLAIN, PYTHON_LOOP, TGT, TUNED, Kind, Work
from tests.support.initiators import tool, upload, url
from tests.support.lund import BIN, MIB, Lund, wait_until
from tests.support.netns import Namespace, stop_group
from tests.support.tgt import Tgt

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
BUILD = ROOT / "build" / "bench"
ADDRESS = "127.0.0.1"
PORTS = {TGT: 3261, TUNED: 3262, C_LOOP: 3263, PYTHON_LOOP: 3264, NBD: 10809}
SPIN_PORT, SPIN_US = 3265, 100
DIGESTS = {"HeaderDigest": "CRC32C,None", "DataDigest": "CRC32C,None"}
"""What the initiator offers decides."""
TUNING = {"MaxRecvDataSegmentLength": 256 << 10, "FirstBurstLength": 256 << 10, "InitialR2T": "No"}
START_LIMIT_S = 20.0
RECLAIM_LIMIT_S = 60.0
TRIAL, TRIAL_LUN = "/vol/clones/trial", 1
GOLDEN = "golden"
"""The LUN that the snapshot is of; nobody writes to it."""
READ_BACK_BYTES = 4 << 20
CLONE_SHARE = 1.5
"""A clone's limit is such that it runs so many times as long as the measurement."""

Figures = fio.Figures
"""What a client reports: rate, mib_s, p50_us, p99_us, target_cpu_us, …"""


def make_image(path: Path, size_bytes: int) -> None:
    with path.open("wb") as file:
        for _ in range(size_bytes >> 20):
            file.write(os.urandom(1 << 20))


def read_back(path: Path) -> None:
    """All of the file is in the page cache again."""
    with path.open("rb", buffering=0) as file:
        piece = bytearray(READ_BACK_BYTES)
        while file.readinto(piece):
            pass


def drop_from_cache(path: Path) -> None:
    """The file's pages leave the page cache: nothing else on the machine is touched."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fdatasync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


class Server:
    """One rival: where it listens, which process it is, and the file that it serves."""

    def __init__(self, file: Path, port: int, target: str, lun: int, pid: int) -> None:
        self.file, self.port, self.target, self.lun, self.pid = file, port, target, lun, pid


class Arena:
    """All rivals that the works need, started; `measure` is one measurement."""

    def __init__(self, namespace: Namespace, directory: Path, size_bytes: int) -> None:
        self.namespace, self.directory, self.size_bytes = namespace, directory, size_bytes
        self.image = directory / "disk.img"
        self.servers: dict[str, Server] = {}
        self._stack = ExitStack()
        self._seed = 0
        self._aged: bool | None = False
        """How the plain LUN lies on its volume; None when nobody knows."""
        self._dropped: set[Path] = set()
        self.lund: Lund

    def __enter__(self) -> Arena:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def start(self, names: set[str], kinds: set[Kind]) -> None:
        make_image(self.image, self.size_bytes)
        self._start_lund(kinds)
        if TGT in names:
            self._start_tgt(TGT, {})
        if TUNED in names:
            self._start_tgt(TUNED, TUNING)
        if C_LOOP in names:
            self._start_bare(C_LOOP, [BUILD / "bare_target"])
        if PYTHON_LOOP in names:
            self._start_bare(PYTHON_LOOP, [sys.executable, HERE / "bare_target.py"])
        if LIO in names:
            self._start_hosts()
        self._season()

    def _season(self) -> None:
        """Nobody is as it was born.  tgtd allocates a buffer for each command: until it has freed a larger one, malloc
        maps and unmaps those from 128 KiB on each time, and 256 KiB reads cost it twice as much as ever after."""
        for name, server in self.servers.items():
            for percent in (100,) if name == GOLDEN else (100, 0):
                figures = self._lean(server, "--read-percent", percent, *self._from_front_to_back())
                if name == TUNED and figures["segment_bytes"] != TUNING["MaxRecvDataSegmentLength"]:
                    raise RuntimeError(f"{TUNED} did not take what it was told: {figures}")

    def _from_front_to_back(self) -> list[object]:
        return ["--bytes", MIB, "--depth", 8, "--sequential", "--commands", self.size_bytes // MIB]

    def _copy(self, name: str) -> Path:
        path = self.directory / f"{name.replace(' ', '-')}.img"
        tool(self.namespace, ["cp", "--sparse=never", self.image, path], limit_s=600)
        return path

    # --- the rivals

    def _start_lund(self, kinds: set[Kind]) -> None:
        spinning = f"{ADDRESS}:{SPIN_PORT}"
        config = self.directory / "lund.toml"
        config.write_text(f'[iscsi]\nspin_us = {{ "{spinning}" = {SPIN_US} }}\n')
        self.lund = Lund(
            self.namespace, self.directory / "state", listen=["0.0.0.0:3260", spinning],
            program=[BIN / "lund", "--config", config], environment={"PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        self._stack.enter_context(self.lund)
        size_mib = self.size_bytes // MIB
        volumes = ["plain"] if kinds == {Kind.PLAIN} else ["plain", "clones"]
        for volume in volumes:
            self.lund.add_volume(volume, size_bytes=(size_mib * 3 + 256) * MIB)
            self.lund.add_lun(f"/vol/{volume}/disk", self.size_bytes)
            upload(self.namespace, self.image, url(self.lund.target(volume)))
        assert self.lund.process is not None
        pid = self.lund.process.pid
        state = self.directory / "state"
        for name, volume in zip((LUND, GOLDEN), ("plain", "clones"), strict=True):
            if volume in volumes:
                file = Path(self.lund.get(f"volumes/{volume}")["path"])
                self.servers[name] = Server(state / file, 3260, self.lund.target(volume), 0, pid)
        if "clones" in volumes:
            self.lund.post("volumes/clones/snapshots", name="golden")

    def _start_tgt(self, name: str, tuning: Mapping[str, int | str]) -> None:
        iqn = f"iqn.2026-01.test.{name.replace(' ', '-')}:disk"
        tgt = Tgt(self.namespace, self._copy(name), port=PORTS[name], iqn=iqn)
        self._stack.enter_context(tgt)
        tgt.tune(**DIGESTS, **tuning)
        self.servers[name] = Server(tgt.backing, PORTS[name], tgt.iqn, tgt.lun, tgt.process.pid)

    def _start_bare(self, name: str, argv: list[str | Path]) -> None:
        file, port = self._copy(name), PORTS[name]
        log = file.with_suffix(".log")
        process = self.namespace.popen([*argv, str(port), file], log=log)
        self._stack.callback(stop_group, process)
        self.servers[name] = Server(file, port, "iqn.2026-01.test.limit:disk", 0, process.pid)
        self._until_listening(port, process, log)

    def _start_hosts(self) -> None:
        self._hosts = self._stack.enter_context(LinuxHosts(self.namespace, self.directory, self.size_bytes))
        for name in (LUND, TGT, TUNED):
            server = self.servers[name]
            self._hosts.log_in(name, server.port, server.target, server.lun)
        self._hosts.start_lio()

    def _until_listening(self, port: int, process: subprocess.Popen[bytes], log: Path) -> None:
        deadline = time.monotonic() + START_LIMIT_S
        wanted = f":{port} "
        while wanted not in tool(self.namespace, ["ss", "-Hltn"]):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"nobody listens on port {port}: {log.read_text()}")
            time.sleep(0.05)

    # --- one measurement

    def measure(self, work: Work, name: str, warmup_s: float, seconds: float) -> Figures:
        self._seed += 1
        if work.host:
            return self._from_host(work, name, warmup_s + seconds)
        if name == NBD:
            with self._overlay() as port:
                return self._over_nbd(work, port, warmup_s, seconds)
        if name != LUND or work.kind is Kind.PLAIN:
            return self._client(work, self._server(work, name), warmup_s, seconds)
        with self._trial(work.kind, warmup_s + seconds) as told:
            server = self.servers[GOLDEN]
            on_trial = Server(server.file, server.port, server.target, TRIAL_LUN, server.pid)
            figures = self._client(work, on_trial, warmup_s, seconds)
            return {**figures, **told()}

    def _server(self, work: Work, name: str) -> Server:
        """For reads a backed LUN is compared with the one that its snapshot is of: the very same blocks."""
        if name == PLAIN and not work.writes:
            return self.servers[GOLDEN]
        if name not in (LUND, PLAIN):
            return self.servers[name]
        if work.sequential:
            self._lay_out(aged=work.aged)
        if work.writes:
            self._aged = False if work.sequential and self._aged is False else None
        return self.servers[LUND]

    def _lay_out(self, *, aged: bool) -> None:
        """Where neighbours of the plain LUN lie: side by side, or anywhere."""
        if self._aged is aged:
            return
        at_random = ["--depth", 32, "--commands", self.size_bytes // 4096]
        words = at_random if aged else self._from_front_to_back()
        self._lean(self.servers[LUND], "--read-percent", 0, *words)
        self._aged = aged

    def _read_back(self, file: Path) -> None:
        if file in self._dropped:
            read_back(file)
            self._dropped.remove(file)

    def _lean(self, server: Server, *words: object) -> Figures:
        argv = [
            BUILD / "lean_client", "--port", server.port, "--target", server.target, "--lun", server.lun,
            "--size", self.size_bytes, *words,
        ]  # fmt: skip
        figures: Figures = json.loads(tool(self.namespace, list(map(str, argv)), limit_s=300))
        return figures

    def _client(self, work: Work, server: Server, warmup_s: float, seconds: float) -> Figures:
        settle(server.file)
        if work.cold:
            drop_from_cache(server.file)
            self._dropped.add(server.file)
        else:
            self._read_back(server.file)
        port = SPIN_PORT if work.spin and server.port == 3260 else server.port
        argv = [
            BUILD / ("libiscsi_client" if work.libiscsi else "lean_client"), *work.arguments(),
            "--port", port, "--target", server.target, "--lun", server.lun, "--pid", server.pid,
            "--size", self.size_bytes, "--seed", self._seed,
            "--seconds", seconds, "--warmup", 0 if work.cold else warmup_s,
        ]  # fmt: skip
        if work.cold and work.sequential:
            argv += ["--commands", self.size_bytes // work.bytes]  # once over, for then it is in memory
        figures: Figures = json.loads(tool(self.namespace, list(map(str, argv)), limit_s=warmup_s + seconds + 120))
        return {**figures, "resident_mib": resident_mib(server.pid)}

    def _from_host(self, work: Work, name: str, seconds: float) -> Figures:
        """Without a warm-up, so that the target's CPU time is that of the commands that are counted."""
        if name == LIO:
            return self._hosts.measure(work, name, self._seed, seconds)
        server = self._server(work, name)
        settle(server.file)
        self._read_back(server.file)
        before = cpu_s(server.pid)
        figures = self._hosts.measure(work, name, self._seed, seconds)
        return {**figures, "target_cpu_us": (cpu_s(server.pid) - before) / figures["count"] * 1e6}

    @contextmanager
    def _trial(self, kind: Kind, lasts_s: float) -> Iterator[Any]:
        """A new LUN over the snapshot; gone, and its space free again, afterwards."""
        lund = self.lund
        before = lund.get("volumes/clones")["active_bytes"]
        parent = "/vol/clones/.snapshot/golden/disk"
        lund.post("luns", path=TRIAL, backing={"path": parent}, reserved=False)
        lund.post("maps", path=TRIAL, igroup="everyone", lun_id=TRIAL_LUN)
        if kind is Kind.HALF:
            self._fill_half()
        if kind is Kind.CLONING:
            limit = int(self.size_bytes / lasts_s / CLONE_SHARE)
            lund.api.put("/v1/clones/clones/trial", json={"limit_bytes_s": limit}).raise_for_status()

        def told() -> Figures:
            if kind is not Kind.CLONING:
                return {}
            status = lund.clone_status(TRIAL)
            return {"clone_state": status["state"], "cloned_blocks": status["completed_blocks"]}

        try:
            yield told
        finally:
            lund.api.delete("/v1/luns/clones/trial", params={"force": True}).raise_for_status()
            wait_until(
                lambda: lund.get("volumes/clones")["active_bytes"] <= before + MIB, RECLAIM_LIMIT_S, "the trial is gone"
            )

    def _fill_half(self) -> None:
        golden = self.servers[GOLDEN]
        on_trial = Server(golden.file, golden.port, golden.target, TRIAL_LUN, golden.pid)
        self._lean(on_trial, "--read-percent", 0, "--sequential", "--stride", 2, "--depth", 32,
                   "--commands", self.size_bytes // 8192)  # fmt: skip

    @contextmanager
    def _overlay(self) -> Iterator[int]:
        """A new qcow2 overlay, served by qemu-nbd."""
        overlay, log = self.directory / "overlay.qcow2", self.directory / "nbd.log"
        overlay.unlink(missing_ok=True)
        tool(self.namespace, ["qemu-img", "create", "-q", "-f", "qcow2", "-b", self.image, "-F", "raw", overlay])
        options = ["-f", "qcow2", "-b", ADDRESS, "-p", str(PORTS[NBD]), "-t", "--cache=writeback", "--aio=threads"]
        process = self.namespace.popen(["qemu-nbd", *options, overlay], log=log)
        try:
            self._until_listening(PORTS[NBD], process, log)
            yield PORTS[NBD]
        finally:
            stop_group(process)

    def _over_nbd(self, work: Work, port: int, warmup_s: float, seconds: float) -> Figures:
        settle(self.directory / "overlay.qcow2")
        words = fio.words(work, self._seed, self.size_bytes, warmup_s, seconds)
        more = ["--ioengine=nbd", f"--uri=nbd://{ADDRESS}:{port}/"]
        return fio.figures(work, tool(self.namespace, [*words, *more], limit_s=warmup_s + seconds + 120))


def cpu_s(pid: int) -> float:
    """User and system time of all threads of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_mib(pid: int) -> float:
    """What of the process is in memory now."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


def settle(file: Path) -> None:
    """Nobody begins with what another has left for the disk."""
    fd = os.open(file, os.O_RDONLY)
    try:
        os.fdatasync(fd)
    finally:
        os.close(fd)
