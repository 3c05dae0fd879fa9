"""The table of what hosts' reads take while a LUN is cloned, whoever reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.console import Console
from rich.table import Table

from scripts.bench.clone_site import IDLE, LUNS, Round, Site, median, ratios, spread, turns


def compare(
    site: Site, latency: Callable[[int, int, str], Round], speeds: Sequence[str], title: str, console: Console
) -> list[Round]:
    """`latency(lun, depth, speed)` reads while the clone runs at that speed; IDLE is among `speeds`."""
    table = Table(title=title)
    for column in ("reads from", "depth", "clone", "reads/s", "p50 µs", "p99 µs", "p99 / no clone", "copied MiB/s"):
        table.add_column(column, justify="left" if column in ("reads from", "clone") else "right")
    results = []
    for where, lun in LUNS.items():
        for depth in site.options.depth:
            found = turns(
                {speed: lambda lun=lun, depth=depth, speed=speed: latency(lun, depth, speed) for speed in speeds},
                site.options.rounds,
                lambda speed, figures: console.print(f"  {speed}: p99 {figures['p99_us']:,.0f} µs"),
            )
            result: Round = {"reads_from": where, "depth": depth, "rounds": found, "p99_ratio": {}}
            for speed, rounds in found.items():
                ratio = result["p99_ratio"][speed] = ratios(rounds, found[IDLE], "p99_us")
                ended = sum(each["clone_state"] == "completed" for each in rounds)
                note = f" (over in {ended} of {len(rounds)})" if ended else ""
                table.add_row(
                    where, str(depth), speed, f"{median(rounds, 'rate'):,.0f}", f"{median(rounds, 'p50_us'):,.0f}",
                    f"{median(rounds, 'p99_us'):,.0f}", spread(ratio), f"{median(rounds, 'copied_mib_s'):,.1f}{note}",
                )  # fmt: skip
            results.append(result)
    console.print(table)
    return results
