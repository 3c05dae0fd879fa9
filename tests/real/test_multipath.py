"""dm-multipath on a Linux host with two ways to the same LUN: one is cut, the other, both; fio sees nothing of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager

import pytest

from tests.real.conftest import lent, tidy_up, unavailable_without
from tests.real.test_linux_host import end_verifying, keep_verifying
from tests.support.lund import MIB, Lund, wait_until
from tests.support.multipath import POLL_S, Multipath
from tests.support.netns import Namespace
from tests.support.openiscsi import OpenIscsi
from tests.support.uml import Job, UmlHost

LUN, CLONE = "/vol/vol0/disk", "/vol/vol0/clone"
# A path that fails is what this is about; the device made of the paths, and what is on it, must not.
LOST = "dev dm-|ext4-fs (error|warning)|aborting journal|remounting"


@pytest.fixture
def two_ways(
    lund: Lund, _booted: dict[str, UmlHost], namespace: Namespace, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Multipath]:
    with lent_two_ways(_booted, namespace, tmp_path_factory) as host:
        yield Multipath(host)


def lent_two_ways(
    booted: dict[str, UmlHost], namespace: Namespace, factory: pytest.TempPathFactory
) -> AbstractContextManager[UmlHost]:
    """A host of another kind than the rest: with two cables, udevd and multipathd."""
    unavailable_without("multipathd")

    def boot() -> UmlHost:
        host = UmlHost(namespace, factory.mktemp("guest"), taps=2).start()
        Multipath(host).start()
        return host

    return lent(booted, "two ways", boot, flush_maps)


def flush_maps(host: UmlHost) -> None:
    """The cables are plugged in, and nothing of the last test waits for a path."""
    for number in range(len(host.interfaces)):
        host.set_link(number, up=True)
    host.sh("awk '$1 ~ /^.dev.mapper/ { print $2 }' /proc/mounts | xargs -r umount; multipath -F", limit_s=20)
    tidy_up(host)


def serial(lund: Lund, path: str) -> str:
    found: str = lund.get(f"luns/{path.removeprefix('/vol/')}")["serial"]
    return found


@pytest.mark.timeout(400)
def test_a_path_that_is_cut_and_comes_back_costs_no_io_error(lund: Lund, two_ways: Multipath) -> None:
    host = two_ways.host
    lund.add_lun(LUN, 128 * MIB)
    two_ways.log_in(lund.target())
    name = two_ways.wait_for_device(serial(lund, LUN))
    device = f"/dev/mapper/{name}"
    first, second = (two_ways.path_over(portal, name) for portal in host.portals)
    work = write_on(host, device)
    # Equally good ways are used both: the target says so (TPGS), and so multipathd groups them.
    carries_on(two_ways, first, second)

    def cut(number: int, states: dict[str, str]) -> None:
        host.set_link(number, up=False)
        two_ways.wait_for_states(name, states)

    def restore(*numbers: int) -> None:
        for number in numbers:
            host.set_link(number, up=True)
        two_ways.wait_for_states(name, {first: "active", second: "active"})
        carries_on(two_ways, first, second)

    cut(0, {first: "failed", second: "active"})
    carries_on(two_ways, second)
    restore(0)
    cut(1, {first: "active", second: "failed"})
    carries_on(two_ways, first)
    # With no way left the device keeps what it is asked to do.
    cut(0, {first: "failed", second: "failed"})
    restore(0, 1)
    all_is_well(host, device, work)


def write_on(host: UmlHost, device: str) -> Job:
    """A file system, and fio on it until `all_is_well`."""
    host.sh(f"mkfs.ext4 -q -F {device}; mkdir -p /mnt/disk; mount {device} /mnt/disk; dmesg --clear")
    return keep_verifying(host, "/mnt/disk")


def all_is_well(host: UmlHost, device: str, work: Job) -> None:
    end_verifying(host, work)
    host.sh("umount /mnt/disk")
    host.run("e2fsck", "-f", "-n", device)
    assert host.sh(f"dmesg | grep -iE '{LOST}' || true").out == ""


def carries_on(multipath: Multipath, *paths: str) -> None:
    """Each of these paths carries out further writes."""
    before = {path: multipath.host.writes(path) for path in paths}
    wait_until(
        lambda: all(multipath.host.writes(path) > count for path, count in before.items()),
        60,
        f"writes over {paths}",
        poll_s=POLL_S,
    )


def test_a_clone_is_a_device_of_its_own_and_every_path_finds_its_lun(lund: Lund, two_ways: Multipath) -> None:
    lund.add_lun(LUN, 64 * MIB)
    two_ways.log_in(lund.target())
    golden = two_ways.wait_for_device(serial(lund, LUN))
    two_ways.host.sh(f"mkfs.ext4 -q -F /dev/mapper/{golden}; blockdev --flushbufs /dev/mapper/{golden}")
    lund.lun("snap", "create", "vol0", "base")
    lund.lun("create", "-b", "/vol/vol0/.snapshot/base/disk", CLONE)
    lund.map(CLONE, lun_id=1)
    OpenIscsi(two_ways.host).rescan()
    clone = two_ways.wait_for_device(serial(lund, CLONE))
    assert set(two_ways.devices()) == {golden, clone}
    two_ways.host.run("e2fsck", "-f", "-n", f"/dev/mapper/{clone}")
    # Nothing of a host's view changes when the clone is separated from its snapshot.
    lund.lun("clone", "start", CLONE)
    lund.wait_for_clone(CLONE)
    two_ways.host.run("multipathd", "reconfigure")
    assert two_ways.wait_for_device(serial(lund, CLONE)) == clone
    two_ways.host.run("e2fsck", "-f", "-n", f"/dev/mapper/{clone}")
