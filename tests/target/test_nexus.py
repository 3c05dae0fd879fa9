"""The nexus: fast path, LUN maps and closing, seen through `ports.Nexus`."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from target.iscsi.ports import DataInFailed
from target.iscsi.ports import Nexus as NexusPort
from target.nexus import LogicalUnit, TargetDevice, lun_field
from tests.support.memory_store import MemoryStore
from tests.support.scsi_host import (
    RESERVE_6,
    TARGET,
    TEST_UNIT_READY,
    UNIT_ATTENTION,
    Host,
    key_asc,
    mode_select_6,
    one_host,
    read_16,
    reserve_out,
    reserve_out_list,
    ten,
    two_hosts,
    units,
    write_16,
)

SYNC = ten(0x35, 0, 0)
FUA, DPO = 0x08, 0x10
LUN_RESET = 5


def fast_read(host: Host, cdb: bytes, edtl: int, room: int | None = None, lun: int = 0) -> bytes | None:
    """As the core calls it: the CDB at byte 32 of a PDU in a larger buffer."""
    out = bytearray(b"?" * (edtl if room is None else room))
    buf = memoryview(b"junk" * 9 + cdb.ljust(16, b"\0") + b"more")
    got = host.nexus.fast_read(lun_field(lun), buf, 36, edtl, memoryview(out))
    return None if got == -1 else bytes(out[:got])


def fast_write(host: Host, cdb: bytes, data: bytes, lun: int = 0) -> bool:
    buf = memoryview(b"junk" * 9 + cdb.ljust(16, b"\0") + b"more")
    return host.nexus.fast_write(lun_field(lun), buf, 36, memoryview(data))


def test_a_nexus_is_what_the_iscsi_core_asks_for() -> None:
    host, _, _ = one_host()
    port: NexusPort = host.nexus
    assert port.data_out_length(0, ten(0x2A, 0, 8).ljust(16, b"\0")) == 4096


# --- the fast path ---


@pytest.mark.parametrize("cdb", [ten(0x28, 8, 8), read_16(8, 8), ten(0x28, 8, 8, DPO)])
def test_a_plain_read_is_fast(cdb: bytes) -> None:
    host, _, store = one_host()
    store.write(4096, memoryview(b"r" * 4096))
    assert fast_read(host, cdb, 4096) == b"r" * 4096


@pytest.mark.parametrize("cdb", [ten(0x2A, 8, 8), write_16(8, 8), write_16(8, 8, DPO)])
def test_a_plain_write_is_fast(cdb: bytes) -> None:
    host, _, store = one_host()
    assert fast_write(host, cdb, b"w" * 4096)
    assert store.contents(4096, 4096) == b"w" * 4096


def test_more_room_than_needed_is_left_alone() -> None:
    host, _, _ = one_host()
    assert fast_read(host, read_16(0, 1), 512, room=2048) == bytes(512)


def test_the_fast_path_counts() -> None:
    host, lu, _ = one_host()
    fast_read(host, read_16(0, 8), 4096)
    fast_write(host, write_16(0, 4), bytes(2048))
    counters = lu.counters
    assert (counters.reads, counters.read_bytes, counters.writes, counters.write_bytes) == (1, 4096, 1, 2048)


@pytest.mark.parametrize(
    ("cdb", "edtl"),
    [
        (read_16(0, 8), 2048),  # EDTL and CDB differ
        (read_16(0, 4), 4096),
        (read_16(0, 0), 0),
        (read_16(2041, 8), 4096),  # beyond the end
        (read_16((1 << 64) - 1, 8), 4096),
        (read_16(0, 8, FUA), 4096),
        (read_16(0, 8, 0x20), 4096),  # RDPROTECT
        (read_16(0, 8)[:-1] + b"\x04", 4096),  # NACA
        (bytes((0x08, 0, 0, 0, 8, 0)), 4096),  # READ(6) goes the long way
        (TEST_UNIT_READY, 0),
    ],
)
def test_whatever_is_not_plain_goes_the_long_way(cdb: bytes, edtl: int) -> None:
    host, _, _ = one_host()
    assert fast_read(host, cdb, edtl) is None


def test_data_that_does_not_fit_the_buffer_goes_the_long_way() -> None:
    host, _, _ = one_host()
    assert fast_read(host, read_16(0, 8), 4096, room=2048) is None


def test_data_that_needs_the_disk_goes_the_long_way() -> None:
    host, _, store = one_host()
    store.cold = True
    assert fast_read(host, read_16(0, 8), 4096) is None
    assert host.read(0, 8) == bytes(4096)


def test_errors_of_the_store_go_the_long_way() -> None:
    host, _, store = one_host()
    store.bad.add(0)
    store.full = True
    assert fast_read(host, read_16(0, 8), 4096) is None
    assert not fast_write(host, write_16(0, 8), bytes(4096))


def test_a_store_that_went_offline_silently_is_not_read_fast() -> None:
    host, _, store = one_host()
    store.online = False
    assert fast_read(host, read_16(0, 8), 4096) is None


def test_an_absent_lun_goes_the_long_way() -> None:
    host, _, _ = one_host()
    assert fast_read(host, read_16(0, 8), 4096, lun=3) is None


Closing = Callable[[Host, Host, LogicalUnit, MemoryStore], object]


def offline(one: Host, two: Host, lu: LogicalUnit, store: MemoryStore) -> None:
    store.online = False
    lu.state_changed()


def read_only(one: Host, two: Host, lu: LogicalUnit, store: MemoryStore) -> None:
    store.read_only = True
    lu.state_changed()


def persistent(kind: int) -> Closing:
    def reserve(one: Host, two: Host, lu: LogicalUnit, store: MemoryStore) -> None:
        two.send(reserve_out(0), reserve_out_list(0, 1))
        assert two.send(reserve_out(1, kind), reserve_out_list(1)).status == 0

    return reserve


def software_protect(one: Host, two: Host, lu: LogicalUnit, store: MemoryStore) -> None:
    parameters = bytes(4) + bytes((0x0A, 0x0A, 0, 0x10, 0x08, 0x40, 0, 0, 0xFF, 0xFF, 0, 0))
    assert one.send(mode_select_6(len(parameters)), parameters).status == 0


@pytest.mark.parametrize(
    ("close", "read", "write"),
    [
        (lambda one, two, lu, store: None, True, True),
        (lambda one, two, lu, store: lu.capacity_changed(), False, False),
        (lambda one, two, lu, store: two.send(RESERVE_6), False, False),
        (lambda one, two, lu, store: one.send(RESERVE_6), True, True),
        (lambda one, two, lu, store: one.nexus.set_map({}), False, False),
        (lambda one, two, lu, store: one.nexus.close(), False, False),
        (lambda one, two, lu, store: two.nexus.manage(LUN_RESET, 0), False, False),
        (offline, False, False),
        (read_only, True, False),
        (software_protect, True, False),
        (persistent(1), True, False),
        (persistent(3), False, False),
    ],
    ids=[
        "nothing", "unit attention", "RESERVE of another", "own RESERVE", "unmapped", "closed", "reset", "offline",
        "read-only", "SWP", "write exclusive", "exclusive access",
    ],
)
def test_the_fast_path_is_open_only_while_nothing_stands_in_the_way(close: Closing, read: bool, write: bool) -> None:
    one, two, lu, store = two_hosts()
    close(one, two, lu, store)
    assert (fast_read(one, read_16(0, 8), 4096) is not None) is read
    assert fast_write(one, write_16(0, 8), bytes(4096)) is write


def test_the_fast_path_opens_again_when_the_unit_attention_is_taken() -> None:
    host, lu, _ = one_host()
    lu.capacity_changed()
    host.send(TEST_UNIT_READY)
    assert fast_read(host, read_16(0, 8), 4096) == bytes(4096)


def test_after_a_resize_the_fast_path_knows_the_new_end() -> None:
    host, lu, store = one_host()
    store.size_bytes = 8192
    lu.capacity_changed()
    host.ready()
    assert fast_read(host, read_16(16, 8), 4096) is None
    store.size_bytes = 16384
    lu.capacity_changed()
    host.ready()
    assert fast_read(host, read_16(16, 8), 4096) == bytes(4096)


@pytest.mark.parametrize(("resized", "told"), [(False, [0x2800]), (True, [0x2800, 0x2A09])])
def test_restored_contents_are_told_to_every_host_before_they_are_read(resized: bool, told: list[int]) -> None:
    one, two, lu, _ = two_hosts()
    lu.contents_changed(resized=resized)
    for host in (one, two):
        assert fast_read(host, read_16(0, 1), 512) is None
        assert [key_asc(host.send(read_16(0, 1))) for _ in told] == [(UNIT_ATTENTION, code) for code in told]
        assert fast_read(host, read_16(0, 1), 512) == bytes(512)


def test_a_read_that_is_half_sent_does_not_mix_old_and_restored_contents() -> None:
    host, lu, _ = one_host()
    before = host.send(read_16(0, 64))
    assert before.reader is not None
    before.reader(0, memoryview(bytearray(4096)))
    lu.contents_changed(resized=False)
    with pytest.raises(DataInFailed) as failed:
        before.reader(4096, memoryview(bytearray(4096)))
    assert key_asc(failed.value.response) == (0xB, 0x2F02)
    host.ready()
    assert host.read(0, 64) == bytes(64 * 512)


def test_a_replaced_store_is_read_at_once() -> None:
    host, lu, _ = one_host()
    other = MemoryStore()
    other.write(0, memoryview(b"n" * 4096))
    lu.replace_store(other)
    assert fast_read(host, read_16(0, 8), 4096) == b"n" * 4096


# --- LUN maps ---


def test_an_initiator_sees_its_map_only() -> None:
    a, b = units(2)
    device = TargetDevice(TARGET)
    one, two = Host(device, {0: a}, "iqn.host:a"), Host(device, {0: b, 4: a}, "iqn.host:b")
    assert one.nexus.inventory() == [0]
    assert two.nexus.inventory() == [0, 4 << 48]


def test_mapping_another_lun_is_told_on_the_luns_that_were_there() -> None:
    a, b = units(2)
    host = Host(TargetDevice(TARGET), {0: a})
    host.ready()
    assert host.nexus.set_map({0: a, 1: b})
    assert key_asc(host.send(TEST_UNIT_READY, lun=0)) == (UNIT_ATTENTION, 0x3F0E)
    assert key_asc(host.send(TEST_UNIT_READY, lun=1)) == (UNIT_ATTENTION, 0x2900)


def test_unmapping_is_told_and_the_lun_is_gone() -> None:
    a, b = units(2)
    host = Host(TargetDevice(TARGET), {0: a, 1: b})
    host.ready(0)
    host.nexus.set_map({0: a})
    assert key_asc(host.send(TEST_UNIT_READY, lun=0)) == (UNIT_ATTENTION, 0x3F0E)
    assert key_asc(host.send(TEST_UNIT_READY, lun=1)) == (5, 0x2500)
    assert b.itls == []


def test_another_unit_under_the_same_lun_is_a_change() -> None:
    a, b, c = units(3)
    host = Host(TargetDevice(TARGET), {0: a, 1: b})
    for lun in (0, 1):
        host.ready(lun)
    assert host.nexus.set_map({0: a, 1: c})
    assert key_asc(host.send(TEST_UNIT_READY, lun=0)) == (UNIT_ATTENTION, 0x3F0E)
    assert key_asc(host.send(TEST_UNIT_READY, lun=1)) == (UNIT_ATTENTION, 0x2900)


def test_the_same_map_again_is_no_change() -> None:
    host, lu, _ = one_host()
    assert not host.nexus.set_map({0: lu})
    assert host.send(TEST_UNIT_READY).status == 0


def test_refresh_gives_every_nexus_the_map_of_its_initiator() -> None:
    a, b = units(2)
    device = TargetDevice(TARGET)
    hosts = {name: Host(device, {0: a}, name) for name in ("iqn.host:a", "iqn.host:b")}
    device.refresh(lambda name: {0: a, 1: b} if name == "iqn.host:b" else {})
    assert hosts["iqn.host:a"].nexus.inventory() == []
    assert len(hosts["iqn.host:b"].nexus.inventory()) == 2


@pytest.mark.parametrize("lun", [-1, 16384])
def test_a_lun_id_out_of_range_is_refused(lun: int) -> None:
    with pytest.raises(ValueError, match="LUN id"):
        TargetDevice(TARGET).open_nexus("iqn.host:a", bytes(6), {lun: units(1)[0]})


# --- closing ---


def test_close_tells_once_and_leaves_nothing_behind() -> None:
    lu, closed = units(1)[0], []
    device = TargetDevice(TARGET)
    nexus = device.open_nexus("iqn.host:a", bytes(6), {0: lu}, closed.append)
    assert device.nexuses == [nexus]
    nexus.close()
    nexus.close()
    assert (closed, device.nexuses, lu.itls) == ([nexus], [], [])


def test_close_drops_tasks_silently() -> None:
    host, _, store = one_host()
    assert host.start(SYNC) is None
    host.nexus.close()
    store.finish_flushes()
    assert not host.late
