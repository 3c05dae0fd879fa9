"""Initiators in user space: libiscsi's tools and QEMU's block layer, run inside the namespace."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.support.netns import Namespace


class InitiatorError(Exception):
    """A tool ended with an error; what it said."""


def url(target: str, lun: int = 0, *, address: str = "127.0.0.1", user: str = "", secret: str = "") -> str:
    login = f"{user}%{secret}@" if user else ""
    return f"iscsi://{login}{address}:3260/{target}/{lun}"


def tool(namespace: Namespace, argv: Sequence[str | Path], *, limit_s: float = 120) -> str:
    """stdout of a tool that must succeed."""
    try:
        done = namespace.run(argv, timeout_s=limit_s)
    except subprocess.TimeoutExpired as expired:
        raise InitiatorError(f"{argv[0]} did not end within {limit_s} s:\n{_text(expired.stdout)}") from None
    if done.returncode != 0:
        raise InitiatorError(f"{' '.join(map(str, argv))}: exit {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def _text(output: bytes | str | None) -> str:
    return output.decode(errors="replace") if isinstance(output, bytes) else output or ""


def upload(namespace: Namespace, image: Path, lun_url: str, *, limit_s: float = 120) -> None:
    """Writes a raw file over a LUN of its size."""
    tool(namespace, ["qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", image, lun_url], limit_s=limit_s)


def download(namespace: Namespace, lun_url: str, image: Path) -> bytes:
    """Every byte of a LUN, read by QEMU."""
    tool(namespace, ["qemu-img", "convert", "-f", "raw", "-O", "raw", lun_url, image])
    return image.read_bytes()


def qemu_io(namespace: Namespace, lun_url: str, *commands: str) -> str:
    options = [word for command in commands for word in ("-c", command)]
    return tool(namespace, ["qemu-io", "-f", "raw", *options, lun_url])
