"""`lun show --map`: where a LUN's blocks live, a character a stretch."""

from __future__ import annotations

import shutil
from typing import Any

import click

from target.cli.client import lun_url
from target.cli.output import Column, number, printable, size
from target.cli.root import Context
from target.cli.sizes import format_size

ROWS = 16
OFFSET_WIDTH = 7
OWN, BACKING, ZERO = "#", "+", "."
COLOURS = {OWN: "green", BACKING: "yellow", ZERO: "bright_black"}
SHARES = ((OWN, "own", "own_bytes"), (BACKING, "backing", "backing_bytes"), (ZERO, "reads zeros", "zero_bytes"))
COLUMNS: tuple[Column, ...] = (
    number("Offset", "offset"), number("Length", "length"), size("Own", "own_bytes"), size("Backing", "backing_bytes"),
)  # fmt: skip


def show_layout(ctx: Context, path: str) -> None:
    """People get a drawing as wide as their terminal; pipes a line a stretch."""
    width = max(16, shutil.get_terminal_size().columns - OFFSET_WIDTH - 2)
    found = ctx.client.get(lun_url(path, "layouts"), stretches=width * ROWS if ctx.out.for_people else None)
    if ctx.out.as_json:
        ctx.out.json(found)
    elif ctx.out.for_people:
        draw(found, width)
    else:
        ctx.out.table(found["stretches"], COLUMNS)


def draw(found: dict[str, Any], width: int) -> None:
    head = f"{found['path']}: {format_size(found['size_bytes'])}"
    click.secho(printable(head + (f", backed by {found['backing']}" if found["backing"] else "")), bold=True)
    stretches = found["stretches"]
    for first in range(0, len(stretches), width):
        row = stretches[first : first + width]
        offset = f"{format_size(row[0]['offset']):>{OFFSET_WIDTH}}"
        click.echo(f"{offset}  {''.join(_coloured(mark(each)) for each in row)}")
    legend = [
        f"{_coloured(char)} {word} {format_size(found[key])}"
        for char, word, key in SHARES
        if found[key] or char != BACKING or found["backing"]
    ]
    each = format_size(stretches[0]["length"])
    about = "" if found["exact"] else "; a sample: the LUN is too large to look at every block"
    click.echo(f"{'':{OFFSET_WIDTH}}  {'  '.join(legend)}  ({each} a character{about})")


def mark(stretch: dict[str, Any]) -> str:
    """What there is more of; zeros only where there is nothing else, so that a single block is seen."""
    own, backing = stretch["own_bytes"], stretch["backing_bytes"]
    if not own and not backing:
        return ZERO
    return OWN if own >= backing else BACKING


def _coloured(char: str) -> str:
    return click.style(char, fg=COLOURS[char])
