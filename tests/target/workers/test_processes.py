"""Two volumes in two processes behind one front: what hosts see of each other's trouble, and what of their own."""

from __future__ import annotations

import json
import os
import shutil
import struct
import threading
from pathlib import Path

import pytest

from tests.support.initiator import Initiator, Outcome
from tests.support.scsi_host import reserve_in, reserve_out, reserve_out_list
from tests.target.cli.conftest import DaemonProcess
from tests.target.workers.conftest import BLOCK, Front, Launch, eventually, good, left_over, login

SECTORS = 8 << 11
REGISTER, RESERVE, READ_KEYS = 0, 1, 0
WRITE_EXCLUSIVE, APTPL = 1, 0x01
CONFLICT = 0x18


class Writer:
    """A host that writes numbered sectors round and round, and knows which of them were acknowledged."""

    def __init__(self, front: Front, volume: str) -> None:
        self.volume = volume
        self._way = front.way_to(volume)
        self.acknowledged: dict[int, bytes] = {}
        self.count = 0
        self.logins = 1
        self.strange: list[object] = []
        """Anything but GOOD."""
        self._session = login(*self._way)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        number = 0
        while not self._stop.is_set():
            number += 1
            lba, data = number * 7 % SECTORS, number.to_bytes(8, "big") * (BLOCK // 8)
            try:
                outcome = self._session.write(lba, data)
                if outcome.status == -1:
                    raise ConnectionError("closed")
            except (OSError, AssertionError) as error:
                # What was not acknowledged may have been done or not; it is done again.
                if not self._back(error):
                    return
                outcome = self._session.write(lba, data)
            if outcome.status == 0:
                self.acknowledged[lba] = data
                self.count += 1
            else:
                self.strange.append(outcome)

    def _back(self, error: BaseException) -> bool:
        """Logged in again, as often as it takes."""
        while not self._stop.wait(0.05):
            try:
                self._session = login(*self._way)
            except (OSError, AssertionError):
                continue
            self.logins += 1
            return True
        self.strange.append(error)
        return False

    def wait_for_more(self, count: int = 50) -> None:
        before = self.count
        eventually(lambda: self.count >= before + count, f"{self.volume} is being written")

    def stop(self) -> Initiator:
        self._stop.set()
        self._thread.join()
        return self._session

    def verify(self) -> None:
        session = self.stop()
        assert self.acknowledged
        for lba, data in self.acknowledged.items():
            assert good(session.read(lba, 1)) == data, (self.volume, lba)


@pytest.mark.timeout(400)
def test_a_killed_worker_loses_nothing_and_the_others_hosts_notice_nothing(launch: Launch) -> None:
    front = launch()
    for volume in ("vol0", "vol1"):
        front.add(volume)
    assert front.pid("vol0") != front.pid("vol1")
    writers = [Writer(front, volume) for volume in ("vol0", "vol1")]
    for writer in writers:
        writer.wait_for_more()
    first = front.kill("vol0")
    eventually(lambda: front.pid("vol0") != first, "vol0 has another process")
    for writer in writers:
        writer.wait_for_more()
    for writer in writers:
        writer.verify()
    hurt, other = writers
    assert hurt.logins == 2
    assert other.logins == 1
    assert other.strange == hurt.strange == []
    (died,) = front.events("volume.worker.died")
    assert died["subject"] == "vol0"
    assert "killed by signal 9" in died["message"]
    assert front.json("vol", "show", "vol0")["mount_report"]


@pytest.mark.timeout(400)
def test_three_deaths_in_a_minute_leave_a_volume_offline_until_it_is_asked_for(launch: Launch) -> None:
    front = launch()
    for volume in ("vol0", "vol1"):
        front.add(volume)
    session = front.login("vol1")
    for deaths in range(1, 4):
        before = len(front.events("volume.worker.started", "vol0"))
        front.kill("vol0")
        if deaths < 3:
            eventually(lambda: len(front.events("volume.worker.started", "vol0")) > before, "it is started again")  # noqa: B023
    eventually(lambda: bool(front.events("volume.worker.given-up", "vol0")), "it is given up")
    shown = front.json("vol", "show", "vol0")
    assert shown["state"] == "offline"
    assert "2 before it within 60 s" in shown["problem"]
    assert "volume-offline" in front.refused("show", "/vol/vol0/lun0")
    with pytest.raises(ConnectionError, match="status 3, 1"):
        front.login("vol0")
    good(session.write(0, bytes(BLOCK)))
    front("vol", "online", "vol0")
    assert front.state("vol0") == "online"
    good(front.login("vol0").read(0, 1))


@pytest.mark.timeout(400)
def test_a_killed_front_takes_its_workers_along_and_the_next_one_has_every_byte(launch: Launch) -> None:
    front = launch()
    front.add("vol0")
    front.add("vol1")
    worker = front.pid("vol0")
    data = {volume: volume.encode().ljust(BLOCK, b".") for volume in ("vol0", "vol1")}
    for volume, block in data.items():
        good(front.login(volume).write(5, block))
    directory = front.daemon.directory
    front.daemon.process.kill()
    front.daemon.process.wait()
    again = launch()  # it waits for them
    assert again.pid("vol0") != worker
    assert worker not in left_over(directory)
    for volume, block in data.items():
        assert good(again.login(volume).read(5, 1)) == block


@pytest.mark.timeout(400)
def test_the_next_front_waits_for_workers_whatever_process_has_the_number_of_the_dead_one(launch: Launch) -> None:
    front = launch()
    front.add("vol0")
    good(front.login("vol0").write(5, b"5" * BLOCK))
    # It stays a zombie until somebody asks for its status; the number in the file is one of a process that lives.
    front.daemon.process.kill()
    os.waitid(os.P_PID, front.daemon.process.pid, os.WEXITED | os.WNOWAIT)
    (front.daemon.directory / "lund.pid").write_text(f"{os.getpid()}\n")
    assert good(launch().login("vol0").read(5, 1)) == b"5" * BLOCK
    front.daemon.process.wait()


@pytest.mark.timeout(400)
def test_reservations_with_aptpl_outlive_a_killed_worker(launch: Launch) -> None:
    front = launch()
    front.add("vol0")
    ids = (b"\x80\0\0\0\0\1", b"\x80\0\0\0\0\2")
    holder, other = (front.login("vol0", isid=isid) for isid in ids)
    good(holder.command(reserve_out(REGISTER), write=reserve_out_list(0, 7, APTPL)))
    good(other.command(reserve_out(REGISTER), write=reserve_out_list(0, 8, APTPL)))
    good(holder.command(reserve_out(RESERVE, WRITE_EXCLUSIVE), write=reserve_out_list(7)))
    first = front.kill("vol0")
    eventually(lambda: front.pid("vol0") != first, "vol0 has another process")
    holder, other = (front.login("vol0", isid=isid) for isid in ids)
    assert other.write(0, bytes(BLOCK)).status == CONFLICT
    good(holder.write(0, b"h" * BLOCK))
    keys = good(other.command(reserve_in(READ_KEYS), read=4096))[8:]
    assert sorted(struct.unpack(">QQ", keys)) == [7, 8]
    good(holder.command(reserve_out(REGISTER), write=reserve_out_list(7, 0, APTPL)))
    second = front.kill("vol0")
    eventually(lambda: front.pid("vol0") != second, "vol0 has another process")
    other = front.login("vol0", isid=ids[1])
    good(other.write(0, bytes(BLOCK)))
    assert good(other.command(reserve_in(READ_KEYS), read=4096))[8:] == struct.pack(">Q", 8)


HELD_BACK = """
import pathlib, sys, time
while "slow" in sys.orig_argv and not pathlib.Path({release!r}).exists():
    time.sleep(0.1)
"""


@pytest.mark.timeout(400)
def test_a_volume_that_takes_long_to_start_does_not_keep_the_others_hosts_out(launch: Launch, tmp_path: Path) -> None:
    front = launch()
    for volume in ("vol0", "slow"):
        front.add(volume)
    good(front.login("slow").write(5, b"s" * BLOCK))
    assert front.daemon.stop() == 0
    release = tmp_path / "release"
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "sitecustomize.py").write_text(HELD_BACK.format(release=str(release)))
    path = f"{tmp_path / 'path'}:{Path(__file__).resolve().parents[3]}"
    front = launch(PYTHONPATH=path)
    good(front.login("vol0").read(0, 1))
    assert front.state("slow") == "offline"
    release.touch()
    eventually(lambda: front.state("slow") == "online", "it has been started")
    assert good(front.login("slow").read(5, 1)) == b"s" * BLOCK


@pytest.mark.timeout(400)
def test_workers_run_from_the_source_tree_that_their_front_runs_from(tmp_path: Path) -> None:
    """Not from another one that happens to be installed."""
    root, tree, marker = Path(__file__).resolve().parents[3], tmp_path / "tree", tmp_path / "marker"
    for package in ("wafl", "cloner", "target"):
        shutil.copytree(root / package, tree / package, ignore=shutil.ignore_patterns("__pycache__"))
    with (tree / "target" / "workers" / "asgi.py").open("a") as source:
        source.write(f"\n\nopen({str(marker)!r}, 'a').write(f'{{__import__(\"os\").getpid()}}\\n')\n")
    config = tmp_path / "lund.toml"
    config.write_text('workers = "volumes"\n')
    daemon = DaemonProcess(tmp_path / "state", "--config", str(config), tree=tree)
    try:
        front = Front(daemon)
        front.add("vol0")
        assert {daemon.process.pid, front.pid("vol0")} == set(map(int, marker.read_text().split()))
    finally:
        assert daemon.stop() == 0


@pytest.mark.timeout(400)
def test_a_session_lives_through_its_volume_going_offline_and_coming_back(launch: Launch) -> None:
    front = launch()
    front.add("vol0")
    session = front.login("vol0")
    data = b"!" * BLOCK
    good(session.write(0, data))
    front("vol", "offline", "vol0")
    assert front.state("vol0") == "offline"
    assert session.read(0, 1).sense_code[0] == 2
    front("vol", "online", "vol0")
    assert good(session.read(0, 1)) == data
    assert len(front.json("iscsi", "session", "show")) == 1


def read(session: Initiator) -> Outcome:
    """Past what the target says unasked."""
    outcome = session.read(0, 1)
    while outcome.status == -1:
        outcome = session.follow(session.itt, b"", session.link.receive(1))  # type: ignore[attr-defined]
    return outcome


@pytest.mark.timeout(400)
def test_settings_reach_sessions_of_every_worker_before_the_command_returns(launch: Launch) -> None:
    front = launch()
    front.add("vol0")
    front.add("vol1")
    sessions = [front.login(volume) for volume in ("vol0", "vol1")]
    front("igroup", "remove", "-f", "hosts", "*")
    for session in sessions:
        assert read(session).sense_code == (5, 0x25, 0)  # LOGICAL UNIT NOT SUPPORTED
    front("igroup", "add", "hosts", "*")
    for session in sessions:
        assert read(session).sense_code[0] == 6
        good(read(session))
    front("iscsi", "security", "default", "-s", "deny")
    with pytest.raises(ConnectionError, match="status 2, 2"):
        front.login("vol1", isid=b"\x80\0\0\0\0\2")


@pytest.mark.timeout(400)
def test_sessions_are_shown_and_closed_wherever_they_are(launch: Launch) -> None:
    front = launch()
    front.add("vol0")
    front.add("vol1")
    kept: list[Initiator] = [front.login(volume) for volume in ("vol0", "vol1")]
    shown = {each["id"].partition(".")[0]: each["id"] for each in front.json("iscsi", "session", "show")}
    assert sorted(shown) == ["vol0", "vol1"]
    assert front.json("iscsi", "status")["sessions"] == 2
    assert "sessions-open" in front.refused("iscsi", "nodename", "iqn.2025-11.net.example:other")
    front("iscsi", "session", "close", shown["vol0"])
    eventually(lambda: len(front.json("iscsi", "session", "show")) == 1, "one is closed")
    good(kept[1].read(0, 1))


def test_a_worker_is_gone_with_its_volume(launch: Launch) -> None:
    front = launch()
    front.add("vol0")
    pid = front.pid("vol0")
    front("vol", "destroy", "-f", "vol0")
    assert pid not in left_over(front.daemon.directory)
    front.add("vol0")
    assert front.pid("vol0") != pid
    assert not front.events("volume.worker.died")





@pytest.mark.timeout(400)
def test_the_commands_are_the_same_as_with_one_process(launch: Launch, tmp_path: Path) -> None:
    front = launch()
    for volume in ("vol0", "vol1"):
        front.add(volume)
    assert [each["name"] for each in front.json("vol", "show")] == ["vol0", "vol1"]
    assert [each["path"] for each in front.json("show")] == ["/vol/vol0/lun0", "/vol/vol1/lun0"]
    image = tmp_path / "image"
    image.write_bytes(os.urandom(1 << 20).ljust(8 << 20, b"\0"))
    front("import", str(image), "/vol/vol1/new")
    front("export", "/vol/vol1/new", str(tmp_path / "back"))
    assert (tmp_path / "back").read_bytes() == image.read_bytes()

    front("snap", "create", "vol1", "monday")
    front("create", "-b", "/vol/vol1/.snapshot/monday/new", "/vol/vol1/copy")
    assert "snapshot-busy" in front.refused("snap", "delete", "vol1", "monday")
    front("clone", "start", "--limit", "4k", "/vol/vol1/copy")
    status = front.json("clone", "status", "/vol/vol1/copy")
    assert status["operation"].startswith("vol1.")
    assert front.http("DELETE", f"/v1/operations/{status['operation']}").json()["state"] == "cancelled"
    assert front.json("clone", "status", "/vol/vol1/copy")["state"] == "stopped"
    front("clone", "start", "/vol/vol1/copy")
    eventually(lambda: front.json("clone", "status", "/vol/vol1/copy")["state"] == "completed", "the clone is done")
    front("snap", "delete", "vol1", "monday")

    front("snap", "sched", "vol0", "1", "2", "3")
    assert front.json("snap", "sched", "vol0")[0]["nightly"] == 2
    front("resize", "/vol/vol0/lun0", "16m")
    front("move", "/vol/vol0/lun0", "/vol/vol0/other")
    assert [each["path"] for each in front.json("igroup", "show")[0]["maps"]] == ["/vol/vol0/other", "/vol/vol1/lun0"]
    assert "other-volume" in front.refused("move", "/vol/vol0/other", "/vol/vol1/other")
    serial = front.json("serial", "/vol/vol0/other")["serial"]
    front("offline", "/vol/vol1/copy")
    assert "/vol/vol0/other has serial number" in front.refused("serial", "/vol/vol1/copy", serial)
    front("clone", "limits", "--limit", "10m")
    assert front.json("clone", "limits")["limit_bytes_s"] == 10 << 20
    front("unmap", "/vol/vol0/other", "hosts")
    assert [each["path"] for each in front.json("igroup", "show")[0]["maps"]] == ["/vol/vol1/lun0"]
    kinds = {event["kind"] for event in map(json.loads, front("--json", "events").splitlines())}
    assert {"lun.created", "lun.clone.completed", "snapshot.deleted", "lun.mapped", "lun.unmapped"} <= kinds
