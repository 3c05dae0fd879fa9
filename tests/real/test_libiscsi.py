"""libiscsi's tools: listing, INQUIRY, and the conformance suite over the kinds of LUN."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from scripts.iscsi_score import Score, parse, tally
from tests.support.initiators import qemu_io, tool, url
from tests.support.lund import MIB, Lund
from tests.support.netns import Namespace

LUN, CLONE = "/vol/vol0/disk", "/vol/vol0/clone"
TESTS_UNDER_ALL = 230
SUITE_LIMIT_S = 240
TOOLS_FAULT = {"GetLBAStatus.UnmapSingle": "fail"}
"""Asks for LBA n + 1 and wants a descriptor that begins at n + 8, on any LUN with 8 logical blocks in a physical one;
SBC-3 5.5.2 has it begin at the LBA asked for, and QEMU's block layer takes anything else for an error.  Passes with
blocks of 4096 bytes."""
NOT_OFFERED = {"WriteSame10.ZeroBlocks": "skip", "WriteSame16.ZeroBlocks": "skip"}
"""WSNZ=1, which these look at before they give up.  With WSNZ=0, WriteSame10.UnmapUntilEnd sends 0xFF with the UNMAP
bit and wants zeros back."""
ELSEWHERE = ("NoMedia.", "PreventAllow.", "ReadOnly.", "StartStopUnit.", "Sanitize.")
"""Families that want another kind of LUN, or leave to erase it."""
NOTHING_SMALLER = ("LBPPB < 2", "No alignment restrictions")
"""Why tests of blocks smaller than a physical one are skipped where there are none."""
CRYPTOGRAPHIC = {f"Sanitize.{name}": "skip" for name in ("CryptoErase", "Readonly", "Reservations")}
"""There is no cryptographic erase; the last two look at the other kinds all the same."""
SANITIZE_TESTS = (
    "BlockErase", "BlockEraseReserved", "CryptoErase", "CryptoEraseReserved", "ExitFailureMode",
    "InvalidServiceAction", "Overwrite", "OverwriteReserved", "Readonly", "Reservations",
)  # fmt: skip
DATA_FAMILIES = ("CompareAndWrite", "ExtendedCopy", "GetLBAStatus", "OrWrite", "Unmap", "Verify16", "WriteSame16")
"""What the kind of LUN can make a difference to."""

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


# --- the conformance suite --------------------------------------------------------------------------------------------


@dataclass
class Suite:
    """iscsi-test-cu on one LUN, with two sessions."""

    namespace: Namespace
    lund: Lund
    directory: Path

    def run(self, tests: str, lun_id: int, *options: str) -> list[Score]:
        log = self.directory / f"{tests}-{lun_id}.log"
        disk = url(self.lund.target(), lun_id)
        with log.open("w") as out:
            self.namespace.run(
                ["iscsi-test-cu", "--dataloss", *options, "-t", tests, "-V", disk, disk],
                timeout_s=SUITE_LIMIT_S, capture_output=False, stdout=out, stderr=subprocess.STDOUT,
            )  # fmt: skip
        scores = parse(log.read_text(errors="replace"))
        self._report(f"{tests} on LUN {lun_id}", scores)
        return scores

    def families(self, families: Sequence[str], lun_id: int, *options: str) -> list[Score]:
        return [score for family in families for score in self.run(f"SCSI.{family}", lun_id, *options)]

    def _report(self, title: str, scores: list[Score]) -> None:
        report = Path(os.environ.get("LAZYLUN_REPORTS", self.directory)) / "iscsi-test-cu.txt"
        with report.open("a") as out:
            print(title, tally(scores), file=out)
            for score in scores:
                if score.outcome != "pass":
                    print(f"    {score.outcome} {score.name}: {'; '.join(score.reasons)}", file=out)


@pytest.fixture
def suite(lund: Lund, namespace: Namespace, tmp_path: Path) -> Iterator[Suite]:
    yield Suite(namespace, lund, tmp_path)
    assert lund.alive, lund.log()[-3000:]


def not_passed(scores: list[Score]) -> dict[str, str]:
    return {score.name: score.outcome for score in scores if score.outcome != "pass"}


def patch(lund: Lund, path: str, **properties: bool) -> None:
    answer = lund.api.patch(f"/v1/luns/{path.removeprefix('/vol/')}", json=properties)
    assert answer.is_success, answer.text


@pytest.mark.timeout(SUITE_LIMIT_S + 60)
def test_the_conformance_suite_on_a_thin_lun(suite: Suite, lund: Lund) -> None:
    lund.add_lun(LUN, 256 * MIB)
    scores = suite.run("ALL", 0)
    assert len(scores) == TESTS_UNDER_ALL
    assert {name: outcome for name, outcome in not_passed(scores).items() if not name.startswith(ELSEWHERE)} == {
        **TOOLS_FAULT, **NOT_OFFERED
    }


@pytest.mark.parametrize("clone_runs", [False, True], ids=["reserved", "clone"])
def test_reading_writing_and_provisioning(suite: Suite, lund: Lund, clone_runs: bool) -> None:
    lund.add_lun(LUN, 256 * MIB, reserved=True)
    lun_id = 0
    if clone_runs:
        qemu_io(suite.namespace, url(lund.target()), "write -P 7 0 128M")
        lund.lun("clone", "create", CLONE, "-b", LUN)
        lund.map(CLONE, lun_id=1)
        lund.lun("clone", "start", "--limit", "1m", CLONE)
        lun_id = 1
    scores = suite.families(DATA_FAMILIES, lun_id)
    assert not_passed(scores) == {**TOOLS_FAULT, "WriteSame16.ZeroBlocks": "skip"}
    if clone_runs:
        assert lund.clone_status(CLONE)["state"] == "running"


def test_a_removable_lun(suite: Suite, lund: Lund) -> None:
    lund.add_lun(LUN, 64 * MIB)
    patch(lund, LUN, removable=True)
    assert not_passed(suite.families(["NoMedia", "PreventAllow", "StartStopUnit"], 0)) == {}


def test_a_write_protected_lun(suite: Suite, lund: Lund) -> None:
    lund.add_lun(LUN, 64 * MIB)
    patch(lund, LUN, write_protected=True)
    assert not_passed(suite.families(["ReadOnly"], 0)) == {}


def test_a_lun_of_4096_byte_blocks(suite: Suite, lund: Lund) -> None:
    lund.post("luns", path=LUN, size_bytes=256 * MIB, block_bytes=4096, reserved=False)
    lund.map(LUN)
    scores = suite.families([*DATA_FAMILIES, "WriteAtomic16"], 0)
    unaligned = {score.name for score in scores if any(word in " ".join(score.reasons) for word in NOTHING_SMALLER)}
    found = {name: outcome for name, outcome in not_passed(scores).items() if name not in unaligned}
    assert found == {"WriteSame16.ZeroBlocks": "skip"}


def test_sanitize(suite: Suite, lund: Lund) -> None:
    """Without Sanitize.Reset, which sleeps a minute: tests/target/scsi/test_erasure.py has what it looks at."""
    lund.add_lun(LUN, 32 * MIB)
    scores = suite.families([f"Sanitize.{name}" for name in SANITIZE_TESTS], 0, "--allow-sanitize")
    assert not_passed(scores) == CRYPTOGRAPHIC
