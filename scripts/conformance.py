#!/usr/bin/env python3
"""`make score`: libiscsi's conformance suite on every kind of LUN, and on tgt, by test.

The tool counts a skipped test as passed, so the score of a run is three numbers, and what counts is that no test is
skipped on every kind.  Writes a table (Markdown, and JSON if asked) and shows it.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from scripts.iscsi_score import tally  # noqa: E402
from tests.support.conformance import (  # noqa: E402
    EVERY_KIND,
    SIZE_BYTES,
    TESTS_UNDER_ALL,
    WHOLE,
    Conformance,
    Kind,
    Run,
    read_scores,
    run_tool,
    skipped_everywhere,
)
from tests.support.initiators import url  # noqa: E402
from tests.support.lund import Lund  # noqa: E402
from tests.support.netns import Namespace  # noqa: E402
from tests.support.tgt import TGTD, Tgt  # noqa: E402

RIVAL = "tgt"
REASONS_SHOWN = 3
OUTCOMES = ("pass", "skip", "fail", "none")
HEAD = f"""# Conformance

`make score`: iscsi-test-cu of libiscsi ({TESTS_UNDER_ALL} tests, two sessions, `--dataloss --allow-sanitize`) on each
kind of LUN. [protocol.md](protocol.md#libiscsis-conformance-suite) says in which order the tests run, and why what does
not pass does not.

"""


def run_rival(directory: Path) -> Run | None:
    """The whole suite on a LUN of tgt with its defaults; None if there is no tgt."""
    if shutil.which(TGTD) is None:
        return None
    image, log = directory / "disk.img", directory / "tgt.log"
    with image.open("wb") as file:
        file.truncate(SIZE_BYTES)
    began = time.monotonic()
    with Namespace() as namespace, Tgt(namespace, image):
        run_tool(namespace, WHOLE, url(Tgt.iqn, Tgt.lun), log)
    return Run(Kind(RIVAL, "file-backed, defaults"), read_scores(log), time.monotonic() - began)


def counts(run: Run) -> list[str]:
    tallied = tally(run.scores)
    return [str(len(run.scores)), *(str(tallied[name]) for name in ("pass", "skip")), str(len(run.failed))]


def differing(runs: Mapping[str, Run]) -> list[tuple[str, list[str]]]:
    """Tests that some run did not pass, each with its outcome on each kind; "-" where it was not run."""
    by_kind = [{score.name: score.outcome for score in run.scores} for run in runs.values()]
    names = dict.fromkeys(name for outcomes in by_kind for name, outcome in outcomes.items() if outcome != "pass")
    return [(name, [outcomes.get(name, "-") for outcomes in by_kind]) for name in names]


def markdown(runs: Mapping[str, Run], everywhere: set[str]) -> str:
    lines = [HEAD + "| LUN | what it is | tests run | pass | skip | fail |", "|---|---|---|---|---|---|"]
    lines += [f"| {run.kind.name} | {run.kind.what} | {' | '.join(counts(run))} |" for run in runs.values()]
    lines += ["", f"Skipped on every kind of lazylun's LUNs: {', '.join(sorted(everywhere)) or 'none'}.", ""]
    lines += ["Tests that do not pass everywhere (`.` passed, `-` not run):", ""]
    lines += [f"| test | {' | '.join(runs)} |", "|---" * (len(runs) + 1) + "|"]
    for name, outcomes in differing(runs):
        lines.append(f"| {name} | {' | '.join('.' if each == 'pass' else each for each in outcomes)} |")
    return "\n".join(lines) + "\n"


def as_json(runs: Mapping[str, Run], everywhere: set[str]) -> dict[str, Any]:
    return {
        "skipped_everywhere": sorted(everywhere),
        "kinds": {
            name: {
                "what": run.kind.what, "seconds": round(run.seconds, 1), "counts": tally(run.scores),
                "tests": {score.name: {"outcome": score.outcome, "reasons": score.reasons} for score in run.scores},
            }
            for name, run in runs.items()
        },
    }  # fmt: skip


def show(console: Console, runs: Mapping[str, Run], everywhere: set[str]) -> None:
    table = Table("LUN", "what it is", "tests", *OUTCOMES[:3], "seconds")
    for run in runs.values():
        table.add_row(run.kind.name, run.kind.what, *counts(run), f"{run.seconds:.0f}")
    console.print(table)
    for run in runs.values():
        for score in run.scores:
            if score.name in run.failed:
                reasons = list(dict.fromkeys(score.reasons))[:REASONS_SHOWN]
                console.print(f"[red]{score.outcome}[/] {run.kind.name} {score.name}: {'; '.join(reasons)}")
    console.print(f"skipped on every kind: {', '.join(sorted(everywhere)) or 'none'}")


def main() -> int:
    parser = argparse.ArgumentParser(description="libiscsi's conformance suite on every kind of LUN.")
    parser.add_argument("--markdown", type=Path, help="write the table there")
    parser.add_argument("--json", type=Path, help="write every outcome there, with the tool's reasons")
    parser.add_argument("--only", nargs="+", metavar="KIND", choices=[*(kind.name for kind in EVERY_KIND), RIVAL])
    parser.add_argument("--directory", type=Path, help="where volumes and logs lie meanwhile")
    options = parser.parse_args()
    wanted = options.only or [*(kind.name for kind in EVERY_KIND), RIVAL]
    with tempfile.TemporaryDirectory(dir=options.directory, prefix="score-") as name:
        directory = Path(name)
        with Namespace() as namespace, Lund(namespace, directory / "state") as lund:
            runs = Conformance(namespace, lund, directory).run([kind for kind in EVERY_KIND if kind.name in wanted])
        everywhere = skipped_everywhere(runs.values())
        rival = run_rival(directory) if RIVAL in wanted else None
    if rival is not None:
        runs[RIVAL] = rival
    show(Console(), runs, everywhere)
    if options.markdown:
        options.markdown.write_text(markdown(runs, everywhere))
    if options.json:
        options.json.write_text(json.dumps(as_json(runs, everywhere), indent=1) + "\n")
    return 1 if any(run.failed for run in runs.values() if run is not rival) else 0


if __name__ == "__main__":
    sys.exit(main())
