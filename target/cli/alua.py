"""`lun alua …`: which paths hosts are to use for a LUN."""

from __future__ import annotations

from typing import Any

import click

from target.cli.client import lun_url
from target.cli.output import number, text
from target.cli.root import PATH, Context, command, main

COLUMNS = (
    number("Group", "group"), text("State", "state"), text("Changed by", "changed_by"), text("Portals", "portals"),
)  # fmt: skip
STATES = ("active-optimized", "active-non-optimized", "standby", "unavailable")


@main.group()
def alua() -> None:
    """Which portal groups are a LUN's good paths (ALUA)."""


@command(alua, "show")
@click.argument("path", type=PATH)
def show(ctx: Context, path: str) -> None:
    """The state of every portal group for a LUN."""
    ctx.out.table(ctx.client.get(lun_url(path, "alua")), COLUMNS)


@command(alua, "set")
@click.argument("paths", metavar="PATH...", type=PATH, nargs=-1, required=True)
@click.option("--group", type=click.IntRange(1, 65535), required=True, help="Portal group tag.")
@click.option("--state", type=click.Choice(STATES), required=True)
def set_state(ctx: Context, paths: tuple[str, ...], group: int, state: str) -> None:
    """Say how hosts may use LUNs through a portal group.  In standby and unavailable they cannot read or write."""
    made: list[Any] = [ctx.client.put(lun_url(path, "alua"), {"group": group, "state": state}) for path in paths]
    ctx.out.done(made, f"{', '.join(paths)} through portal group {group}: {state}")
