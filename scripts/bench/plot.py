"""The ratios as bars: a panel for each group of works, a bar for each rival, the spread over the rounds, the aims."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from scripts.bench.aims import AIMS
from scripts.bench.report import grouped, ratio
from scripts.bench.runner import Results
from scripts.bench.works import C_LOOP, LIO, LUND, NBD, PLAIN, PYTHON_LOOP, TGT, TUNED, WORKS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLORS = {
    TGT: "#1f77b4", TUNED: "#7fb3dc", PYTHON_LOOP: "#9d9d9d", C_LOOP: "#5c5c5c", PLAIN: "#2ca02c", NBD: "#ff9f3f",
    LIO: "#9467bd",
}  # fmt: skip
AIM_COLOR = "#d62728"
LOWEST, HIGHEST = 0.12, 10.0
TICKS = (0.125, 0.25, 0.5, 1, 2, 4, 8)
BAR, GAP, HEADING = 0.17, 0.1, 0.75
"""Inches: a bar, what is between two works, a panel's title and axis."""


def height(works: list[str], found: Results) -> float:
    return sum((len(found[name]) - 1) * BAR + GAP for name in works)


def columns(panels: dict[str, list[str]], found: Results) -> list[list[str]]:
    """The panels in two columns of about the same height, in their order."""
    groups = list(panels)
    heights = [height(works, found) + HEADING for works in panels.values()]
    split = min(range(1, len(groups) + 1), key=lambda at: max(sum(heights[:at]), sum(heights[at:])))
    return [column for column in (groups[:split], groups[split:]) if column]


def draw(path: Path, found: Results) -> None:
    """Raises ImportError without matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    panels = grouped(found)
    sides = columns(panels, found)
    tallest = max(sum(height(panels[group], found) + HEADING for group in side) for side in sides)
    figure = pyplot.figure(figsize=(7.2 * len(sides), tallest + 1.2), layout="constrained")
    shown = dict.fromkeys(who for results in found.values() for who in results if who != LUND)
    for column, side in zip(figure.subfigures(1, len(sides), squeeze=False)[0], sides, strict=True):
        room = [height(panels[group], found) + HEADING for group in side]
        # what is left over at the foot of the shorter column
        every = column.subplots(len(side) + 1, 1, height_ratios=[*room, max(tallest - sum(room), 0.01)])
        every[-1].set_axis_off()
        for axes, group in zip(every, side, strict=False):
            _panel(axes, group, panels[group], found)
    keys = [Patch(color=COLORS[who], label=f"lund / {who}") for who in shown]
    keys.append(Line2D([], [], color=AIM_COLOR, linewidth=2, label="aim"))
    figure.suptitle("lund's rate over that of others, median and spread of the rounds: right of 1 lund is faster")
    figure.legend(handles=keys, loc="outside lower center", ncols=len(keys), fontsize=9, frameon=False)
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def _panel(axes: Axes, group: str, works: list[str], found: Results) -> None:
    at, middles = 0.0, []
    aims = {(aim.work, aim.rival): aim.at_least for aim in AIMS if not aim.other}
    for name in works:
        first = at
        for who, figures in found[name].items():
            if who == LUND:
                continue
            each = ratio(WORKS[name], found[name][LUND], figures)
            axes.barh(at, each.median - 1, BAR, left=1, color=COLORS[who])
            axes.plot([each.low, each.high], [at, at], color="black", linewidth=0.8)
            if (aim := aims.get((name, who))) is not None:
                axes.plot([aim, aim], [at - BAR / 2, at + BAR / 2], color=AIM_COLOR, linewidth=2)
            edge = min(max(each.high, 1) * 1.03, HIGHEST * 0.85)
            axes.text(edge, at, f"{each.median:.2f}", va="center", fontsize=6.5)
            at += BAR
        middles.append((first + at - BAR) / 2)
        at += GAP
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_xlim(LOWEST, HIGHEST)
    axes.minorticks_off()
    axes.set_xticks(TICKS, [f"{tick:g}" for tick in TICKS], fontsize=8)
    axes.set_yticks(middles, works, fontsize=8.5)
    axes.set_ylim(at, -GAP - BAR / 2)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", linewidth=0.3)
    axes.set_axisbelow(True)
    axes.set_title(group, fontsize=10, loc="left", fontweight="bold")
    for edge in ("top", "right", "left"):
        axes.spines[edge].set_visible(False)
