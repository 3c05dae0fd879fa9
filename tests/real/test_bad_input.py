"""Bad input from administrators and from the wire: one clear line, nothing changed, nobody else disturbed."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.support.initiators import qemu_io, url
from tests.support.lund import BIN, MIB, Lund, Refused
from tests.support.netns import Namespace

LUN = "/vol/vol0/disk"
DAMAGE_BYTES = 4096
# A login header that asks for 16 MiB of text, an opcode nobody has, and what a web browser says.
GARBAGE = {
    "a login with a huge data segment": bytes([0x43, 0x87, 0, 0, 0, 0xFF, 0xFF, 0xFF]) + bytes(40),
    "a reserved opcode": bytes([0x1C]) + bytes(47),
    "another protocol": b"GET / HTTP/1.1\r\nHost: target\r\n\r\n" + bytes(48),
    "half a header": bytes([0x43, 0x87]),
}


@pytest.mark.parametrize(
    ("argv", "error"),
    [
        (["show", "/vol/vol0/nobody"], "no-such-lun"),
        (["create", "-s", "1m", "/vol/elsewhere/x"], "no-such-volume"),
        (["create", "-s", "1m", LUN], "name-taken"),
        (["create", "-s", "1000", "/vol/vol0/odd"], "invalid-size"),
        (["create", "-s", "100t", "/vol/vol0/huge"], "invalid-size"),
        (["create", "-b", "/vol/vol0/.snapshot/never/disk", "/vol/vol0/x"], "no-such-snapshot"),
        (["snap", "delete", "vol0", "never"], "no-such-snapshot"),
        (["snap", "create", "vol0", "a/b"], "invalid-name"),
        (["vol", "create", "vol0", "-s", "1g"], "name-taken"),
        (["map", LUN, "nobody"], "no-such-igroup"),
        (["resize", LUN, "4m"], ""),
        (["clone", "start", LUN], ""),
    ],
    ids=" ".join,
)
def test_a_refusal_is_one_line_and_changes_nothing(lund: Lund, argv: list[str], error: str) -> None:
    lund.add_lun(LUN, 64 * MIB)
    before = lund.get("luns"), lund.get("volumes/vol0/snapshots"), lund.get("maps")
    with pytest.raises(Refused) as refused:
        lund.lun(*argv)
    assert refused.value.line.count("\n") == 0
    assert refused.value.name.startswith(error)
    assert (lund.get("luns"), lund.get("volumes/vol0/snapshots"), lund.get("maps")) == before


def test_a_second_daemon_on_the_same_state_is_refused(lund: Lund) -> None:
    argv = [BIN / "lund", "--state", lund.directory, "--socket", lund.directory / "2.sock", "--listen", "127.0.0.1:0"]
    second = lund.namespace.run(argv, timeout_s=30)
    assert second.returncode not in (0, None)
    assert len(second.stderr.strip().splitlines()) == 1, second.stderr
    assert lund.alive
    assert lund.get("volumes/vol0")["state"] == "online"


def test_lun_says_when_there_is_no_daemon(namespace: Namespace) -> None:
    argv = [BIN / "lun", "--socket", "/nowhere.sock", "show"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert len(done.stderr.strip().splitlines()) == 1


def damage(lund: Lund, block: int) -> None:
    image = next(lund.directory.glob("volumes/*"))
    with image.open("r+b") as file:
        file.seek(block * DAMAGE_BYTES)
        file.write(os.urandom(DAMAGE_BYTES))


def test_a_damaged_label_is_survived_and_reported(lund: Lund) -> None:
    lund.add_lun(LUN, 64 * MIB)
    lund.stop()
    damage(lund, 0)
    lund.start()
    volume = lund.get("volumes/vol0")
    assert volume["state"] == "online"
    assert volume["mount_report"]
    assert [lun["path"] for lun in lund.get("luns")] == [LUN]


@pytest.mark.parametrize("bytes_sent", GARBAGE.values(), ids=GARBAGE.keys())
def test_garbage_on_the_wire_disturbs_nobody_else(
    lund: Lund, namespace: Namespace, tools: None, bytes_sent: bytes
) -> None:
    lund.add_lun(LUN, 64 * MIB)
    send = (
        "import socket, sys\n"
        "with socket.create_connection(('127.0.0.1', 3260), 10) as s:\n"
        "    s.sendall(bytes.fromhex(sys.argv[1])); s.shutdown(socket.SHUT_WR)\n"
        "    s.settimeout(30)\n"
        "    while s.recv(65536): pass\n"
    )
    for _ in range(3):
        done = namespace.run([sys.executable, "-c", send, bytes_sent.hex()])
        assert done.returncode == 0 or "ConnectionResetError" in done.stderr, done.stderr
    qemu_io(namespace, url(lund.target()), "write -P 1 0 64k", "flush", "read -P 1 0 64k")
    assert lund.alive
