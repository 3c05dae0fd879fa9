"""docs/protocol.md says what the code says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from target.iscsi import limits
from target.iscsi.keys import TABLE, Key
from target.iscsi.text import format_boolean
from target.portal import logs, transport

TEXT = (Path(__file__).resolve().parents[3] / "docs" / "protocol.md").read_text()
ROWS = {cells[0]: cells for line in TEXT.splitlines() if (cells := [c.strip() for c in line.strip("| ").split("|")])}


NAMED = re.findall(r"`([\w/]+\.py)::(\w+)`", TEXT)
TESTS = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(("file", "test"), NAMED, ids=[f"{file}::{test}" for file, test in NAMED])
def test_a_test_that_is_named_exists(file: str, test: str) -> None:
    assert f"\ndef {test}(" in (TESTS / file).read_text()


def shown(value: object) -> str:
    if isinstance(value, bool):
        return format_boolean(value)
    if isinstance(value, tuple):
        return ", ".join(value)
    return "" if value is None else str(value)


@pytest.mark.parametrize("key", TABLE, ids=lambda k: k.name)
def test_the_row_of_each_key_is_the_tables(key: Key) -> None:
    row = [*ROWS[key.name], "", ""]
    assert row[1] == key.result.name.lower().replace("_", " ")
    assert row[5:7] == [shown(key.default), shown(key.ours)]


def test_the_limits_that_are_named_exist() -> None:
    section = TEXT.partition("## Bad input")[2].partition("\n## ")[0]
    named = set(re.findall(r"`([A-Z][A-Z_]+)`", section))
    assert len(named) > 10
    assert named <= set(vars(limits)) | set(vars(logs)) | set(vars(transport))


def test_the_numbers_in_the_text_are_the_limits() -> None:
    assert f"ExpCmdSN + 1 is {limits.COMMAND_WINDOW} less" in TEXT
    assert f"At most {limits.IMMEDIATE_COMMANDS} immediate" in TEXT
    assert f"After {limits.NOP_INTERVAL_S:.0f} s of silence" in TEXT
    assert f" asks; {limits.NOP_TIMEOUT_S:.0f} s later" in TEXT
    assert f"Of {limits.CONNECTIONS_LOGGING_IN} connections that have not" in TEXT
    assert f"logged in, {limits.CONNECTIONS_LOGGING_IN_PER_SOURCE} from one address" in TEXT
    assert f"each has {limits.LOGIN_TIMEOUT_S:.0f} s" in TEXT
    assert f"over {limits.MAX_RECV_DATA_SEGMENT_BYTES // 1024} KiB" in TEXT
