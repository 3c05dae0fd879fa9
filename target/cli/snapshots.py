"""`lun snap …`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from target.cli.client import segment
from target.cli.clones import start_options
from target.cli.output import Column, number, printable, size, text, when
from target.cli.root import PATH, Context, command, main
from target.cli.sizes import format_size

COLUMNS = (
    text("Volume", "volume"), text("Snapshot", "name"), when("Created", "created_at"),
    Column("Busy", lambda o: _state(o)), number("Id", "id"), size("Holds", "referenced_bytes"),
    size("Reclaimable", "reclaimable_bytes"),
)  # fmt: skip


WAITS = (text("Held by", "path"), text("Waits for", "why"))


def _state(snapshot: Mapping[str, Any]) -> str:
    if snapshot["departure"]:
        return "leaving"
    return "busy" if snapshot["busy"] else "-"


@main.group()
def snap() -> None:
    """Snapshots of a volume, with all LUNs in it."""


def _url(volume: str, name: str | None = None) -> str:
    tail = f"/{segment(name)}" if name is not None else ""
    return f"/v1/volumes/{segment(volume)}/snapshots{tail}"


@command(snap, "create")
@click.argument("volume")
@click.argument("name", metavar="SNAP")
def create(ctx: Context, volume: str, name: str) -> None:
    """Take a snapshot."""
    ctx.out.done(ctx.client.post(_url(volume), {"name": name}), f"snapshot {name} of volume {volume}")


@command(snap, "list")
@click.argument("volume", required=False)
def list_(ctx: Context, volume: str | None) -> None:
    """List snapshots, oldest first, and what each one takes."""
    volumes = [volume] if volume else online_volumes(ctx)
    found = [each for name in volumes for each in ctx.client.get(_url(name), space="true")]
    ctx.out.table(found, COLUMNS, empty="no snapshots")


def online_volumes(ctx: Context) -> list[str]:
    return [each["name"] for each in ctx.client.get("/v1/volumes") if each["state"] == "online"]


@command(snap, "delete")
@click.option("--detach", is_flag=True, help="Clone the LUNs that hold it, and delete it when they are done.")
@click.option("--cancel", is_flag=True, help="Keep one that was to go with --detach; clones that run go on.")
@start_options
@click.argument("volume")
@click.argument("name", metavar="SNAP")
def delete(
    ctx: Context, volume: str, name: str, detach: bool, cancel: bool, force: bool, **options: Any
) -> None:
    """Delete a snapshot that nothing depends on.  Its space comes back in the background.

    With --detach one that LUNs depend on: the other options are for their clones, as in 'lun clone start'."""
    if detach and cancel:
        raise click.UsageError("--detach or --cancel, not both")
    if not detach and (force or any(value is not None for value in options.values())):
        raise click.UsageError("options of clones go with --detach")
    if cancel:
        ctx.out.done(ctx.client.delete(f"{_url(volume, name)}/departure"), f"snapshot {name} of volume {volume} stays")
        return
    waiting = None
    if detach:
        waiting = ctx.client.put(f"{_url(volume, name)}/departure", {**options, "force": force})
    else:
        ctx.client.delete(_url(volume, name))
    if waiting is None:
        ctx.out.done(waiting, f"snapshot {name} of volume {volume} is gone")
        return
    ctx.out.done(waiting, f"snapshot {name} of volume {volume} goes when nothing depends on it any more; "
                          f"'lun snap usage {volume} {name}' says what it waits for")  # fmt: skip
    for each in waiting["departure"]["waits_for"]:
        if each["stuck"]:
            ctx.out.note(f"{printable(each['path'])} {printable(each['why'])}")


@command(snap, "rename")
@click.argument("volume")
@click.argument("old")
@click.argument("new")
def rename(ctx: Context, volume: str, old: str, new: str) -> None:
    """Rename a snapshot; LUNs backed by it follow."""
    ctx.out.done(ctx.client.patch(_url(volume, old), {"name": new}), f"snapshot {old} is now {new}")


@command(snap, "restore")
@click.option("-f", "--force", is_flag=True, help="Though hosts see it; though younger LUNs are destroyed.")
@click.option("-s", "--snapshot", metavar="SNAP", help="Put one LUN back: -s SNAP PATH.")
@click.argument("target", metavar="PATH|VOLUME")
@click.argument("of_volume", metavar="[SNAP]", required=False)
def restore(ctx: Context, force: bool, snapshot: str | None, target: str, of_volume: str | None) -> None:
    """Put a LUN, or all of a volume, back to a snapshot.

    Write -s SNAP PATH for one LUN, VOLUME SNAP for all of them.

    It is done at once; a clone then copies in the background and lets the snapshot go."""
    if (snapshot is None) == (of_volume is None):
        raise click.UsageError("write '-s SNAP PATH' for one LUN, or 'VOLUME SNAP' for the whole volume")
    if snapshot is not None:
        path = PATH.convert(target, None, None)
        found = ctx.client.post(f"{_url(path.split('/')[2], snapshot)}/restore", {"path": path, "force": force})
        ctx.out.done(found, f"{path} is as in snapshot {snapshot}; its clone follows: 'lun clone status -f {path}'")
        return
    found = ctx.client.post(f"{_url(target, of_volume)}/restore", {"force": force})
    counts = ", ".join(f"{len(found[key])} {key}" for key in ("restored", "returned", "destroyed"))
    ctx.out.done(found, f"volume {target} is as in snapshot {of_volume}: {counts}")
    if found["unmapped"]:
        ctx.out.note(f"not mapped to any igroup: {', '.join(found['unmapped'])}")


@command(snap, "reclaimable")
@click.argument("volume")
@click.argument("names", metavar="SNAP…", nargs=-1, required=True)
def reclaimable(ctx: Context, volume: str, names: tuple[str, ...]) -> None:
    """What deleting several snapshots would give back together."""
    found = ctx.client.get(f"/v1/volumes/{segment(volume)}/reclaimable", snapshot=list(names))
    if ctx.out.as_json:
        ctx.out.json(found)
    else:
        ctx.out.table([found], (size("Reclaimable", "reclaimable_bytes"),))


@command(snap, "usage")
@click.argument("volume")
@click.argument("name", metavar="SNAP")
def usage(ctx: Context, volume: str, name: str) -> None:
    """What depends on a snapshot and keeps it from being deleted."""
    snapshot = ctx.client.get(_url(volume, name))
    if ctx.out.as_json:
        ctx.out.json(snapshot)
        return
    back = format_size(snapshot["reclaimable_bytes"])
    ctx.out.note(
        f"snapshot {name} refers to {format_size(snapshot['referenced_bytes'])}; deleting it gives back {back}"
    )
    if snapshot["departure"] is not None:
        ctx.out.note(f"it is on its way out: {format_size(snapshot['departure']['missing_bytes'])} to copy before")
        ctx.out.table(snapshot["departure"]["waits_for"], WAITS, empty=f"nothing depends on snapshot {name} any more")
        return
    rows = [{"path": holder} for holder in snapshot["holders"]]
    ctx.out.table(rows, (text("Held by", "path"),), empty=f"nothing depends on snapshot {name}")
