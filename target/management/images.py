"""The files and block devices under volumes: making, opening and removing them.

All of it waits for the disk and runs in a thread.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
import uuid as uuids
from pathlib import Path

import wafl
from target.management.refusal import Refused
from target.management.state import VolumeRecord

MIN_VOLUME_BYTES = 1 << 20
LOG_BYTES = 64 << 20
"""Of a file made for a separate log: what the log region of a large volume has."""


def open_volume(record: VolumeRecord, cache_bytes: int) -> wafl.Volume:
    """Mount it for writing, with its log."""
    volume = _mount(Path(record.path), record.nvlog, cache_bytes=cache_bytes)
    if str(volume.uuid) != record.uuid:
        volume.close()
        raise Refused("wrong-volume", f"{record.path} holds another volume ({volume.uuid}) than {record.name} was")
    return volume


def uuid_at(path: Path, name: str | None = None, nvlog: str = "") -> str:
    """The volume's identity.  With a name, refuses a volume that is called otherwise: LUN paths and targets have it."""
    volume = _mount(path, nvlog, read_only=True)
    try:
        if name is not None and volume.name != name:
            raise Refused("invalid-name", f"{path} holds a volume called {volume.name}; adopt it under that name")
        return str(volume.uuid)
    finally:
        volume.close()


def format_at(name: str, path: Path, size_bytes: int | None, force: bool) -> None:
    """Make a volume in a new file, or on a block device."""
    is_device = path.exists() and stat.S_ISBLK(path.stat().st_mode)
    if is_device:
        if size_bytes is not None:
            raise Refused("invalid-size", f"{path} is a block device and is used whole; leave the size out")
        if not force and _holds_volume(path):
            raise Refused("name-taken", f"{path} holds a volume already; adopt it, or use -f to format over it")
        _format(name, path, None)
        return
    if size_bytes is None:
        raise Refused("invalid-size", "a volume in a file needs a size")
    if size_bytes < MIN_VOLUME_BYTES:
        raise Refused("invalid-size", f"a volume needs at least {MIN_VOLUME_BYTES} bytes")
    try:
        _format(name, path, size_bytes)
        _sync_directory(path.parent)
    except FileExistsError:
        raise Refused("name-taken", f"{path} is there already; adopt it if it is a volume, or remove it") from None
    except BaseException as error:
        remove_file(path)
        if isinstance(error, OSError) and error.errno in (errno.EFBIG, errno.ENOSPC, errno.EINVAL):
            raise Refused("invalid-size", f"{path} cannot have {size_bytes} bytes: {error.strerror}") from None
        raise


def _format(name: str, path: Path, size_bytes: int | None) -> None:
    device = wafl.FileDevice.open(path, create_bytes=size_bytes)
    try:
        wafl.Volume.format(device, name=name, now=time.time())
    finally:
        device.close()


def _holds_volume(path: Path) -> bool:
    try:
        uuid_at(path)
    except wafl.NotAVolume:
        return False
    except wafl.WaflError:
        return True
    return True


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def remove_file(path: Path) -> None:
    """The file of a volume; a block device is left as it is."""
    with contextlib.suppress(OSError):
        if stat.S_ISREG(path.stat().st_mode):
            path.unlink()


def _mount(
    path: Path, nvlog: str, *, read_only: bool = False, cache_bytes: int = wafl.DEFAULT_CACHE_BYTES
) -> wafl.Volume:
    with contextlib.ExitStack() as opened:
        device = opened.enter_context(contextlib.closing(wafl.FileDevice.open(path)))
        log = opened.enter_context(contextlib.closing(wafl.open_log_device(nvlog))) if nvlog else None
        volume = wafl.Volume.mount(device, read_only=read_only, cache_bytes=cache_bytes, log_device=log)
        opened.pop_all()  # they are the volume's now
        return volume


def make_log(path: Path) -> bool:
    """A file for a separate log, unless something is there already.  Whether it was made."""
    try:
        wafl.FileDevice.open(path, create_bytes=LOG_BYTES).close()
    except FileExistsError:
        return False
    _sync_directory(path.parent)
    return True


def claim_log(nvlog: str, record: VolumeRecord) -> None:
    """Make it the volume's, if it is nobody's.  Raises LogMismatch, VolumeLocked, OSError."""
    with contextlib.closing(wafl.open_log_device(nvlog)) as device:
        wafl.claim_log(device, uuids.UUID(record.uuid).bytes, record.name)


def drop_log(nvlog: str) -> None:
    """The log of a volume that is gone: a file is removed, a block device no longer claimed."""
    path = Path(nvlog)
    with contextlib.suppress(OSError, wafl.WaflError), contextlib.closing(wafl.open_log_device(path)) as device:
        device.pwrite(0, (bytes(wafl.BLOCK_BYTES),))
        device.sync()
    remove_file(path)
