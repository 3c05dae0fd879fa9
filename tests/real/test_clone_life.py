"""All of a lazy clone's life under a Linux host that checks every byte it writes, there and on a LUN beside it."""

from __future__ import annotations

import shlex

import pytest

from tests.real.test_daemon_crash import JOB_BYTES, JOBS, LOST, fio_on, wait_for_session
from tests.real.test_lazy_clone import BACKING, CLONE, GOLDEN, TROUBLE, logged_in_disk
from tests.support.lund import MIB, Lund, wait_until
from tests.support.openiscsi import OpenIscsi
from tests.support.uml import Job, UmlHost

BESIDE = "/vol/vol0/beside"
LUN_BYTES, FIO_BYTES = 64 * MIB, JOBS * JOB_BYTES
SLOW = "512k"
"""So that the daemon dies in the middle of the copy."""
# After a kill the session is a new one, which hears of the power-on; nothing else may be told.
CHANGES = "attention|changed"


def work_on(host: UmlHost, disk: str) -> Job:
    """Until /tmp/stop is there; a verify error ends it."""
    fio = shlex.join(fio_on(disk))
    once = f"n=$((n+1)); {fio} --randseed=$n >/dev/null"
    return host.spawn("/bin/sh", "-ec", f"n=0; until [ -e /tmp/stop ]; do {once}; done; echo $n", limit_s=300)


@pytest.mark.timeout(400)
def test_start_stop_start_kill_restart_and_completion_are_nothing_to_a_host(
    lund: Lund, host: UmlHost, iscsi: OpenIscsi
) -> None:
    lund.add_lun(GOLDEN, LUN_BYTES)
    lund.add_lun(BESIDE, LUN_BYTES, lun_id=2)
    iscsi.login(lund.target())
    golden, beside = (iscsi.disk(lund.target(), number) for number in (0, 2))
    # Not where fio will write: what is missing is missing until it is copied.
    host.sh(f"dd if=/dev/urandom of={golden} bs={FIO_BYTES} seek=1 conv=fsync 2>/dev/null || true", limit_s=120)
    lund.lun("snap", "create", "vol0", "base")
    lund.lun("create", "-b", BACKING, CLONE)
    clone = logged_in_disk(lund, iscsi, CLONE, 1)
    host.sh("rm -f /tmp/stop; dmesg --clear")
    jobs = {disk: work_on(host, disk) for disk in (clone, beside)}

    def both_work() -> None:
        counts = {disk: host.writes(disk) for disk in jobs}
        wait_until(lambda: all(host.writes(disk) > count for disk, count in counts.items()), 60, "writes to both")
        for job in jobs.values():
            assert job.running, job.wait(check=False)

    def copied() -> int:
        count: int = lund.clone_status(CLONE)["copied_blocks"]
        return count

    def copy_something() -> int:
        lund.lun("clone", "start", "--limit", SLOW, CLONE)
        wait_until(lambda: copied() > 0, 60, "something is copied")
        both_work()
        return copied()

    both_work()
    copy_something()
    lund.lun("clone", "stop", CLONE)
    assert lund.clone_status(CLONE)["state"] == "stopped"
    first = copied()
    both_work()
    second = copy_something()
    # Taking a snapshot is a consistency point: what was copied until now will be there.
    lund.lun("snap", "create", "vol0", "mark")
    lund.lun("snap", "delete", "vol0", "mark")
    assert host.sh(f"dmesg | grep -iE '{TROUBLE}' || true").out == "", "the host noticed something"

    assert lund.clone_status(CLONE)["state"] == "running"
    lund.kill()
    lund.start()
    wait_for_session(lund, iscsi)
    both_work()
    lund.lun("clone", "set", "--limit", "1g", CLONE)
    third = lund.wait_for_clone(CLONE)["copied_blocks"]
    assert first + second + third <= (LUN_BYTES - FIO_BYTES) // 4096, "blocks were copied twice"
    assert lund.get("luns/vol0/clone")["backing"] is None
    lund.lun("snap", "delete", "vol0", "base")
    both_work()

    host.run("touch", "/tmp/stop")
    for disk, job in jobs.items():
        last = job.wait().out.strip()
        host.run(*fio_on(disk), f"--randseed={last}", "--verify_only=1", limit_s=120)
    host.sh(f"echo 3 >/proc/sys/vm/drop_caches; cmp --ignore-initial={FIO_BYTES} {golden} {clone}", limit_s=120)
    assert host.sh(f"dmesg | grep -iE '{LOST}|{CHANGES}' || true").out == ""


@pytest.mark.timeout(400)
def test_a_clone_that_shares_is_nothing_to_a_host_and_both_go_their_own_ways(
    lund: Lund, host: UmlHost, iscsi: OpenIscsi
) -> None:
    lund.add_lun(GOLDEN, LUN_BYTES)
    iscsi.login(lund.target())
    golden = iscsi.disk(lund.target())
    host.sh(
        f"head -c {LUN_BYTES} /dev/urandom >/tmp/image;"
        f"dd if=/tmp/image of={golden} bs=1M oflag=direct conv=fsync 2>/dev/null",
        limit_s=120,
    )
    lund.lun("snap", "create", "vol0", "base")
    lund.lun("create", "-b", BACKING, CLONE)
    clone = logged_in_disk(lund, iscsi, CLONE, 1)
    host.sh("rm -f /tmp/stop; dmesg --clear")
    jobs = {disk: work_on(host, disk) for disk in (golden, clone)}
    counts = {disk: host.writes(disk) for disk in jobs}
    wait_until(lambda: all(host.writes(disk) > count for disk, count in counts.items()), 60, "writes to both")
    lund.lun("clone", "start", "--share", CLONE)
    status = lund.wait_for_clone(CLONE)
    assert status["copied_blocks"] == 0
    assert status["shared_blocks"] >= (LUN_BYTES - FIO_BYTES) // 4096
    lund.lun("snap", "delete", "vol0", "base")

    # What was shared is written over on one side, and given back on the other.
    middle, mib = LUN_BYTES // 2 // MIB, f"bs={MIB}"
    host.sh(f"dd if=/dev/zero of={golden} {mib} seek={middle} count=4 oflag=direct conv=fsync 2>/dev/null")
    host.sh(f"blkdiscard -o {(middle + 8) * MIB} -l {4 * MIB} {clone}")
    host.run("touch", "/tmp/stop")
    for disk, job in jobs.items():
        last = job.wait().out.strip()
        host.run(*fio_on(disk), f"--randseed={last}", "--verify_only=1", limit_s=120)
    host.sh("echo 3 >/proc/sys/vm/drop_caches")

    def same(disk: str, image: str, first: int, last: int) -> None:
        """MiB `first` to `last` - 1."""
        host.sh(f"cmp --ignore-initial={first * MIB} --bytes={(last - first) * MIB} {image} {disk}")

    end = LUN_BYTES // MIB
    same(golden, "/tmp/image", FIO_BYTES // MIB, middle)
    same(golden, "/dev/zero", middle, middle + 4)
    same(golden, "/tmp/image", middle + 4, end)
    same(clone, "/tmp/image", FIO_BYTES // MIB, middle + 8)
    same(clone, "/dev/zero", middle + 8, middle + 12)
    same(clone, "/tmp/image", middle + 12, end)
    assert host.sh(f"dmesg | grep -iE '{TROUBLE}' || true").out == ""
