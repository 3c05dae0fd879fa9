"""The main story: a Linux host uses a LUN while it is cloned from a snapshot underneath."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.real.test_linux_host import fio_verify
from tests.support.initiators import download, url
from tests.support.lund import MIB, Lund, Refused
from tests.support.netns import Namespace
from tests.support.openiscsi import OpenIscsi
from tests.support.uml import UmlHost

GOLDEN, CLONE, SECOND = "/vol/vol0/golden", "/vol/vol0/clone", "/vol/vol0/second"
BACKING = "/vol/vol0/.snapshot/base/golden"
# Slow enough that the host is at work during the whole clone, fast enough for a test.
CLONE_RATE = "8m"
# What the kernel writes when a disk is not what it was, or not there for a moment.
TROUBLE = "error|unit attention|attention|changed|reset|abort|offline|timing out|timed out"
IDENTITY = ("serial", "naa", "uuid", "size_bytes")


def fill_golden(lund: Lund, host: UmlHost, iscsi: OpenIscsi) -> str:
    """A file system with known files on the golden LUN; the checksums, as sha256sum writes them."""
    lund.add_lun(GOLDEN, 256 * MIB)
    iscsi.login(lund.target())
    disk = iscsi.disk(lund.target(), 0)
    host.run("mkfs.ext4", "-q", "-F", disk)
    host.sh(
        f"mkdir -p /mnt/disk; mount {disk} /mnt/disk; cd /mnt/disk;"
        "for i in $(seq 8); do head -c 12M /dev/urandom > file$i; done; sync; sha256sum file* > /tmp/sums;"
        "cp /tmp/sums sums; cd /; umount /mnt/disk; blockdev --flushbufs " + disk,
        limit_s=120,
    )
    return host.sh("cat /tmp/sums").out


def logged_in_disk(lund: Lund, iscsi: OpenIscsi, path: str, lun_id: int) -> str:
    lund.map(path, lun_id=lun_id)
    iscsi.rescan()
    return iscsi.disk(lund.target(), lun_id)


def image(namespace: Namespace, lund: Lund, lun_id: int, tmp_path: Path) -> bytes:
    return download(namespace, url(lund.target(), lun_id), tmp_path / f"lun{lun_id}.img")


@pytest.mark.timeout(600)
def test_a_host_works_on_a_lun_while_it_is_cloned(
    lund: Lund, host: UmlHost, iscsi: OpenIscsi, namespace: Namespace, tmp_path: Path, tools: None
) -> None:
    sums = fill_golden(lund, host, iscsi)
    golden = image(namespace, lund, 0, tmp_path)

    lund.lun("snap", "create", "vol0", "base")
    lund.lun("create", "-b", BACKING, CLONE)
    lund.lun("create", "-b", BACKING, SECOND)
    disk = logged_in_disk(lund, iscsi, CLONE, 1)
    identity = lund.get("luns/vol0/clone")

    # The golden LUN goes on with a life of its own: the clones must not see it.
    golden_disk = iscsi.disk(lund.target(), 0)
    host.sh(f"mount {golden_disk} /mnt/disk; cd /mnt/disk; rm file3; sha256sum file1 >changed; cd /; umount /mnt/disk")
    golden_after = image(namespace, lund, 0, tmp_path)
    assert golden_after != golden

    host.sh(f"dmesg --clear; mkdir -p /mnt/clone; mount {disk} /mnt/clone")
    work = host.spawn(*fio_verify("/mnt/clone", seconds=15), limit_s=180)
    lund.lun("clone", "start", "--limit", CLONE_RATE, CLONE)
    with pytest.raises(Refused) as busy:
        lund.lun("snap", "delete", "vol0", "base")
    assert busy.value.name == "snapshot-busy"
    assert set(busy.value.holders) == {CLONE, SECOND}
    assert lund.clone_status(CLONE)["state"] == "running"
    assert work.running, work.wait(check=False)
    lund.wait_for_clone(CLONE)
    work.wait()
    noticed = host.sh(f"dmesg | grep -iE '{TROUBLE}' || true").out
    assert noticed == "", "the host noticed something"

    assert_same_files(host, "/mnt/clone", sums)
    host.sh("umount /mnt/clone")
    host.run("e2fsck", "-f", "-n", disk)
    after = lund.get("luns/vol0/clone")
    assert after["backing"] is None
    assert {field: after[field] for field in IDENTITY} == {field: identity[field] for field in IDENTITY}
    clone_image = image(namespace, lund, 1, tmp_path)

    # The second clone still holds the snapshot, alone, and still is the golden LUN of that moment.
    lund.map(SECOND, lun_id=2)
    assert image(namespace, lund, 2, tmp_path) == golden
    with pytest.raises(Refused) as busy:
        lund.lun("snap", "delete", "vol0", "base")
    assert busy.value.holders == [SECOND]
    lund.lun("clone", "start", SECOND)
    lund.wait_for_clone(SECOND)
    lund.lun("snap", "delete", "vol0", "base")
    assert lund.get("volumes/vol0/snapshots") == []

    iscsi.logout(lund.target())
    lund.restart()
    assert image(namespace, lund, 0, tmp_path) == golden_after
    assert image(namespace, lund, 1, tmp_path) == clone_image
    assert image(namespace, lund, 2, tmp_path) == golden
    iscsi.login(lund.target())
    disk = iscsi.disk(lund.target(), 1)
    host.sh(f"mount -o ro {disk} /mnt/clone")
    assert_same_files(host, "/mnt/clone", sums)


def assert_same_files(host: UmlHost, directory: str, sums: str) -> None:
    """Read again from the LUN, not from the guest's page cache."""
    found = host.sh(f"cd {directory}; sync; echo 3 > /proc/sys/vm/drop_caches; sha256sum file*", limit_s=120).out
    assert found == sums


def test_a_stopped_clone_keeps_its_snapshot_and_goes_on_later(
    lund: Lund, host: UmlHost, iscsi: OpenIscsi, namespace: Namespace, tmp_path: Path, tools: None
) -> None:
    fill_golden(lund, host, iscsi)
    golden = image(namespace, lund, 0, tmp_path)
    lund.lun("snap", "create", "vol0", "base")
    lund.lun("create", "-b", BACKING, CLONE)
    lund.lun("clone", "start", "--limit", "4m", CLONE)
    lund.lun("clone", "stop", CLONE)
    assert lund.clone_status(CLONE)["state"] == "stopped"
    with pytest.raises(Refused):
        lund.lun("snap", "delete", "vol0", "base")
    lund.restart()
    assert lund.clone_status(CLONE)["state"] != "running"
    lund.map(CLONE, lun_id=1)
    assert image(namespace, lund, 1, tmp_path) == golden
    lund.lun("clone", "start", CLONE)
    lund.wait_for_clone(CLONE)
    lund.lun("snap", "delete", "vol0", "base")
    assert image(namespace, lund, 1, tmp_path) == golden
