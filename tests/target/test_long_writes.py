"""A WRITE of a MiB from its Data-Out PDUs down to the volume: placed as it comes, and done when it is whole."""

from __future__ import annotations

from typing import Any

import pytest

from target.iscsi.constants import Opcode
from target.lun_store import LunStore
from target.nexus import LogicalUnit, TargetDevice
from tests.support.initiator import WRITE_10, Initiator, Link, Reply, cdb_10, make_host
from tests.support.manual_platform import ManualPlatform
from tests.support.memory_target import TARGET, MemoryDirectory
from tests.support.volumes import MIB, Workshop, checkpoint, pattern
from wafl import Volume, VolumeService

KEYS = {"InitialR2T": "Yes", "ImmediateData": "Yes", "FirstBurstLength": "65536"}


class Scene:
    def __init__(self, workshop: Workshop) -> None:
        self.volume: Volume = workshop.format(128 * MIB)
        self.volume.batch_log()
        self.lun = self.volume.create_lun("disk", 8 * MIB)
        self.lun.write(0, pattern(1, 2 * MIB))
        self.service = VolumeService(self.volume)
        self.device = device = TargetDevice(TARGET)
        device.before_answers = self.volume.push_log
        self.store = LunStore(self.lun, self.service)
        self.unit = unit = LogicalUnit(self.store, ManualPlatform())

        class Directory(MemoryDirectory):
            def open_nexus(self, initiator: str, isid: bytes, target: str, tpgt: int) -> Any:
                return device.open_nexus(initiator, isid, {0: unit})

        self.initiator = Initiator(Link(make_host(Directory({TARGET: None}))), keys=KEYS)  # type: ignore[dict-item]
        assert self.initiator.login().status_class == 0
        while self.initiator.command(bytes(6)).status:
            pass  # unit attentions

    @property
    def promised(self) -> int:
        return self.volume.core.allocator.promised

    def begin(self, data: bytes) -> Reply:
        """The command with what goes with it; its R2T."""
        cdb = cdb_10(WRITE_10, 0, len(data) // 512).ljust(16, b"\0")
        (r2t,) = self.initiator.numbered(Opcode.SCSI_COMMAND, data[:65536], flags=0xA1, edtl=len(data), cdb=cdb)
        return r2t

    def end(self, r2t: Reply, data: bytes) -> list[Reply]:
        return self.initiator.send_data(r2t.itt, r2t.ttt, 65536, data[65536:])


def test_it_happens_when_it_is_whole_and_is_there_after_a_kill(workshop: Workshop) -> None:
    scene = Scene(workshop)
    data = pattern(2, MIB)
    before = scene.unit.counters.writes
    r2t = scene.begin(data)
    assert scene.promised == 256
    assert scene.initiator.read(0, 2048).data == pattern(1, MIB)
    checkpoint(scene.volume)
    (reply,) = scene.end(r2t, data)
    assert reply.status == 0
    assert scene.promised == 0
    assert (scene.unit.counters.writes - before, scene.initiator.read(0, 2048).data) == (1, data)
    crashed = workshop.crash(scene.volume)
    whole = memoryview(bytearray(2 * MIB))
    crashed.lun("disk").read_into(0, whole)
    assert whole == data + pattern(1, 2 * MIB)[MIB:]


@pytest.mark.parametrize("what", ["offline", "smaller", "another LUN", "full"])
def test_what_has_changed_meanwhile_is_met_by_the_router(workshop: Workshop, what: str) -> None:
    scene = Scene(workshop)
    data = pattern(2, MIB)
    r2t = scene.begin(data)
    status = 2
    if what == "offline":
        scene.lun.set_online(False)
        scene.unit.state_changed()
    elif what == "smaller":
        scene.volume.resize_lun("disk", MIB // 2)
        scene.unit.capacity_changed()
    elif what == "another LUN":
        other = scene.volume.create_lun("other", 8 * MIB)
        scene.unit.replace_store(LunStore(other, scene.service))
        status = 0
    else:
        # Guests take all they may have; there is room for what is on its way all the same, for it has its blocks.
        filler = scene.volume.create_lun("filler", 1 << 40, reserved=False)
        at = 0
        while scene.volume.space().available >= 4 * MIB:
            filler.write(at, pattern(3, MIB))
            at += MIB
        status = 0
    replies = scene.end(r2t, data)
    outcome = scene.initiator.follow(r2t.itt, b"", replies)
    while outcome.status == 2 and outcome.sense_code[0] == 6:  # the unit attention comes first: sent again
        outcome = scene.initiator.write(0, data)
    assert (outcome.status == 0) == (status == 0)
    assert scene.promised == 0
    checkpoint(scene.volume)
    if what == "another LUN":
        assert scene.initiator.read(0, 2048).data == data
        whole = memoryview(bytearray(MIB))
        scene.lun.read_into(0, whole)
        assert whole == pattern(1, MIB), "the first LUN has none of it"
