"""`lun events`."""

from __future__ import annotations

import json
from typing import Any

import click

from target.cli.output import format_time
from target.cli.root import Context, command, main

COLOURS = {"error": "red", "warning": "yellow", "notice": "green"}


@command(main, "events")
@click.option("-f", "--follow", is_flag=True, help="Go on with what happens from now.")
@click.option("--since", type=int, default=0, help="Only events with a higher number.")
def events(ctx: Context, follow: bool, since: int) -> None:
    """What happened, oldest first."""
    for event in ctx.client.lines("/v1/events", since=since, follow=follow):
        if ctx.out.as_json:
            click.echo(json.dumps(event, ensure_ascii=False))
        elif ctx.out.for_people:
            click.secho(_line(event), fg=COLOURS.get(event["severity"]))
        else:
            click.echo("\t".join((str(event["seq"]), f"{event['time']:.3f}", event["severity"], event["kind"],
                                  event["subject"], event["message"])))  # fmt: skip


def _line(event: dict[str, Any]) -> str:
    return f"{format_time(event['time'])}  {event['kind']:<24}  {event['message']}"
