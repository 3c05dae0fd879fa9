"""The commands on LUNs and their maps."""

from __future__ import annotations

from typing import Any

import click

from target.cli.client import lun_url
from target.cli.layout import show_layout
from target.cli.output import Column, format_time, number, size, text, yes
from target.cli.root import PATH, Context, command, main
from target.cli.sizes import SIZE_TYPE, format_size

STATE = Column("State", lambda o: "online" if o["online"] else "offline")
MAPPED = Column("Mapped", lambda o: [f"{m['igroup']}={m['lun_id']}" for m in o["maps"]], lambda v: ", ".join(v) or "-")
BACKING = Column("Backing", lambda o: o["backing"]["path"] if o["backing"] else "", lambda v: v or "-")
CLONE = Column("Clone", lambda o: _clone(o.get("clone")), lambda v: v or "-")
COLUMNS = (text("Path", "path"), size("Size", "size_bytes"), size("Used", "used_bytes"), STATE, MAPPED, BACKING)
DETAILS = (
    STATE, size("Size", "size_bytes"), size("Used", "used_bytes"), number("Block", "block_bytes"),
    text("Ostype", "ostype"), yes("Space reserved", "reserved"),
    size("Kept for it", "kept_bytes"), size("Private", "private_bytes"), yes("Removable", "removable"),
    yes("Write-protected", "write_protected"), yes("Fully provisioned", "fully_provisioned"),
    yes("Native blocks", "native_blocks"), text("Serial", "serial"), text("NAA", "naa"),
    text("UUID", "uuid"), text("Comment", "comment"), MAPPED, BACKING, CLONE,
    Column("Created", lambda o: o["created_at"], format_time),
)  # fmt: skip
STATS = (
    text("Path", "path"),
    *(number(title, key) for title, key in (("Reads", "reads"), ("Writes", "writes"))),
    *(size(title, key) for title, key in (("Read", "read_bytes"), ("Written", "write_bytes"))),
)
MAP_COLUMNS = (text("Path", "path"), text("Igroup", "igroup"), number("LUN id", "lun_id"), text("Target", "target"))


def _clone(clone: dict[str, Any] | None) -> str:
    return f"{clone['state']} {clone['percent']:.1f}%" if clone and clone["state"] != "none" else ""


NORESERVE = click.option(
    "-o", "options", multiple=True, type=click.Choice(["noreserve"]), help="noreserve: thin, no space is kept for it."
)


def reserved_by(options: tuple[str, ...]) -> bool | None:
    """What the API is asked: not reserved, or whatever it does by itself."""
    return False if "noreserve" in options else None


@command(main, "create")
@click.argument("path", type=PATH)
@click.option("-s", "--size", type=SIZE_TYPE, help="Size of the LUN.")
@click.option("-b", "--backing", type=PATH, metavar="SNAPPATH", help="Back it by /vol/VOLUME/.snapshot/SNAP/LUN.")
@click.option("-t", "--ostype", help="linux, windows, vmware, …")
@NORESERVE
@click.option("-c", "--comment", help="A note for people.")
@click.option("--block-size", "block_bytes", type=click.Choice(["512", "4096"]), default="512", show_default=True)
def create(
    ctx: Context, path: str, size: int | None, backing: str | None, ostype: str | None, options: tuple[str, ...],
    comment: str | None, block_bytes: str,
) -> None:  # fmt: skip
    """Create a LUN, empty (-s) or backed by a snapshot (-b).  Without -o noreserve space is kept for all of it (of a
    LUN backed by a snapshot: if it was for its parent)."""
    if (size is None) == (backing is None):
        raise click.UsageError("give either -s SIZE or -b /vol/VOLUME/.snapshot/SNAP/LUN")
    if backing is not None and backing.split("/")[3] != ".snapshot":
        raise click.UsageError(f"{backing} is in no snapshot; 'lun clone create {path} -b {backing}' takes one first")
    body = {
        "path": path, "size_bytes": size, "backing": {"path": backing} if backing else None, "ostype": ostype,
        "reserved": reserved_by(options), "comment": comment, "block_bytes": int(block_bytes),
    }  # fmt: skip
    lun = ctx.client.post("/v1/luns", body)
    origin = f", backed by {lun['backing']['path']}" if lun["backing"] else ""
    ctx.out.done(lun, f"{path}: {format_size(lun['size_bytes'])}{origin}")


@command(main, "show")
@click.option("-v", "verbose", is_flag=True, help="Everything about each LUN.")
@click.option("-m", "maps", is_flag=True, help="The maps.")
@click.option("--map", "layout", is_flag=True, help="Draw where the blocks of one LUN live.")
@click.argument("path", required=False)
def show(ctx: Context, path: str | None, verbose: bool, maps: bool, layout: bool) -> None:
    """List LUNs: all, those of /vol/VOLUME, or one."""
    if layout:
        if path is None:
            raise click.UsageError("--map needs the PATH of a LUN")
        show_layout(ctx, PATH.convert(path, None, None))
        return
    luns = _select(ctx, path)
    if maps:
        ctx.out.table([_map_row(lun, entry) for lun in luns for entry in lun["maps"]], MAP_COLUMNS, empty="no maps")
    elif verbose and not ctx.out.as_json:
        for lun in luns:
            ctx.out.details(lun["path"], lun, DETAILS)
    else:
        ctx.out.table(luns, COLUMNS, empty="no LUNs; make one with 'lun create -s SIZE /vol/VOLUME/LUN'")


def _select(ctx: Context, path: str | None) -> list[dict[str, Any]]:
    if path is None:
        return list(ctx.client.get("/v1/luns"))
    parts = path.rstrip("/").split("/")
    if len(parts) == 3 and parts[:2] == ["", "vol"]:
        return list(ctx.client.get("/v1/luns", volume=parts[2]))
    if parts[:2] != ["", "vol"]:
        raise click.UsageError(f"{path!r} is neither /vol/VOLUME nor /vol/VOLUME/LUN")
    return [ctx.client.get(lun_url(PATH.convert(path, None, None)))]


def _map_row(lun: dict[str, Any], entry: dict[str, Any]) -> dict[str, Any]:
    return {"path": lun["path"], "target": lun["target"], **entry}


@command(main, "destroy")
@click.option("-f", "--force", is_flag=True, help="Even if it is mapped or in use.")
@click.argument("path", type=PATH)
def destroy(ctx: Context, path: str, force: bool) -> None:
    """Remove a LUN and its data.  Snapshots keep their copy."""
    ctx.out.done(ctx.client.delete(lun_url(path), force=force), f"{path} is gone")


@command(main, "online")
@click.argument("path", type=PATH)
def online(ctx: Context, path: str) -> None:
    """Let hosts use the LUN."""
    ctx.out.done(ctx.client.patch(lun_url(path), {"online": True}), f"{path} is online")


@command(main, "offline")
@click.argument("path", type=PATH)
def offline(ctx: Context, path: str) -> None:
    """Keep hosts off the LUN; its data and maps stay."""
    ctx.out.done(ctx.client.patch(lun_url(path), {"online": False}), f"{path} is offline")


@command(main, "resize")
@click.option("-f", "--force", is_flag=True, help="Allow a smaller size: data behind it is lost.")
@click.argument("path", type=PATH)
@click.argument("size", type=SIZE_TYPE)
def resize(ctx: Context, path: str, size: int, force: bool) -> None:
    """Change the size; hosts are told at once."""
    lun = ctx.client.patch(lun_url(path), {"size_bytes": size, "force": force})
    ctx.out.done(lun, f"{path}: {format_size(lun['size_bytes'])}")


@command(main, "move")
@click.argument("old", type=PATH)
@click.argument("new", type=PATH)
def move(ctx: Context, old: str, new: str) -> None:
    """Rename a LUN within its volume.  Maps, serial and sessions stay."""
    ctx.out.done(ctx.client.patch(lun_url(old), {"path": new}), f"{old} is now {new}")


@command(main, "comment")
@click.argument("path", type=PATH)
@click.argument("text")
def comment(ctx: Context, path: str, text: str) -> None:
    """Note something about a LUN."""
    ctx.out.done(ctx.client.patch(lun_url(path), {"comment": text}), f"{path}: {text}")


@command(main, "serial")
@click.argument("path", type=PATH)
@click.argument("new", required=False)
def serial(ctx: Context, path: str, new: str | None) -> None:
    """Print the serial number, or set it (the LUN must be offline)."""
    if new is not None:
        ctx.out.done(ctx.client.patch(lun_url(path), {"serial": new}), f"{path}: serial {new}")
        return
    lun = ctx.client.get(lun_url(path))
    if ctx.out.as_json:
        ctx.out.json(lun)
    else:
        click.echo(lun["serial"])


@main.group("set")
def set_group() -> None:
    """Options of a LUN."""


def _switch(name: str, field: str, what: str) -> None:
    @command(set_group, name)
    @click.argument("path", type=PATH)
    @click.argument("state", type=click.Choice(["enable", "disable"]))
    def switch(ctx: Context, path: str, state: str) -> None:
        lun = ctx.client.patch(lun_url(path), {field: state == "enable"})
        ctx.out.done(lun, f"{path}: {name} {state}d")

    switch.help = what


_switch("removable", "removable", "Show hosts a disk they can eject, or a fixed one.")
_switch("write-protect", "write_protected", "Let hosts read only, or write too.")
_switch("fully-provisioned", "fully_provisioned", "Show hosts a disk without UNMAP, or a thin one.")
_switch("native-blocks", "native_blocks", "Show hosts a disk of 512n: no physical blocks of 4096.")


@command(set_group, "reservation")
@click.argument("path", type=PATH)
@click.argument("state", type=click.Choice(["enable", "disable"]))
def reservation(ctx: Context, path: str, state: str) -> None:
    """Keep space for the whole LUN, or let it be thin."""
    lun = ctx.client.patch(lun_url(path), {"reserved": state == "enable"})
    ctx.out.done(lun, f"{path}: space reservation {state}d")


@command(main, "map")
@click.argument("path", type=PATH)
@click.argument("igroup")
@click.argument("lun_id", metavar="[ID]", type=click.IntRange(0, 16383), required=False)
def map_(ctx: Context, path: str, igroup: str, lun_id: int | None) -> None:
    """Let an igroup's initiators use the LUN.  ID: the lowest free one if it is left out."""
    entry = ctx.client.post("/v1/maps", {"path": path, "igroup": igroup, "lun_id": lun_id})
    ctx.out.done(entry, f"{path} is LUN {entry['lun_id']} of {entry['target']} for igroup {igroup}")


@command(main, "unmap")
@click.argument("path", type=PATH)
@click.argument("igroup")
def unmap(ctx: Context, path: str, igroup: str) -> None:
    """Take the LUN away from an igroup's initiators."""
    ctx.out.done(ctx.client.delete("/v1/maps", path=path, igroup=igroup), f"{path} is not mapped to {igroup} any more")


@command(main, "stats")
@click.argument("path", required=False)
def stats(ctx: Context, path: str | None) -> None:
    """What hosts have read and written since the daemon's start."""
    luns = _select(ctx, path)
    rows = [{"path": lun["path"], **lun["stats"]} for lun in luns]
    ctx.out.table(rows, STATS, empty="no LUNs")
