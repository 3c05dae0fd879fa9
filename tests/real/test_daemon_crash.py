"""kill -9 of lund while a host is at work: everything flushed is there, and the session recovers by itself."""

from __future__ import annotations

import pytest

from tests.real.test_lazy_clone import BACKING, CLONE, fill_golden, logged_in_disk
from tests.support.lund import Lund, wait_until
from tests.support.openiscsi import OpenIscsi
from tests.support.uml import UmlHost

LUN = "/vol/vol0/disk"
RECOVERY_LIMIT_S = 60.0


def wait_for_session(lund: Lund, iscsi: OpenIscsi) -> None:
    wait_until(lambda: iscsi.session_state(lund.target()) == "LOGGED_IN", RECOVERY_LIMIT_S, "the session is back")


@pytest.mark.timeout(400)
def test_what_a_host_flushed_survives_a_killed_daemon(lund: Lund, host: UmlHost, iscsi: OpenIscsi) -> None:
    """The guest sees no error: its kernel keeps the session, logs in again and repeats what was not answered."""
    lund.add_lun(LUN)
    iscsi.login(lund.target())
    disk = iscsi.disk(lund.target())
    for part in range(2):
        # Raw and flushed, and then only read: nothing that a crash may lose is outstanding.
        host.sh(
            f"head -c 4M /dev/urandom > /tmp/part{part};"
            f"dd if=/tmp/part{part} of={disk} bs=4M seek={part} oflag=direct conv=fsync 2>/dev/null"
        )
        reading = host.spawn("dd", f"if={disk}", "of=/dev/null", "bs=4k", "count=8192", "iflag=direct", limit_s=120)
        lund.kill()
        lund.start()
        reading.wait()
        wait_for_session(lund, iscsi)
    for part in range(2):
        host.sh(f"dd if={disk} bs=4M skip={part} count=1 iflag=direct 2>/dev/null | cmp - /tmp/part{part}")


@pytest.mark.timeout(400)
def test_a_clone_goes_on_by_itself_after_a_killed_daemon(lund: Lund, host: UmlHost, iscsi: OpenIscsi) -> None:
    sums = fill_golden(lund, host, iscsi)
    lund.lun("snap", "create", "vol0", "base")
    lund.lun("create", "-b", BACKING, CLONE)
    disk = logged_in_disk(lund, iscsi, CLONE, 1)
    host.sh(f"mkdir -p /mnt/clone; mount -o ro {disk} /mnt/clone")
    lund.lun("clone", "start", "--limit", "16m", CLONE)
    wait_until(lambda: lund.clone_status(CLONE)["completed_blocks"] > 0, 30, "the clone has begun")
    lund.kill()
    lund.start()
    wait_for_session(lund, iscsi)
    lund.wait_for_clone(CLONE)
    host.sh("echo 3 > /proc/sys/vm/drop_caches")
    assert host.sh("cd /mnt/clone; sha256sum file*", limit_s=120).out == sums
    lund.lun("snap", "delete", "vol0", "base")
