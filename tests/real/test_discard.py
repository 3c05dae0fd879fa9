"""What a Linux host gives back with `fstrim` and `blkdiscard` is free again in the volume."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.real.conftest import serving
from tests.support.lund import BIN, MIB, Lund, wait_until
from tests.support.netns import Namespace
from tests.support.openiscsi import OpenIscsi
from tests.support.uml import UmlHost

LUN, CLONE = "/vol/vol0/disk", "/vol/vol0/clone"
BACKING = "/vol/vol0/.snapshot/base/disk"
FILE_BYTES = 48 * MIB
SPARE_BYTES = 4 * MIB
"""What a file system, pointer blocks and the volume's own metadata may take or leave beside a file."""
RECLAIM_LIMIT_S = 120.0


@pytest.fixture
def lund(namespace: Namespace, tmp_path: Path) -> Iterator[Lund]:
    """Consistency points come by themselves, one a second, so that nobody waits long for them."""
    config = tmp_path / "lund.toml"
    config.write_text("[volumes]\ncheckpoint_s = 1\n")
    with serving(Lund(namespace, tmp_path / "state", program=(BIN / "lund", "--config", config))) as daemon:
        yield daemon


def used(lund: Lund, path: str) -> int:
    """What the LUN holds, as `lun show` says it."""
    (lun,) = (each for each in lund.lun("show") if each["path"] == path)
    found: int = lun["used_bytes"]
    return found


def free(lund: Lund) -> int:
    """As `lun df` says it."""
    (volume,) = lund.lun("df")
    found: int = volume["free_bytes"]
    return found


def backed(lund: Lund, path: str) -> int:
    """Bytes that the LUN still reads through its snapshot."""
    found: int = lund.lun("show", "--map", path)["backing_bytes"]
    return found


def remove_file(host: UmlHost, name: str, given_back: Callable[[], bool]) -> None:
    """ext4 lets go of blocks when its journal has committed that, a moment after the sync: so it is trimmed until
    they are given back."""

    def trimmed() -> bool:
        host.run("fstrim", "/mnt/disk")
        return given_back()

    host.sh(f"rm /mnt/disk/{name}; sync -f /mnt/disk")
    wait_until(trimmed, RECLAIM_LIMIT_S, f"what {name} held is given back")


def comes_back(lund: Lund, free_bytes: int) -> None:
    """Freed blocks are free when a consistency point has passed; one comes by itself, however long that takes."""
    wait_until(lambda: free(lund) >= free_bytes, RECLAIM_LIMIT_S, f"{free_bytes} bytes are free again")


def write_file(host: UmlHost, name: str) -> None:
    host.sh(f"head -c {FILE_BYTES} /dev/urandom >/mnt/disk/{name}; sync -f /mnt/disk", limit_s=120)


def mount_new(host: UmlHost, disk: str) -> None:
    host.sh(f"mkfs.ext4 -q -F {disk}; mkdir -p /mnt/disk; mount {disk} /mnt/disk; sync -f /mnt/disk")


def zeros(host: UmlHost, disk: str, length: int) -> None:
    host.sh(f"echo 3 >/proc/sys/vm/drop_caches; cmp -n {length} /dev/zero {disk}")


@pytest.mark.timeout(400)
def test_fstrim_and_blkdiscard_give_a_thin_lun_s_space_back(lund: Lund, host: UmlHost, iscsi: OpenIscsi) -> None:
    lund.add_lun(LUN, 128 * MIB)
    iscsi.login(lund.target())
    disk = iscsi.disk(lund.target())
    untouched = free(lund)
    mount_new(host, disk)
    empty = used(lund, LUN)
    write_file(host, "large")
    assert used(lund, LUN) >= empty + FILE_BYTES
    wait_until(lambda: free(lund) <= untouched - FILE_BYTES, RECLAIM_LIMIT_S, "the volume knows of it")

    remove_file(host, "large", lambda: used(lund, LUN) <= empty + SPARE_BYTES)
    write_file(host, "again")
    assert used(lund, LUN) >= empty + FILE_BYTES

    host.sh(f"umount /mnt/disk; blkdiscard -f {disk}")
    zeros(host, disk, 128 * MIB)
    wait_until(lambda: used(lund, LUN) == 0, RECLAIM_LIMIT_S, "the LUN holds nothing")
    comes_back(lund, untouched - SPARE_BYTES)


@pytest.mark.timeout(400)
def test_a_backed_lun_gives_back_its_own_blocks_and_what_it_trims_is_never_copied(
    lund: Lund, host: UmlHost, iscsi: OpenIscsi
) -> None:
    lund.add_lun(LUN, 128 * MIB)
    iscsi.login(lund.target())
    golden = iscsi.disk(lund.target())
    mount_new(host, golden)
    write_file(host, "golden")
    host.sh("sha256sum /mnt/disk/golden >/tmp/sum; umount /mnt/disk")
    lund.lun("snap", "create", "vol0", "base")
    lund.lun("create", "-b", BACKING, CLONE)
    lund.map(CLONE, lun_id=1)
    iscsi.rescan()
    clone = iscsi.disk(lund.target(), 1)

    host.sh(f"mount {clone} /mnt/disk; sync -f /mnt/disk")
    before = used(lund, CLONE)
    write_file(host, "own")
    assert used(lund, CLONE) >= before + FILE_BYTES
    remove_file(host, "own", lambda: used(lund, CLONE) <= before + SPARE_BYTES)
    # What the backing holds is let go of in the same way: there is less to copy, and nothing of it comes back.
    assert backed(lund, CLONE) >= FILE_BYTES
    remove_file(host, "golden", lambda: backed(lund, CLONE) <= SPARE_BYTES)
    host.run("umount", "/mnt/disk")
    host.run("e2fsck", "-f", "-n", clone)

    host.sh(f"blkdiscard -f {clone}")
    assert backed(lund, CLONE) == 0
    lund.lun("clone", "start", CLONE)
    assert lund.wait_for_clone(CLONE)["copied_blocks"] == 0
    zeros(host, clone, 128 * MIB)
    lund.lun("snap", "delete", "vol0", "base")
    host.sh(f"mount -o ro {golden} /mnt/disk; sha256sum --status -c /tmp/sum")
