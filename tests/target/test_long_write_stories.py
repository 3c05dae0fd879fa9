"""What may happen between two Data-Outs of a long WRITE, at each of them: the blocks that its data went to are given
back exactly once, nothing that comes later lands in them, and what was on the LUN before is there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import pytest

from target.iscsi.constants import NO_TAG, Opcode, TaskFunction
from target.lun_store import LunStore
from target.management.serving import GoneStore
from tests.support.initiator import WRITE_10, Initiator, Link, Reply, cdb_10
from tests.support.sleepy_device import SleepyDevice
from tests.support.volumes import MIB, checkpoint, pattern, problems
from tests.support.write_scene import WriteScene, image_of
from wafl import Device, FileDevice, Volume, VolumeService, check

PIECE = 65536
PIECES = MIB // PIECE
KEYS = {
    "InitialR2T": "Yes", "ImmediateData": "No", "MaxBurstLength": str(4 * PIECE), "MaxConnections": "2",
    "iSCSIProtocolLevel": "2",
}  # fmt: skip
OTHER = b"\x80\0\0\0\0\2"
OLD, NEW = pattern(1, 2 * MIB), pattern(2, MIB)
GOOD, CHECK_CONDITION, TASK_ABORTED = 0, 2, 0x40
UNIT_ATTENTION, NOT_READY, ABORTED, ILLEGAL = 6, 2, 11, 5
SOME = (0, 4, 7, PIECES - 1)
"""Data-Outs that have come before it: none, one whole burst, a part of one, all but the last."""

IMAGE = image_of(24 * MIB, {"disk": OLD, "other": pattern(3, MIB)}, snapshot="before")


class Story(WriteScene):
    """A WRITE of 1 MiB, of which a part has come."""

    def __init__(self, pieces: int, device: Device | None = None) -> None:
        super().__init__(device or SleepyDevice(bytearray(IMAGE)))
        self.neighbour = self.initiator(KEYS, OTHER)
        self.host_a = self.initiator(KEYS)
        self.space = self.volume.space()
        self.sent = 0
        self.replies: list[Reply] = []
        self.r2t, = self.host_a.numbered(
            Opcode.SCSI_COMMAND, flags=0xA1, edtl=MIB, cdb=cdb_10(WRITE_10, 0, MIB // 512).ljust(16, b"\0")
        )  # fmt: skip
        self.send(pieces)
        assert self.promised == MIB // 4096, "it is under way"

    @property
    def image(self) -> bytearray:
        return self.volume.device.image  # type: ignore[attr-defined,no-any-return]

    def next_piece(self) -> bytes:
        offset = self.sent * PIECE
        within = offset - self.r2t.buffer_offset
        last = within + PIECE == self.r2t.desired_length
        return self.host_a.encode(
            Opcode.DATA_OUT, NEW[offset : offset + PIECE], flags=0x80 if last else 0, itt=self.r2t.itt,
            ttt=self.r2t.ttt, data_sn=within // PIECE, buffer_offset=offset,
        )  # fmt: skip

    def send(self, pieces: int) -> None:
        """As many Data-Outs more, as far as they have been asked for."""
        for _ in range(pieces):
            if not self.r2t.buffer_offset <= self.sent * PIECE < self.r2t.buffer_offset + self.r2t.desired_length:
                return
            wire = self.next_piece()
            self.sent += 1
            for reply in self.host_a.link.send(wire):
                if reply.opcode is Opcode.R2T:
                    self.r2t = reply
                else:
                    self.replies.append(reply)

    def send_rest(self) -> None:
        """All that is left, and the disk reads what that needs."""
        self.send(PIECES - self.sent)
        self.replies += self.disk_reads()

    def disk_reads(self) -> list[Reply]:
        while self.service.warmers:
            self.service.read()
        return self.host_a.link.take()

    def manage(self, initiator: Initiator, function: TaskFunction) -> None:
        one = function is TaskFunction.ABORT_TASK
        replies = initiator.request(
            Opcode.TASK_MANAGEMENT_REQUEST, flags=0x80 | function, itt=initiator.next_itt(), immediate=True, lun=0,
            referenced_itt=self.r2t.itt if one else NO_TAG, ref_cmd_sn=initiator.cmd_sn - 1,
        )  # fmt: skip
        answers = [reply for reply in replies if reply.opcode is Opcode.TASK_MANAGEMENT_RESPONSE]
        assert [reply.response for reply in answers] == [0]

    def given_back(self) -> None:
        """Once, and all of it."""
        assert self.promised == 0
        assert self.volume.space() == self.space
        session = self.host_a.link.core.session
        assert (session.data_bytes, session.placed_bytes) == (0, 0)

    def late_data_lands_nowhere(self) -> None:
        """Somebody else has the blocks now, and what was on its way comes all the same."""
        self.fill(7)
        self.volume.push_log()
        before = bytes(self.image)
        self.send_rest()
        assert self.image == before

    def end(self, disk: bytes = OLD) -> None:
        """What is on the LUN, then and after a kill; and the checker has nothing to say."""
        assert self.promised == 0
        assert self.contents("disk") == disk
        self.volume.push_log()
        self.volume = Volume.mount(SleepyDevice(bytearray(self.image)))
        assert self.contents("disk") == disk
        checkpoint(self.volume)
        self.volume.close()
        assert problems(self.volume.device) == []  # type: ignore[arg-type]


Happening = Callable[[Story], None]


def cut(story: Story) -> None:
    story.host_a.link.core.lost("cut")


def cut_within_a_pdu(story: Story) -> None:
    story.host_a.link.send(story.next_piece()[: PIECE // 2 + 48])
    cut(story)


def logout(story: Story) -> None:
    story.host_a.request(Opcode.LOGOUT_REQUEST, flags=0x80, itt=story.host_a.next_itt(), immediate=True, cid=1)


def the_session_is_reinstated(story: Story) -> None:
    again = Initiator(Link(story.host), keys=KEYS)
    assert again.login().status_class == 0
    assert story.host_a.link.closed


def the_connection_is_reinstated(story: Story) -> None:
    """Login with the session's TSIH and the same CID (RFC 7143 6.3.4)."""
    again = story.host_a.join(Link(story.host), cid=1)
    assert again.login().status_class == 0
    assert story.host_a.link.closed


def one_of_two_connections_is_cut(story: Story) -> None:
    second = story.host_a.join(Link(story.host))
    assert second.login().status_class == 0
    cut(story)
    assert not second.link.closed


def management_ends_the_session(story: Story) -> None:
    story.host_a.link.core.session.drop("told to")


def nonsense_is_sent(story: Story) -> None:
    """A data segment longer than was declared: the connection ends."""
    story.host_a.link.send(bytes((5, 0x80, 0, 0, 0, 0xFF, 0xFF, 0xFF)) + bytes(40))
    assert story.host_a.link.closed


def managed(function: TaskFunction, *, by_the_other: bool = False) -> Happening:
    def happening(story: Story) -> None:
        story.manage(story.neighbour if by_the_other else story.host_a, function)

    return happening


def preempted(story: Story) -> None:
    """PERSISTENT RESERVE OUT, PREEMPT AND ABORT."""
    for initiator, key in ((story.host_a, 1), (story.neighbour, 2)):
        register = key.to_bytes(16, "big")
        outcome = reserve_out(initiator, 0, register)
        assert outcome == GOOD
    assert reserve_out(story.neighbour, 5, (2).to_bytes(8, "big") + (1).to_bytes(8, "big"), kind=5) == GOOD


def reserve_out(initiator: Initiator, action: int, keys: bytes, kind: int = 0) -> int:
    cdb = bytes((0x5F, action, kind, 0, 0, 0, 0, 0, 24, 0))
    (r2t,) = initiator.numbered(Opcode.SCSI_COMMAND, flags=0xA1, edtl=24, cdb=cdb.ljust(16, b"\0"))
    (reply,) = initiator.send_data(r2t.itt, r2t.ttt, 0, keys + bytes(8))
    return int(reply.status)


ENDINGS: dict[str, Happening] = {
    "the connection is cut": cut,
    "the connection is cut within a PDU": cut_within_a_pdu,
    "logout": logout,
    "the session is reinstated": the_session_is_reinstated,
    "the connection is reinstated": the_connection_is_reinstated,
    "one of two connections is cut": one_of_two_connections_is_cut,
    "management ends the session": management_ends_the_session,
    "nonsense is sent": nonsense_is_sent,
    "ABORT TASK": managed(TaskFunction.ABORT_TASK),
    "ABORT TASK SET": managed(TaskFunction.ABORT_TASK_SET),
    "CLEAR TASK SET": managed(TaskFunction.CLEAR_TASK_SET),
    "LOGICAL UNIT RESET": managed(TaskFunction.LOGICAL_UNIT_RESET),
    "TARGET WARM RESET": managed(TaskFunction.TARGET_WARM_RESET),
    "I_T NEXUS RESET": managed(TaskFunction.I_T_NEXUS_RESET),
    "CLEAR TASK SET by another host": managed(TaskFunction.CLEAR_TASK_SET, by_the_other=True),
    "LOGICAL UNIT RESET by another host": managed(TaskFunction.LOGICAL_UNIT_RESET, by_the_other=True),
    "TARGET WARM RESET by another host": managed(TaskFunction.TARGET_WARM_RESET, by_the_other=True),
    "PREEMPT AND ABORT by another host": preempted,
}


@pytest.mark.parametrize("pieces", SOME)
@pytest.mark.parametrize("name", ENDINGS)
def test_it_ends_in_between(name: str, pieces: int) -> None:
    story = Story(pieces)
    ENDINGS[name](story)
    story.given_back()
    story.late_data_lands_nowhere()
    story.end()


@pytest.mark.parametrize("pieces", range(PIECES))
def test_the_connection_is_cut_before_each_data_out(pieces: int) -> None:
    story = Story(0)
    while story.sent < pieces:
        story.send(1)
    cut(story)
    story.given_back()
    story.late_data_lands_nowhere()
    story.end()


@pytest.mark.parametrize("pieces", SOME)
def test_data_for_a_command_that_was_aborted_is_not_the_next_ones(pieces: int) -> None:
    """The host uses the initiator task tag again; a Data-Out of the first WRITE comes after the second has begun."""
    story = Story(pieces)
    late = story.next_piece()
    story.manage(story.host_a, TaskFunction.ABORT_TASK)
    second = pattern(9, MIB)
    cdb = cdb_10(WRITE_10, MIB // 512, MIB // 512).ljust(16, b"\0")
    (r2t,) = story.host_a.request(Opcode.SCSI_COMMAND, flags=0xA1, itt=story.r2t.itt, edtl=MIB, cdb=cdb)
    story.host_a.cmd_sn += 1
    assert r2t.ttt != story.r2t.ttt
    assert story.host_a.link.send(late) == []
    story.host_a.follow(r2t.itt, second, [r2t])
    assert [reply.status for reply in story.disk_reads()] == [GOOD]
    story.end(OLD[:MIB] + second)


# --- it goes on, and what has changed meanwhile counts


def shrunk(story: Story) -> None:
    story.volume.resize_lun("disk", MIB // 2)
    story.units[0].capacity_changed()


def offline(story: Story) -> None:
    story.volume.lun("disk").set_online(False)
    story.units[0].state_changed()


def unmapped(story: Story) -> None:
    story.target.refresh(lambda _: {1: story.units[1]})


def destroyed(story: Story) -> None:
    unmapped(story)
    story.volume.destroy_lun("disk")


def restored(story: Story) -> None:
    story.volume.lun("disk").write(MIB, NEW[:4096])
    story.volume.restore("before", "disk")
    story.units[0].contents_changed(resized=False)


def replaced(story: Story) -> None:
    """Another LUN has its number now."""
    story.target.refresh(lambda _: {0: story.units[1]})


def reserved_by_another_host(story: Story) -> None:
    key = (2).to_bytes(8, "big")
    assert reserve_out(story.neighbour, 0, bytes(8) + key) == GOOD
    assert reserve_out(story.neighbour, 1, key + bytes(8), kind=3) == GOOD


def nothing_happens(story: Story) -> None:
    checkpoint(story.volume)


def another_snapshot(story: Story) -> None:
    story.volume.request_snapshot("between")
    checkpoint(story.volume)


def the_volume_grows(story: Story) -> None:
    story.volume.grow(40 * MIB)


def its_snapshot_goes(story: Story) -> None:
    story.volume.delete_snapshot("before")
    story.volume.reclaim_now()
    checkpoint(story.volume)


def the_volume_is_filled(story: Story) -> None:
    story.fill(7)


CHANGES: dict[str, tuple[Happening, int, bytes | None]] = {
    "a consistency point": (nothing_happens, GOOD, NEW + OLD[MIB:]),
    "a snapshot": (another_snapshot, GOOD, NEW + OLD[MIB:]),
    "the volume grows": (the_volume_grows, GOOD, NEW + OLD[MIB:]),
    "its snapshot goes": (its_snapshot_goes, GOOD, NEW + OLD[MIB:]),
    "the volume is filled": (the_volume_is_filled, GOOD, NEW + OLD[MIB:]),
    "the LUN is shrunk": (shrunk, UNIT_ATTENTION, OLD[: MIB // 2]),
    "the LUN goes offline": (offline, NOT_READY, OLD),
    "the LUN is unmapped": (unmapped, ILLEGAL, OLD),
    "the LUN is destroyed": (destroyed, ILLEGAL, None),
    "the LUN is restored": (restored, UNIT_ATTENTION, OLD),
    "another LUN takes its number": (replaced, UNIT_ATTENTION, OLD),
    "another host reserves it": (reserved_by_another_host, -1, OLD),
}
"""What happens; the sense key of the answer (GOOD: 0; RESERVATION CONFLICT: -1); what is on the LUN then."""


@pytest.mark.parametrize("pieces", SOME)
@pytest.mark.parametrize("name", CHANGES)
def test_something_changes_in_between(name: str, pieces: int) -> None:
    happening, key, disk = CHANGES[name]
    story = Story(pieces)
    happening(story)
    story.send_rest()
    (reply,) = [reply for reply in story.replies if reply.opcode is Opcode.SCSI_RESPONSE]
    assert reply.itt == story.r2t.itt
    if key < 0:
        assert reply.status == 0x18
    elif key:
        assert (reply.status, reply.data[2 + 2] & 15) == (CHECK_CONDITION, key)
    else:
        assert reply.status == GOOD
    assert story.promised == 0
    if disk is None:
        assert {lun.name for lun in story.volume.luns()} == {"other"}
    else:
        story.end(disk)


@pytest.mark.parametrize("back", [False, True], ids=["it stays so", "and online again"])
@pytest.mark.parametrize("pieces", SOME)
def test_the_volume_goes_offline_in_between(tmp_path: Path, pieces: int, back: bool) -> None:
    """Its file is closed: nothing of what comes then is in it."""
    path = tmp_path / "vol0"
    path.write_bytes(IMAGE)
    story = Story(pieces, FileDevice.open(path))
    unit = story.units[0]
    unit.replace_store(GoneStore(unit.store))
    story.volume.close()
    closed = path.read_bytes()
    if back:
        story.volume = Volume.mount(FileDevice.open(path))
        unit.replace_store(LunStore(story.volume.lun("disk"), VolumeService(story.volume)))
        story.fill(7)
        story.volume.close()
        closed = path.read_bytes()
    story.send_rest()
    (reply,) = [reply for reply in story.replies if reply.opcode is Opcode.SCSI_RESPONSE]
    assert (reply.itt, reply.status) == (story.r2t.itt, CHECK_CONDITION)
    assert path.read_bytes() == closed
    with contextlib.closing(FileDevice.open(path)) as device:
        assert check(device) == []
        assert Volume.mount(device).lun("disk").used_bytes >= len(OLD)
