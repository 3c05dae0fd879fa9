"""The figures told: a table for the terminal, the same as Markdown, JSON with every round.

Every figure is a median over the rounds.  A ratio is taken round by round, its spread is the lowest and the highest.
"""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console, JustifyMethod
from rich.table import Table

from scripts.bench.aims import AIMS, Aim
from scripts.bench.rivals import Figures
from scripts.bench.runner import Results
from scripts.bench.works import GROUPS, LUND, WORKS, Kind, Work


@dataclass(frozen=True)
class Ratio:
    """lund's rate over the rival's: more than 1 is faster."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f}-{self.high:.2f})"


def rates(work: Work, figures: list[Figures]) -> list[float]:
    return [figure["mib_s" if work.sequential else "rate"] for figure in figures]


def ratio(work: Work, ours: list[Figures], theirs: list[Figures]) -> Ratio:
    each = [one / other for one, other in zip(rates(work, ours), rates(work, theirs), strict=True)]
    return Ratio(statistics.median(each), min(each), max(each))


def median(figures: list[Figures], key: str) -> float | None:
    values = [figure[key] for figure in figures if key in figure]
    return statistics.median(values) if values else None


def grouped(found: Results) -> dict[str, list[str]]:
    """The works that were done, under the headings that they have in the report."""
    return {
        group: names
        for group in GROUPS
        if (names := [name for name, work in WORKS.items() if work.group == group and name in found])
    }


# --- aims


def outcome(aim: Aim, found: Results) -> Ratio | None:
    """None if what it compares was not all measured."""
    ours, theirs = found.get(aim.work, {}), found.get(aim.other or aim.work, {})
    if LUND not in ours or aim.rival not in theirs:
        return None
    return ratio(WORKS[aim.work], ours[LUND], theirs[aim.rival])


def outcomes(found: Results) -> list[tuple[Aim, Ratio]]:
    each = ((aim, outcome(aim, found)) for aim in AIMS)
    return [(aim, figure) for aim, figure in each if figure is not None]


AIM_COLUMNS = ("work", "lund's rate over that of", "aim", "found", "")


def aim_rows(found: Results) -> list[list[str]]:
    return [
        [aim.work, aim.against, f"{aim.at_least:g}", str(figure), "met" if figure.median >= aim.at_least else "missed"]
        for aim, figure in outcomes(found)
    ]


# --- figures

COLUMNS = ("work", "target", "median", "lowest-highest", "CPU µs", "p50 µs", "p99 µs", "lund / it", "aim")


def rows(name: str, results: dict[str, list[Figures]]) -> list[list[str]]:
    """One for each rival, lund first."""
    work, told = WORKS[name], []
    wanted = {aim.rival: f"{aim.at_least:g}" for aim in AIMS if aim.work == name and not aim.other}
    for who, figures in results.items():
        each = rates(work, figures)
        cells = [f"{statistics.median(each):,.0f} {work.unit}", f"{min(each):,.0f}-{max(each):,.0f}"]
        cells += [_number(median(figures, key)) for key in ("target_cpu_us", "p50_us", "p99_us")]
        against = _remark(work, figures) if who == LUND else str(ratio(work, results[LUND], figures))
        told.append([name if who == LUND else "", who, *cells, against, wanted.get(who, "")])
    return told


def _remark(work: Work, figures: list[Figures]) -> str:
    """Of a clone that should have run all the time: the hosts' own writes may leave nothing to copy."""
    if work.kind is not Kind.CLONING:
        return ""
    over = sum(figure["clone_state"] != "running" for figure in figures)
    return f"clone over in {over} of {len(figures)}" if over else "clone ran"


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def show(found: Results, console: Console) -> None:
    table = Table(title="lund beside its rivals: medians; CPU of the target for a command; ratios with their spread")
    for column in COLUMNS:
        justify: JustifyMethod = "left" if column in ("work", "target") else "right"
        table.add_column(column, justify=justify, no_wrap=column != "work", max_width=25)
    for group, names in grouped(found).items():
        table.add_section()
        table.add_row(f"[bold]{group}[/]")
        for name in names:
            for row in rows(name, found[name]):
                table.add_row(*row)
    console.print(table)
    if told := aim_rows(found):
        table = Table(title="aims")
        for column in AIM_COLUMNS:
            table.add_column(column, justify="right" if column in ("aim", "found") else "left", no_wrap=True)
        for row in told:
            table.add_row(*row)
        console.print(table)


def write_json(path: Path, about: dict[str, Any], found: Results) -> None:
    works = {
        name: {
            "rounds": results,
            "ratio": {
                who: vars(ratio(WORKS[name], results[LUND], figures))
                for who, figures in results.items()
                if who != LUND
            },
        }
        for name, results in found.items()
    }
    aims = [{**vars(aim), "found": vars(figure)} for aim, figure in outcomes(found)]
    path.write_text(json.dumps({"about": about, "aims": aims, "works": works}, indent=1) + "\n")


def write_markdown(path: Path, about: dict[str, Any], found: Results) -> None:
    lines = [", ".join(f"{key} {value}" for key, value in about.items() if key != "argv") + ".", ""]
    if told := aim_rows(found):
        lines += ["### What was aimed at", "", *_table(AIM_COLUMNS, told)]
    for group, names in grouped(found).items():
        lines += [f"### {group}", "", *_table(COLUMNS, [row for name in names for row in rows(name, found[name])])]
    path.write_text("\n".join(lines).rstrip("\n") + "\n")


def _table(columns: tuple[str, ...], cells: list[list[str]]) -> list[str]:
    left = ("work", "target", "lund's rate over that of", "")
    rule = "|".join("---" if column in left else "---:" for column in columns)
    return [f"| {' | '.join(row)} |" for row in (columns,)] + [f"|{rule}|"] + [
        f"| {' | '.join(row)} |" for row in cells
    ] + [""]
