"""Explicit ALUA on a Linux host: two portal groups, whose states administrator and host change under fio."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.real.conftest import check_volumes, unavailable_without
from tests.real.test_linux_host import fio_verify
from tests.real.test_multipath import LOST, carries_on, flush_maps, lent_two_ways, serial
from tests.support.lund import MIB, Lund, wait_until
from tests.support.multipath import STATE_LIMIT_S, Multipath
from tests.support.netns import Namespace
from tests.support.openiscsi import OpenIscsi
from tests.support.uml import HostError, UmlHost

LUN, LATER = "/vol/vol0/disk", "/vol/vol0/later"
# multipath's priorities of the states
OPTIMIZED, NON_OPTIMIZED, STANDBY = "50", "10", "1"


@pytest.fixture
def two_groups(
    _booted: dict[str, UmlHost], namespace: Namespace, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Lund, Multipath]]:
    """A daemon with a portal group on each of two networks, and a host on both."""
    unavailable_without("sg_rtpg", "sg_stpg")
    with lent_two_ways(_booted, namespace, tmp_path_factory) as host:
        listen = [f"{portal}:3260,{group}" for group, portal in enumerate(host.portals, 1)]
        with Lund(namespace, tmp_path / "state", listen=listen) as lund:
            lund.add_volume()
            yield lund, Multipath(host)
            # It logs out while the daemon still answers; a host that cannot be tidied up is replaced.
            with contextlib.suppress(HostError):
                flush_maps(host)
        check_volumes(lund)


def priorities(multipath: Multipath) -> dict[str, str]:
    answer = multipath.host.run("multipathd", "show", "paths", "raw", "format", "%d %p", check=False)
    return dict(words for line in answer.out.splitlines() if len(words := line.split()) == 2)


def prefers(multipath: Multipath, wanted: dict[str, str]) -> None:
    wait_until(
        lambda: {path: priorities(multipath).get(path) for path in wanted} == wanted, STATE_LIMIT_S, f"prefers {wanted}"
    )


@pytest.mark.timeout(400)
def test_a_host_goes_the_way_it_is_told(two_groups: tuple[Lund, Multipath]) -> None:
    lund, multipath = two_groups
    host = multipath.host
    lund.add_lun(LUN, 128 * MIB)
    multipath.log_in(lund.target())
    name = multipath.wait_for_device(serial(lund, LUN))
    device = f"/dev/mapper/{name}"
    first, second = (multipath.path_over(portal, name) for portal in host.portals)
    host.sh(f"mkfs.ext4 -q -F {device}; mkdir -p /mnt/disk; mount {device} /mnt/disk; dmesg --clear")
    fio = shlex.join(fio_verify("/mnt/disk", "8M"))
    work = host.spawn("/bin/sh", "-ec", f"until [ -e /tmp/stop ]; do {fio} >/dev/null; done", limit_s=300)
    prefers(multipath, {first: OPTIMIZED, second: OPTIMIZED})
    carries_on(multipath, first, second)

    def set_state(group: int, state: str) -> None:
        lund.lun("alua", "set", LUN, "--group", str(group), "--state", state)

    # The administrator empties the first network.
    set_state(1, "standby")
    prefers(multipath, {first: STANDBY, second: OPTIMIZED})
    carries_on(multipath, second)
    standing = host.writes(first)
    carries_on(multipath, second)
    assert host.writes(first) == standing
    # And the second, once the first is there again.
    set_state(1, "active-optimized")
    prefers(multipath, {first: OPTIMIZED, second: OPTIMIZED})
    set_state(2, "active-non-optimized")
    prefers(multipath, {first: OPTIMIZED, second: NON_OPTIMIZED})
    carries_on(multipath, first)
    # The host takes the second back by itself.
    assert "active/non optimized" in host.run("sg_rtpg", "--decode", f"/dev/{second}").out
    host.run("sg_stpg", "--optimized", "--tp=2", f"/dev/{second}")
    assert [each["state"] for each in lund.get(f"alua/{LUN.removeprefix('/vol/')}")] == ["active-optimized"] * 2
    prefers(multipath, {first: OPTIMIZED, second: OPTIMIZED})
    carries_on(multipath, first, second)

    assert work.running, work.wait(check=False)
    host.run("touch", "/tmp/stop")
    work.wait()
    host.sh("umount /mnt/disk")
    host.run("e2fsck", "-f", "-n", device)
    assert host.sh(f"dmesg | grep -iE '{LOST}' || true").out == ""


def test_a_lun_that_is_mapped_appears_on_a_host_that_does_not_look(lund: Lund, host: UmlHost, iscsi: OpenIscsi) -> None:
    """open-iscsi acts on the Async Message (but for 2.1.10 to 2.1.13): no rescan is asked for here."""
    lund.add_lun(LUN, 64 * MIB)
    iscsi.login(lund.target())
    iscsi.disk(lund.target())
    lund.add_lun(LATER, 32 * MIB, lun_id=1)

    def seen() -> bool:
        return any(each.endswith(":1") for each in host.run("ls", "/sys/class/scsi_device").out.split())

    wait_until(seen, STATE_LIMIT_S, "LUN 1 is seen")
    assert iscsi.disk(lund.target(), lun=1)
