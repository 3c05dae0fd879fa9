"""Whole sessions on a network that reorders between connections, loses PDUs, flips bits and cuts: from seeds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest

from target.iscsi import limits
from target.iscsi.connection import Connection
from target.iscsi.constants import NO_TAG, Opcode
from target.iscsi.session import Session
from tests.support.initiator import WRITE_10, Initiator, Link, cdb_10
from tests.support.network import Story
from tests.target.iscsi.conftest import Bench

GROUPS, STORIES = 12, 12


@pytest.fixture(autouse=True)
def every_write_is_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the disk takes data as it comes, it takes that of short commands, too."""
    monkeypatch.setattr(limits, "PLACED_BYTES", 512)


@pytest.mark.parametrize("group", range(GROUPS))
def test_data_is_right_in_the_end_whatever_the_network_does(group: int) -> None:
    for seed in range(group * STORIES, (group + 1) * STORIES):
        try:
            Story(seed).play()
        except Exception as error:
            error.add_note(f"python -c 'from tests.support.network import Story; Story({seed}).play()'")
            raise


def test_the_stories_have_every_function_and_many_fences() -> None:
    answered: Counter[int] = Counter()
    fences = 0
    for seed in range(2 * STORIES):
        story = Story(seed)
        story.play()
        answered += story.answered
        fences += story.watch.passed
    assert {1, 2, 4, 5, 9, 10, 11, 12} <= set(answered)
    assert fences > 10


def test_a_fence_that_holds_nothing_would_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    respond = Session.respond

    def unfenced(session: Session, connection: Connection, send: Callable[[], None], **how: bool) -> None:
        respond(session, connection, send, **{**how, "fenced": how.get("function", False)})

    def play() -> None:
        for seed in range(GROUPS * STORIES):
            Story(seed).play()

    monkeypatch.setattr(Session, "respond", unfenced)
    with pytest.raises(AssertionError, match="on the wrong side of a fence"):
        play()


def test_unsolicited_data_waits_with_its_command(bench: Bench) -> None:
    """A WRITE is ahead of a command that comes by another connection: what follows it unasked must not be lost."""
    one: Initiator = bench.logged_in(keys={"MaxConnections": "2", "ImmediateData": "No"})
    two = one.join(Link(bench.host))
    assert two.login().status_class == 0
    first = one.cmd_sn
    cdb = cdb_10(WRITE_10, 0, 4).ljust(16, b"\0")
    fields = {"flags": 0x21, "itt": 700, "edtl": 2048, "cdb": cdb, "cmd_sn": first + 1}
    assert two.request(Opcode.SCSI_COMMAND, **fields) == []
    for n in range(4):
        last = 0x80 if n == 3 else 0
        data_out = {"flags": last, "itt": 700, "ttt": NO_TAG, "data_sn": n, "buffer_offset": n * 512}
        assert two.request(Opcode.DATA_OUT, bytes((n,)) * 512, **data_out) == []
    assert one.request(Opcode.DATA_OUT, bytes(512), itt=700, ttt=NO_TAG) == []  # not by that connection
    assert [r.status for r in one.request(Opcode.SCSI_COMMAND, flags=0x81, itt=701, cdb=bytes(16), cmd_sn=first)] == [0]
    assert [(r.itt, r.status) for r in two.link.take()] == [(700, 0)]
    assert bench.disk.data[:2048] == b"".join(bytes((n,)) * 512 for n in range(4))
    assert one.link.core.session.window.early_bytes == 0
