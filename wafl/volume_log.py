"""Where a volume's log lies, taking it up at a mount, and opening it for this mount's records.

A log lies in the volume's own region, or on a separate file or device, whose block 0 is a label that says whose it is.
fsinfo says which of the two the records behind it are on (`log_place`), and from when they are (`log_epoch`).
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from wafl.device import Device, FileDevice
from wafl.errors import LogMismatch
from wafl.format import (
    BLOCK_BYTES,
    LOG_LABEL,
    LOG_MAGIC,
    MAX_LOG_BYTES,
    MIN_LOG_BYTES,
    FsinfoFlag,
    Geometry,
    Incompat,
    LogPlace,
    seal,
    unseal,
)
from wafl.labels import add_feature, log_region, read_block_at
from wafl.nvlog import Log, seed_of, write_out
from wafl.replay import LogContents, apply, read_log

if TYPE_CHECKING:
    from wafl.volume import Volume


class VolumeLog:
    """The log of one volume."""

    def __init__(self, volume: Volume, separate: Device | None) -> None:
        self._volume = volume
        self._separate = separate
        fsinfo = volume.superblock.fsinfo
        self._epoch: int = fsinfo["log_epoch"] if fsinfo else 0
        self._seq: int = fsinfo["log_seq"] if fsinfo else 0
        """While no log is open."""
        self._place = LogPlace.NONE
        self._area: tuple[Device, int] | None = None
        """Where the log that is open begins."""
        self.replayed = 0
        """Records that this mount has found and made part of the volume."""

    @property
    def place(self) -> LogPlace:
        return self._place

    def frozen(self) -> dict[str, int]:
        """What fsinfo says of the log, as of the freeze that just happened."""
        log = self._volume.core.log
        return {
            "log_epoch": self._epoch,
            "log_seq": log.seq if log is not None else self._seq,
            "log_place": int(self._place),
        }

    def sync(self) -> None:
        """The separate device's part of a sync."""
        if self._separate is not None:
            self._separate.sync()

    def begin_write_back(self) -> None:
        """Of the last record."""
        log = self._volume.core.log
        if log is not None and self._area is not None:
            device, base = self._area
            device.begin_write_back((base + log.at - 1) & ~(BLOCK_BYTES - 1))

    def close(self) -> None:
        self._volume.core.log = None
        if self._separate is not None:
            self._separate.close()

    # --- mounting --------------------------------------------------------------------------------------------------

    def take_up(self) -> None:
        """Replay; then, unless the volume is only read, make the result durable and open the log for what comes.
        Raises LogMismatch, DamagedRecord, CorruptVolume, VolumeFailed, OSError."""
        volume = self._volume
        contents = self._contents()
        lost = apply(volume, contents)
        self.replayed = len(contents.records)
        if self.replayed or contents.ended_by:
            ended = f"; it ends there: {contents.ended_by}" if contents.ended_by else ""
            volume.superblock.report.append(f"{self.replayed} log records replayed{ended}")
        volume.superblock.report += lost
        if not volume.read_only:
            add_feature(volume.device, volume.geometry, Incompat.NONE, volume.device.sync)
            self._open(contents.last_seq or self._seq)

    def _contents(self) -> LogContents:
        volume, fsinfo = self._volume, self._volume.superblock.fsinfo
        assert fsinfo is not None
        separate = None
        if fsinfo["log_place"] == LogPlace.SEPARATE and not fsinfo["flags"] & FsinfoFlag.CLEAN:
            if self._separate is None:
                raise LogMismatch("the volume's log is on a device of its own: name it (--nvlog)")
            separate = self._separate
            check_log_label(separate, volume.uuid_bytes, volume.name)
        return read_contents(volume.device, separate, fsinfo, volume.geometry, volume.uuid_bytes)

    def _open(self, seq: int) -> None:
        """A consistency point with a new epoch makes every older record invalid, then new ones may be written."""
        volume = self._volume
        device, base, size = log_area(volume.device, self._separate, volume.geometry)
        if self._separate is not None:
            claim_log(self._separate, volume.uuid_bytes, volume.name)
            self._place = LogPlace.SEPARATE
        elif size:
            self._place = LogPlace.REGION
        else:
            return
        add_feature(volume.device, volume.geometry, Incompat.LOG_RECORDS, volume.device.sync)
        # At random, never counted: a volume brought back from a copy comes to the same numbers once more, beside a log
        # device that holds the records of its first life.
        self._epoch, self._seq = int.from_bytes(os.urandom(8)), seq
        volume.commit_now()

        self._area = device, base

        def write(offset: int, data: bytes) -> None:
            device.pwrite(base + offset, (data,))

        volume.core.log = Log(
            write, size, seed_of(volume.uuid_bytes, self._epoch), seq, volume.core.generation,
            volume.commit_now,
        )  # fmt: skip


def read_contents(
    device: Device, separate: Device | None, fsinfo: dict[str, Any], geometry: Geometry, uuid: bytes
) -> LogContents:
    """What the log has beyond the consistency point of `fsinfo`: on the separate log, or else in the region on the
    volume's `device`.  Raises DamagedRecord, OSError."""
    if fsinfo["log_place"] == LogPlace.NONE or fsinfo["flags"] & FsinfoFlag.CLEAN:
        return LogContents()  # closed in order: the next mount made another consistency point before its first record
    where, base, size = log_area(device, separate, geometry)

    def read(offset: int, length: int) -> memoryview:
        data = bytearray(length)
        where.pread(base + offset, data)
        return memoryview(data)

    return read_log(
        read, size, seed=seed_of(uuid, fsinfo["log_epoch"]), seq=fsinfo["log_seq"],
        generation=fsinfo["generation"] + 1, device=device,
    )  # fmt: skip


def log_area(device: Device, separate: Device | None, geometry: Geometry) -> tuple[Device, int, int]:
    """(device, first byte, bytes) of a log: behind the label block of its own device, or in the volume's region."""
    if separate is not None:
        return separate, BLOCK_BYTES, separate_size(separate)
    return device, *log_region(geometry)


def separate_size(device: Device) -> int:
    """Bytes of a log behind the label block of its device."""
    return min(device.size_bytes - BLOCK_BYTES, MAX_LOG_BYTES)


def open_log_device(path: str | os.PathLike[str], *, read_only: bool = False) -> FileDevice:
    """A separate log: a file or block device that is there already.  Raises LogMismatch, VolumeLocked, OSError."""
    device = FileDevice.open(path, read_only=read_only)
    if device.size_bytes < BLOCK_BYTES + MIN_LOG_BYTES:
        device.close()
        raise LogMismatch(f"{os.fspath(path)} is too small for a log: it needs {BLOCK_BYTES + MIN_LOG_BYTES} bytes")
    return device


def check_log_label(device: Device, uuid: bytes, name: str) -> None:
    """Whether a separate log belongs to the volume.  Raises LogMismatch."""
    block = read_block_at(device, 0)
    label = unseal(LOG_LABEL, LOG_MAGIC, block) if block else None
    if label is None:
        raise LogMismatch(f"the log device has no label: it is not the log of {name}, or its first block is damaged")
    if label["uuid"] != uuid:
        raise LogMismatch(f"the log device belongs to another volume, not to {name}")
    if label["size_bytes"] != device.size_bytes:
        was = label["size_bytes"]
        raise LogMismatch(f"the log device has {device.size_bytes} bytes; as the log of {name} it had {was}")


def claim_log(device: Device, uuid: bytes, name: str) -> None:
    """Make the device this volume's log, unless it is another's or holds anything else.  Raises LogMismatch."""
    block = read_block_at(device, 0)
    if block is None:
        raise LogMismatch("the first block of the log device cannot be read")
    if unseal(LOG_LABEL, LOG_MAGIC, block) is not None:
        check_log_label(device, uuid, name)
        return
    if any(block):
        raise LogMismatch("the log device holds something that is no log: clear its first 4096 bytes if that may go")
    write_out(lambda offset, data: device.pwrite(BLOCK_BYTES + offset, (data,)), separate_size(device))
    label = seal(LOG_LABEL, magic=LOG_MAGIC, uuid=uuid, size_bytes=device.size_bytes)
    device.pwrite(0, (label,))
    device.sync()
