#!/usr/bin/python3 -I
"""PID 1 of a User-Mode Linux test host: sets the guest up, then runs commands that come over the serial line.

It runs inside the guest on the machine's own root file system (hostfs, read-only) with Debian's Python and its
standard library alone.  All of this file is read before the tmpfs mounts can hide the directory it lies in.

The line protocol is JSON, one object a line.  Request: id, argv, timeout_s.  Answer: id, code, out, err.
With `follow` in the request each line of stdout comes at once, as id, line, and `out` is empty at the end.
Commands run side by side, each in a thread; code 124 means that the time was up.  `off` ends the guest at once.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import termios
import threading
import tty
from pathlib import Path
from typing import Any

OUTPUT_LIMIT_BYTES = 4 << 20
MODULES = ("scsi_mod", "sd_mod", "sg", "iscsi_tcp", "crc32c_generic")
ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C", "HOME": "/root", "TERM": "dumb"}

write_lock = threading.Lock()


def sh(command: str) -> None:
    subprocess.run(["/bin/sh", "-c", command], env=ENVIRONMENT, stdin=subprocess.DEVNULL, check=False)


def mount_all() -> None:
    sh(
        "mount -t proc proc /proc; mount -t sysfs sys /sys;"
        "for d in /run /var /tmp /mnt /root; do mount -t tmpfs tmpfs $d; done;"
        "mkdir -p /dev/pts /dev/shm /run/lock/iscsi /run/modules/lib/modules /var/lib /var/tmp;"
        "mount -t devpts devpts /dev/pts; mount -t tmpfs tmpfs /dev/shm"
    )


def load_modules() -> None:
    release = os.uname().release
    Path(f"/run/modules/lib/modules/{release}").symlink_to(f"/usr/lib/uml/modules/{release}")
    sh("".join(f"modprobe -q -d /run/modules {name};" for name in MODULES))


def set_addresses(spec: str) -> None:
    """`vec0=10.0.0.2/24,vec1=…`"""
    sh("ip link set lo up")
    for pair in filter(None, spec.split(",")):
        interface, _, address = pair.partition("=")
        sh(f"ip address add {address} dev {interface}; ip link set {interface} up")


def start_iscsid(initiator: str) -> None:
    """iscsid with a configuration of the guest's own: short timers, and nothing that outlives the guest."""
    defaults = Path("/etc/iscsi/iscsid.conf").read_text() if Path("/etc/iscsi/iscsid.conf").exists() else ""
    sh("mount -t tmpfs tmpfs /etc/iscsi")
    Path("/etc/iscsi/initiatorname.iscsi").write_text(f"InitiatorName={initiator}\n")
    Path("/etc/iscsi/iscsid.conf").write_text(defaults + "\nnode.startup = manual\n")
    subprocess.Popen(["/sbin/iscsid", "-f"], env=ENVIRONMENT, stdin=subprocess.DEVNULL, start_new_session=True)


def execute(request: dict[str, Any]) -> dict[str, Any]:
    process = subprocess.Popen(
        request["argv"],
        env=ENVIRONMENT,
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=request["timeout_s"])
        code = process.returncode
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, err, code = b"", b"time is up", 124
    texts = {k: v[-OUTPUT_LIMIT_BYTES:].decode("utf-8", "replace") for k, v in (("out", out), ("err", err))}
    return {"code": code, **texts}


def follow(line: int, request: dict[str, Any]) -> dict[str, Any]:
    process = subprocess.Popen(
        request["argv"],
        env=ENVIRONMENT,
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    assert process.stdout is not None
    for text in process.stdout:
        send(line, {"id": request["id"], "line": text.decode("utf-8", "replace").rstrip("\n")})
    return {"code": process.wait(), "out": "", "err": ""}


def power_off() -> None:
    Path("/proc/sysrq-trigger").write_text("o")


def serve(line: int, request: dict[str, Any]) -> None:
    if request.get("off"):
        power_off()
        return
    try:
        answer = follow(line, request) if request.get("follow") else execute(request)
    except OSError as error:
        answer = {"code": 127, "out": "", "err": str(error)}
    send(line, {"id": request["id"], **answer})


def send(line: int, answer: dict[str, Any]) -> None:
    data = memoryview(json.dumps(answer).encode() + b"\n")
    with write_lock:
        while data:
            data = data[os.write(line, data) :]


def open_line(path: str) -> int:
    line = os.open(path, os.O_RDWR | os.O_NOCTTY)
    tty.setraw(line, termios.TCSANOW)
    return line


def main() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    mount_all()
    load_modules()
    set_addresses(os.environ.get("GUEST_ADDRESSES", ""))
    if shutil.which("iscsid", path=ENVIRONMENT["PATH"]):
        start_iscsid(os.environ.get("GUEST_INITIATOR", "iqn.2026-01.test:guest"))
    line = open_line("/dev/ttyS0")
    send(line, {"id": 0, "code": 0, "out": os.uname().release, "err": ""})
    with os.fdopen(os.dup(line), "rb") as requests:
        for text in requests:
            threading.Thread(target=serve, args=(line, json.loads(text)), daemon=True).start()


if __name__ == "__main__":
    try:
        main()
    finally:
        sys.stdout.flush()
        power_off()
