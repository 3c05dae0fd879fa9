"""What an administrator lets hosts see of a thin 512e unit: fully provisioned, or with native blocks."""

from __future__ import annotations

import pytest

from target.scsi.unit import FULLY_PROVISIONED, NATIVE_BLOCKS
from tests.support.memory_store import MemoryStore
from tests.support.scsi_host import (
    BAD_CDB_FIELD,
    BAD_OPCODE,
    TEST_UNIT_READY,
    UNIT_ATTENTION,
    get_lba_status,
    inquiry,
    key_asc,
    one_host,
    sanitize,
    sixteen,
    unmap,
    unmap_list,
)

READ_CAPACITY_16 = sixteen(0x9E, 0, 32, 0x10)
SAME_16, UNMAP_BIT, BLOCK_ERASE = 0x93, 8, 2
BLOCKS = (1 << 20) // 512


def test_a_fully_provisioned_unit_takes_no_unmap() -> None:
    host, _, store = one_host(fully_provisioned=b"1")
    store.write(0, memoryview(b"x" * 8192))
    parameters = unmap_list((0, 8))
    assert key_asc(host.send(unmap(len(parameters)), parameters)) == BAD_OPCODE
    assert key_asc(host.send(sixteen(SAME_16, 0, 8, UNMAP_BIT), bytes(512))) == BAD_CDB_FIELD
    assert store.contents(0, 8192) == b"x" * 8192


def test_it_claims_no_provisioning_on_any_page() -> None:
    host, _, _ = one_host(fully_provisioned=b"1")
    assert host.data(host.send(READ_CAPACITY_16))[14:16] == bytes(2)
    assert host.data(host.send(inquiry(0xB2)))[4:] == bytes(4)
    limits = host.data(host.send(inquiry(0xB0)))
    assert limits[4] == 0  # WSNZ
    assert limits[20:36] == bytes(16)


def test_every_block_of_it_is_mapped() -> None:
    host, _, store = one_host(fully_provisioned=b"1")
    store.write(4096, memoryview(b"x" * 4096))
    data = host.data(host.send(get_lba_status(8)))
    assert len(data) == 24
    assert data[8:16] == (8).to_bytes(8, "big")
    assert data[16:21] == (BLOCKS - 8).to_bytes(4, "big") + b"\0"


def test_zeros_still_give_its_space_back() -> None:
    host, _, store = one_host(fully_provisioned=b"1")
    store.write(0, memoryview(b"x" * 8192))
    assert host.send(sixteen(SAME_16, 0, 8), bytes(512)).status == 0
    assert store.used_bytes == 4096


def test_block_erase_goes_with_thin_provisioning() -> None:
    thin, _, _ = one_host()
    assert thin.data(thin.send(inquiry(0xB1)))[7] == 0x40  # WABEREQ
    assert thin.send(sanitize(BLOCK_ERASE)).status == 0
    host, _, _ = one_host(fully_provisioned=b"1")
    assert host.data(host.send(inquiry(0xB1)))[7] == 0
    assert key_asc(host.send(sanitize(BLOCK_ERASE))) == BAD_OPCODE


def test_a_threshold_says_nothing_to_its_hosts() -> None:
    host, lu, _ = one_host(fully_provisioned=b"1")
    lu.threshold_reached()
    assert host.send(TEST_UNIT_READY).status == 0


def test_native_blocks_are_no_larger_than_logical_ones() -> None:
    host, _, _ = one_host(native_blocks=b"1")
    assert host.data(host.send(READ_CAPACITY_16))[13] == 0
    assert host.data(host.send(inquiry(0xB0)))[6:8] == b"\0\1"
    # what an UNMAP gives back is as it was
    assert int.from_bytes(host.data(host.send(inquiry(0xB0)))[28:32], "big") == 8


def test_a_4kn_unit_has_native_blocks_anyway() -> None:
    host, lu, _ = one_host(MemoryStore(logical_block_bytes=4096))
    before = host.data(host.send(READ_CAPACITY_16))
    lu.switch(NATIVE_BLOCKS, True)
    host.ready()
    assert host.data(host.send(READ_CAPACITY_16)) == before


@pytest.mark.parametrize("name", [FULLY_PROVISIONED, NATIVE_BLOCKS])
def test_hosts_are_told_to_look_again_once_a_change(name: str) -> None:
    host, lu, _ = one_host()
    before = host.data(host.send(READ_CAPACITY_16))
    lu.switch(name, True)
    assert key_asc(host.send(TEST_UNIT_READY)) == (UNIT_ATTENTION, 0x3F03)
    assert key_asc(host.send(TEST_UNIT_READY)) == (UNIT_ATTENTION, 0x2A09)
    assert host.data(host.send(READ_CAPACITY_16)) != before
    lu.switch(name, True)
    assert host.send(TEST_UNIT_READY).status == 0
