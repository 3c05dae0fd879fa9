"""A Linux host whose LUN goes back to a snapshot while it stays logged in."""

from __future__ import annotations

import pytest

from tests.real.test_lazy_clone import assert_same_files
from tests.support.lund import MIB, Lund, Refused
from tests.support.openiscsi import OpenIscsi
from tests.support.uml import UmlHost

LUN = "/vol/vol0/db"
IDENTITY = ("serial", "naa", "uuid", "maps", "size_bytes")


@pytest.mark.timeout(600)
def test_a_host_reads_the_old_files_again_after_a_restore_under_its_session(
    lund: Lund, host: UmlHost, iscsi: OpenIscsi
) -> None:
    lund.add_lun(LUN, 128 * MIB)
    iscsi.login(lund.target())
    disk = iscsi.disk(lund.target(), 0)
    host.run("mkfs.ext4", "-q", "-F", disk)
    host.sh(
        f"mkdir -p /mnt/disk; mount {disk} /mnt/disk; cd /mnt/disk;"
        "for i in $(seq 4); do head -c 8M /dev/urandom > file$i; done; sync; sha256sum file* > /tmp/sums;"
        "cd /; umount /mnt/disk",
        limit_s=120,
    )
    sums = host.sh("cat /tmp/sums").out
    lund.lun("snap", "create", "vol0", "base")
    identity = lund.get("luns/vol0/db")
    host.sh(
        f"mount {disk} /mnt/disk; cd /mnt/disk; rm file2; head -c 8M /dev/urandom > file1;"
        "head -c 8M /dev/urandom > later; cd /; umount /mnt/disk",
        limit_s=120,
    )
    lund.lun("resize", LUN, "256m")
    iscsi.rescan()
    assert host.run("blockdev", "--getsize64", disk).out.strip() == str(256 * MIB)

    (session,) = lund.get("iscsi/sessions")
    with pytest.raises(Refused) as refused:
        lund.lun("snap", "restore", "-s", "base", LUN)
    assert refused.value.name == "lun-in-use"
    host.sh("dmesg --clear")
    assert lund.lun("snap", "restore", "-f", "-s", "base", LUN)["restored"] == [LUN]
    iscsi.rescan()
    assert host.run("blockdev", "--getsize64", disk).out.strip() == str(128 * MIB)
    host.sh(f"blockdev --flushbufs {disk}; mount {disk} /mnt/disk")
    assert_same_files(host, "/mnt/disk", sums)
    host.sh("cd /mnt/disk; head -c 8M /dev/urandom > after; sync; sha256sum file* after > /tmp/sums")
    sums = host.sh("cat /tmp/sums").out
    lund.wait_for_clone(LUN)
    lund.lun("snap", "delete", "vol0", "base")
    host.sh("cd /mnt/disk; mv after file9; cd /")
    assert_same_files(host, "/mnt/disk", sums.replace("after", "file9"))
    host.sh("umount /mnt/disk")
    host.run("e2fsck", "-f", "-n", disk)
    assert host.sh("dmesg | grep -iE 'I/O error|offline|reset|abort|timed out|recovery' || true").out == ""
    (after,) = lund.get("iscsi/sessions")
    assert (after["id"], after["created_at"]) == (session["id"], pytest.approx(session["created_at"], abs=1))
    now = lund.get("luns/vol0/db")
    assert {field: now[field] for field in IDENTITY} == {field: identity[field] for field in IDENTITY}
