"""scripts/iscsi_score.py on the shapes that iscsi-test-cu 1.19.0 writes."""

from __future__ import annotations

from scripts.iscsi_score import Score, parse, tally

LOG = """\
    [OK] MODESENSE6 returned SUCCESS NO SENSE(0x00) (null)(0x0000)

Suite: CompareAndWrite
  Test: Simple ...
    Send COMPAREANDWRITE (Expecting SUCCESS) LBA:0 LEN:1024 WRPROTECT:0
    [SKIPPED] COMPAREANDWRITE is not implemented.
passed
  Test: InvalidDataOutSize ...    [SKIPPED] Logical unit is fully provisioned. Skipping test
passed    Send PRIN/READ_KEYS

Suite: GetLBAStatus
  Test: BeyondEol ...
    [FAILED] GET_LBA_STATUS successful but should have failed with ILLEGAL_REQUEST(0x05)
FAILED
    1. test_get_lba_status_beyond_eol.c:38  - CU_ASSERT_EQUAL(_r,0)
Suite: iSCSITMF
  Test: LUNResetSimpleAsync ...passed
  Test: Hangs ...
    Send READ10
"""


def outcome(name: str) -> Score:
    return next(score for score in parse(LOG) if score.name == name)


def test_a_skip_that_the_tool_calls_passed_is_a_skip() -> None:
    assert outcome("CompareAndWrite.Simple").outcome == "skip"
    assert outcome("CompareAndWrite.InvalidDataOutSize").outcome == "skip"


def test_messages_may_begin_with_the_time() -> None:
    stamped = "Suite: A\n  Test: B ...\n    2026-11-26 03:22:20.660080     [SKIPPED] Not an iSCSI device.\npassed\n"
    assert parse(stamped) == [Score("A.B", "skip", ["Not an iSCSI device."], skipped=True)]


def test_a_failed_test_carries_its_message_and_assertion() -> None:
    score = outcome("GetLBAStatus.BeyondEol")
    assert score.outcome == "fail"
    assert score.reasons[1] == "test_get_lba_status_beyond_eol.c:38: CU_ASSERT_EQUAL(_r,0)"


def test_a_verdict_on_the_line_of_the_test_counts() -> None:
    assert outcome("iSCSITMF.LUNResetSimpleAsync").outcome == "pass"


def test_a_test_without_a_verdict_is_never_counted_as_passed() -> None:
    assert outcome("iSCSITMF.Hangs").outcome == "none"
    assert tally(parse(LOG)) == {"pass": 1, "skip": 2, "fail": 1, "none": 1}
