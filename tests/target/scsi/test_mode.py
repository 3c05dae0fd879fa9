"""MODE SENSE and MODE SELECT."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from target.scsi.mode_pages import PAGES
from tests.support.memory_store import MemoryStore
from tests.support.scsi_host import (
    BAD_CDB_FIELD,
    BAD_LIST_FIELD,
    BAD_LIST_LENGTH,
    DATA_PROTECT,
    MEDIUM_ERROR,
    TEST_UNIT_READY,
    UNIT_ATTENTION,
    Host,
    key_asc,
    mode_select_6,
    mode_select_10,
    mode_sense_6,
    mode_sense_10,
    one_host,
    platform_of,
    two_hosts,
    write_16,
)

DBD, LLBAA = 0x08, 0x10
CONTROL, CACHING = 0x0A, 0x08
SAVE = 0x11


def page(host: Host, number: int, control: int = 0, subpage: int = 0) -> bytes:
    return host.data(host.send(mode_sense_10(control << 6 | number, subpage, DBD)))[8:]


def select(host: Host, pages: bytes, flags: int = 0x10) -> tuple[int, int] | None:
    parameters = bytes(8) + pages
    response = host.send(mode_select_10(len(parameters), flags), parameters)
    return None if response.status == 0 else key_asc(response)


def control_page(**changes: int) -> bytes:
    host, _, _ = one_host()
    data = bytearray(page(host, CONTROL))
    for at, value in changes.items():
        data[int(at[1:])] = value
    return bytes(data)


def test_the_caching_page_says_that_there_is_a_write_cache() -> None:
    host, _, _ = one_host()
    assert page(host, CACHING)[:3] == bytes((0x08, 0x12, 0x04))


def test_dpofua_is_set_and_wp_is_not() -> None:
    host, _, _ = one_host()
    assert host.data(host.send(mode_sense_6(0x3F)))[2] == 0x10
    assert host.data(host.send(mode_sense_10(0x3F)))[3] == 0x10


def test_a_read_only_unit_shows_wp() -> None:
    host, _, store = one_host()
    store.read_only = True
    assert host.data(host.send(mode_sense_6(0x3F)))[2] & 0x80


def test_the_length_fields_count_what_follows() -> None:
    host, _, _ = one_host()
    six, ten = host.data(host.send(mode_sense_6(0x3F))), host.data(host.send(mode_sense_10(0x3F)))
    assert six[0] == len(six) - 1
    assert int.from_bytes(ten[:2], "big") == len(ten) - 2
    assert six[4:] == ten[8:]


def test_the_block_descriptor_has_the_geometry() -> None:
    host, _, _ = one_host()
    data = host.data(host.send(mode_sense_6(0x3F)))
    assert data[3] == 8
    assert data[4:12] == (2048).to_bytes(4, "big") + (512).to_bytes(4, "big")


def test_the_long_block_descriptor_comes_with_llbaa() -> None:
    host, _, _ = one_host(MemoryStore(4 << 40))
    data = host.data(host.send(mode_sense_10(0x3F, flags=LLBAA)))
    assert data[4] == 1
    assert data[6:8] == b"\0\x10"
    assert data[8:24] == (1 << 33).to_bytes(8, "big") + bytes(4) + (512).to_bytes(4, "big")


def test_dbd_leaves_the_block_descriptor_out() -> None:
    host, _, _ = one_host()
    assert host.data(host.send(mode_sense_6(0x3F, flags=DBD)))[3] == 0


@pytest.mark.parametrize("key", PAGES)
def test_each_page_can_be_asked_for_alone(key: tuple[int, int]) -> None:
    host, _, _ = one_host()
    data = page(host, key[0], subpage=key[1])
    assert data[0] & 0x3F == key[0]
    assert len(data) == (4 + int.from_bytes(data[2:4], "big") if key[1] else 2 + data[1])


def test_all_pages_come_in_ascending_order() -> None:
    host, _, _ = one_host()
    data, codes = page(host, 0x3F), []
    while data:
        codes.append(data[0] & 0x3F)
        data = data[2 + data[1] :]
    assert codes == [0x01, 0x08, 0x0A, 0x1C]


def test_all_subpages_include_the_control_extension() -> None:
    host, _, _ = one_host()
    assert b"\x4a\x01\x00\x1c" in page(host, 0x3F, subpage=0xFF)


@pytest.mark.parametrize("cdb", [mode_sense_6(0x02), mode_sense_6(0x0A, 0x07), mode_sense_10(0x3E)])
def test_an_unknown_page_is_refused(cdb: bytes) -> None:
    host, _, _ = one_host()
    assert key_asc(host.send(cdb)) == BAD_CDB_FIELD


def test_pages_with_something_to_change_can_be_saved() -> None:
    host, _, _ = one_host()
    assert [page(host, code)[0] & 0x80 for code in (0x01, CACHING, CONTROL)] == [0, 0, 0x80]


def test_saved_values_are_the_defaults_until_something_is_saved() -> None:
    host, _, _ = one_host()
    assert page(host, CONTROL, control=3) == page(host, CONTROL, control=2)
    assert select(host, control_page(b2=0x04)) is None
    assert page(host, CONTROL, control=3) == page(host, CONTROL, control=2)


def test_saved_values_outlive_a_reset_and_a_restart() -> None:
    host, lu, store = one_host()
    assert select(host, control_page(b4=0x08), SAVE) is None
    assert page(host, CONTROL, control=3)[4] == 0x08
    lu.reset()
    host.ready()
    assert page(host, CONTROL)[4] == 0x08
    again, _, _ = one_host(store, **platform_of(lu).saved)
    assert page(again, CONTROL)[4] == 0x08
    assert key_asc(again.send(write_16(0, 1), bytes(512))) == (DATA_PROTECT, 0x2702)


def test_what_is_not_saved_ends_with_a_reset() -> None:
    host, lu, _ = one_host()
    assert select(host, control_page(b4=0x08)) is None
    lu.reset()
    host.ready()
    assert page(host, CONTROL)[4] == 0


def test_saved_pages_are_durable_before_good_status() -> None:
    host, lu, _ = one_host()
    assert host.start(mode_select_6(0, SAVE)) is None
    assert not host.late
    platform_of(lu).finish_saves(OSError("disk full"))
    assert key_asc(host.late.pop(host.tag)) == (MEDIUM_ERROR, 0x0C00)


def test_changeable_bits_are_d_sense_and_swp() -> None:
    host, _, _ = one_host()
    assert page(host, CONTROL, control=1) == bytes((0x8A, 0x0A, 0x04, 0, 0x08, 0, 0, 0, 0, 0, 0, 0))
    assert page(host, CACHING, control=1)[2:] == bytes(18)


def test_default_values_stay_what_they_are() -> None:
    host, _, _ = one_host()
    before = page(host, CONTROL, control=2)
    assert select(host, control_page(b2=0x04)) is None
    assert page(host, CONTROL, control=2) == before
    assert page(host, CONTROL) != before


def test_d_sense_changes_the_format_of_sense_data() -> None:
    host, _, _ = one_host()
    assert select(host, control_page(b2=0x04)) is None
    assert host.send(b"\xff").sense[0] == 0x72
    assert select(host, control_page()) is None
    assert host.send(b"\xff").sense[0] == 0x70


def test_swp_protects_and_unprotects_the_unit() -> None:
    host, _, _ = one_host()
    assert select(host, control_page(b4=0x08)) is None
    assert key_asc(host.send(write_16(0, 1), bytes(512))) == (DATA_PROTECT, 0x2702)
    assert host.data(host.send(mode_sense_6(0x3F)))[2] & 0x80
    assert select(host, control_page()) is None
    assert host.send(write_16(0, 1), bytes(512)).status == 0


def test_the_other_nexuses_hear_of_a_change_and_the_one_that_made_it_does_not() -> None:
    one, two, _, _ = two_hosts()
    assert select(one, control_page(b2=0x04)) is None
    assert one.send(TEST_UNIT_READY).status == 0
    assert key_asc(two.send(TEST_UNIT_READY)) == (UNIT_ATTENTION, 0x2A01)


def test_selecting_what_is_already_so_tells_nobody() -> None:
    one, two, _, _ = two_hosts()
    assert select(one, control_page()) is None
    assert two.send(TEST_UNIT_READY).status == 0


def test_a_reset_brings_the_defaults_back() -> None:
    host, lu, _ = one_host()
    select(host, control_page(b2=0x04, b4=0x08))
    lu.reset()
    host.ready()
    assert host.send(write_16(0, 1), bytes(512)).status == 0
    assert host.send(b"\xff").sense[0] == 0x70


def test_what_mode_sense_gave_can_be_selected_back() -> None:
    host, _, _ = one_host()
    given_6 = bytearray(host.data(host.send(mode_sense_6(CACHING))))
    given_6[0] = 0
    assert host.send(mode_select_6(len(given_6)), bytes(given_6)).status == 0
    given_10 = bytearray(host.data(host.send(mode_sense_10(0x3F, 0xFF, LLBAA))))
    given_10[:2] = bytes(2)
    assert host.send(mode_select_10(len(given_10)), bytes(given_10)).status == 0


@pytest.mark.parametrize(
    "pages",
    [
        bytes((0x08, 0x12, 0x00)) + bytes(17),  # WCE off
        bytes((0x02, 0x0A)) + bytes(10),  # no such page
        bytes((0x0A, 0x0B)) + bytes(11),  # wrong length
        control_page(b5=0x00),  # TAS off
    ],
)
def test_what_cannot_be_changed_is_refused(pages: bytes) -> None:
    host, _, _ = one_host()
    assert select(host, pages) == BAD_LIST_FIELD


@pytest.mark.parametrize("pages", [b"\x0a", control_page()[:-1]])
def test_a_page_cut_short_is_a_length_error(pages: bytes) -> None:
    host, _, _ = one_host()
    assert select(host, pages) == BAD_LIST_LENGTH


def test_one_bad_page_leaves_the_others_unchanged() -> None:
    host, _, _ = one_host()
    assert select(host, control_page(b4=0x08) + bytes((0x08, 0x12)) + bytes(18)) == BAD_LIST_FIELD
    assert host.send(write_16(0, 1), bytes(512)).status == 0


def test_another_block_length_is_refused() -> None:
    host, _, _ = one_host()
    parameters = bytes((0, 0, 0, 8)) + bytes(4) + (4096).to_bytes(4, "big")
    assert key_asc(host.send(mode_select_6(12), parameters)) == BAD_LIST_FIELD


@pytest.mark.parametrize("flags", [0x01, 0x00])
def test_a_vendor_format_is_refused(flags: int) -> None:
    host, _, _ = one_host()
    assert select(host, b"", flags) == BAD_CDB_FIELD


def test_an_empty_parameter_list_is_good() -> None:
    host, _, _ = one_host()
    assert host.send(mode_select_6(0)).status == 0


@pytest.mark.parametrize("length", [1, 3])
def test_a_list_shorter_than_its_header_is_a_length_error(length: int) -> None:
    host, _, _ = one_host()
    assert key_asc(host.send(mode_select_6(length), bytes(length))) == BAD_LIST_LENGTH


@given(st.binary(max_size=60), st.booleans())
def test_any_parameter_list_ends_in_good_or_a_check_condition(parameters: bytes, long: bool) -> None:
    host, _, _ = one_host()
    cdb = mode_select_10(len(parameters)) if long else mode_select_6(len(parameters))
    assert host.send(cdb, parameters).status in (0, 2)
