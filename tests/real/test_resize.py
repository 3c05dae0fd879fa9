"""A LUN that gets another size while a Linux host uses it."""

from __future__ import annotations

import pytest

from tests.real.test_linux_host import end_verifying, keep_verifying
from tests.support.lund import MIB, Lund, Refused
from tests.support.openiscsi import OpenIscsi
from tests.support.uml import UmlHost

LUN = "/vol/vol0/disk"
# Linux's word for the unit attention 2A/09.
CAPACITY_CHANGED = "Capacity data has changed"
TROUBLE = "I/O error|EXT4-fs error|offline|reset|abort|timed out"


def size_of(host: UmlHost, disk: str) -> int:
    return int(host.run("blockdev", "--getsize64", disk).out)


def noticed(host: UmlHost, what: str) -> str:
    return host.sh(f"dmesg | grep -iE '{what}' || true").out


@pytest.mark.timeout(400)
def test_a_lun_grows_under_a_mounted_file_system(lund: Lund, host: UmlHost, iscsi: OpenIscsi) -> None:
    lund.add_lun(LUN, 64 * MIB)
    iscsi.login(lund.target())
    disk = iscsi.disk(lund.target())
    host.sh(f"mkfs.ext4 -q -F {disk}; mkdir -p /mnt/disk; mount {disk} /mnt/disk; dmesg --clear")
    work = keep_verifying(host, "/mnt/disk")

    lund.lun("resize", LUN, "160m")
    iscsi.rescan()
    assert size_of(host, disk) == 160 * MIB
    host.run("resize2fs", disk, limit_s=120)
    # More than there was room for before, and read again from the LUN.
    host.sh(
        "cd /mnt/disk; head -c 100M /dev/urandom >large; sync; sha256sum large >/tmp/sum;"
        "echo 3 >/proc/sys/vm/drop_caches; sha256sum --status -c /tmp/sum",
        limit_s=200,
    )
    end_verifying(host, work)
    host.run("umount", "/mnt/disk")
    host.run("e2fsck", "-f", "-n", disk)
    assert CAPACITY_CHANGED in noticed(host, CAPACITY_CHANGED)
    assert noticed(host, TROUBLE) == ""


def test_a_smaller_lun_is_refused_unless_forced_and_then_ends_where_it_says(
    lund: Lund, host: UmlHost, iscsi: OpenIscsi
) -> None:
    lund.add_lun(LUN, 64 * MIB)
    iscsi.login(lund.target())
    disk = iscsi.disk(lund.target())
    host.sh(f"head -c 64M /dev/urandom >/tmp/all; dd if=/tmp/all of={disk} bs=1M oflag=direct conv=fsync 2>/dev/null")
    with pytest.raises(Refused) as refused:
        lund.lun("resize", LUN, "32m")
    assert refused.value.name == "would-lose-data"
    iscsi.rescan()
    assert size_of(host, disk) == 64 * MIB

    lund.lun("resize", "-f", LUN, "32m")
    # Before it has looked again the host asks for what is gone: an error, and never the old data.
    beyond = host.run("dd", f"if={disk}", "of=/dev/null", "bs=1M", "skip=40", "count=1", "iflag=direct", check=False)
    assert beyond.code == 1, beyond
    assert "I/O error" in beyond.err, beyond
    iscsi.rescan()
    assert size_of(host, disk) == 32 * MIB
    host.sh(f"cmp -n {32 * MIB} /tmp/all {disk}")
    lund.lun("resize", LUN, "64m")
    iscsi.rescan()
    host.sh(f"echo 3 >/proc/sys/vm/drop_caches; cmp -n {32 * MIB} -i 0:{32 * MIB} /dev/zero {disk}")
