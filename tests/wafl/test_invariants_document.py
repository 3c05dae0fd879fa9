"""docs/invariants.md names tests that exist, and numbers its invariants without gaps."""

from __future__ import annotations

import re
from itertools import groupby
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = (ROOT / "docs" / "invariants.md").read_text()
NAMED = sorted(set(re.findall(r"`([\w/]+\.py)::(\w+)`", DOCUMENT)))
NUMBERS = re.findall(r"^\| ([A-Z])(\d+) \|.*\|$", DOCUMENT, re.MULTILINE)
ROWS = re.findall(r"^\| [A-Z]\d+ \|.*\|$", DOCUMENT, re.MULTILINE)


@pytest.mark.parametrize(("file", "test"), NAMED, ids=[f"{file}::{test}" for file, test in NAMED])
def test_the_guarding_test_exists(file: str, test: str) -> None:
    source = (ROOT / "tests" / file).read_text()
    assert re.search(rf"^(def {test}\(|{test} = )", source, re.MULTILINE)


def test_invariants_are_numbered_without_gaps() -> None:
    for _, numbers in groupby(NUMBERS, key=lambda number: number[0]):
        found = [int(number) for _, number in numbers]
        assert found == list(range(1, len(found) + 1))


@pytest.mark.parametrize("row", ROWS, ids=[row.split("|")[1].strip() for row in ROWS])
def test_every_invariant_has_a_reason_and_a_guard(row: str) -> None:
    _, _, invariant, reason, guards, _ = (cell.strip() for cell in row.split("|"))
    assert invariant
    assert reason
    assert "::" in guards
