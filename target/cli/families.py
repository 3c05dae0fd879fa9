"""`lun clone estimate` and `lun clone tree`: what freeing a LUN, or a snapshot, would cost."""

from __future__ import annotations

from typing import Any

import click

from target.cli.client import lun_url, segment
from target.cli.clones import LEFT, RATE, clone
from target.cli.output import Column, format_time, luns_text, number, printable, size, text, yes
from target.cli.root import PATH, Context, command
from target.cli.sizes import format_size
from target.cli.snapshots import online_volumes

ESTIMATE = (
    text("Backing", "backing"), number("Blocks to copy", "missing_blocks"), size("To copy", "missing_bytes"),
    yes("Exact", "exact", ("yes", "no, at most")), size("Needed", "needed_bytes"),
    size("Available", "available_bytes"), yes("Fits", "fits"), RATE,
    Column("Time", lambda o: o["seconds"], LEFT.show),
)  # fmt: skip
ROWS = (
    text("Snapshot", "snapshot"), text("Dependent", "path"), text("Backing", "backing"),
    number("To copy", "missing_bytes"), text("Clone", "clone"),
)  # fmt: skip


@command(clone, "estimate")
@click.argument("path", type=PATH)
def estimate(ctx: Context, path: str) -> None:
    """What a clone would copy, the space it needs and the time."""
    ctx.out.details(path, ctx.client.get(lun_url(path, "estimates")), ESTIMATE)


@command(clone, "tree")
@click.argument("volume", required=False)
def tree(ctx: Context, volume: str | None) -> None:
    """Which LUN depends on which snapshot; what frees each."""
    volumes = [volume] if volume else online_volumes(ctx)
    families = [each for name in volumes for each in ctx.client.get(f"/v1/volumes/{segment(name)}/families")]
    if ctx.out.as_json:
        ctx.out.json(families)
    elif ctx.out.for_people:
        _draw(families)
    else:
        ctx.out.table([row for family in families for row in _rows(family)], ROWS)


def _rows(family: dict[str, Any]) -> list[dict[str, Any]]:
    """A line a dependent; a snapshot without any has a line too."""
    snapshot = f"{family['volume']}:{family['snapshot']}"
    return [{**each, "snapshot": snapshot} for each in family["dependents"]] or [{"snapshot": snapshot}]


def _draw(families: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.text import Text
    from rich.tree import Tree

    if not families:
        click.echo("no snapshots", err=True)
    for family in families:
        drawn = Tree(Text(_title(family), style="bold"), guide_style="bright_black")
        for each in family["dependents"]:
            branch = drawn.add(Text(_branch(each)))
            for other in _children(each, families):
                branch.add(Text(_branch(other)))
        Console().print(drawn, soft_wrap=True)


def _children(dependent: dict[str, Any], families: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """LUNs made from a LUN in a later snapshot: the next links of the chain."""
    return [each for family in families for each in family["dependents"] if each["path"] in dependent["derived"]]


def _title(family: dict[str, Any]) -> str:
    head = printable(f"{family['volume']}:{family['snapshot']}") + f"  {format_time(family['created_at'])}"
    if family["leaving"]:
        head += "  on its way out"
    if not family["dependents"]:
        return f"{head}  free: nothing depends on it"
    ways = [f"clone {luns_text(len(family['clones_needed']))}, {format_size(family['missing_bytes'])} to copy"]
    if family["snapshots_in_the_way"]:
        ways.append("delete " + ", ".join(map(printable, family["snapshots_in_the_way"])))
    return f"{head}  to free it: {'; '.join(ways)}"


def _branch(each: dict[str, Any]) -> str:
    path = printable(each["path"])
    if each["kind"] == "snapshot":
        return f"{path}  has {luns_text(each['luns'])} of it, until it goes"
    state = f", clone {each['clone']}" if each["clone"] != "none" else ""
    return f"{path}  {format_size(each['missing_bytes'])} to copy{state}"
