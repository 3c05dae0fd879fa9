"""`lun import` and `lun export`: raw images, sparse both ways."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import BinaryIO

import click

from target.cli.client import RefusedError, lun_url, segment
from target.cli.root import PATH, Context, command, main
from target.cli.sizes import format_size

PIECE_BYTES = 1 << 20
SECTOR_BYTES = 512


@command(main, "import")
@click.argument("file", type=click.File("rb"))
@click.argument("path", type=PATH)
def import_(ctx: Context, file: BinaryIO, path: str) -> None:
    """Copy a raw image into a LUN, which is made if it is not there.  Holes and zeros take no space.

    The LUN must not be in use by a host.
    """
    length = os.fstat(file.fileno()).st_size or file.seek(0, os.SEEK_END)
    size = -(-length // SECTOR_BYTES) * SECTOR_BYTES
    if not size:
        raise click.UsageError(f"{file.name} is empty, or cannot be sought in")
    made = _make_lun(ctx, path, size)
    try:
        _copy_in(ctx, path, file, length, size, made)
    except BaseException:
        if made:  # half an image is no LUN
            with contextlib.suppress(click.ClickException):
                ctx.client.delete(lun_url(path))
        raise
    ctx.out.done(ctx.client.get(lun_url(path)), f"{path}: {format_size(size)} from {file.name}")


def _copy_in(ctx: Context, path: str, file: BinaryIO, length: int, size: int, made: bool) -> None:
    url = lun_url(path, "data")
    with ctx.out.progress(path, size) as update:
        # A new LUN reads zeros anyway; in an old one the zeros must replace what is there.
        for offset, piece in _pieces(file, length, sparse=made):
            if not made or piece.count(0) != len(piece):
                ctx.client.put_bytes(url, piece, offset=offset)
            update(offset + len(piece), size)
        update(size, size)
    ctx.client.post(url)


def _make_lun(ctx: Context, path: str, size: int) -> bool:
    volume = path.split("/")[2]
    for lun in ctx.client.get("/v1/luns", volume=volume):
        if lun["path"] == path:
            if lun["size_bytes"] < size:
                raise click.UsageError(f"{path} has {lun['size_bytes']} bytes, the image {size}; resize the LUN first")
            return False
    ctx.client.post("/v1/luns", {"path": path, "size_bytes": size, "reserved": False})
    return True


def _pieces(file: BinaryIO, length: int, *, sparse: bool) -> Iterator[tuple[int, bytes]]:
    """(offset, bytes) of everything, or of what is not a hole, in multiples of a sector."""
    offset = 0
    while offset < length:
        offset = _next_data(file, offset, length) if sparse else offset
        if offset >= length:
            return
        file.seek(offset)
        piece = file.read(PIECE_BYTES - offset % PIECE_BYTES)
        if not piece:
            return
        yield offset, piece + bytes(-len(piece) % SECTOR_BYTES)
        offset += len(piece)


def _next_data(file: BinaryIO, offset: int, length: int) -> int:
    """The piece at or behind `offset` that has data; `length` if none has.  Never before `offset`."""
    try:
        found = os.lseek(file.fileno(), offset, os.SEEK_DATA)
    except OSError:
        return length
    return max(offset, found - found % PIECE_BYTES)


def _size(ctx: Context, path: str) -> int:
    _, _, volume, *rest = path.split("/")
    if rest[0] != ".snapshot":
        return int(ctx.client.get(lun_url(path))["size_bytes"])
    luns = ctx.client.get(f"/v1/volumes/{segment(volume)}/snapshots/{segment(rest[1])}/luns") if len(rest) > 2 else []
    for lun in luns:
        if lun["path"] == path:
            return int(lun["size_bytes"])
    raise RefusedError("no-such-lun", f"there is no LUN {path}; see 'lun snap list {volume}'")


@command(main, "export")
@click.argument("path", type=PATH)
@click.argument("file", type=click.Path(dir_okay=False, writable=True))
def export(ctx: Context, path: str, file: str) -> None:
    """Copy a LUN into a raw image; what is unmapped becomes a hole.

    What hosts write meanwhile may or may not be in it; /vol/VOLUME/.snapshot/SNAP/LUN stands still.
    """
    size = _size(ctx, path)
    url = lun_url(path, "data")
    try:
        target = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise click.UsageError(f"{file} is there already; remove it or choose another name") from None
    except OSError as error:
        raise click.UsageError(f"{file}: {error.strerror}") from None
    try:
        with os.fdopen(target, "wb") as out, ctx.out.progress(path, size) as update:
            out.truncate(size)
            for offset in range(0, size, PIECE_BYTES):
                piece = ctx.client.get_bytes(url, offset=offset, length=min(PIECE_BYTES, size - offset))
                if piece.count(0) != len(piece):
                    out.seek(offset)
                    out.write(piece)
                update(min(size, offset + PIECE_BYTES), size)
            out.flush()
            os.fsync(out.fileno())
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(file)
        raise
    ctx.out.done({"path": path, "file": file, "size_bytes": size}, f"{file}: {format_size(size)} from {path}")
