"""The tools of `make bench`: what they report is what happened."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from scripts.bench import report
from scripts.bench.works import C_LOOP, LUND, TGT, WORKS, chosen
from tests.conftest import unavailable
from tests.support.netns import stop_group

SOURCES = Path(__file__).resolve().parent.parent / "scripts/bench"
SIZE = 1 << 20
LIMIT_S = 60

Client = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs without libiscsi, compiled."""
    if shutil.which("gcc") is None:
        unavailable("gcc")
    directory = tmp_path_factory.mktemp("bench")
    for name, parts in (("lean_client", ("common.c", "crc32c.c")), ("bare_target", ())):
        sources = [SOURCES / f"{name}.c", *(SOURCES / part for part in parts)]
        subprocess.run(["gcc", "-O1", "-std=gnu11", "-o", directory / name, *sources], check=True)
    return directory


@pytest.fixture(params=["C", "Python"])
def client(request: pytest.FixtureRequest, built: Path, tmp_path: Path) -> Iterator[Client]:
    """The lean client, on a bare target over a file of zeros."""
    disk = tmp_path / "disk.img"
    disk.write_bytes(bytes(SIZE))
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    program = [built / "bare_target"] if request.param == "C" else [sys.executable, SOURCES / "bare_target.py"]
    process = subprocess.Popen([*program, str(port), disk], start_new_session=True)
    deadline = time.monotonic() + LIMIT_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            break
        except ConnectionRefusedError:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def run(*arguments: object, check: bool = True) -> dict[str, Any]:
        argv = [built / "lean_client", "--port", port, "--target", "iqn.2026-01.test:disk", "--size", SIZE, *arguments]
        done = subprocess.run(
            list(map(str, argv)), capture_output=True, text=True, timeout=LIMIT_S, check=False
        )
        if not check:
            return {"exit": done.returncode, "said": done.stderr}
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return {**found, "pid": process.pid}

    yield run
    stop_group(process)


def test_it_counts_what_it_did(client: Client, tmp_path: Path) -> None:
    blocks = SIZE // 4096
    found = client("--read-percent", 0, "--commands", blocks, "--depth", 8, "--sessions", 2)
    assert (found["count"], found["reads"]) == (blocks, 0)
    data = (tmp_path / "disk.img").read_bytes()
    assert all(any(data[at : at + 4096]) for at in range(0, SIZE, 4096)), "each place once"
    assert client("--commands", 100)["reads"] == 100


def test_a_stride_leaves_every_second_block_alone(client: Client, tmp_path: Path) -> None:
    client("--read-percent", 0, "--commands", SIZE // 8192, "--depth", 4, "--sequential", "--stride", 2)
    data = (tmp_path / "disk.img").read_bytes()
    assert [bool(any(data[at : at + 4096])) for at in range(0, SIZE, 4096)] == [True, False] * (SIZE // 8192)


@pytest.mark.parametrize("length", [65536, 512 << 10])
def test_long_commands_in_several_pieces(client: Client, tmp_path: Path, length: int) -> None:
    """Beyond 256 KiB a write is asked for by R2T, a read comes in several Data-In."""
    client("--read-percent", 0, "--commands", SIZE // length, "--bytes", length, "--sequential", "--depth", 2)
    data = (tmp_path / "disk.img").read_bytes()
    assert all(any(data[at : at + 4096]) for at in range(0, SIZE, 4096))
    assert client("--commands", 10, "--bytes", length)["reads"] == 10


def test_a_mix_and_flushes(client: Client) -> None:
    found = client("--read-percent", 70, "--commands", 1000, "--depth", 16)
    assert 600 < found["reads"] < 800
    assert client("--read-percent", 0, "--flush", "--commands", 50, "--depth", 4)["count"] == 50


def test_latencies_are_in_order_and_cpu_time_is_of_the_process_that_was_named(client: Client) -> None:
    found = client("--seconds", 0.3, "--warmup", 0.1, "--depth", 4, "--pid", os.getpid())
    assert 0 < found["p50_us"] <= found["p90_us"] <= found["p99_us"] <= found["p999_us"] <= found["max_us"]
    assert found["rate"] * found["seconds"] == pytest.approx(found["count"], rel=1e-3)
    assert client("--commands", 2000, "--pid", client("--commands", 1)["pid"])["target_cpu_us"] > 0


def test_a_target_without_digests_is_not_measured_as_one_with(client: Client) -> None:
    refused = client("--digests", "--commands", 1, check=False)
    assert refused["exit"] == 1
    assert "no digests" in refused["said"]


# --- works and report


def test_works_are_chosen_by_patterns_and_kept_in_order() -> None:
    assert [work.name for work in chosen(["write-4k-qd1", "read-4k-qd[13]*"])][:2] == ["read-4k-qd1", "read-4k-qd32"]
    assert all(work.rivals[0] == LUND for work in WORKS.values())
    with pytest.raises(ValueError, match="no work is called"):
        chosen(["reed-*"])


def test_ratios_are_taken_round_by_round(tmp_path: Path) -> None:
    work = WORKS["read-4k-qd32"]
    ours = [{"rate": rate, "p50_us": 1.0} for rate in (100.0, 300.0, 80.0)]
    theirs = [{"rate": rate} for rate in (50.0, 100.0, 80.0)]
    found = report.ratio(work, ours, theirs)
    assert (found.median, found.low, found.high) == (2, 1, 3)
    path = tmp_path / "found.json"
    report.write_json(path, {"cores": 2}, {work.name: {LUND: ours, TGT: theirs, C_LOOP: ours}})
    told = json.loads(path.read_text())
    assert told["works"][work.name]["ratio"][TGT] == {"median": 2, "low": 1, "high": 3}
    report.write_markdown(path, {"cores": 2}, {work.name: {LUND: ours, TGT: theirs}})
    assert "| 2.00 (1.00-3.00) |" in path.read_text()
