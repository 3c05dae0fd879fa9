#!/usr/bin/env python3
"""Reads the verbose log of `iscsi-test-cu -V` and gives the score by test: pass, skip, fail.

The tool counts a test whose command was unsupported as passed; only the log says [SKIPPED].  So a score is
three numbers, and this is what makes them.

    iscsi-test-cu --dataloss -t ALL -V iscsi://… > log;  iscsi_score.py log
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

SUITE = re.compile(r"Suite: (\S+)")
TEST = re.compile(r"  Test: (\S+) \.\.\.(.*)")
# CUnit's own verdict; the tests' chatter is indented and writes its verdicts in brackets.
VERDICT = re.compile(r"(passed|FAILED)(?![\w\]])")
ASSERTION = re.compile(r"\s+\d+\. (\S+:\d+)\s+- (.*)")
STAMP = r"(?:\s*\d{4}-\d\d-\d\d [\d:.]+)?"
"""Newer versions of the tool begin each message with the time."""
NOTE = re.compile(STAMP + r"\s*\[(SKIPPED|FAILED)\] (.*)")
NO_VERDICT = "none"


@dataclass
class Score:
    """One test: `pass`, `skip` (the tool says passed), `fail`, or `none` if the log ends in the middle of it."""

    name: str
    outcome: str = NO_VERDICT
    reasons: list[str] = field(default_factory=list)
    skipped: bool = False

    def note(self, line: str) -> None:
        match = NOTE.match(line)
        if match:
            self.skipped |= match[1] == "SKIPPED"
            self.reasons.append(match[2].strip())

    def settle(self, verdict: str) -> None:
        self.outcome = "fail" if verdict == "FAILED" else "skip" if self.skipped else "pass"


def parse(log: str) -> list[Score]:
    return list(_scores(log.splitlines()))


def _scores(lines: list[str]) -> Iterator[Score]:
    suite, score = "", None
    for line in lines:
        if found := SUITE.match(line):
            suite = found[1]
        elif found := TEST.match(line):
            if score is not None:
                yield score
            score = Score(f"{suite}.{found[1]}")
            _feed(score, found[2])
        elif score is not None:
            _feed(score, line)
    if score is not None:
        yield score


def _feed(score: Score, line: str) -> None:
    if score.outcome == NO_VERDICT:
        if verdict := VERDICT.match(line):
            score.settle(verdict[1])
        else:
            score.note(line)
    elif assertion := ASSERTION.match(line):
        score.reasons.append(f"{assertion[1]}: {assertion[2].partition('    Send')[0].strip()}")


def tally(scores: list[Score]) -> dict[str, int]:
    outcomes = [score.outcome for score in scores]
    return {name: outcomes.count(name) for name in ("pass", "skip", "fail", NO_VERDICT)}


def main() -> int:
    parser = argparse.ArgumentParser(description="Score of an iscsi-test-cu run.")
    parser.add_argument("log", type=Path, help="output of iscsi-test-cu -V")
    parser.add_argument("--all", action="store_true", help="list the passed tests too")
    options = parser.parse_args()
    scores = parse(options.log.read_text(errors="replace"))
    for score in scores:
        if options.all or score.outcome != "pass":
            why = "; ".join(dict.fromkeys(score.reasons))
            print(f"{score.outcome}  {score.name}" + (f": {why}" if why and score.outcome != "pass" else ""))
    counts = tally(scores)
    print(f"{len(scores)} tests: " + ", ".join(f"{n} {name}" for name, n in counts.items() if n or name != NO_VERDICT))
    return 1 if counts["fail"] or counts[NO_VERDICT] else 0


if __name__ == "__main__":
    sys.exit(main())
