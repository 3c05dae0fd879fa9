"""`lun igroup …`: named sets of initiators."""

from __future__ import annotations

import click

from target.cli.client import segment
from target.cli.output import Column, text
from target.cli.root import Context, command, main

COLUMNS = (
    text("Igroup", "name"), text("Ostype", "ostype"), text("Initiators", "initiators"),
    Column("Maps", lambda o: [f"{m['path']}={m['lun_id']}" for m in o["maps"]], lambda v: ", ".join(v) or "-"),
)  # fmt: skip


@main.group()
def igroup() -> None:
    """Igroups: which initiators belong together."""


def _url(name: str) -> str:
    return f"/v1/igroups/{segment(name)}"


@command(igroup, "create")
@click.option("-t", "--ostype", default="linux", show_default=True)
@click.argument("name")
@click.argument("initiators", metavar="[INITIATOR]...", nargs=-1)
def create(ctx: Context, name: str, initiators: tuple[str, ...], ostype: str) -> None:
    """Create an igroup.  The initiator '*' stands for every initiator."""
    made = ctx.client.post("/v1/igroups", {"name": name, "ostype": ostype, "initiators": list(initiators)})
    ctx.out.done(made, f"igroup {name}: {', '.join(made['initiators']) or 'no initiators yet'}")


@command(igroup, "add")
@click.argument("name")
@click.argument("initiators", metavar="INITIATOR...", nargs=-1, required=True)
def add(ctx: Context, name: str, initiators: tuple[str, ...]) -> None:
    """Add initiators."""
    group = ctx.client.post(f"{_url(name)}/initiators", {"initiators": list(initiators)})
    ctx.out.done(group, f"igroup {name}: {', '.join(group['initiators'])}")


@command(igroup, "remove")
@click.option("-f", "--force", is_flag=True, help="Even if the igroup has maps.")
@click.argument("name")
@click.argument("initiators", metavar="INITIATOR...", nargs=-1, required=True)
def remove(ctx: Context, name: str, initiators: tuple[str, ...], force: bool) -> None:
    """Remove initiators; they lose what is mapped to the igroup."""
    for initiator in initiators:
        ctx.client.delete(f"{_url(name)}/initiators/{segment(initiator)}", force=force)
    group = ctx.client.get(_url(name))
    ctx.out.done(group, f"igroup {name}: {', '.join(group['initiators']) or 'no initiators left'}")


@command(igroup, "show")
@click.argument("name", required=False)
def show(ctx: Context, name: str | None) -> None:
    """List the igroups with their initiators and maps."""
    groups = [ctx.client.get(_url(name))] if name else ctx.client.get("/v1/igroups")
    ctx.out.table(groups, COLUMNS, empty="no igroups; make one with 'lun igroup create'")


@command(igroup, "destroy")
@click.option("-f", "--force", is_flag=True, help="Even if LUNs are mapped to it.")
@click.argument("name")
def destroy(ctx: Context, name: str, force: bool) -> None:
    """Remove an igroup."""
    ctx.out.done(ctx.client.delete(_url(name), force=force), f"igroup {name} is gone")
