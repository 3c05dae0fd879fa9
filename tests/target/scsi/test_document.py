"""docs/protocol.md names tests that are there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
TEST = re.compile(r"`(test_\w+)`")
DEFINED = re.compile(r"^ *(?:async )?def (test_\w+)", re.MULTILINE)


def test_every_test_in_the_table_of_hosts_exists() -> None:
    named = set(TEST.findall((ROOT / "docs" / "protocol.md").read_text()))
    defined = {name for path in (ROOT / "tests").rglob("test_*.py") for name in DEFINED.findall(path.read_text())}
    assert len(named) > 30
    assert named - defined == set()
