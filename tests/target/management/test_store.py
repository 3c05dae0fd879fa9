"""SQLite under the settings: what was committed is there again, what was refused never was."""

from __future__ import annotations

import asyncio
import sqlite3
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from target.management.policies import DEFAULTS, Autodelete, Policies, Schedule, put_policies
from target.management.refusal import Refused
from target.management.state import AdminState
from target.management.store import MIGRATIONS, AdminStore, set_setting

A, B = "iqn.2000-01.com.example:a", "iqn.2000-01.com.example:b"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[AdminStore]:
    opened = AdminStore(tmp_path / "admin.db")
    opened.open()
    yield opened
    opened.close()


def reopened(store: AdminStore) -> AdminState:
    other = AdminStore(store.path)
    other.open()
    try:
        return other.state
    finally:
        other.close()


def add_volume(cursor: sqlite3.Cursor, name: str = "v") -> None:
    row = name, f"uuid-{name}", f"/{name}"
    cursor.execute("INSERT INTO volume (name, uuid, path, online) VALUES (?, ?, ?, 1)", row)


def add_igroup(cursor: sqlite3.Cursor, name: str, *initiators: str) -> None:
    cursor.execute("INSERT INTO igroup VALUES (?, 'linux')", (name,))
    cursor.executemany("INSERT INTO igroup_initiator VALUES (?, ?)", [(name, each) for each in initiators])


def add_map(cursor: sqlite3.Cursor, lun: str, igroup: str, lun_id: int, volume: str = "v") -> None:
    cursor.execute("INSERT INTO lun_map VALUES (?, ?, ?, ?, ?)", (volume, f"uuid-{lun}", lun, igroup, lun_id))


def test_a_change_is_there_after_a_restart(store: AdminStore) -> None:
    store.change_now(lambda cursor: set_setting(cursor, "nodename", "iqn.x"))
    assert reopened(store).settings == {"nodename": "iqn.x"}


def test_the_file_is_unreadable_for_others(store: AdminStore) -> None:
    assert stat.S_IMODE(store.path.stat().st_mode) == 0o600


def test_a_change_that_fails_leaves_nothing(store: AdminStore) -> None:
    def change(cursor: sqlite3.Cursor) -> None:
        add_igroup(cursor, "g", A)
        raise Refused("x", "y")

    with pytest.raises(Refused):
        asyncio.run(store.change(change))
    assert not store.state.igroups
    assert not reopened(store).igroups


def test_changes_that_would_show_two_luns_behind_one_id_are_refused_whole(store: AdminStore) -> None:
    def change(cursor: sqlite3.Cursor) -> None:
        add_volume(cursor)
        add_igroup(cursor, "g", A)
        add_igroup(cursor, "h", A)
        add_map(cursor, "lun0", "g", 0)
        add_map(cursor, "lun1", "h", 0)

    with pytest.raises(Refused) as caught:
        store.change_now(change)
    assert caught.value.name == "map-conflict"
    assert caught.value.holders == ["g", "h"]
    assert not reopened(store).maps


def test_one_lun_behind_two_ids_for_one_initiator_is_refused(store: AdminStore) -> None:
    def change(cursor: sqlite3.Cursor) -> None:
        add_volume(cursor)
        add_igroup(cursor, "g", A)
        add_igroup(cursor, "h", A)
        add_map(cursor, "lun0", "g", 0)
        add_map(cursor, "lun0", "h", 1)

    with pytest.raises(Refused, match="twice"):
        store.change_now(change)


def test_the_same_id_on_two_volumes_is_no_conflict(store: AdminStore) -> None:
    def change(cursor: sqlite3.Cursor) -> None:
        add_volume(cursor, "v")
        add_volume(cursor, "w")
        add_igroup(cursor, "g", A)
        add_map(cursor, "lun0", "g", 0, "v")
        add_map(cursor, "lun1", "g", 0, "w")

    state = store.change_now(change)
    assert state.view(A, "v") == {0: "uuid-lun0"}
    assert state.view(A, "w") == {0: "uuid-lun1"}


def test_an_igroup_that_names_an_initiator_comes_before_everybody(store: AdminStore) -> None:
    def change(cursor: sqlite3.Cursor) -> None:
        add_volume(cursor)
        add_igroup(cursor, "all", "*")
        add_igroup(cursor, "g", A)
        add_map(cursor, "lun0", "all", 0)
        add_map(cursor, "lun1", "all", 1)
        add_map(cursor, "lun2", "g", 0)
        add_map(cursor, "lun3", "g", 3)

    state = store.change_now(change)
    assert state.view(A, "v") == {0: "uuid-lun2", 1: "uuid-lun1", 3: "uuid-lun3"}
    assert state.view(B, "v") == {0: "uuid-lun0", 1: "uuid-lun1"}


def test_a_free_lun_id_hides_nothing_from_anybody(store: AdminStore) -> None:
    def change(cursor: sqlite3.Cursor) -> None:
        add_volume(cursor)
        add_igroup(cursor, "all", "*")
        add_igroup(cursor, "g", A)
        add_igroup(cursor, "h", A, B)
        add_map(cursor, "lun0", "all", 0)
        add_map(cursor, "lun1", "g", 1)

    state = store.change_now(change)
    assert state.lun_ids_seen("h", "v") == {0, 1}
    assert state.lun_ids_taken("h", "v") == {1}
    assert state.lun_ids_seen("all", "v") == {0, 1}
    assert state.lun_ids_taken("all", "v") == {0}


def test_a_database_of_the_first_version_gets_the_table_of_policies(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "admin.db")
    connection.executescript(f"{MIGRATIONS[0]} INSERT INTO volume VALUES ('v', 'u', '/v', 1); PRAGMA user_version = 1;")
    connection.close()
    store = AdminStore(tmp_path / "admin.db")
    store.open()
    assert store.state.policies_of("v") == DEFAULTS
    wanted = Policies((50, 60), Autodelete(True, 90, 10, ("a", "")), Schedule(1, 2, 3, (4, 5), 6.5))
    store.change_now(lambda cursor: put_policies(cursor, "v", wanted))
    assert reopened(store).policies == {"v": wanted}
    assert store.change_now(lambda cursor: cursor.execute("DELETE FROM volume")).policies == {}
    store.close()


def test_a_database_of_a_newer_version_is_refused(store: AdminStore) -> None:
    store.close()
    connection = sqlite3.connect(store.path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(Refused) as caught:
        reopened(store)
    assert caught.value.name == "admin-database-newer"
    store.__init__(store.path)  # type: ignore[misc]


def test_a_damaged_database_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "admin.db").write_bytes(b"not a database " * 1000)
    store = AdminStore(tmp_path / "admin.db")
    with pytest.raises(Refused) as caught:
        store.open()
    assert caught.value.name == "admin-database-damaged"
    assert "\n" not in caught.value.message


def test_accounts_do_not_show_their_secrets_in_a_traceback(store: AdminStore) -> None:
    state = store.change_now(
        lambda cursor: cursor.execute(
            "INSERT INTO account VALUES (?, 'chap', 'u', ?, 'o', ?, '')", (A, b"hush" * 4, b"psst" * 4)
        )
    )
    assert state.account_of(A).secret == b"hush" * 4
    assert "hush" not in repr(state)
    assert "psst" not in repr(state)
