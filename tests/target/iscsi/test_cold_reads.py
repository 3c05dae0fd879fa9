"""READs that wait for the disk let others pass, and are answered when it has read."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from target.iscsi import limits
from target.iscsi.constants import FINAL, Opcode
from tests.support.initiator import READ_10, WRITE_10, Initiator, Link, Reply, cdb_10
from tests.support.memory_target import MemoryNexus
from tests.target.iscsi.conftest import Bench

SYNCHRONIZE_CACHE_10 = 0x35
READ_FLAGS, ORDERED = FINAL | 0x41, FINAL | 0x42
DIGESTS = {"HeaderDigest": "CRC32C", "DataDigest": "CRC32C"}


def cold_bench(bench: Bench) -> Bench:
    bench.disk.data[:] = random.Random(3).randbytes(len(bench.disk.data))
    bench.disk.cold = True
    return bench


def read(initiator: Initiator, lba: int, blocks: int = 8, flags: int = READ_FLAGS) -> list[Reply]:
    cdb = cdb_10(READ_10, lba, blocks).ljust(16, b"\0")
    return initiator.numbered(Opcode.SCSI_COMMAND, flags=flags, edtl=blocks * 512, cdb=cdb)


def warmed(bench: Bench, initiator: Initiator) -> list[Reply]:
    bench.disk.cold = False
    bench.disk.warmed()
    initiator.link.collect()
    return initiator.link.take()


def data_of(replies: list[Reply]) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    for reply in replies:
        assert reply.opcode is Opcode.DATA_IN
        found[reply.itt] = found.get(reply.itt, b"") + reply.data
    return found


def at(bench: Bench, lba: int, blocks: int = 8) -> bytes:
    return bytes(bench.disk.data[lba * 512 : (lba + blocks) * 512])


@pytest.mark.parametrize("keys", [{}, DIGESTS, {"MaxRecvDataSegmentLength": "8192"}, {"MaxBurstLength": "1000"}])
def test_a_cold_read_is_answered_when_the_disk_has_read(bench: Bench, keys: dict[str, str]) -> None:
    initiator = cold_bench(bench).logged_in(keys={"FirstBurstLength": "512", **keys})
    assert read(initiator, 0) == []
    first = initiator.itt
    assert read(initiator, 100, 64) == []
    replies = warmed(bench, initiator)
    assert data_of(replies) == {first: at(bench, 0), initiator.itt: at(bench, 100, 64)}
    assert [reply.status for reply in replies if reply.flags & 1] == [0, 0]
    assert replies[-1].max_cmd_sn - replies[-1].exp_cmd_sn + 1 == limits.COMMAND_WINDOW, "the whole window is open"


def test_others_pass_meanwhile(bench: Bench) -> None:
    initiator = cold_bench(bench).logged_in()
    assert read(initiator, 0) == []
    cold = initiator.itt
    assert initiator.write(0, b"\5" * 4096).status == 0
    replies = warmed(bench, initiator)
    assert data_of(replies) == {cold: b"\5" * 4096}, "SIMPLE tasks have no order; what is read is what is there"


def test_they_count_against_the_window(bench: Bench) -> None:
    initiator = cold_bench(bench).logged_in()
    for number in range(5):
        assert read(initiator, number) == []
    outcome = initiator.write(50, bytes(512))
    reply = outcome.replies[-1]
    assert reply.max_cmd_sn - reply.exp_cmd_sn + 1 == limits.COMMAND_WINDOW - 5


@pytest.mark.parametrize("what", ["nop", "abort", "ordered"])
def test_whatever_is_no_simple_command_has_them_done_first(bench: Bench, what: str) -> None:
    initiator = cold_bench(bench).logged_in()
    assert read(initiator, 7) == []
    cold = initiator.itt
    if what == "nop":
        replies = initiator.numbered(Opcode.NOP_OUT)
    elif what == "ordered":
        replies = read(initiator, 9, flags=ORDERED)
    else:
        replies = initiator.request(
            Opcode.TASK_MANAGEMENT_REQUEST, immediate=True, flags=0x81, itt=initiator.next_itt(), referenced_itt=cold
        )
    assert len(replies) == 2
    assert (replies[0].itt, replies[0].data) == (cold, at(bench, 7))
    assert warmed(bench, initiator) == [], "answered once"


def test_one_that_stays_cold_is_waited_for_in_the_end(bench: Bench) -> None:
    initiator = cold_bench(bench).logged_in()
    assert read(initiator, 3) == []
    for turn in range(limits.COLD_TRIES):
        assert initiator.link.replies == []
        assert len(bench.disk.warmers) == 1, turn
        bench.disk.warmed()
        initiator.link.collect()
    assert data_of(initiator.link.take()) == {initiator.itt: at(bench, 3)}
    assert bench.disk.warmers == []


def test_one_request_to_the_disk_at_a_time(bench: Bench) -> None:
    initiator = cold_bench(bench).logged_in()
    for number in range(20):
        read(initiator, number)
    assert len(bench.disk.warmers) == 1
    assert len(data_of(warmed(bench, initiator))) == 20


def long_reads(bench: Bench, count: int, during: Callable[[Initiator], None]) -> tuple[Initiator, dict[int, bytes]]:
    """So many cold READs of 256 KiB, of which an output buffer holds four; `during` is called when what is ready is to
    leave to make room.  What each is to bring."""
    keys = {"MaxRecvDataSegmentLength": str(256 << 10), "MaxBurstLength": str(256 << 10)}
    initiator = cold_bench(bench).logged_in(keys=keys)
    initiator.link.core.push = lambda: during(initiator)
    initiator.link.core.wake = lambda: None  # a portal takes that up later
    expected = {}
    for number in range(count):
        assert read(initiator, number, 512) == []
        expected[initiator.itt] = at(bench, number, 512)
    return initiator, expected


def test_answers_leave_when_there_is_no_room_for_more(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    pushes = []

    def push(initiator: Initiator) -> None:
        pushes.append(initiator.link.core.output.used)
        initiator.link.collect()

    initiator, expected = long_reads(bench, 10, push)
    monkeypatch.setattr(MemoryNexus, "execute", None)  # none of them needs it
    assert data_of(warmed(bench, initiator)) == expected
    assert pushes == [4 * (48 + (256 << 10))] * 2


def test_what_comes_while_they_leave_has_the_others_done_first(bench: Bench) -> None:
    came: list[Reply] = []

    def push(initiator: Initiator) -> None:
        if not came:
            came.extend(initiator.request(
                Opcode.TASK_MANAGEMENT_REQUEST, immediate=True, flags=0x81, itt=initiator.next_itt(),
                referenced_itt=initiator.itt,
            ))  # fmt: skip

    initiator, expected = long_reads(bench, 10, push)
    replies = warmed(bench, initiator)
    assert came[-1].opcode is Opcode.TASK_MANAGEMENT_RESPONSE
    assert data_of(came[:-1] + replies) == expected, "each once"
    assert not replies, "all of them before"
    assert initiator.link.core.session.window.outstanding == 0


def test_a_connection_that_is_lost_while_they_leave_gives_their_places_back(bench: Bench) -> None:
    one = cold_bench(bench).logged_in(keys={"MaxConnections": "4"})
    other = one.join(Link(bench.host), 2)
    other.login()
    core = other.link.core
    core.push = lambda: core.lost("cut")
    for number in range(10):
        assert read(other, number, 512) == []
    assert data_of(warmed(bench, one)) == {}
    assert not core.session.cold.waiting
    assert core.session.window.outstanding == 0
    bench.disk.cold = True
    assert read(one, 1) == []
    assert data_of(warmed(bench, one)) == {one.itt: at(bench, 1)}, "the session goes on"


def test_what_a_lost_connection_waits_for_gives_its_place_back(bench: Bench) -> None:
    keys = {"MaxConnections": "4"}
    one = cold_bench(bench).logged_in(keys=keys)
    other = one.join(Link(bench.host), 2)
    other.login()
    assert read(one, 0) == read(other, 8) == []
    other.link.core.lost("cut")
    assert data_of(warmed(bench, one)) == {other.itt - 1: at(bench, 0)}
    assert one.link.core.session.window.outstanding == 0


def test_a_session_that_ends_leaves_nothing_behind(bench: Bench) -> None:
    initiator = cold_bench(bench).logged_in()
    assert read(initiator, 0) == []
    initiator.link.core.lost("cut")
    assert warmed(bench, initiator) == []


@pytest.mark.parametrize(("digest", "lengths"), [("CRC32C", 0), ("CRC32C", 1 << 24), ("None", 0xFFFFFF)])
def test_what_came_before_a_pdu_that_makes_no_sense_is_counted(bench: Bench, digest: str, lengths: int) -> None:
    """A header digest that does not match, also of one with an AHS, or a data segment over the limit, ends one
    connection; the session's other one goes on with the next CmdSN and with all of the window."""
    bench.disk.flushers = []
    one = cold_bench(bench).logged_in(keys={"MaxConnections": "4"})
    other = one.join(Link(bench.host), 2)
    other.keys = {**one.keys, "HeaderDigest": digest}
    other.login()
    wire = b""
    for opcode, flags, cdb, data in (
        (WRITE_10, FINAL | 0x21, cdb_10(WRITE_10, 8, 8), b"x" * 4096),
        (READ_10, READ_FLAGS, cdb_10(READ_10, 0, 8), b""),
        (SYNCHRONIZE_CACHE_10, FINAL | 1, cdb_10(SYNCHRONIZE_CACHE_10, 0, 0), b""),
    ):
        edtl = 0 if opcode == SYNCHRONIZE_CACHE_10 else 4096
        wire += other.encode(
            Opcode.SCSI_COMMAND, data, flags=flags, itt=other.next_itt(), edtl=edtl, cdb=cdb.ljust(16, b"\0")
        )
        other.cmd_sn += 1
    core, window = other.link.core, one.link.core.session.window
    other.link.send(wire + b"\x01\x80\0\0" + lengths.to_bytes(4) + bytes(48))
    assert core.closing is not None
    assert window.outstanding == 0
    assert window.exp_cmd_sn == one.cmd_sn
    bench.disk.cold = False
    assert one.read(8, 8).data == b"x" * 4096
