"""Real initiators of libiscsi and QEMU against a daemon: what they see, what they must prove."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import unavailable
from tests.target.cli.conftest import DaemonProcess, Lun

SECRET, WRONG = "correct-horse-battery", "wrong-horse-battery"
INQUIRER = "iqn.2007-10.com.github:sahlberg:libiscsi:iscsi-inq"


@pytest.fixture
def lun(tmp_path: Path) -> Iterator[Lun]:
    """A daemon of its own: accounts and igroups are for everybody."""
    for tool in ("iscsi-ls", "iscsi-inq", "qemu-img"):
        if shutil.which(tool) is None:
            unavailable(f"needs {tool}")
    process = DaemonProcess(tmp_path / "state")
    try:
        lun = Lun(process, "vol0")
        lun("vol", "create", "vol0", "-s", "64m")
        lun("create", "-s", "8m", lun.path("a"))
        lun("igroup", "create", "g", "*")
        lun("map", lun.path("a"), "g")
        yield lun
    finally:
        assert process.stop() == 0


def portal(lun: Lun) -> str:
    return str(lun.json("iscsi", "portal", "show")[0]["address"])


def url(lun: Lun, user: str = "") -> str:
    return f"iscsi://{user}{portal(lun)}/{lun.json('vol', 'show', 'vol0')['target']}/0"


def run(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)


def test_discovery_lists_the_target_and_its_lun(lun: Lun) -> None:
    done = run("iscsi-ls", "-s", f"iscsi://{portal(lun)}")
    assert lun.json("vol", "show", "vol0")["target"] in done.stdout
    assert "Lun:0" in done.stdout


def test_an_initiator_in_no_igroup_sees_no_target(lun: Lun) -> None:
    lun("igroup", "add", "g", "iqn.2000-01.com.example:somebody")
    lun("igroup", "remove", "-f", "g", "*")
    assert "Target" not in run("iscsi-ls", f"iscsi://{portal(lun)}").stdout
    assert run("iscsi-inq", url(lun)).returncode != 0
    assert any("nothing of" in line for line in lun("events").splitlines() if "iscsi.warning" in line)


def test_an_image_is_written_and_compared_by_qemu(lun: Lun, tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(range(256)) * (8 << 12))
    copied = run("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", str(image), url(lun))
    assert copied.returncode == 0, copied.stderr
    compared = run("qemu-img", "compare", "-f", "raw", "-F", "raw", str(image), url(lun))
    assert compared.returncode == 0, compared.stdout + compared.stderr
    (shown,) = lun.json("show", lun.path("a"))
    assert shown["stats"]["write_bytes"] >= 8 << 20


def test_a_wrong_secret_is_refused_as_an_authentication_failure_and_only_the_name_is_logged(
    lun: Lun, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_text(SECRET)
    lun("iscsi", "security", "add", "-i", INQUIRER, "-n", "user1", "--secret-file", str(secret))
    for user in ("", f"user1%{WRONG}@", f"nobody%{SECRET}@"):
        refused = run("iscsi-inq", url(lun, user))
        assert refused.returncode != 0
        assert "513" in refused.stderr + refused.stdout  # 0201h
    assert run("iscsi-inq", url(lun, f"user1%{SECRET}@")).returncode == 0
    log = lun.daemon.log.read_text()
    assert INQUIRER in log
    events = lun("events")
    assert any(INQUIRER in line for line in events.splitlines() if "iscsi.warning" in line)
    for text in (log, events):
        assert SECRET not in text
        assert WRONG not in text


def test_a_lun_that_is_offline_is_not_ready_and_comes_back(lun: Lun) -> None:
    lun("offline", lun.path("a"))
    assert run("qemu-img", "info", url(lun)).returncode != 0
    lun("online", lun.path("a"))
    assert run("qemu-img", "info", url(lun)).returncode == 0
