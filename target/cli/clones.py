"""`lun clone …`: separating a LUN from the snapshot that backs it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import click

from target.cli.client import lun_url
from target.cli.following import check_ended_well, follow_clone
from target.cli.luns import NORESERVE, reserved_by
from target.cli.output import Column, format_duration, number, rounded, text
from target.cli.root import PATH, Context, command, main
from target.cli.sizes import RATE_TYPE, RateType, format_size

PERCENT = Column("Done", lambda o: f"{o['percent']:.1f}", lambda v: f"{v}%", right=True)
RATE = Column("Rate", rounded("rate_bytes_s"), lambda v: f"{format_size(v)}/s" if v else "-", right=True)
LIMIT = Column("Limit", lambda o: o["limit_bytes_s"], lambda v: f"{format_size(v)}/s" if v else "-")
LEFT = Column("Left", rounded("remaining_s", 1), format_duration, right=True)
STATE = Column("State", lambda o: o["state"] if o["queue_place"] is None else f"queued ({o['queue_place']} before it)")
FULL_SPEED = Column("Full speed", lambda o: o["full_speed"], lambda v: "yes" if v else "no")
SHARES = Column("Mode", lambda o: "share" if o["share"] else "copy")
HOLDERS = Column("Held by", lambda o: _holders(o), lambda v: _some(v))
COLUMNS = (text("Path", "path"), STATE, PERCENT, RATE, LEFT, text("Backing", "backing"), HOLDERS)
DETAILS = (
    STATE, PERCENT, number("Blocks done", "completed_blocks"), number("Blocks in all", "total_blocks"),
    number("Copied", "copied_blocks"), number("Shared", "shared_blocks"), number("Skipped", "skipped_blocks"),
    number("Present before", "present_blocks"),
    number("Bad", "bad_blocks"), RATE, LIMIT, LEFT, text("Priority", "priority"), FULL_SPEED,
    text("Policy", "policy"), SHARES, text("Backing", "backing"), HOLDERS, text("Message", "message"),
)  # fmt: skip
JOBS = number("Clones at once", "running")


def _holders(job: Mapping[str, Any]) -> list[str]:
    return [*job["holders"], *["…"] * (job["holder_count"] > len(job["holders"]))]


def _some(paths: list[str]) -> str:
    """As many as a table has room for."""
    return ", ".join(paths[:2] + ["…"] * (len(paths) > 2)) or "-"


@main.group()
def clone() -> None:
    """Separate LUNs from the snapshots that back them."""


@clone.group()
def split() -> None:
    """The later ONTAP word for the same: start, stop, status."""


def _url(path: str) -> str:
    return lun_url(path, "clones")


def show(ctx: Context, path: str | None) -> None:
    """List clones that run, are asked for, or could be started."""
    jobs = [ctx.client.get(_url(path))] if path else ctx.client.get("/v1/clones")
    ctx.out.table(jobs, COLUMNS, empty="no LUN is backed by a snapshot")


def start(ctx: Context, path: str, force: bool, **options: Any) -> None:
    """Start, or go on with, the clone of a LUN.  Hosts keep using it, and it gives way to them."""
    job = ctx.client.put(_url(path), {**options, "force": force})
    ctx.out.done(job, f"{path}: clone {job['state']}; follow it with 'lun clone status -f {path}'")


def change(ctx: Context, path: str, **options: Any) -> None:
    """Change a clone that runs or waits."""
    if all(value is None for value in options.values()):
        raise click.UsageError("say what to change")
    job = ctx.client.patch(_url(path), options)
    ctx.out.details(path, job, DETAILS)


def limits(ctx: Context, **options: Any) -> None:
    """Show, or set, what all clones together obey.  It is kept over a restart."""
    given = any(value is not None for value in options.values())
    url = "/v1/clone-settings"
    found = ctx.client.patch(url, options) if given else ctx.client.get(url)
    ctx.out.details("all clones", found, (LIMIT, JOBS))


def stop(ctx: Context, path: str) -> None:
    """Stop the clone; what is filled stays."""
    job = ctx.client.delete(_url(path))
    ctx.out.done(job, f"{path}: clone {job['state']}")


def status(ctx: Context, path: str, follow: bool) -> None:
    """How far a clone is.  -f follows it to its end, with exit status 0 only if it was completed."""
    if not follow:
        ctx.out.details(path, ctx.client.get(_url(path)), DETAILS)
        return
    job = follow_clone(ctx, _url(path), COLUMNS)
    if ctx.out.for_people:
        ctx.out.details(path, job, DETAILS)
    check_ended_well(job)
    if ctx.out.as_json:  # one object: the job, or why it did not end well
        ctx.out.json(job)


def create(
    ctx: Context, path: str, parent: str, snapshot: str | None, options: tuple[str, ...], count: int | None, first: int,
    igroup: str | None,
) -> None:  # fmt: skip
    """Create a LUN, or many, from PARENT as it is now or was in SNAP.

    It takes milliseconds whatever the size.  Its space is reserved if PARENT's is.

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


class NewRate(RateType):
    """A rate, or `none`."""

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        return 0 if value == "none" else super().convert(value, param, ctx)


_PATH = click.argument("path", type=PATH)
_COUNT = click.option("--count", type=click.IntRange(1), metavar="N", help="So many LUNs at once: PATH has %d in it.")
_FIRST = click.option("--first", type=click.IntRange(0), default=1, show_default=True, help="Number of the first.")
_IGROUP = click.option("--igroup", help="Map all of them to this igroup.")
_LIMIT = click.option(
    "--limit", "limit_bytes_s", type=RATE_TYPE, metavar="RATE", help="Bytes a second at most: 100m, 1g."
)
_NEW_LIMIT = click.option(
    "--limit", "limit_bytes_s", type=NewRate(), metavar="RATE|none", help="Bytes a second at most, or no limit."
)
_PRIORITY = click.option(
    "--priority", type=click.Choice(["low", "normal", "high"]), help="Who works first, and has the larger share."
)
_SPEED = click.option(
    "--full-speed/--polite", "full_speed", default=None, help="Give way to nobody; or to hosts, as it does by itself."
)
_POLICY = click.option(
    "--policy", type=click.Choice(["report", "ignore"]),
    help="What to do about a source block that cannot be read: fail at once, or when all else is copied.",
)  # fmt: skip
_SHARE = click.option(
    "--share", is_flag=True, default=None,
    help="Adopt the snapshot's blocks by pointer instead of copying them: quick, without space, nothing is read.",
)  # fmt: skip
_FORCE = click.option("-f", "--force", is_flag=True, help="Start although there is not room for all of it.")
_JOBS = click.option("--jobs", "running", type=click.IntRange(1, 1000), help="Clones at work at once; others wait.")
_FOLLOW = click.option("-f", "--follow", is_flag=True, help="Follow it to its end: a bar, or a line for each change.")


def start_options(function: Callable[..., None]) -> Callable[..., None]:
    """How a clone that is started works."""
    for option in (_FORCE, _SHARE, _POLICY, _SPEED, _PRIORITY, _LIMIT):
        function = option(function)
    return function


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
command(clone, "set")(_NEW_LIMIT(_PRIORITY(_SPEED(_POLICY(_PATH(change))))))
command(clone, "limits")(_NEW_LIMIT(_JOBS(limits)))
for made in (
    command(clone, "start")(start_options(_PATH(start))),
    command(clone, "stop")(_PATH(stop)),
    command(clone, "status")(_FOLLOW(_PATH(status))),
):
    split.add_command(made)
