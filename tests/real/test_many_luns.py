"""A Linux host that stays logged in while LUNs come, go, are exchanged, and are taken offline."""

from __future__ import annotations

import pytest

from tests.real.test_linux_host import end_verifying, keep_verifying
from tests.support.lund import MIB, Lund
from tests.support.openiscsi import OpenIscsi
from tests.support.uml import UmlHost

DISK = "/vol/vol0/disk"
COUNT = 32
# Linux's word for the unit attention 3F/0E.
LUNS_CHANGED = "LUN assignments on this target have changed"
NOT_SUPPORTED = "Logical unit not supported"
NOT_READY = "Logical unit not ready"


def path(number: int) -> str:
    return f"/vol/vol0/lun{number}"


def size_bytes(number: int) -> int:
    """Each has a size of its own, so that none is taken for another."""
    return (number + 1) * MIB


def seen(host: UmlHost) -> dict[int, tuple[str, int]]:
    """Disk and size by LUN."""
    script = (
        "for d in /sys/class/scsi_device/*; do for b in $d/device/block/*; do\n"
        "  [ -e $b ] && echo ${d##*:} ${b##*/} $(cat $b/size); done; done"
    )
    lines = (line.split() for line in host.sh(script, check=False).out.splitlines())
    return {int(lun): (disk, int(sectors) * 512) for lun, disk, sectors in lines}


def serials(host: UmlHost) -> dict[int, str]:
    script = "for d in /sys/class/scsi_device/*; do echo ${d##*:} $(tail -c +5 $d/device/vpd_pg80); done"
    return {int(lun): serial for lun, serial in (line.split() for line in host.sh(script).out.splitlines())}


def unmap(lund: Lund, number: int) -> None:
    lund.api.delete("/v1/maps", params={"path": path(number), "igroup": "everyone"}).raise_for_status()


@pytest.mark.timeout(400)
def test_luns_come_and_go_while_a_host_is_logged_in(lund: Lund, host: UmlHost, iscsi: OpenIscsi) -> None:
    lund.add_lun(DISK, 64 * MIB)
    iscsi.login(lund.target())
    disk = iscsi.disk(lund.target())
    host.sh(f"mkfs.ext4 -q -F {disk}; mkdir -p /mnt/disk; mount {disk} /mnt/disk; dmesg --clear")
    work = keep_verifying(host, "/mnt/disk")

    for number in range(1, COUNT):
        lund.add_lun(path(number), size_bytes(number), lun_id=number)
    iscsi.rescan()
    found = seen(host)
    assert {lun: size for lun, (_, size) in found.items()} == {
        0: 64 * MIB,
        **{number: size_bytes(number) for number in range(1, COUNT)},
    }
    assert LUNS_CHANGED in host.run("dmesg").out

    gone = range(1, COUNT, 2)
    for number in gone:
        unmap(lund, number)
    # Linux says so, and never removes a disk by itself.
    lost = " ".join(found[number][0] for number in gone)
    told = host.sh(
        f"for d in {lost}; do sg_turs --verbose /dev/$d 2>&1 || true; echo 1 >/sys/block/$d/device/delete; done"
    )
    assert told.out.count(NOT_SUPPORTED) == len(gone), told
    iscsi.rescan()
    assert set(seen(host)) == set(range(0, COUNT, 2))

    # The same LUN ids, other LUNs: in reverse order.
    for number, other in zip(gone, reversed(gone), strict=True):
        lund.map(path(other), lun_id=number)
    iscsi.rescan()
    exchanged = {number: size_bytes(other) for number, other in zip(gone, reversed(gone), strict=True)}
    now = seen(host)
    assert {number: now[number][1] for number in gone} == exchanged
    known = {entry["lun_id"]: lun["serial"] for lun in lund.get("luns") for entry in lun["maps"]}
    assert serials(host) == known
    assert {now[number] for number in range(0, COUNT, 2)} == {found[number] for number in range(0, COUNT, 2)}

    end_verifying(host, work)
    host.run("umount", "/mnt/disk")
    host.run("e2fsck", "-f", "-n", f"/dev/{found[0][0]}")
    assert host.sh(f"dmesg | grep -E 'error.* dev {found[0][0]}|EXT4-fs error' || true").out == ""


def test_a_mounted_lun_that_was_offline_is_used_again(lund: Lund, host: UmlHost, iscsi: OpenIscsi) -> None:
    lund.add_lun(DISK, 64 * MIB)
    iscsi.login(lund.target())
    disk = iscsi.disk(lund.target())
    host.sh(
        f"mkfs.ext4 -q -F -E lazy_itable_init=0 {disk}; mkdir -p /mnt/disk; mount -o noatime {disk} /mnt/disk;"
        "head -c 8M /dev/urandom >/mnt/disk/file; sha256sum /mnt/disk/file >/tmp/sum; sync; dmesg --clear"
    )
    # Nobody asks for anything meanwhile, and nothing is left to be written, so nothing has happened.
    lund.lun("offline", DISK)
    assert NOT_READY in host.run("sg_turs", "--verbose", disk, check=False).text
    lund.lun("online", DISK)
    host.sh("echo 3 >/proc/sys/vm/drop_caches; sha256sum --status -c /tmp/sum; cp /mnt/disk/file /mnt/disk/copy; sync")
    assert host.sh("dmesg | grep -iE 'error|offline' || true").out == ""

    # Whoever reads meanwhile gets an error, and the file system goes on afterwards.
    lund.lun("offline", DISK)
    host.sh("echo 3 >/proc/sys/vm/drop_caches")
    failed = host.run("cat", "/mnt/disk/copy", check=False)
    assert "Input/output error" in failed.err
    lund.lun("online", DISK)
    host.sh("sha256sum --status -c /tmp/sum; cmp /mnt/disk/file /mnt/disk/copy; touch /mnt/disk/more; umount /mnt/disk")
    host.run("e2fsck", "-f", "-n", disk)
    assert iscsi.session_state(lund.target()) == "LOGGED_IN"
