"""kill -9 of lund while a host is at work: everything acknowledged is there, and the session recovers by itself.

`LAZYLUN_KILLS` says how often the long test kills, `LAZYLUN_SEED` makes its random moments the same again.
"""

from __future__ import annotations

import os
import random
import shlex
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.real.test_lazy_clone import BACKING, CLONE, GOLDEN, fill_golden, logged_in_disk
from tests.support.lund import BIN, MIB, Lund, wait_until
from tests.support.openiscsi import OpenIscsi
from tests.support.uml import Job, UmlHost

LUN = "/vol/vol0/disk"
RECOVERY_LIMIT_S = 60.0
KILLS = int(os.environ.get("LAZYLUN_KILLS", "5"))
SEED = int(os.environ.get("LAZYLUN_SEED", random.SystemRandom().randrange(1 << 31)))
LONGEST_S = 2.0
"""From the session's recovery to the next kill."""
LUN_BYTES = 64 * MIB
CLONE_RATE = 2 * MIB // KILLS
"""Bytes a second: the clone goes on until the last kill."""
JOBS, JOB_BYTES = 3, 8 * MIB
# What the kernel writes when a command or a disk is lost; that connections break is what this is about.
LOST = "i/o error|sense key|rejecting|offline|recovery timed out|medium|critical"


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


def fio_on(disk: str) -> list[str]:
    """Random writes straight to the disk and never a flush, then all of it read back and compared."""
    return [
        "fio", "--name=verify", f"--filename={disk}", "--rw=randwrite", "--bs=4k", "--ioengine=libaio", "--direct=1",
        "--iodepth=16", f"--numjobs={JOBS}", f"--size={JOB_BYTES}", f"--offset_increment={JOB_BYTES}",
        "--rate_iops=600", "--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0", "--output-format=terse",
    ]  # fmt: skip


class Kills:
    """Kills the daemon at random moments, and starts it again each time."""

    def __init__(self, lund: Lund, iscsi: OpenIscsi, work: Job) -> None:
        self._lund, self._iscsi, self._work = lund, iscsi, work
        self._rng = random.Random(SEED)
        self._number = 0

    def again(self, times: int, before: Callable[[], None] = lambda: None) -> None:
        for _ in range(times):
            self._number += 1
            moment_s = self._rng.uniform(0, LONGEST_S)
            time.sleep(moment_s)
            before()
            assert self._work.running, self._work.wait(check=False)
            self._lund.kill()
            self._lund.start()
            # Now and then the next one comes before the session is back.
            back = self._rng.random() < 0.8
            if back:
                wait_for_session(self._lund, self._iscsi)
            print(f"kill {self._number}: after {moment_s:.3f} s{'' if back else ', the next one without a wait'}")


@pytest.mark.timeout(300 + 30 * KILLS)
def test_fio_notices_nothing_when_the_daemon_is_killed_again_and_again(
    lund: Lund, host: UmlHost, iscsi: OpenIscsi, tmp_path: Path
) -> None:
    """Nothing is ever flushed: only what was acknowledged counts, on a LUN before its clone and in the middle of it."""
    print(f"LAZYLUN_SEED={SEED}")
    lund.add_lun(GOLDEN, LUN_BYTES)
    iscsi.login(lund.target())
    golden = iscsi.disk(lund.target())
    host.sh(f"dd if=/dev/urandom of={golden} bs=1M oflag=direct conv=fsync 2>/dev/null || true; dmesg --clear")
    lund.lun("snap", "create", "vol0", "base")
    lund.lun("create", "-b", BACKING, CLONE)
    disk = logged_in_disk(lund, iscsi, CLONE, 1)

    fio = shlex.join(fio_on(disk))
    once = f"n=$((n+1)); {fio} --randseed=$n >/dev/null"
    again = f"rm -f /tmp/stop; n=0; until [ -e /tmp/stop ]; do {once}; done; echo $n"
    work = host.spawn("/bin/sh", "-ec", again, limit_s=200 + 25 * KILLS)
    kills = Kills(lund, iscsi, work)
    kills.again(KILLS - KILLS // 2 - 1)
    # A job's own limit ends with the daemon; this one holds after each kill.
    slow = tmp_path / "slow.toml"
    slow.write_text(f"[clones]\nlimit_bytes_s = {CLONE_RATE}\n")
    lund.program = (BIN / "lund", "--config", slow)
    kills.again(1)
    lund.lun("clone", "start", CLONE)

    def cloning() -> None:
        assert lund.clone_status(CLONE)["state"] == "running"

    kills.again(KILLS // 2, before=cloning)
    wait_for_session(lund, iscsi)
    host.run("touch", "/tmp/stop")
    last = work.wait().out.strip()

    # Once more with nobody at work: all of the last run was acknowledged, none of it was flushed.
    lund.program = (BIN / "lund",)
    lund.kill()
    lund.start()
    wait_for_session(lund, iscsi)
    host.run(*fio_on(disk), f"--randseed={last}", "--verify_only=1", limit_s=120)
    lund.wait_for_clone(CLONE)
    host.run(*fio_on(disk), f"--randseed={last}", "--verify_only=1", limit_s=120)
    host.sh(f"echo 3 > /proc/sys/vm/drop_caches; cmp --ignore-initial={JOBS * JOB_BYTES} {golden} {disk}", limit_s=120)
    assert host.sh(f"dmesg | grep -iE '{LOST}' || true").out == ""
    lund.lun("snap", "delete", "vol0", "base")
