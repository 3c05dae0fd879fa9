"""WRITE ATOMIC over crashes: after any of them the range holds all of the write or nothing of it."""

from __future__ import annotations

import pytest

from tests.support.crash_device import MemoryDevice
from tests.support.crash_history import ALL_LEFTOVERS
from tests.support.crash_log import LoggedHistory
from tests.support.volumes import MIB
from wafl import BLOCK_BYTES, Lun, Volume, write_atomic

AT = MIB - 8 * BLOCK_BYTES
LENGTH = 16 * BLOCK_BYTES
OLD, NEW = b"o" * LENGTH, b"n" * LENGTH


def contents(lun: Lun, offset: int) -> bytes:
    found = bytearray(LENGTH)
    lun.read_into(offset, memoryview(found))
    return bytes(found)


def prepared() -> tuple[LoggedHistory, Lun]:
    """A LUN with old contents on both sides of a level-1 range's border, flushed."""
    history = LoggedHistory(size_bytes=6 * MIB)
    lun = history.create("a", 2 * MIB)
    lun.write(AT, OLD)
    history.checkpoint()
    return history, lun


def found_after_crashes(history: LoggedHistory, since: int) -> set[bytes]:
    found = set()
    for state in history.device.journal.states(range(since, history.device.journal.position + 1), ALL_LEFTOVERS, 1):
        volume = Volume.mount(MemoryDevice(state.image))
        found.add(contents(volume.lun("a"), AT))
    return found


def test_a_write_over_a_border_is_there_whole_or_not_at_all() -> None:
    history, lun = prepared()
    since = history.device.journal.position
    write_atomic(lun, AT, memoryview(NEW))
    assert contents(lun, AT) == NEW
    assert found_after_crashes(history, since) == {OLD, NEW}


def test_a_plain_write_there_may_be_torn() -> None:
    history, lun = prepared()
    since = history.device.journal.position
    lun.write(AT, NEW)
    assert len(found_after_crashes(history, since)) > 2


def test_one_run_needs_no_consistency_point() -> None:
    history, lun = prepared()
    before = history.volume.generation
    log = history.volume.core.log
    assert log is not None
    records = log.seq
    write_atomic(lun, 0, memoryview(NEW))
    assert history.volume.generation == before
    assert log.seq == records + 1


@pytest.mark.parametrize("offset", [0, AT])
def test_several_writes_are_all_there(offset: int) -> None:
    history, lun = prepared()
    for byte in range(5):
        write_atomic(lun, offset, memoryview(bytes((byte,)) * LENGTH))
    assert contents(lun, offset) == b"\4" * LENGTH
    history.checkpoint()
