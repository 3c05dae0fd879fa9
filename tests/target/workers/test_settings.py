"""A worker's copy of the settings, and its changes done by the front."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from target.management.refusal import Refused
from target.management.store import Change, set_setting
from target.workers.settings import CopiedStore, SharedStore

VOLUME = ("vol0", "u0", "/v", True, "")


class Pair:
    """A front's store and a worker's copy of it, with nothing but bytes between them."""

    def __init__(self, path: Path) -> None:
        self.front = SharedStore(path)
        self.front.open()
        self.worker = CopiedStore(self.front.apply)
        self.images = 0
        self.front.share = self._share

    def _share(self, image: bytes) -> Awaitable[None]:
        self.images += 1
        return self.worker.take(image)


def settle(tmp_path: Path, scene: Callable[[Pair], Awaitable[None]]) -> None:
    async def main() -> None:
        both = Pair(tmp_path / "admin.db")
        try:
            await both.front.change(
                lambda cursor: cursor.execute("INSERT INTO volume VALUES (?, ?, ?, ?, ?)", VOLUME)
            )
            await scene(both)
            assert both.worker.state == both.front.state
        finally:
            both.front.close()

    asyncio.run(main())


def test_what_the_front_changes_its_workers_have_when_the_change_returns(tmp_path: Path) -> None:
    async def scene(both: Pair) -> None:
        await both.front.change(lambda cursor: set_setting(cursor, "a", "1"))
        assert both.worker.state.settings["a"] == "1"

    settle(tmp_path, scene)


CHANGES: dict[str, Change] = {
    "bytes, and what JSON cannot have": lambda cursor: cursor.execute(
        "INSERT INTO lun_value VALUES (?, ?, ?, ?)", ("vol0", "u", "n", bytes(range(256)))
    ),
    "many rows": lambda cursor: cursor.executemany(
        "INSERT INTO setting VALUES (?, ?)", [(f"s{number}", "é\0") for number in range(12_345)]
    ),
    "no row": lambda cursor: cursor.executemany("DELETE FROM setting WHERE name = ?", []),
    "a decision on what is there": lambda cursor: set_setting(
        cursor, "b", str(cursor.execute("SELECT count(*) FROM volume").fetchone()[0])
    ),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_worker_s_change_is_the_same_as_if_the_front_had_done_it(tmp_path: Path, change: Change) -> None:
    async def scene(both: Pair) -> None:
        assert await both.worker.change(change) is both.worker.state

    settle(tmp_path, scene)
    again = SharedStore(tmp_path / "plain.db")
    again.open()
    again.change_now(lambda cursor: cursor.execute("INSERT INTO volume VALUES (?, ?, ?, ?, ?)", VOLUME))
    expected = again.change_now(change)
    again.close()
    kept = SharedStore(tmp_path / "admin.db")
    kept.open()
    assert kept.state == expected
    kept.close()


def test_a_change_that_the_tables_refuse_is_refused_before_the_front_hears_of_it(tmp_path: Path) -> None:
    async def scene(both: Pair) -> None:
        before = both.images
        with pytest.raises(sqlite3.IntegrityError):
            await both.worker.change(lambda cursor: cursor.execute("INSERT INTO volume VALUES (?, ?, ?, ?, ?)", VOLUME))
        assert both.images == before

    settle(tmp_path, scene)


def test_a_change_that_came_too_late_is_refused_whole(tmp_path: Path) -> None:
    """The igroup goes while a worker's map to it is on its way."""

    def two(cursor: sqlite3.Cursor) -> None:
        set_setting(cursor, "half", "done")
        cursor.execute("INSERT INTO lun_map VALUES (?, ?, ?, ?, ?)", ("vol0", "u", "n", "hosts", 0))

    async def scene(both: Pair) -> None:
        await both.front.change(lambda cursor: cursor.execute("INSERT INTO igroup VALUES ('hosts', 'linux')"))
        recorded: list[bytes] = []

        async def held(statements: bytes) -> None:
            recorded.append(statements)

        late = CopiedStore(held)
        await late.take(await both.front.image())
        await late.change(two)
        await both.front.change(lambda cursor: cursor.execute("DELETE FROM igroup"))
        with pytest.raises(Refused) as refused:
            await both.front.apply(recorded[0])
        assert refused.value.name == "changed-meanwhile"
        assert "half" not in both.front.state.settings

    settle(tmp_path, scene)


@pytest.mark.parametrize(
    "statements",
    [
        b"", b"{}", b'[{"sql": "DROP TABLE setting", "rows": [[]]}]', b'[{"sql": "DELETE FROM setting"}]',
        b'[{"sql": "PRAGMA foreign_keys = OFF", "rows": [[]]}]', b'[{"sql": "DELETE FROM setting", "rows": [[[]]]}]',
        b'[{"sql": "DELETE FROM setting", "rows": [[{"hex": "0"}]]}]',
    ],
)  # fmt: skip
def test_nothing_but_changes_of_rows_is_taken_from_a_worker(tmp_path: Path, statements: bytes) -> None:
    async def scene(both: Pair) -> None:
        with pytest.raises(ValidationError):
            await both.front.apply(statements)

    settle(tmp_path, scene)


def test_changes_of_both_at_once_leave_both_with_the_same(tmp_path: Path) -> None:
    async def scene(both: Pair) -> None:
        def put(name: str) -> Change:
            return lambda cursor: set_setting(cursor, name, name)

        changes: list[Awaitable[Any]] = []
        for number in range(20):
            changes += [both.front.change(put(f"front{number}")), both.worker.change(put(f"worker{number}"))]
        await asyncio.gather(*changes)
        assert len(both.worker.state.settings) == 40

    settle(tmp_path, scene)
