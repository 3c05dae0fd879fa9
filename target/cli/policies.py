"""`lun snap sched`, `lun snap autodelete`, `lun vol thresholds`."""

from __future__ import annotations

import re
from typing import Any

import click

from target.cli.client import segment
from target.cli.output import Column, number, text, when, yes
from target.cli.root import Context, command
from target.cli.snapshots import snap
from target.cli.volumes import vol

HOURLY = re.compile(r"(\d{1,3})(?:@(\d{1,2}(?:,\d{1,2})*))?\Z")
EVERY_HOUR = list(range(24))


def _hourly(schedule: Any) -> str:
    """As it is written on the command line: `8@8,12,16,20`."""
    hours = schedule["hours"]
    at = "" if hours == EVERY_HOUR or not schedule["hourly"] else "@" + ",".join(map(str, hours))
    return f"{schedule['hourly']}{at}"


SCHEDULE = (
    text("Volume", "volume"), number("Weekly", "weekly"), number("Nightly", "nightly"),
    Column("Hourly", _hourly, right=True), when("Next", "next_at"),
)  # fmt: skip
AUTODELETE = (
    text("Volume", "volume"), yes("Autodelete", "enabled", ("on", "off")), number("Trigger %", "trigger_percent"),
    number("Target %", "target_percent"), text("Prefixes", "prefixes"),
)  # fmt: skip


def _url(volume: str, what: str) -> str:
    return f"/v1/volumes/{segment(volume)}/{what}"


def _volumes(ctx: Context, volume: str | None) -> list[str]:
    return [volume] if volume else [each["name"] for each in ctx.client.get("/v1/volumes")]


class HourlyType(click.ParamType):  # type: ignore[type-arg]
    """COUNT, or COUNT@HOUR,HOUR,…"""

    name = "hourly"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, list[int]]:
        if isinstance(value, tuple):
            return value
        match = HOURLY.match(str(value))
        hours = [int(hour) for hour in match[2].split(",")] if match and match[2] else EVERY_HOUR
        if not match or max(hours) > 23:
            self.fail(f"{value!r} is not a count of hourly snapshots such as 6, or 8@8,12,16,20", param, ctx)
        return int(match[1]), hours


@command(snap, "sched")
@click.argument("volume", required=False)
@click.argument("weekly", required=False, type=click.IntRange(0, 255))
@click.argument("nightly", required=False, default=0, type=click.IntRange(0, 255))
@click.argument("hourly", required=False, default="0", type=HourlyType(), metavar="[HOURLY[@HOUR,…]]")
def sched(ctx: Context, volume: str | None, weekly: int | None, nightly: int, hourly: tuple[int, list[int]]) -> None:
    """Show or set how many scheduled snapshots are kept.

    Weekly ones are taken on Sunday at 0:00, nightly ones at 0:00, hourly ones every hour or at the hours given:
    `lun snap sched vol0 2 6 8@8,12,16,20`.  All 0 ends it; snapshots stay.
    """
    if volume is None or weekly is None:
        found = [ctx.client.get(_url(name, "schedule")) for name in _volumes(ctx, volume)]
        ctx.out.table(found, SCHEDULE)
        return
    count, hours = hourly
    body = {"weekly": weekly, "nightly": nightly, "hourly": count, "hours": hours}
    made = ctx.client.put(_url(volume, "schedule"), body)
    ctx.out.done(made, f"volume {volume} keeps {weekly} weekly, {nightly} nightly, {count} hourly snapshots")


@command(snap, "autodelete")
@click.argument("volume", required=False)
@click.argument("state", required=False, type=click.Choice(["on", "off"]))
@click.option("--trigger", type=click.IntRange(1, 100), help="Percent full at which it begins.")
@click.option("--target", type=click.IntRange(1, 100), help="Percent full at which it ends.")
@click.option("--prefix", multiple=True, help="Only snapshots that begin so; '' for all. Give it once for each.")
def autodelete(
    ctx: Context,
    volume: str | None,
    state: str | None,
    trigger: int | None,
    target: int | None,
    prefix: tuple[str, ...],
) -> None:
    """Show or set whether a full volume deletes old snapshots.

    Oldest first; never one that something depends on, and never one that begins with none of the prefixes.
    """
    wanted: dict[str, Any] = {"trigger_percent": trigger, "target_percent": target, "prefixes": list(prefix) or None}
    wanted["enabled"] = None if state is None else state == "on"
    wanted = {key: value for key, value in wanted.items() if value is not None}
    if volume is None or not wanted:
        found = [ctx.client.get(_url(name, "autodelete")) for name in _volumes(ctx, volume)]
        ctx.out.table(found, AUTODELETE)
        return
    policy = ctx.client.patch(_url(volume, "autodelete"), wanted)
    ctx.out.done(policy, f"autodelete is {'on' if policy['enabled'] else 'off'} on volume {volume}")


@command(vol, "thresholds")
@click.argument("name")
@click.argument("percent", nargs=-1, type=click.IntRange(1, 100))
@click.option("--none", "no_thresholds", is_flag=True, help="Have none.")
def thresholds(ctx: Context, name: str, percent: tuple[int, ...], no_thresholds: bool) -> None:
    """Show or set how full a volume is when hosts and events say so."""
    if percent and no_thresholds:
        raise click.UsageError("give percentages, or --none")
    url = f"/v1/volumes/{segment(name)}"
    if percent or no_thresholds:
        volume = ctx.client.patch(url, {"thresholds": list(percent)})
        shown = ", ".join(f"{level} %" for level in volume["thresholds"]) or "none"
        ctx.out.done(volume, f"volume {name} has the thresholds {shown}")
        return
    columns = (text("Volume", "name"), text("Thresholds %", "thresholds"), number("Full %", "full_percent"))
    ctx.out.table([ctx.client.get(url)], columns)
