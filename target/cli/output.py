"""What `lun` prints: tables for people, data for pipes, JSON for programs.

On a terminal a table has headings and rounded sizes.  Elsewhere there is one line an object, fields
separated by tabs, without headings, numbers exact.  With --json the objects of the API are printed as they
are.  Confirmations are for terminals only.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import click

from target.cli.sizes import format_size

Object = Mapping[str, Any]
GAP = 2
"""Between two columns of a table."""


class Update(Protocol):
    """Moves a bar, and says something else beside it."""

    def __call__(self, completed: int, total: int, label: str | None = None) -> None: ...


@dataclass(frozen=True)
class Column:
    title: str
    value: Callable[[Object], Any]
    show: Callable[[Any], str] = str
    """How a person reads it; pipes get the value itself."""
    right: bool = False


def text(title: str, key: str) -> Column:
    return Column(title, lambda o: o.get(key, ""), _plain)


def rounded(key: str, digits: int | None = None) -> Callable[[Object], Any]:
    """The value of a figure that was measured: more digits would say nothing."""
    return lambda o: None if o[key] is None else round(o[key], digits)


def size(title: str, key: str) -> Column:
    return Column(title, lambda o: o.get(key), format_size, right=True)


def number(title: str, key: str) -> Column:
    return Column(title, lambda o: o.get(key), _plain, right=True)


def when(title: str, key: str) -> Column:
    return Column(title, lambda o: o.get(key), format_time)


def yes(title: str, key: str, words: tuple[str, str] = ("yes", "no")) -> Column:
    return Column(title, lambda o: words[0] if o.get(key) else words[1])


def _plain(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "-"
    return str(value) if value != "" else "-"


def format_time(seconds: float | None) -> str:
    return "-" if seconds is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def format_duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    whole = int(seconds)
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"


def luns_text(number: int) -> str:
    return f"{number} LUN{'' if number == 1 else 's'}"


class Output:
    def __init__(self, as_json: bool = False) -> None:
        self.as_json = as_json

    @property
    def for_people(self) -> bool:
        return not self.as_json and sys.stdout.isatty()

    def json(self, value: Any) -> None:
        click.echo(json.dumps(value, indent=2 if sys.stdout.isatty() else None, ensure_ascii=False))

    def table(self, objects: Sequence[Object], columns: Sequence[Column], *, empty: str = "") -> None:
        """Many objects."""
        if self.as_json:
            self.json(objects)
        elif self.for_people:
            self._rich_table(objects, columns, empty)
        else:
            for each in objects:
                click.echo("\t".join(_field(column.value(each)) for column in columns))

    def details(self, title: str, each: Object, columns: Sequence[Column]) -> None:
        """One object, a line a field."""
        if self.as_json:
            self.json(each)
        elif self.for_people:
            width = max(len(column.title) for column in columns)
            click.secho(title, bold=True)
            for column in columns:
                click.echo(f"  {column.title:<{width}}  {column.show(column.value(each))}")
        else:
            for column in columns:
                click.echo(f"{title}\t{column.title.replace(' ', '-')}\t{_field(column.value(each))}")

    def done(self, each: Any, message: str) -> None:
        """A change was made: people get a sentence, programs the object."""
        if self.as_json:
            self.json(each)
        elif self.for_people:
            click.echo(message)

    def note(self, message: str) -> None:
        """For people only, and never among the data."""
        if sys.stderr.isatty():
            click.echo(message, err=True)

    def _rich_table(self, objects: Iterable[Object], columns: Sequence[Column], empty: str) -> None:
        from rich import box
        from rich.console import Console
        from rich.table import Table

        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold", padding=(0, 1, 0, 0))
        console = Console()
        words = [max(map(len, column.title.split())) for column in columns]
        room = console.width - sum(words) - GAP * (len(words) - 1)
        for number, (column, word) in enumerate(zip(columns, words, strict=True)):
            # What a row is about stays in one piece, and so does each word of a heading if there is room for all.
            table.add_column(
                column.title, justify="right" if column.right else "left", overflow="fold", no_wrap=number == 0,
                min_width=word if room >= 0 else None,
            )  # fmt: skip
        rows = [[_safe(column.show(column.value(each))) for column in columns] for each in objects]
        if not rows and empty:
            click.echo(empty, err=True)
            return
        for row in rows:
            table.add_row(*row)
        console.print(table)

    @contextmanager
    def progress(self, label: str, total: int | None, *, as_bytes: bool = True) -> Iterator[Update]:
        """A bar on stderr while standard error is a terminal; else nothing."""
        if self.as_json or not sys.stderr.isatty():
            yield lambda completed, total, label=None: None
            return
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TaskProgressColumn,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        extra = [DownloadColumn(binary_units=True), TransferSpeedColumn()] if as_bytes else []
        bar = Progress(
            TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(), *extra,
            TimeRemainingColumn(), console=Console(stderr=True),
        )  # fmt: skip
        with bar:
            task = bar.add_task(printable(label), total=total)

            def update(completed: int, total: int, label: str | None = None) -> None:
                said = None if label is None else printable(label)
                bar.update(task, completed=completed, total=total, description=said)

            yield update


def _field(value: Any) -> str:
    """One field of a line: no tab and no line end can be inside."""
    if isinstance(value, list | tuple):
        value = ",".join(map(str, value))
    return printable("" if value is None else str(value))


def _safe(value: str) -> str:
    """Names come from many places: no control characters, no rich markup."""
    from rich.markup import escape

    return escape(printable(value))


def printable(value: str) -> str:
    """Names come from many places: nothing in them may move the cursor."""
    return "".join(char if char.isprintable() else "?" for char in value)
