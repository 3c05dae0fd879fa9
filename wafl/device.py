"""The device under a volume: a file or a raw block device, and the protocol that the crash device of the tests
implements too.

Rules: `sync` may run in a thread of its own beside the other calls, and so may all that reads, or writes blocks that
nobody else has (fills); everything that was written before `sync` began is durable when it returns.  Nothing else is
promised about order.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Sequence
from contextlib import suppress
from typing import Protocol

from wafl.errors import InvalidSize, NotAVolume, VolumeLocked

IOV_MAX = 1024
"""Buffers in one preadv or pwritev (Linux UIO_MAXIOV)."""

MAX_OFFSET = 2**63 - 1

Bytes = bytes | bytearray | memoryview
Path = str | os.PathLike[str]
Places = list[tuple[int, list[memoryview]]]
"""(offset, buffers that are filled one after the other from there on): reads."""


class Device(Protocol):
    """What a volume asks of its device.  Offsets and lengths are bytes."""

    size_bytes: int
    read_ahead_bytes: int
    """How far the kernel reads on by itself behind whoever reads in order; 0: that is not known."""

    def pread(self, offset: int, view: memoryview | bytearray) -> None:
        """Fill `view`; waits for the disk."""

    def pread_nowait(self, offset: int, view: memoryview | bytearray) -> bool:
        """Fill `view` if that needs no wait for the disk; False (and `view` undefined) otherwise."""

    def preadv_nowait(self, places: Places) -> bool:
        """The same for many places, in their order; none with more than IOV_MAX buffers."""

    def pwrite(self, offset: int, buffers: Sequence[Bytes]) -> None:
        """Write the buffers one after the other from `offset` on."""

    def sync(self) -> None:
        """Everything written so far becomes durable."""

    def grow(self, size_bytes: int) -> None:
        """Have at least `size_bytes`.  A file is made so large; a block device must be so already.
        Raises InvalidSize, OSError."""

    def prefetch(self, offset: int, length: int) -> None:
        """A hint that the range will be read soon."""

    def preallocate(self, offset: int, length: int) -> None:
        """A hint that the range will be written soon: a file may allocate it in one piece."""

    def begin_write_back(self, offset: int) -> None:
        """A hint that what was written to the block at `offset` will have to be durable soon."""

    def close(self) -> None: ...


class FileDevice:
    """A volume in a regular file or on a block device, locked against every other opener."""

    def __init__(self, fd: int, size_bytes: int, *, is_file: bool) -> None:
        self._fd = fd
        self._is_file = is_file
        self.size_bytes = size_bytes
        status = os.fstat(fd)
        self.read_ahead_bytes = kernel_reads_ahead(status.st_dev if is_file else status.st_rdev)
        self._nowait = os.RWF_NOWAIT
        self._may_allocate = is_file

    @classmethod
    def open(cls, path: Path, *, create_bytes: int | None = None, read_only: bool = False) -> FileDevice:
        """Open `path` with an exclusive lock; with `create_bytes` make a new sparse file of that size first.
        Raises FileExistsError, FileNotFoundError, VolumeLocked, NotAVolume."""
        flags = (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC
        if create_bytes is not None:
            flags |= os.O_CREAT | os.O_EXCL
        fd = os.open(path, flags, 0o600)
        try:
            cls._lock(fd, path)
            if create_bytes is not None:
                cls._size_new_file(fd, path, create_bytes)
            mode = os.fstat(fd).st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
                raise NotAVolume(f"{path} is neither a file nor a block device")
            size = os.lseek(fd, 0, os.SEEK_END)
        except BaseException:
            os.close(fd)
            raise
        return cls(fd, size, is_file=stat.S_ISREG(mode))

    @staticmethod
    def _lock(fd: int, path: Path) -> None:
        # flock, not lockf: a POSIX lock goes away when any descriptor of the file is closed in this process.
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise VolumeLocked(f"{path} is in use by another process") from None

    @staticmethod
    def _size_new_file(fd: int, path: Path, size: int) -> None:
        try:
            os.ftruncate(fd, size)
        except OSError as error:
            os.unlink(path)
            if error.errno in (errno.EFBIG, errno.EINVAL):
                raise InvalidSize(f"{path} cannot have {size} bytes: {error.strerror}") from None
            raise

    def pread(self, offset: int, view: memoryview | bytearray) -> None:
        done, wanted = 0, len(view)
        if offset + wanted > MAX_OFFSET:
            raise OSError(errno.EIO, f"no device has a byte {offset}")
        while done < wanted:
            got = os.preadv(self._fd, [memoryview(view)[done:]], offset + done)
            if not got:
                raise OSError(errno.EIO, f"read past the end of the device at byte {offset + done}")
            done += got

    def pread_nowait(self, offset: int, view: memoryview | bytearray) -> bool:
        try:
            return os.preadv(self._fd, [view], offset, self._nowait) == len(view)
        except BlockingIOError:
            return False
        except OverflowError:
            raise OSError(errno.EIO, f"no device has a byte {offset}") from None
        except OSError as error:
            if not self._must_wait(error):
                raise
            return self.pread_nowait(offset, view)

    def preadv_nowait(self, places: Places) -> bool:
        preadv, fd, nowait = os.preadv, self._fd, self._nowait
        try:
            for offset, buffers in places:
                wanted = len(buffers[0]) if len(buffers) == 1 else sum(map(len, buffers))
                if preadv(fd, buffers, offset, nowait) != wanted:
                    return False
        except BlockingIOError:
            return False
        except OverflowError:
            raise OSError(errno.EIO, f"no device has a byte {offset}") from None
        except OSError as error:
            if not self._must_wait(error):
                raise
            return self.preadv_nowait(places)
        return True

    def _must_wait(self, error: OSError) -> bool:
        """The file system has no RWF_NOWAIT (tmpfs before Linux 6.6 and some others): memory does not wait."""
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL) or not self._nowait:
            return False
        self._nowait = 0
        return True

    def pwrite(self, offset: int, buffers: Sequence[Bytes]) -> None:
        if len(buffers) == 1:
            written = os.pwrite(self._fd, buffers[0], offset)
            if written == len(buffers[0]):
                return
            offset, buffers = offset + written, [memoryview(buffers[0])[written:]]
        for first in range(0, len(buffers), IOV_MAX):
            offset = self._write_batch(offset, buffers[first : first + IOV_MAX])

    def _write_batch(self, offset: int, batch: Sequence[Bytes]) -> int:
        total = sum(map(len, batch))
        written = os.pwritev(self._fd, batch, offset)
        if written != total:
            joined = memoryview(b"".join(batch))
            while written < total:
                written += os.pwrite(self._fd, joined[written:], offset + written)
        return offset + total

    def sync(self) -> None:
        os.fdatasync(self._fd)

    def grow(self, size_bytes: int) -> None:
        has = os.lseek(self._fd, 0, os.SEEK_END)
        if has < size_bytes and not self._is_file:
            raise InvalidSize(f"the block device has {has} bytes, not {size_bytes}: enlarge it first")
        if has < size_bytes:
            try:
                os.ftruncate(self._fd, size_bytes)
            except OSError as error:
                if error.errno in (errno.EFBIG, errno.EINVAL):
                    raise InvalidSize(f"the file cannot have {size_bytes} bytes: {error.strerror}") from None
                raise
        self.size_bytes = max(has, size_bytes)

    def prefetch(self, offset: int, length: int) -> None:
        os.posix_fadvise(self._fd, offset, length, os.POSIX_FADV_WILLNEED)

    def preallocate(self, offset: int, length: int) -> None:
        if not self._may_allocate:
            return
        try:
            os.posix_fallocate(self._fd, offset, length)
        except OSError:
            self._may_allocate = False  # a hint only: the write itself reports what is wrong

    def begin_write_back(self, offset: int) -> None:
        # The kernel begins to write what is dirty in the range, then drops the whole pages of it: one byte has none.
        with suppress(OSError):  # a hint only
            os.posix_fadvise(self._fd, offset, 1, os.POSIX_FADV_DONTNEED)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def kernel_reads_ahead(disk: int) -> int:
    """How many bytes, of a file on this disk (or of the disk itself) that is opened now; 0: it does not tell."""
    place = f"/sys/dev/block/{os.major(disk)}:{os.minor(disk)}"
    for queue in (f"{place}/queue", f"{place}/../queue"):  # the second for a partition
        try:
            with open(f"{queue}/read_ahead_kb") as file:
                return int(file.read()) << 10
        except (OSError, ValueError):
            continue
    return 0
