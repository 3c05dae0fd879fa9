"""`lun vol …` and `lun df`."""

from __future__ import annotations

import os
from typing import Any

import click

from target.cli.client import RefusedError, segment
from target.cli.operations import follow_operation
from target.cli.output import Column, format_time, number, size, text
from target.cli.root import Context, command, main
from target.cli.sizes import SIZE_TYPE, format_size


def last_scrub(report: dict[str, Any] | None) -> str:
    """One line about the last scrub that ended."""
    if report is None:
        return "-"
    ended = format_time(report["finished_at"])
    return f"{report['state']} {ended}, {report['bad_blocks']} bad blocks"


COLUMNS = (
    text("Volume", "name"), text("State", "state"), size("Size", "size_bytes"), size("Used", "used_bytes"),
    size("Free", "free_bytes"), number("LUNs", "luns"), number("Snapshots", "snapshots"), text("Path", "path"),
)  # fmt: skip
DETAILS = (
    text("State", "state"), text("Problem", "problem"), text("UUID", "uuid"), text("Target", "target"),
    text("Path", "path"), text("Log", "nvlog"),
    size("Size", "size_bytes"), size("Used", "used_bytes"), size("Free", "free_bytes"),
    size("Active", "active_bytes"), size("Snapshots only", "snapshot_bytes"), size("Kept for LUNs", "kept_bytes"),
    size("Kept back", "reserved_bytes"), size("Overcommitted", "overcommitted_bytes"),
    size("Saved by sharing", "shared_bytes"),
    number("LUNs", "luns"), number("Snapshots", "snapshots"), number("Consistency point", "generation"),
    text("Mount report", "mount_report"),
    Column("Last scrub", lambda o: last_scrub(o.get("last_scrub"))),
)  # fmt: skip
SPACE = (
    text("Volume", "name"), size("Size", "size_bytes"), size("Used", "used_bytes"), size("Available", "free_bytes"),
    size("Active", "active_bytes"), size("Snapshots", "snapshot_bytes"), number("Used %", "percent"),
    size("Kept for LUNs", "kept_bytes"), size("Kept back", "reserved_bytes"),
)  # fmt: skip
FINDING = (text("Severity", "severity"), text("Where", "where"), text("What", "what"))


@main.group()
def vol() -> None:
    """Volumes: the files or block devices that hold LUNs and snapshots."""


def volume_url(name: str) -> str:
    return f"/v1/volumes/{segment(name)}"


@command(vol, "create")
@click.argument("name")
@click.option("-s", "--size", type=SIZE_TYPE, help="Size; not needed for a block device.")
@click.option("--path", help="File to create, or block device to use; default: a file in the state directory.")
@click.option("--adopt", is_flag=True, help="Register the volume that is already at --path, data and all.")
@click.option("--nvlog", help="A log of its own: block device, or file (made if not there); default: in the volume.")
@click.option("-f", "--force", is_flag=True, help="Format a block device that holds a volume already.")
def create(
    ctx: Context, name: str, size: int | None, path: str | None, adopt: bool, nvlog: str | None, force: bool
) -> None:
    """Create a volume and bring it online."""
    if size is None and path is None:
        raise click.UsageError("give the size with -s SIZE, or a block device with --path")
    if adopt and path is None:
        raise click.UsageError("--adopt needs --path")
    body = {
        "name": name,
        "size_bytes": size,
        "path": os.path.abspath(path) if path else None,
        "adopt": adopt,
        "nvlog": os.path.abspath(nvlog) if nvlog else None,
        "force": force,
    }
    volume = ctx.client.post("/v1/volumes", body)
    ctx.out.done(volume, f"volume {name}: {format_size(volume['size_bytes'])} in {volume['path']}")


@command(vol, "show")
@click.argument("name", required=False)
def show(ctx: Context, name: str | None) -> None:
    """List the volumes, or tell all about one."""
    if name is None:
        ctx.out.table(ctx.client.get("/v1/volumes"), COLUMNS, empty="no volumes; make one with 'lun vol create'")
    else:
        ctx.out.details(name, ctx.client.get(volume_url(name)), DETAILS)


@command(vol, "grow")
@click.argument("name")
@click.argument("size", type=SIZE_TYPE)
def grow(ctx: Context, name: str, size: int) -> None:
    """Make a volume larger while it is in use."""
    volume = ctx.client.patch(volume_url(name), {"size_bytes": size})
    ctx.out.done(volume, f"volume {name}: {format_size(volume['size_bytes'])}")


@command(vol, "check")
@click.argument("name")
def check(ctx: Context, name: str) -> None:
    """Check the whole volume while it is in use."""
    operation = follow_operation(ctx, ctx.client.post(f"{volume_url(name)}/check"), f"checking {name}")
    findings: list[dict[str, Any]] = operation["result"].get("findings", [])
    ctx.out.table(findings, FINDING, empty=f"volume {name} is clean")
    if findings:
        raise RefusedError("findings", f"the check of volume {name} found {len(findings)} things; see above")


@command(vol, "online")
@click.argument("name")
def online(ctx: Context, name: str) -> None:
    """Mount a volume and serve its LUNs."""
    ctx.out.done(ctx.client.patch(volume_url(name), {"online": True}), f"volume {name} is online")


@command(vol, "offline")
@click.argument("name")
def offline(ctx: Context, name: str) -> None:
    """Stop serving a volume; its data stays."""
    ctx.out.done(ctx.client.patch(volume_url(name), {"online": False}), f"volume {name} is offline")


@command(vol, "nvlog")
@click.argument("name")
@click.argument("path", required=False)
@click.option("--internal", is_flag=True, help="Back into the volume.")
def nvlog(ctx: Context, name: str, path: str | None, internal: bool) -> None:
    """Give an offline volume a log in a file or device of its own."""
    if (path is None) == (not internal):
        raise click.UsageError("give either PATH or --internal")
    where = os.path.abspath(path) if path else ""
    ctx.out.done(ctx.client.patch(volume_url(name), {"nvlog": where}), f"volume {name} logs {where or 'within itself'}")


@command(vol, "destroy")
@click.option("-f", "--force", is_flag=True, help="Even if it has LUNs.")
@click.argument("name")
def destroy(ctx: Context, name: str, force: bool) -> None:
    """Remove a volume and everything in it."""
    ctx.out.done(ctx.client.delete(volume_url(name), force=force), f"volume {name} is gone")


@command(main, "df")
@click.argument("volume", required=False)
def df(ctx: Context, volume: str | None) -> None:
    """Space on the volumes."""
    found = [ctx.client.get(volume_url(volume))] if volume else ctx.client.get("/v1/volumes")
    for each in found:
        each["percent"] = f"{100 * each['used_bytes'] / each['size_bytes']:.1f}" if each["size_bytes"] else None
    ctx.out.table(found, SPACE)
