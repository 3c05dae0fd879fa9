"""libiscsi's tools: listing, INQUIRY, and the conformance suite."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.iscsi_score import parse, tally
from tests.support.initiators import tool, url
from tests.support.lund import MIB, Lund
from tests.support.netns import Namespace

LUN = "/vol/vol0/disk"
TESTS_UNDER_ALL = 230
SUITE_LIMIT_S = 240

pytestmark = pytest.mark.usefixtures("tools")


@pytest.fixture
def disk(lund: Lund) -> Iterator[str]:
    lund.add_lun(LUN, 256 * MIB)
    yield url(lund.target())
    assert lund.alive, lund.log()[-3000:]


def test_iscsi_ls_lists_the_lun_with_its_size(disk: str, lund: Lund, namespace: Namespace) -> None:
    listing = tool(namespace, ["iscsi-ls", "--show-luns", "iscsi://127.0.0.1:3260"])
    assert f"Target:{lund.target()}" in listing
    assert "Type:DIRECT_ACCESS" in listing
    assert "Lun:0" in listing


@pytest.mark.parametrize("page", [None, 0x00, 0x80, 0x83, 0xB0, 0xB1, 0xB2])
def test_iscsi_inq_reads_every_page_it_knows(disk: str, namespace: Namespace, page: int | None) -> None:
    options = [] if page is None else ["--evpd=1", f"--pagecode={page}"]
    assert tool(namespace, ["iscsi-inq", *options, disk])


def test_serial_number_page_carries_the_lun_s_serial(disk: str, lund: Lund, namespace: Namespace) -> None:
    serial = lund.get("luns/vol0/disk")["serial"]
    assert serial in tool(namespace, ["iscsi-inq", "--evpd=1", "--pagecode=128", disk])


@pytest.mark.timeout(SUITE_LIMIT_S + 60)
def test_the_conformance_suite_runs_to_its_end(disk: str, lund: Lund, namespace: Namespace, tmp_path: Path) -> None:
    log = tmp_path / "iscsi-test-cu.log"
    with log.open("w") as out:
        namespace.run(
            ["iscsi-test-cu", "--dataloss", "-t", "ALL", "-V", disk],
            timeout_s=SUITE_LIMIT_S, capture_output=False, stdout=out, stderr=subprocess.STDOUT,
        )  # fmt: skip
    scores = parse(log.read_text(errors="replace"))
    counts = tally(scores)
    failed = [f"{score.name}: {'; '.join(score.reasons)}" for score in scores if score.outcome != "pass"]
    report = Path(os.environ.get("LAZYLUN_REPORTS", tmp_path)) / "iscsi-test-cu.txt"
    report.write_text(f"{counts}\n" + "\n".join(failed) + "\n")
    print(counts)
    assert len(scores) == TESTS_UNDER_ALL
    assert counts["none"] == 0
    assert lund.alive
