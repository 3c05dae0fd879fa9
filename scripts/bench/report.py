"""The figures told: a table for the terminal, the same as Markdown, JSON with every round, a plot of the ratios.

Every figure is a median over the rounds.  A ratio is taken round by round, its spread is the lowest and the highest.
"""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from scripts.bench.rivals import Figures
from scripts.bench.runner import Results
from scripts.bench.works import LUND, WORKS, Work


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


def rows(found: Results) -> list[list[str]]:
    """One for each work and rival, lund first."""
    told = []
    for name, results in found.items():
        work = WORKS[name]
        for who, figures in results.items():
            each = rates(work, figures)
            cells = [f"{statistics.median(each):,.0f} {work.unit}", f"{min(each):,.0f}-{max(each):,.0f}"]
            cells += [_number(median(figures, key)) for key in ("target_cpu_us", "p50_us", "p99_us")]
            against = "" if who == LUND else str(ratio(work, results[LUND], figures))
            told.append([name if who == LUND else "", who, *cells, against])
    return told


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


COLUMNS = ("work", "target", "median", "lowest-highest", "CPU µs", "p50 µs", "p99 µs", "lund / it")


def show(found: Results, console: Console) -> None:
    table = Table(title="lund beside its rivals: medians; CPU of the target for a command; ratios with their spread")
    for column in COLUMNS:
        table.add_column(column, justify="left" if column in ("work", "target") else "right", no_wrap=True)
    for row in rows(found):
        if row[0] and table.row_count:
            table.add_section()
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
    path.write_text(json.dumps({"about": about, "works": works}, indent=1) + "\n")


def write_markdown(path: Path, about: dict[str, Any], found: Results) -> None:
    lines = [", ".join(f"{key} {value}" for key, value in about.items() if key != "argv"), ""]
    lines += ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    lines += ["| " + " | ".join(row) + " |" for row in rows(found)]
    path.write_text("\n".join(lines) + "\n")


def plot(path: Path, found: Results) -> None:
    """lund over each rival, a line a work, with the spread.  Raises ImportError without matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = list(found)
    whos = list(dict.fromkeys(who for results in found.values() for who in results if who != LUND))
    figure, axes = pyplot.subplots(figsize=(10, 1 + 0.32 * len(names)), layout="constrained")
    for number, who in enumerate(whos):
        points = [
            (at, ratio(WORKS[name], found[name][LUND], found[name][who]))
            for at, name in enumerate(names)
            if who in found[name]
        ]
        shift = (number - (len(whos) - 1) / 2) * 0.8 / len(whos)
        values = [each.median for _, each in points]
        spread = [[each.median - each.low for _, each in points], [each.high - each.median for _, each in points]]
        places = [at + shift for at, _ in points]
        axes.errorbar(values, places, xerr=spread, fmt="o", markersize=4, linewidth=1, label=f"lund / {who}")
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xscale("log")
    axes.minorticks_off()
    axes.set_xticks([0.25, 0.5, 1, 2, 4, 8], ["0.25", "0.5", "1", "2", "4", "8"])
    axes.set_yticks(range(len(names)), names, fontsize=7)
    axes.invert_yaxis()
    axes.grid(axis="x", linewidth=0.3)
    axes.set_xlabel("rate of lund over the rate of the other: right of 1 is faster")
    axes.legend(fontsize=7)
    figure.savefig(path, dpi=110)
