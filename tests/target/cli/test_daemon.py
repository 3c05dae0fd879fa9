"""lund as a process: one per state directory, refusals in one line, a clean end, settings that stay."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from target.daemon import main
from target.service_manager import BEAT_S, beat_s, notify
from tests.target.cli.conftest import DaemonProcess, Lun, environment

LIMIT_S = 120.0


def lund(*argv: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "target.daemon", *argv]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_a_second_lund_on_the_same_state_is_refused_in_one_line(daemon: DaemonProcess) -> None:
    second = lund("--state", str(daemon.directory), "--listen", "127.0.0.1:0", "--socket", str(daemon.socket) + "2")
    assert second.returncode == 1
    (line,) = second.stderr.splitlines()
    assert line.startswith("lund: already-running: ")
    assert str(daemon.process.pid) in line


def test_a_second_lund_on_the_same_volume_leaves_it_offline_and_says_why(lun: Lun, tmp_path: Path) -> None:
    image = lun.json("vol", "show", lun.volume)["path"]
    other = DaemonProcess(tmp_path / "other")
    try:
        line = Lun(other).refused("vol", "create", lun.volume, "--path", image, "--adopt")
        assert line.startswith("lun: volume-locked: ")
    finally:
        assert other.stop() == 0
    assert lun.json("vol", "show", lun.volume)["state"] == "online"


class Manager:
    """Starts a lund as systemd does, and hears what it is told."""

    def __init__(self, directory: Path, *shell: str, **environ: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(directory / "notify"))
        self._socket.settimeout(LIMIT_S)
        command = [sys.executable, "-m", "target.daemon", "--state", str(directory / "state")]
        env = {**environment(), "NOTIFY_SOCKET": str(directory / "notify"), **environ}
        self.log = (directory / "log").open("w+")
        self.process = subprocess.Popen(
            [*shell, *command, "--listen", "127.0.0.1:0"], env=env, stdout=self.log, stderr=self.log
        )

    def hears(self, *, until: str) -> list[str]:
        found: list[str] = []
        while until not in found:
            found.append(self._socket.recv(1000).decode())
        return found

    def __enter__(self) -> Manager:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        try:
            assert self.process.wait(LIMIT_S) == 0
        finally:
            self.process.kill()
            self.process.wait()
            self._socket.close()
            self.log.close()


def test_a_service_manager_hears_signs_of_life_and_is_asked_for_time_to_start_and_to_stop(tmp_path: Path) -> None:
    with Manager(tmp_path, WATCHDOG_USEC="20000") as manager:
        starting = manager.hears(until="READY=1")
        assert set(starting[:-1]) == {"WATCHDOG=1\nEXTEND_TIMEOUT_USEC=60000000"}
        for _ in range(3):
            assert manager.hears(until="WATCHDOG=1") == ["WATCHDOG=1"]
        manager.process.terminate()
        manager.hears(until="STOPPING=1")


@pytest.mark.parametrize(
    ("watchdog", "pid", "seconds"),
    [
        ("", "", BEAT_S), ("4000000", "", 2), ("4000000", "mine", 2), ("4000000", "1", BEAT_S),
        ("3600000000", "", BEAT_S), ("0", "", BEAT_S), ("-5", "", BEAT_S), ("soon", "", BEAT_S),
    ],
)  # fmt: skip
def test_signs_of_life_come_twice_in_the_time_of_the_watchdog(
    monkeypatch: pytest.MonkeyPatch, watchdog: str, pid: str, seconds: float
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", watchdog)
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()) if pid == "mine" else pid)
    assert beat_s() == seconds


def test_a_service_manager_that_takes_nothing_holds_up_no_sign_of_life(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "notify"
    monkeypatch.setenv("NOTIFY_SOCKET", str(path))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager, contextlib.suppress(BlockingIOError):
        manager.bind(str(path))
        manager.setblocking(False)
        for _ in range(10_000):  # far more than fit; each that waited would take seconds
            notify("WATCHDOG=1", wait_s=0)
        heard = 0
        while manager.recv(100) == b"WATCHDOG=1":
            heard += 1
    assert 0 < heard < 10_000


def test_a_lund_that_was_started_without_standard_files_opens_no_volume_in_their_place(tmp_path: Path) -> None:
    with Manager(tmp_path, "sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh") as manager:
        manager.hears(until="READY=1")
        files = Path("/proc", str(manager.process.pid), "fd")
        assert [os.readlink(files / str(number)) for number in range(3)] == ["/dev/null"] * 3


def test_workers_of_a_lund_that_is_gone_are_waited_for(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    (state / "lund.pid").write_text(f"{os.getpid()}\n")  # the number of the dead lund is another process's by now
    with (state / "lund.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        manager = Manager(tmp_path)
        assert manager.hears(until="EXTEND_TIMEOUT_USEC=75000000") == ["EXTEND_TIMEOUT_USEC=75000000"]
    with manager:
        manager.hears(until="READY=1")
        assert (state / "lund.pid").read_text() == f"{manager.process.pid}\n"


@pytest.mark.parametrize(
    ("text", "word"),
    [
        (b"[iscsi]\nlissten = []\n", "no such setting"),
        (b"[volumes]\ncache_mib = 0\n", "cache_mib"),
        (b"volumes = 3\n", "section"),
        (b"what is this", "line 1"),
        (b"\xff\xfe", "UTF-8"),
    ],
    ids=["misspelt", "out of range", "not a section", "not TOML", "not text"],
)
def test_a_bad_configuration_file_is_refused_in_one_line(
    tmp_path: Path, text: bytes, word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "lund.toml"
    config.write_bytes(text)
    assert main(["--state", str(tmp_path / "state"), "--config", str(config)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert word in line


def test_a_state_directory_that_is_a_file_is_refused_in_one_line(tmp_path: Path) -> None:
    file = tmp_path / "state"
    file.touch()
    done = lund("--state", str(file))
    assert done.returncode == 1
    assert done.stderr == f"lund: invalid-path: the state directory {file} is not a directory\n"


def test_an_address_that_cannot_be_had_is_refused_in_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = lund("--state", str(tmp_path / "state"), "--listen", address)
    assert done.returncode == 1
    assert address in done.stderr.splitlines()[-1]


def test_a_socket_path_that_is_too_long_is_refused(tmp_path: Path) -> None:
    done = lund("--state", str(tmp_path / "state"), "--listen", "127.0.0.1:0", "--socket", f"/tmp/{'x' * 120}")
    assert done.returncode == 1
    assert "too long" in done.stderr.splitlines()[-1]


def test_the_socket_is_for_its_owner_alone(daemon: DaemonProcess) -> None:
    assert stat.S_IMODE(os.stat(daemon.socket).st_mode) == 0o600


def test_a_stop_is_clean_and_everything_is_there_at_the_next_start(tmp_path: Path) -> None:
    first = DaemonProcess(tmp_path / "state")
    lun = Lun(first, "vol0")
    lun("vol", "create", "vol0", "-s", "64m")
    lun("create", "-s", "1m", lun.path("a"))
    lun("igroup", "create", "g", "*")
    lun("map", lun.path("a"), "g")
    before = lun.json("show"), lun.json("igroup", "show"), lun("iscsi", "nodename")
    last = max(int(line.split("\t")[0]) for line in lun("events").splitlines())
    assert first.stop() == 0
    assert not first.socket.exists()
    second = DaemonProcess(tmp_path / "state")
    try:
        lun = Lun(second, "vol0")
        assert (lun.json("show"), lun.json("igroup", "show"), lun("iscsi", "nodename")) == before
        assert all(int(line.split("\t")[0]) > last for line in lun("events").splitlines())
        assert "clean" not in lun("vol", "check", "vol0")
    finally:
        assert second.stop() == 0


def snapshots(lun: Lun) -> list[dict[str, object]]:
    """Without their share of what there is, which changes with what is written besides."""
    listed = lun.json("snap", "list", "vol0")
    return [{name: value for name, value in each.items() if not name.endswith("_bytes")} for each in listed]


def test_settings_survive_a_kill(tmp_path: Path) -> None:
    first = DaemonProcess(tmp_path / "state")
    lun = Lun(first, "vol0")
    lun("vol", "create", "vol0", "-s", "64m")
    lun("create", "-s", "1m", lun.path("a"))
    lun("snap", "create", "vol0", "s")
    before = lun.json("show"), snapshots(lun)
    first.process.kill()
    first.process.wait()
    second = DaemonProcess(tmp_path / "state")
    try:
        lun = Lun(second, "vol0")
        assert (lun.json("show"), snapshots(lun)) == before
    finally:
        assert second.stop() == 0


def test_a_body_that_is_too_large_is_refused(api: httpx.Client) -> None:
    answer = api.post("/v1/igroups", content=b"x" * (1 << 20))
    assert (answer.status_code, answer.json()["error"]) == (413, "too-large")


def test_a_body_that_grows_too_large_without_saying_so_is_refused(api: httpx.Client) -> None:
    answer = api.post("/v1/igroups", content=(b"x" * 65536 for _ in range(16)))
    assert (answer.status_code, answer.json()["error"]) == (413, "too-large")


def test_what_is_not_json_is_refused_in_one_line(api: httpx.Client) -> None:
    answer = api.post("/v1/igroups", content=b"{", headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["error"]) == (400, "invalid-argument")


def test_the_api_describes_itself(api: httpx.Client) -> None:
    document = api.get("/v1/openapi.json").json()
    assert "/v1/luns/{volume}/{lun}" in document["paths"]
    assert {"post", "get"} <= set(document["paths"]["/v1/volumes"])


def test_metrics_are_in_prometheus_format(api: httpx.Client, lun: Lun) -> None:
    lun("create", "-s", "1m", lun.path("a"))
    page = api.get("/metrics").text
    assert f'lund_volume_online{{volume="{lun.volume}"}} 1.0' in page
    assert f'lun="{lun.path("a")}"' in page


def test_events_are_followed_as_they_happen(api: httpx.Client, lun: Lun) -> None:
    with api.stream("GET", "/v1/events", params={"follow": True}) as answer:
        lines = answer.iter_lines()
        lun("create", "-s", "1m", lun.path("followed"))
        assert next(line for line in lines if "followed" in line)
