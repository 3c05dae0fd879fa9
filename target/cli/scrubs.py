"""`lun vol scrub`: reading every block of a volume in the background."""

from __future__ import annotations

import time
from typing import Any

import click

from target.cli.client import RefusedError
from target.cli.output import Column, number, text, when
from target.cli.root import Context, command
from target.cli.sizes import RATE_TYPE, format_size
from target.cli.volumes import last_scrub, vol, volume_url

PERCENT = Column("Done", lambda o: f"{o['percent']:.1f}", lambda v: f"{v}%", right=True)
LIMIT = Column("Limit", lambda o: o["limit_bytes_s"], lambda v: f"{format_size(v)}/s" if v else "-")
DETAILS = (
    text("State", "state"), PERCENT, LIMIT, when("Started", "started_at"), number("Bad blocks", "bad_blocks"),
    Column("Last one", lambda o: last_scrub(o.get("last"))), text("Message", "message"),
)  # fmt: skip
BAD = (
    number("Block", "vbn"), text("File", "file"), number("Offset", "offset"), text("Lost", "lost"),
    text("Error", "error"),
)  # fmt: skip
POLL_S = 0.25


@command(vol, "scrub")
@click.argument("name")
@click.argument("action", type=click.Choice(("start", "stop", "status")), default="start")
@click.option("--limit", type=RATE_TYPE, metavar="RATE", help="Bytes a second at most: 100m, 1g.")
@click.option("-f", "--follow", is_flag=True, help="Follow it with a progress bar, then show what it found.")
def scrub(ctx: Context, name: str, action: str, limit: int | None, follow: bool) -> None:
    """Read every block of a volume in use, and name the bad ones."""
    url = f"{volume_url(name)}/scrub"
    if action == "start":
        status = ctx.client.put(url, {"limit_bytes_s": limit})
        if not follow:
            ctx.out.done(status, f"volume {name} is being scrubbed; follow it with 'lun vol scrub {name} status -f'")
            return
    elif action == "stop":
        status = ctx.client.delete(url)
        ctx.out.done(status, f"the scrub of volume {name} is stopped")
        return
    else:
        status = ctx.client.get(url)
    if follow:
        status = _follow(ctx, url, name, status)
    ctx.out.details(name, status, DETAILS)
    if status["bad"] and not ctx.out.as_json:
        ctx.out.table(status["bad"], BAD)
    if follow and (status["bad_blocks"] or status["state"] == "failed"):
        found = f"found {status['bad_blocks']} bad blocks; see above" if status["bad_blocks"] else status["message"]
        raise RefusedError("bad-blocks", f"scrub of volume {name}: {found}")


def _follow(ctx: Context, url: str, name: str, status: dict[str, Any]) -> dict[str, Any]:
    with ctx.out.progress(f"scrubbing {name}", status["total_bytes"] or None) as update:
        while status["state"] == "running":
            update(status["completed_bytes"], status["total_bytes"])
            time.sleep(POLL_S)
            status = ctx.client.get(url)
    return status
