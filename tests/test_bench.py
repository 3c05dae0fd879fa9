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

from scripts.bench import fio, many_luns, memory, plot, report
from scripts.bench.aims import AIMS
from scripts.bench.works import C_LOOP, LUND, TGT, WORKS, chosen
from scripts.bench_scale import daemon
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


def test_a_limit_holds_commands_back(client: Client) -> None:
    """The last of so many cannot begin before its time has come."""
    found = client("--limit", 200, "--commands", 60, "--depth", 8, "--sessions", 2)
    assert found["count"] == 60
    assert found["seconds"] > 0.2


def test_what_was_negotiated_is_told(client: Client) -> None:
    found = client("--commands", 1, "--read-percent", 0, "--bytes", 65536)
    assert (found["immediate_bytes"], found["segment_bytes"], found["burst_bytes"]) == (65536, 262144, 1048576)


def test_a_target_without_digests_is_not_measured_as_one_with(client: Client) -> None:
    refused = client("--digests", "--commands", 1, check=False)
    assert refused["exit"] == 1
    assert "no digests" in refused["said"]


def test_commands_reach_every_lun_that_they_are_meant_for(built: Path, tmp_path: Path) -> None:
    """On both sides of LUN 256, where flat addressing begins (SAM-5 4.7.7)."""
    first, luns = 254, 4
    many_luns.build(tmp_path / "vol0.img", SIZE, luns + 1)
    with daemon(tmp_path) as lund:
        lund.start()
        lund.ask("POST", "/volumes", {"name": "vol0", "path": str(tmp_path / "vol0.img"), "adopt": True})
        lund.ask("POST", "/igroups", {"name": "everyone", "initiators": ["*"]})
        disk, *small = lund.ask("GET", "/luns")
        for number, lun in ((0, disk), *enumerate(small, first)):
            lund.ask("POST", "/maps", {"path": lun["path"], "igroup": "everyone", "lun_id": number})
        site = many_luns.Site(many_luns.ONE, lund, luns, SIZE)
        site.enter()
        argv = [built / "lean_client", "--port", site.port, "--target", site.target, "--lun", first, "--luns", luns,
                "--size", many_luns.SMALL_BYTES, "--read-percent", 0, "--depth", 8,
                "--commands", luns * many_luns.SMALL_BYTES // 4096]  # fmt: skip
        done = subprocess.run(list(map(str, argv)), capture_output=True, text=True, timeout=LIMIT_S, check=False)
        assert done.returncode == 0, done.stderr
        with site.log_in("asks") as host:
            assert host.report_luns() == 1 + luns
        written = [lun["stats"]["write_bytes"] for lun in lund.ask("GET", "/luns")]
    # Beside the last of so many commands others are under way.
    assert written[0] == 0
    assert all(many_luns.SMALL_BYTES <= each < many_luns.SMALL_BYTES + 8 * 4096 for each in written[1:])


# --- works and report


def test_works_are_chosen_by_patterns_and_kept_in_order() -> None:
    assert [work.name for work in chosen(["write-4k-qd1", "read-4k-qd[13]*"])][:2] == ["read-4k-qd1", "read-4k-qd32"]
    assert all(work.rivals[0] == LUND for work in WORKS.values())
    with pytest.raises(ValueError, match="no work is called"):
        chosen(["reed-*"])


def test_fio_is_told_fractions_of_a_second() -> None:
    words = fio.words(WORKS["read-4k-qd32-host"], seed=1, size_bytes=1 << 20, warmup_s=0.25, seconds=1.4)
    assert {"--runtime=1400ms", "--ramp_time=250ms"} <= set(words)


def test_aims_are_of_works_and_rivals_that_there_are() -> None:
    for aim in AIMS:
        rivals = WORKS[aim.other or aim.work].rivals
        assert aim.rival in rivals
        assert aim.rival != LUND or aim.other


def test_an_aim_is_met_by_the_median_or_missed() -> None:
    def figures(*rates: float) -> list[dict[str, Any]]:
        return [{"rate": rate} for rate in rates]

    found = {
        "read-4k-qd32": {LUND: figures(300, 310, 200), TGT: figures(100, 100, 100)},
        "read-4k-qd32-s16": {LUND: figures(290, 300, 100)},
    }
    told = {(row[0], row[1]): row[2:] for row in report.aim_rows(found)}
    assert told == {
        ("read-4k-qd32", TGT): ["3", "3.00 (2.00-3.10)", "met"],
        ("read-4k-qd32-s16", "read-4k-qd32"): ["1", "0.97 (0.50-0.97)", "missed"],
    }


def test_every_work_has_its_place_in_the_report() -> None:
    found = {name: {LUND: [{"rate": 1.0, "mib_s": 1.0}]} for name in reversed(WORKS)}
    assert [name for names in report.grouped(found).values() for name in names] == list(WORKS)
    sides = plot.columns(report.grouped(found), found)
    assert [group for side in sides for group in side] == list(report.grouped(found))


def test_growth_is_the_slope_and_leaves_the_beginning_out() -> None:
    def sample(minutes: float, mib: float, phase: str = "mixed load") -> memory.Sample:
        return memory.Sample(phase, minutes, mib, mib, 6, 20)

    rising = [sample(0, 10, "at rest"), *(sample(minute, 100 + minute / 30) for minute in range(61))]
    assert memory.growth(memory.settled(rising)).mib_an_hour == pytest.approx(2)
    settling = [sample(minute, 40 if minute < 10 else 100) for minute in range(61)]
    found = memory.growth(memory.settled(settling))
    assert found.mib_an_hour == pytest.approx(0)
    assert [each.minutes for each in memory.rows(rising)] == [0, 0, 10, 30, 60]


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
