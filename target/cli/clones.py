"""`lun clone …`: separating a LUN from the snapshot that backs it."""

from __future__ import annotations

import time
from typing import Any

import click

from target.cli.client import RefusedError, lun_url
from target.cli.luns import NORESERVE, reserved_by
from target.cli.output import Column, format_duration, number, text
from target.cli.root import PATH, Context, command, main
from target.cli.sizes import RATE_TYPE, format_size

PERCENT = Column("Done", lambda o: f"{o['percent']:.1f}", lambda v: f"{v}%", right=True)
RATE = Column("Rate", lambda o: o["rate_bytes_s"], lambda v: f"{format_size(v)}/s" if v else "-", right=True)
LIMIT = Column("Limit", lambda o: o["limit_bytes_s"], lambda v: f"{format_size(v)}/s" if v else "-")
LEFT = Column("Left", lambda o: o["remaining_s"], format_duration, right=True)
COLUMNS = (text("Path", "path"), text("State", "state"), PERCENT, RATE, LEFT, text("Backing", "backing"))
DETAILS = (
    text("State", "state"), PERCENT, number("Blocks done", "completed_blocks"), number("Blocks in all", "total_blocks"),
    RATE, LIMIT, LEFT, text("Backing", "backing"), text("Message", "message"),
)  # fmt: skip
BLOCK_BYTES = 4096
POLL_S = 0.25
ENDED = ("completed", "failed", "stopped", "none")


@main.group()
def clone() -> None:
    """Clone snapshot-backed LUNs: fill them in the background, then let the snapshot go."""


@clone.group()
def split() -> None:
    """The later ONTAP word for the same: start, stop, status."""


def _url(path: str) -> str:
    return lun_url(path, "clones")


def show(ctx: Context, path: str | None) -> None:
    """List clones that run, are asked for, or could be started."""
    jobs = [ctx.client.get(_url(path))] if path else ctx.client.get("/v1/clones")
    ctx.out.table(jobs, COLUMNS, empty="no LUN is backed by a snapshot")


def start(ctx: Context, path: str, limit: int | None) -> None:
    """Start, or go on with, the clone of a LUN; hosts keep using it."""
    job = ctx.client.put(_url(path), {"limit_bytes_s": limit})
    ctx.out.done(job, f"{path}: clone {job['state']}; follow it with 'lun clone status -f {path}'")


def stop(ctx: Context, path: str) -> None:
    """Stop the clone; what is filled stays."""
    job = ctx.client.delete(_url(path))
    ctx.out.done(job, f"{path}: clone {job['state']}")


def status(ctx: Context, path: str, follow: bool) -> None:
    """How far a clone is; -f follows it to its end."""
    job = ctx.client.get(_url(path))
    if follow:
        job = _follow(ctx, path, job)
    ctx.out.details(path, job, DETAILS)
    if follow and job["state"] == "failed":
        raise RefusedError("clone-failed", job["message"] or f"the clone of {path} failed")


def _follow(ctx: Context, path: str, job: dict[str, Any]) -> dict[str, Any]:
    with ctx.out.progress(path, job["total_blocks"] * BLOCK_BYTES) as update:
        while job["state"] not in ENDED:
            update(job["completed_blocks"] * BLOCK_BYTES, job["total_blocks"] * BLOCK_BYTES)
            time.sleep(POLL_S)
            job = ctx.client.get(_url(path))
        update(job["completed_blocks"] * BLOCK_BYTES, job["total_blocks"] * BLOCK_BYTES)
    return job


def create(
    ctx: Context, path: str, parent: str, snapshot: str | None, options: tuple[str, ...], count: int | None, first: int,
    igroup: str | None,
) -> None:  # fmt: skip
    """Create a LUN from PARENT as it is now, or as it was in SNAP; instantly.  Its space is reserved if PARENT's is.

    With --count N so many LUNs, all of them or none; PATH then has %d or %03d where their number goes."""
    backing = {"path": parent, "snapshot": snapshot}
    if count is not None:
        body = {
            "pattern": path, "count": count, "first": first, "backing": backing, "igroup": igroup,
            "reserved": reserved_by(options),
        }  # fmt: skip
        luns = ctx.client.post("/v1/rollouts", body)
        mapped = f", mapped to {igroup}" if igroup else ""
        ctx.out.done(luns, f"{luns[0]['path']} to {luns[-1]['path']}: {len(luns)} LUNs{mapped}")
        return
    if igroup is not None:
        raise click.UsageError("--igroup goes with --count; use 'lun map' for one LUN")
    lun = ctx.client.post("/v1/luns", {"path": path, "backing": backing, "reserved": reserved_by(options)})
    ctx.out.done(lun, f"{path}: {format_size(lun['size_bytes'])}, backed by {lun['backing']['path']}")


_PATH = click.argument("path", type=PATH)
_LIMIT = click.option("--limit", type=RATE_TYPE, metavar="RATE", help="Bytes a second at most: 100m, 1g.")
_COUNT = click.option("--count", type=click.IntRange(1), metavar="N", help="So many LUNs at once: PATH has %d in it.")
_FIRST = click.option("--first", type=click.IntRange(0), default=1, show_default=True, help="Number of the first.")
_IGROUP = click.option("--igroup", help="Map all of them to this igroup.")
_FOLLOW = click.option("-f", "--follow", is_flag=True, help="Follow it with a progress bar.")

command(clone, "show")(click.argument("path", type=PATH, required=False)(show))
command(clone, "create")(
    _PATH(
        click.option("-b", "--backing", "parent", type=PATH, required=True, metavar="PARENT")(
            click.argument("snapshot", metavar="[SNAP]", required=False)(
                _COUNT(_FIRST(_IGROUP(NORESERVE(create))))
            )
        )
    )
)
for made in (
    command(clone, "start")(_LIMIT(_PATH(start))),
    command(clone, "stop")(_PATH(stop)),
    command(clone, "status")(_FOLLOW(_PATH(status))),
):
    split.add_command(made)
