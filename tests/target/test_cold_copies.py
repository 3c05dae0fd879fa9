"""EXTENDED COPY between places that are not in memory: the loop waits for no pointers, counts or data."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from target.lun_store import LunStore
from target.nexus import LogicalUnit, TargetDevice
from tests.support.manual_platform import ManualPlatform
from tests.support.scsi_host import TARGET, Host
from tests.support.sleepy_device import SleepyDevice
from tests.support.volumes import Workshop
from tests.target.scsi.test_extended_copy import cscd, extended_copy, parameters, segment
from tests.target.test_cold_commands import BLOCK_BYTES, KEPT, OLD, PLACES, adopted, backed, contents, plain, sleepy
from wafl import Volume, VolumeService

FROM, TO = 1, 5
"""Of the places."""


@pytest.mark.parametrize("prepare", [plain, backed, adopted])
@pytest.mark.parametrize(("skip", "sectors"), [(0, 8 * KEPT), (3, 8 * KEPT - 8), (0, 5)])
def test_a_copy_waits_for_no_disk(
    workshop: Workshop, prepare: Callable[[Volume], None], skip: int, sectors: int
) -> None:
    volume = sleepy(workshop, prepare)
    device = volume.device
    assert isinstance(device, SleepyDevice)
    store, platform = LunStore(volume.lun("disk"), VolumeService(volume)), ManualPlatform()
    host = Host(TargetDevice(TARGET), {0: LogicalUnit(store, platform)})
    host.ready()
    volume.files.references.make()  # once in a volume's life the label is read and written for it
    device.forget()
    before = device.waits["loop"]
    at, to = PLACES[FROM] // 512 + skip, PLACES[TO] // 512
    sent = parameters([cscd(store.naa)], [segment(0, 0, sectors, at, to)])
    assert host.start(extended_copy(len(sent)), sent) is None
    while not host.late:
        platform.step()
        device.here |= device.coming  # the disk is quicker than the next look
    assert [response.status for response in host.late.values()] == [0]
    assert device.waits["loop"] == before
    wanted = list(OLD)
    copied = OLD[FROM][skip * 512 :][: sectors * 512]
    wanted[TO] = copied + OLD[TO][len(copied) :]
    assert contents(volume.lun("disk")) == wanted
    assert len(wanted[TO]) == KEPT * BLOCK_BYTES


def test_a_copy_that_waits_for_pointers_of_its_destination_reads_its_source_once(workshop: Workshop) -> None:
    """As far as anybody counts."""
    volume = sleepy(workshop, plain)
    device = volume.device
    assert isinstance(device, SleepyDevice)
    store, platform = LunStore(volume.lun("disk"), VolumeService(volume)), ManualPlatform()
    unit = LogicalUnit(store, platform)
    host = Host(TargetDevice(TARGET), {0: unit})
    host.ready()
    device.forget()
    reads, read_bytes = unit.counters.reads, unit.counters.read_bytes
    sent = parameters([cscd(store.naa)], [segment(0, 0, 5, PLACES[FROM] // 512, PLACES[TO] // 512)])
    assert host.start(extended_copy(len(sent)), sent) is None
    while not host.late:
        platform.step()
        device.here |= device.coming
    assert (unit.counters.reads - reads, unit.counters.read_bytes - read_bytes) == (1, 5 * 512)
