"""libiscsi's tools: listing, INQUIRY, and the conformance suite on the kinds of LUN."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.iscsi_score import tally
from tests.real.conftest import check_volumes, unavailable_without
from tests.support.conformance import (
    CLONE,
    LARGER,
    NATIVE_4K,
    NOT_THIN,
    PROTECTED,
    QUICK_KINDS,
    REMOVABLE,
    RESERVED,
    RUN_LIMIT_S,
    TESTS_UNDER_ALL,
    THIN,
    USERS,
    Conformance,
    Run,
    skipped_everywhere,
)
from tests.support.initiators import tool, url
from tests.support.lund import MIB, Lund
from tests.support.netns import Namespace

LUN = "/vol/vol0/disk"
CRYPTOGRAPHIC = {"Sanitize.CryptoErase", "Sanitize.Readonly", "Sanitize.Reservations"}
"""Nothing is encrypted, so there is no cryptographic erase; the last two look at the other kinds all the same."""
MOVES_THE_MEDIUM = {
    "NoMedia.NoMediaSBC",
    *(f"PreventAllow.{name}" for name in (
        "Simple", "Eject", "ITNexusLoss", "Logout", "WarmReset", "ColdReset", "LUNReset", "2ITNexuses"
    )),
    *(f"StartStopUnit.{name}" for name in ("Simple", "PwrCnd", "NoLoej")),
}  # fmt: skip
READ_ONLY = {"ReadOnly.ReadOnlySBC"}
PARTS_OF_A_BLOCK = {
    "CompareAndWrite.InvalidDataOutSize",
    *(f"WriteSame{size}.{name}" for size in (10, 16) for name in ("InvalidDataOutSize", "UnmapUnaligned")),
}
"""Want a physical block that is larger than a logical one."""
ATOMIC_ALIGNMENT = {"WriteAtomic16.VPD"}
"""Wants an atomic write that is not aligned, where every block is."""
ZERO_BLOCKS = {"WriteSame10.ZeroBlocks", "WriteSame16.ZeroBlocks"}
"""Want WSNZ=0, which a LUN that takes UNMAP does not say."""
UNMAPS = {"GetLBAStatus.UnmapSingle", *(
    f"WriteSame{size}.{name}" for size in (10, 16)
    for name in ("Unmap", "UnmapUnaligned", "UnmapUntilEnd", "InvalidDataOutSize")
)}  # fmt: skip
ASKS_WITHIN_A_BLOCK = {"GetLBAStatus.UnmapSingle"}
"""Asks for LBA n + 1 and wants a descriptor that begins at n + 8, where 8 logical blocks are a physical one; SBC-3
5.5.2 has it begin at the LBA asked for, and QEMU's block layer takes anything else for an error."""

pytestmark = [pytest.mark.usefixtures("tools"), pytest.mark.timeout(RUN_LIMIT_S + 120)]


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


@pytest.fixture(scope="module")
def runs(namespace: Namespace, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """Every kind of LUN at once, by name; the volumes are whole afterwards."""
    unavailable_without("iscsi-test-cu", "qemu-io")
    directory = tmp_path_factory.mktemp("conformance")
    with Lund(namespace, directory / "state") as lund:
        suite = Conformance(namespace, lund, directory)
        found = suite.run(QUICK_KINDS)
        happened = suite.events(CLONE)
        assert lund.alive, lund.log()[-3000:]
    check_volumes(lund)
    report(Path(os.environ.get("LAZYLUN_REPORTS", directory)) / "iscsi-test-cu.txt", found)
    before_sanitize = happened[: happened.index("lun.erasure")]
    assert "lun.clone.started" in before_sanitize
    assert "lun.clone.completed" not in before_sanitize
    return found


def report(path: Path, runs: dict[str, Run]) -> None:
    with path.open("a") as out:
        for name, run in runs.items():
            print(f"{name}: {tally(run.scores)} in {run.seconds:.0f} s", file=out)
            for score in run.scores:
                if score.outcome != "pass":
                    print(f"    {score.outcome} {score.name}: {'; '.join(score.reasons)}", file=out)


@pytest.mark.parametrize("name", [THIN.name, RESERVED.name, CLONE.name])
def test_a_whole_run_has_no_failure(runs: dict[str, Run], name: str) -> None:
    run = runs[name]
    assert len(run.scores) == TESTS_UNDER_ALL
    assert run.failed == set()
    assert run.skipped == {*MOVES_THE_MEDIUM, *READ_ONLY, *PARTS_OF_A_BLOCK, *ZERO_BLOCKS, *CRYPTOGRAPHIC}


def test_a_physical_block_of_8_logical_ones(runs: dict[str, Run]) -> None:
    assert runs[LARGER.name].failed == ASKS_WITHIN_A_BLOCK
    assert runs[LARGER.name].skipped == ZERO_BLOCKS


def test_blocks_of_4096_bytes(runs: dict[str, Run]) -> None:
    assert runs[NATIVE_4K.name].failed == set()
    assert runs[NATIVE_4K.name].skipped == {*PARTS_OF_A_BLOCK, *ZERO_BLOCKS, *ATOMIC_ALIGNMENT}


def test_a_lun_without_thin_provisioning(runs: dict[str, Run]) -> None:
    assert runs[NOT_THIN.name].failed == set()
    assert runs[NOT_THIN.name].skipped == UNMAPS


@pytest.mark.parametrize("name", [REMOVABLE.name, PROTECTED.name, *(user.name for user in USERS)])
def test_what_another_kind_or_a_login_is_for(runs: dict[str, Run], name: str) -> None:
    assert runs[name].scores
    assert runs[name].failed == runs[name].skipped == set()


def test_no_test_is_skipped_everywhere_but_for_encryption(runs: dict[str, Run]) -> None:
    assert skipped_everywhere(runs.values()) == CRYPTOGRAPHIC
