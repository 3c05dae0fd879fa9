"""Commands that wait for the disk: put aside, done from the beginning, ended by whatever ends commands."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from target.iscsi.ports import Response
from target.nexus import LogicalUnit, TargetDevice, lun_field
from target.scsi import limits
from tests.support.memory_store import MemoryStore
from tests.support.scsi_host import (
    BAD_LBA,
    DATA_PROTECT,
    ILLEGAL,
    MISCOMPARE,
    TARGET,
    Host,
    compare_and_write,
    key_asc,
    reserve_out,
    reserve_out_list,
    ten,
    unit,
    unmap,
    unmap_list,
    write_16,
)

OLD, NEW = b"o" * 512, b"n" * 512
SIMPLE, ORDERED, HEAD_OF_QUEUE = 1, 2, 3
LUN_RESET = 5
RESERVATION_CONFLICT, TASK_ABORTED = 0x18, 0x40


class Disk:
    """Two hosts share a store that nothing of is in memory, until `read` says so."""

    def __init__(self, size_bytes: int = 32 << 20) -> None:
        self.store = MemoryStore(size_bytes)
        self.store.write(0, memoryview(OLD))
        self.lu: LogicalUnit = unit(self.store)
        self.device = TargetDevice(TARGET)
        self.device.when_warm = self.wait
        self.waiting: list[Callable[[], None]] = []
        self.host, self.other = (Host(self.device, {0: self.lu}, name) for name in ("iqn.host:a", "iqn.host:b"))
        for host in (self.host, self.other):
            host.ready()
        self.store.cold = True

    def wait(self, done: Callable[[], None]) -> bool:
        self.waiting.append(done)
        return True

    def read(self, *, all_of_it: bool = True) -> None:
        """The disk has read; what was asked for, or something else that was in the way."""
        self.store.cold = not all_of_it
        waiting, self.waiting = self.waiting, []
        for done in waiting:
            done()

    @property
    def contents(self) -> bytes:
        return self.store.contents(0, 512)


def ask(host: Host, cdb: bytes, data: bytes, attribute: int = SIMPLE) -> Response | None:
    """As `Host.start`; the buffer is used for something else afterwards."""
    host.tag += 1
    tag, buffer = host.tag, bytearray(data)
    response = host.nexus.execute(
        lun_field(0), cdb.ljust(16, b"\0"), attribute, memoryview(buffer), tag,
        lambda late: host.late.__setitem__(tag, late),
    )  # fmt: skip
    buffer[:] = b"x" * len(buffer)
    return response


SWAP = compare_and_write(0, 1), OLD + NEW


def test_it_is_done_when_the_disk_has_read_and_not_before() -> None:
    disk = Disk()
    assert ask(disk.host, *SWAP) is None
    assert disk.contents == OLD
    disk.read(all_of_it=False)
    assert not disk.host.late
    disk.read()
    assert disk.host.late.pop(disk.host.tag).status == 0
    assert disk.contents == NEW
    assert not disk.host.nexus.tasks
    assert disk.lu.counters.writes == 1, "counted once"


def test_what_it_finds_then_is_what_counts() -> None:
    """Nothing of a first try is left: the comparison is with what is there when the write is done."""
    disk = Disk()
    ask(disk.host, *SWAP)
    disk.store.write(0, memoryview(b"y" * 512))
    disk.read()
    response = disk.host.late.pop(disk.host.tag)
    assert key_asc(response)[0] == MISCOMPARE
    assert response.wanted == 1024
    assert disk.contents == b"y" * 512


def test_the_loop_waits_when_trying_does_not_help() -> None:
    disk = Disk()
    ask(disk.host, *SWAP)
    for _ in range(limits.COLD_TRIES):
        assert not disk.host.late
        disk.read(all_of_it=False)
    assert disk.host.late.pop(disk.host.tag).status == 0
    assert disk.contents == NEW


def test_the_loop_waits_where_there_is_nothing_to_wait_for() -> None:
    disk = Disk()
    disk.device.when_warm = lambda done: False
    response = ask(disk.host, *SWAP)
    assert response is not None
    assert response.status == 0


def test_data_that_is_kept_is_limited() -> None:
    disk = Disk()
    length = 8 << 20
    cdb, data = write_16(0, length // 512), b"d" * length
    aside = 0
    while ask(disk.host, cdb, data) is None:
        aside += 1
        assert aside * length <= limits.COLD_DATA_BYTES
    assert aside == limits.COLD_DATA_BYTES // length
    assert ask(disk.other, cdb, data) is None, "each nexus for itself"


def test_an_aborted_one_is_never_done() -> None:
    disk = Disk()
    ask(disk.host, *SWAP)
    assert disk.host.nexus.abort_task(lun_field(0), disk.host.tag)
    disk.read()
    assert not disk.host.late
    assert disk.contents == OLD


def test_a_reset_by_another_host_ends_it() -> None:
    disk = Disk()
    ask(disk.host, *SWAP)
    disk.other.nexus.manage(LUN_RESET, lun_field(0))
    assert disk.host.late.pop(disk.host.tag).status == TASK_ABORTED
    disk.read()
    assert not disk.host.late
    assert disk.contents == OLD


@pytest.mark.parametrize("attribute", [ORDERED, HEAD_OF_QUEUE])
def test_what_must_keep_its_place_has_it_done_first(attribute: int) -> None:
    """By whichever nexus it came; and waits itself, for what comes behind must not overtake it."""
    disk = Disk()
    ask(disk.other, *SWAP)
    response = ask(disk.host, compare_and_write(0, 1), NEW + b"z" * 512, attribute)
    assert response is not None
    assert response.status == 0
    assert disk.other.late.pop(disk.other.tag).status == 0
    assert disk.contents == b"z" * 512
    disk.read()
    assert disk.contents == b"z" * 512, "done once"


def test_one_that_waits_for_a_flush_by_now_is_not_done_again() -> None:
    disk = Disk()
    ask(disk.host, write_16(0, 1, 0x08), NEW)
    disk.read()
    assert not disk.host.late, "FUA: it waits for the flush"
    disk.store.write(0, memoryview(b"y" * 512))
    assert ask(disk.host, ten(0x2F, 0, 1), b"", ORDERED) is not None
    assert disk.contents == b"y" * 512
    disk.store.finish_flushes()
    assert len(disk.host.late) == 1


def test_a_reservation_made_meanwhile_holds() -> None:
    """A host that was shut out must not write after that."""
    disk = Disk()
    ask(disk.host, *SWAP)
    for action, kind, arguments in ((0, 0, (0, 7)), (1, 1, (7,))):
        disk.other.send(reserve_out(action, kind), reserve_out_list(*arguments))
    disk.read()
    assert disk.host.late.pop(disk.host.tag).status == RESERVATION_CONFLICT
    assert disk.contents == OLD


def test_write_protection_and_a_smaller_size_hold() -> None:
    disk = Disk()
    ask(disk.host, *SWAP)
    disk.lu.read_only = True
    disk.read()
    assert key_asc(disk.host.late.pop(disk.host.tag))[0] == DATA_PROTECT
    disk.lu.read_only, disk.store.cold = False, True
    ask(disk.host, unmap(24), unmap_list((2000, 8)))
    disk.store.size_bytes = 1 << 19
    disk.read()
    assert key_asc(disk.host.late.pop(disk.host.tag)) == BAD_LBA


def test_a_lun_that_is_not_mapped_any_more_is_not_changed() -> None:
    disk = Disk()
    ask(disk.host, *SWAP)
    disk.host.nexus.set_map({})
    disk.read()
    assert key_asc(disk.host.late.pop(disk.host.tag)) == (ILLEGAL, 0x2500)
    assert disk.contents == OLD


def test_a_session_that_ends_takes_it_along() -> None:
    disk = Disk()
    ask(disk.host, *SWAP)
    disk.host.nexus.close()
    disk.read()
    assert not disk.host.late
    assert disk.contents == OLD


def test_a_fault_of_ours_ends_one_command(monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk()
    ask(disk.host, *SWAP)
    ask(disk.host, ten(0x2F, 0, 1), b"")
    monkeypatch.setattr(disk.store, "write", lambda *_: 1 / 0)
    disk.read()
    assert [key_asc(late)[0] if late.status else 0 for _, late in sorted(disk.host.late.items())] == [4, 0]
