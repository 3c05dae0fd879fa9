"""The unit file that docs/operating.md speaks of, as systemd reads it."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from target.iscsi import limits
from target.workers.watchdog import HUNG_S
from tests.support.lund import BIN

UNIT = Path(__file__).resolve().parent.parent / "scripts" / "lund.service"


@pytest.fixture
def systemd(need: Callable[[str, bool], None]) -> None:
    need("systemd-analyze (make debian)", shutil.which("systemd-analyze") is not None)


def verified(directory: Path, text: str) -> str:
    """What systemd finds wrong with it.  The program has to be there, so it is the one beside this interpreter."""
    unit = directory / "lund.service"
    unit.write_text(text.replace("/opt/lazylun/bin/lund", str(BIN / "lund")))
    command = ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", str(unit)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    return done.stderr + (f"exit status {done.returncode}" if done.returncode else "")


@pytest.mark.usefixtures("systemd")
def test_systemd_finds_nothing_wrong_with_it(tmp_path: Path) -> None:
    assert verified(tmp_path, UNIT.read_text()) == ""


@pytest.mark.usefixtures("systemd")
def test_systemd_would_find_it(tmp_path: Path) -> None:
    assert "WatchdogSeconds" in verified(tmp_path, UNIT.read_text().replace("WatchdogSec", "WatchdogSeconds"))
    assert "kill mode" in verified(tmp_path, UNIT.read_text().replace("KillMode=mixed", "KillMode=mixd"))


def test_its_limits_are_those_of_the_program() -> None:
    said = dict(re.findall(r"^(\w+)=(\d+)$", UNIT.read_text(), re.MULTILINE))
    assert int(said["WatchdogSec"]) == HUNG_S
    assert int(said["LimitNOFILE"]) == 2 * limits.CONNECTIONS
