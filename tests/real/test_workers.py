"""A Linux host and QEMU on two volumes that have a process each: one of the processes is killed, again and again."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.real.conftest import check_volumes
from tests.real.test_daemon_crash import LOST, RECOVERY_LIMIT_S, fio_on
from tests.support.initiators import download, tool, upload, url
from tests.support.lund import BIN, MIB, Lund, wait_until
from tests.support.netns import Namespace
from tests.support.openiscsi import OpenIscsi
from tests.support.uml import UmlHost

VOLUMES = ("vol0", "vol1")
KILLS = 2
"""One more within a minute, and the volume stays offline."""


@pytest.fixture
def lund(namespace: Namespace, tmp_path: Path) -> Iterator[Lund]:
    """A front with two workers, and a LUN on each volume."""
    config = tmp_path / "lund.toml"
    config.write_text('workers = "volumes"\n')
    with Lund(namespace, tmp_path / "state", program=(BIN / "lund", "--config", config)) as daemon:
        for volume in VOLUMES:
            daemon.add_volume(volume, 256 * MIB)
            daemon.add_lun(f"/vol/{volume}/disk", 32 * MIB)
        yield daemon
    check_volumes(daemon)


def workers(lund: Lund, volume: str) -> list[int]:
    """The processes that have served it."""
    events = map(json.loads, lund.api.get("/v1/events").text.splitlines())
    return [e["data"]["pid"] for e in events if e["kind"] == "volume.worker.started" and e["subject"] == volume]


def session(lund: Lund, volume: str) -> tuple[int, float]:
    """What a new one would have otherwise."""
    (found,) = [each for each in lund.get("iscsi/sessions") if each["id"].startswith(f"{volume}.")]
    return found["tsih"], round(found["created_at"])


@pytest.mark.timeout(400)
def test_a_host_of_one_volume_notices_nothing_of_the_others_killed_process(
    lund: Lund, host: UmlHost, iscsi: OpenIscsi
) -> None:
    host.sh("dmesg --clear")
    assert sorted(iscsi.discover()) == sorted(lund.target(volume) for volume in VOLUMES)
    for volume in VOLUMES:
        iscsi.login(lund.target(volume))
    disks = [iscsi.disk(lund.target(volume)) for volume in VOLUMES]
    before = session(lund, "vol1")
    fios = [host.spawn(*fio_on(disk), "--loops=2", limit_s=240) for disk in disks]
    for _ in range(KILLS):
        assert all(fio.running for fio in fios)
        os.kill(workers(lund, "vol0")[-1], signal.SIGKILL)
        count = len(workers(lund, "vol0"))
        wait_until(lambda: len(workers(lund, "vol0")) > count, RECOVERY_LIMIT_S, "it is started again")  # noqa: B023
        target = lund.target("vol0")
        wait_until(lambda: iscsi.session_state(target) == "LOGGED_IN", RECOVERY_LIMIT_S, "the session is back")  # noqa: B023
    for fio in fios:
        fio.wait()
    assert session(lund, "vol1")[0] == before[0]
    assert abs(session(lund, "vol1")[1] - before[1]) <= 1
    assert len(workers(lund, "vol1")) == 1
    assert host.sh(f"dmesg | grep -iE '{LOST}' || true").out == ""


@pytest.mark.usefixtures("tools")
def test_libiscsi_and_qemu_find_both_volumes(lund: Lund, namespace: Namespace, tmp_path: Path) -> None:
    listed = tool(namespace, ["iscsi-ls", "-s", "iscsi://127.0.0.1"])
    assert all(lund.target(volume) in listed for volume in VOLUMES)
    contents = {volume: os.urandom(MIB).ljust(32 * MIB, b"\0") for volume in VOLUMES}
    for volume, content in contents.items():
        (tmp_path / volume).write_bytes(content)
        upload(namespace, tmp_path / volume, url(lund.target(volume)))
    for volume, content in contents.items():
        assert download(namespace, url(lund.target(volume)), tmp_path / "back") == content
