"""The test hosts themselves, with another target: what fails here is not lazylun's fault."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import unavailable
from tests.real.test_linux_host import fio_verify
from tests.support.netns import Namespace
from tests.support.openiscsi import OpenIscsi
from tests.support.tgt import TGTD, Tgt
from tests.support.uml import HostError, UmlHost


def test_a_host_uses_a_disk_of_another_target_and_leaves_nothing_behind(namespace: Namespace, tmp_path: Path) -> None:
    if shutil.which(TGTD) is None:
        unavailable("no tgtd")
    image = tmp_path / "disk.img"
    with image.open("wb") as file:
        file.truncate(256 << 20)
    with Tgt(namespace, image) as tgt, UmlHost(namespace, tmp_path) as host:
        iscsi = OpenIscsi(host)
        assert iscsi.discover() == [tgt.iqn]
        iscsi.login(tgt.iqn)
        disk = iscsi.disk(tgt.iqn, tgt.lun)
        host.run("mkfs.ext4", "-q", disk)
        host.sh(f"mkdir /mnt/disk; mount {disk} /mnt/disk")
        host.run(*fio_verify("/mnt/disk", "8M"))
        host.sh("umount /mnt/disk")
        host.run("e2fsck", "-f", "-n", disk)
        iscsi.logout(tgt.iqn)
    assert not host.alive
    assert tgt.process.poll() is not None
    subprocess.run(["e2fsck", "-f", "-n", image], check=True, capture_output=True)


def test_a_failing_command_in_a_host_is_an_error_with_its_output(guest: UmlHost) -> None:
    with pytest.raises(HostError, match="no such luck"):
        guest.sh("echo no such luck >&2; exit 3")


def test_a_command_that_takes_too_long_is_ended(guest: UmlHost) -> None:
    assert guest.run("sleep", "60", limit_s=0.5, check=False).code == 124


def test_two_hosts_run_side_by_side(guest: UmlHost, namespace: Namespace, tmp_path: Path) -> None:
    with UmlHost(namespace, tmp_path) as second:
        slow = guest.spawn("sleep", "1")
        assert second.run("cat", "/etc/iscsi/initiatorname.iscsi").out.strip().endswith(second.initiator)
        assert second.portal != guest.portal
        slow.wait()
