"""SANITIZE and FORMAT UNIT: parameters, the work in the background, and what is refused meanwhile."""

from __future__ import annotations

import json

import pytest

from target.scsi.limits import ERASE_STEP_BYTES
from tests.support.memory_store import MemoryStore
from tests.support.scsi_host import (
    BAD_CDB_FIELD,
    BAD_LIST_FIELD,
    DATA_PROTECT,
    ILLEGAL,
    MEDIUM_ERROR,
    NOT_READY,
    RESERVE_6,
    TEST_UNIT_READY,
    Host,
    inquiry,
    key_asc,
    mode_sense_6,
    one_host,
    overwrite_list,
    platform_of,
    read_16,
    report_luns,
    report_opcodes,
    request_sense,
    reserve_in,
    sanitize,
    sense_of,
    start_stop,
    two_hosts,
    write_16,
)

OVERWRITE, BLOCK_ERASE, CRYPTOGRAPHIC_ERASE, EXIT_FAILURE_MODE = 1, 2, 3, 0x1F
IMMED, AUSE = 0x80, 0x20
SANITIZING, SANITIZE_FAILED = (NOT_READY, 0x041B), (MEDIUM_ERROR, 0x3103)
FORMATTING = (NOT_READY, 0x0404)
FORMAT = bytes((0x04, 0, 0, 0, 0, 0))
LOG_SENSE = bytes.fromhex("4d00000000000000ff00")
FORMAT_WITH_LIST = bytes((0x04, 0x10, 0, 0, 0, 0))
FORMAT_WITH_LONG_LIST = bytes((0x04, 0x30, 0, 0, 0, 0))


def large() -> MemoryStore:
    """Three slices of an overwrite."""
    store = MemoryStore(3 * ERASE_STEP_BYTES)
    store.write(0, memoryview(b"s" * 8192))
    return store


def overwrite(host: Host, pattern: bytes, count: int = 1, flags: int = 0):  # type: ignore[no-untyped-def]
    parameters = overwrite_list(pattern, count)
    return host.send(sanitize(OVERWRITE, len(parameters), flags), parameters)


def test_block_erase_unmaps_everything() -> None:
    host, _, store = one_host(large())
    assert host.send(sanitize(BLOCK_ERASE)).status == 0
    assert not store.pieces
    assert host.read(0, 16) == bytes(8192)


def test_overwrite_fills_every_block_with_the_pattern() -> None:
    host, _, store = one_host(large())
    assert overwrite(host, b"abc").status == 0
    block = (b"abc" * 200)[:512]
    assert store.contents(0, 1024) == block * 2
    assert store.contents(store.size_bytes - 512, 512) == block


@pytest.mark.parametrize(("count", "expected"), [(1, b"\x0f"), (2, b"\x0f"), (0x82, b"\xf0"), (0x83, b"\x0f")])
def test_invert_writes_the_complement_in_every_second_pass(count: int, expected: bytes) -> None:
    host, _, store = one_host(large())
    assert overwrite(host, b"\x0f", count).status == 0
    assert store.contents(0, 512) == expected * 512


def test_a_sanitize_is_flushed_before_good_status() -> None:
    host, lu, store = one_host(large())
    assert host.start(sanitize(BLOCK_ERASE)) is None
    platform_of(lu).run()
    assert not host.late
    assert key_asc(host.send(TEST_UNIT_READY)) == SANITIZING
    store.finish_flushes()
    platform_of(lu).run()
    assert host.late[host.tag - 1].status == 0


@pytest.mark.parametrize(
    "cdb",
    [
        TEST_UNIT_READY, read_16(0, 1), write_16(0, 1), start_stop(1), mode_sense_6(0x3F), reserve_in(0), sanitize(2),
        FORMAT,
    ],
)
def test_commands_are_refused_while_it_runs(cdb: bytes) -> None:
    host, _, _ = one_host(large())
    assert host.send(sanitize(BLOCK_ERASE, flags=IMMED)).status == 0
    assert key_asc(host.send(cdb, bytes(512))) == SANITIZING


@pytest.mark.parametrize("cdb", [inquiry(), report_luns(), request_sense(), report_opcodes(), LOG_SENSE])
def test_what_asks_about_the_unit_is_answered_while_it_runs(cdb: bytes) -> None:
    host, _, _ = one_host(large())
    host.send(sanitize(BLOCK_ERASE, flags=IMMED))
    assert host.send(cdb).status == 0


def test_the_fast_path_is_closed_while_it_runs_and_open_after() -> None:
    host, lu, store = one_host(large())
    buf, out = memoryview(read_16(0, 1)), memoryview(bytearray(512))
    assert host.nexus.fast_read(0, buf, 0, 512, out) == 512
    host.send(sanitize(BLOCK_ERASE, flags=IMMED))
    assert host.nexus.fast_read(0, buf, 0, 512, out) == -1
    platform_of(lu).run()
    store.finish_flushes()
    platform_of(lu).run()
    assert host.nexus.fast_read(0, buf, 0, 512, out) == 512


def test_request_sense_tells_the_progress() -> None:
    host, lu, _ = one_host(large())
    host.start(sanitize(OVERWRITE, 5), overwrite_list(b"z"))
    platform_of(lu).finish_saves()
    for done in range(3):
        sense = host.data(host.send(request_sense()))
        assert sense_of(sense) == SANITIZING
        assert sense[15:18] == b"\x80" + (done * 65536 // 3).to_bytes(2, "big")
        platform_of(lu).step()


def test_it_goes_on_over_an_abort_a_reset_and_a_lost_nexus() -> None:
    one, two, lu, store = two_hosts()
    one.start(sanitize(BLOCK_ERASE))
    assert one.nexus.abort_task(0, one.tag)
    one.nexus.manage(5, 0)
    one.nexus.close()
    two.nexus.manage(6, 0)
    while key_asc(two.send(TEST_UNIT_READY))[0] == 6:
        pass
    assert key_asc(two.send(TEST_UNIT_READY)) == SANITIZING
    platform_of(lu).run()
    store.finish_flushes()
    platform_of(lu).run()
    assert two.send(TEST_UNIT_READY).status == 0
    assert not one.late


def test_it_begins_anew_after_a_restart() -> None:
    host, lu, store = one_host(large())
    host.send(sanitize(BLOCK_ERASE, flags=IMMED))
    platform_of(lu).finish_saves()
    again, anew, _ = one_host(store, **platform_of(lu).saved)
    assert key_asc(again.send(TEST_UNIT_READY)) == SANITIZING
    platform_of(anew).run()
    store.finish_flushes()
    platform_of(anew).run()
    assert again.send(TEST_UNIT_READY).status == 0
    assert not store.pieces
    assert not platform_of(anew).saved["erasure"]


def test_it_waits_for_a_volume_that_is_offline() -> None:
    host, lu, store = one_host(large())
    host.send(sanitize(BLOCK_ERASE, flags=IMMED))
    platform_of(lu).finish_saves()
    store.online = False
    platform_of(lu).step()
    assert lu.erasure.running
    store.online = True
    platform_of(lu).run()
    assert not store.pieces


def test_a_failure_stays_until_it_is_left() -> None:
    host, lu, store = one_host(large())
    store.full = True
    assert key_asc(overwrite(host, b"x", flags=AUSE)) == SANITIZE_FAILED
    assert key_asc(host.send(TEST_UNIT_READY)) == SANITIZE_FAILED
    platform_of(lu).finish_saves()
    assert json.loads(platform_of(lu).saved["erasure"])["failed"]
    assert host.send(mode_sense_6(0x3F)).status == 0
    assert host.send(sanitize(EXIT_FAILURE_MODE)).status == 0
    assert host.send(TEST_UNIT_READY).status == 0


def test_without_ause_a_failure_can_only_be_repaired_by_another_sanitize() -> None:
    host, _, store = one_host(large())
    store.full = True
    overwrite(host, b"x")
    assert key_asc(host.send(sanitize(EXIT_FAILURE_MODE))) == BAD_CDB_FIELD
    store.full = False
    assert host.send(sanitize(BLOCK_ERASE)).status == 0
    assert host.send(TEST_UNIT_READY).status == 0


def test_exit_failure_mode_without_a_failure_is_good() -> None:
    host, _, _ = one_host()
    assert host.send(sanitize(EXIT_FAILURE_MODE)).status == 0


def test_what_cannot_be_noted_is_not_begun() -> None:
    host, lu, store = one_host(large())
    host.start(sanitize(BLOCK_ERASE))
    platform_of(lu).finish_saves(OSError("disk full"))
    assert key_asc(host.late.pop(host.tag)) == (4, 0x4400)
    assert store.contents(0, 1) == b"s"
    assert host.send(TEST_UNIT_READY).status == 0


def test_the_administrator_hears_of_it() -> None:
    host, lu, store = one_host(large())
    host.send(sanitize(BLOCK_ERASE))
    store.full = True
    overwrite(host, b"x")
    assert [note.split(":")[0] for note in platform_of(lu).notes] == [
        "sanitize begins", "sanitize is complete", "sanitize begins", "sanitize failed"
    ]


@pytest.mark.parametrize("action", [BLOCK_ERASE, EXIT_FAILURE_MODE])
def test_no_parameters_where_none_belong(action: int) -> None:
    host, _, _ = one_host()
    assert key_asc(host.send(sanitize(action, 8), bytes(8))) == BAD_CDB_FIELD


@pytest.mark.parametrize("length", [0, 1, 4, 517])
def test_the_length_of_an_overwrite_list_is_bounded_by_the_block(length: int) -> None:
    host, _, _ = one_host()
    assert key_asc(host.send(sanitize(OVERWRITE, length), bytes(length))) == BAD_CDB_FIELD


@pytest.mark.parametrize(("count", "length"), [(0, 1), (0x41, 1), (1, 0), (1, 2)])
def test_bad_overwrite_parameters_are_refused(count: int, length: int) -> None:
    parameters = overwrite_list(b"x", count, length)
    host, lu, _ = one_host()
    assert key_asc(host.send(sanitize(OVERWRITE, len(parameters)), parameters)) == BAD_LIST_FIELD
    assert lu.erasure.plan is None


@pytest.mark.parametrize("action", [0, CRYPTOGRAPHIC_ERASE, 4, 0x1E])
def test_other_service_actions_are_refused(action: int) -> None:
    host, _, _ = one_host()
    assert key_asc(host.send(sanitize(action))) == BAD_CDB_FIELD


@pytest.mark.parametrize("at", range(2, 7))
def test_reserved_bytes_are_checked(at: int) -> None:
    host, _, _ = one_host()
    cdb = bytearray(sanitize(BLOCK_ERASE))
    cdb[at] = 1
    assert key_asc(host.send(bytes(cdb))) == BAD_CDB_FIELD


def test_a_thick_unit_has_no_block_erase() -> None:
    host, _, _ = one_host(MemoryStore(thin=False))
    assert key_asc(host.send(sanitize(BLOCK_ERASE))) == (ILLEGAL, 0x2000)


def test_write_protection_and_reservations_stand_against_it() -> None:
    one, two, _, store = two_hosts()
    two.send(RESERVE_6)
    assert one.send(sanitize(BLOCK_ERASE)).status == 0x18
    store.read_only = True
    assert key_asc(two.send(sanitize(BLOCK_ERASE))) == (DATA_PROTECT, 0x2700)


# --- FORMAT UNIT ---


@pytest.mark.parametrize(
    ("cdb", "data"), [(FORMAT, b""), (FORMAT_WITH_LIST, bytes(4)), (FORMAT_WITH_LONG_LIST, bytes(8))]
)
def test_format_leaves_zeros(cdb: bytes, data: bytes) -> None:
    host, _, store = one_host(large())
    assert host.send(cdb, data).status == 0
    assert not store.pieces


def test_format_with_immed_goes_on_in_the_background() -> None:
    host, _, _ = one_host(large())
    assert host.send(FORMAT_WITH_LIST, bytes((0, 2, 0, 0))).status == 0
    assert key_asc(host.send(TEST_UNIT_READY)) == FORMATTING


@pytest.mark.parametrize("cdb", ["048000000000", "044000000000", "040800000000", "040100000000", "042000000000"])
def test_protection_and_defect_lists_are_refused(cdb: str) -> None:
    host, _, _ = one_host()
    assert key_asc(host.send(bytes.fromhex(cdb))) == BAD_CDB_FIELD


@pytest.mark.parametrize("data", ["01000000", "00080000", "00100000", "00000008"])
def test_patterns_stop_format_and_defects_in_the_list_are_refused(data: str) -> None:
    host, _, _ = one_host()
    assert key_asc(host.send(FORMAT_WITH_LIST, bytes.fromhex(data))) == BAD_LIST_FIELD
