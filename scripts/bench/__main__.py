"""`make bench`: everything side by side.  `BENCH_ARGS="--only 'read-4k-*' --rounds 5"`; `--list` names the works."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console

from scripts.bench import plot, report, runner
from scripts.bench.aims import NAMED
from scripts.bench.rivals import BUILD, Arena
from scripts.bench.works import LUND, NBD, WORKS, Work, chosen
from tests.support.netns import Namespace
from tests.support.uml import missing_parts

NEEDED = ("tgtd", "tgtadm", "qemu-img", "ss", "nsenter")
TABLE_WIDTH = 140
FOR_NBD = ("qemu-nbd", "fio")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench", description="lund beside tgt and others, interleaved.")
    parser.add_argument("--only", action="append", default=[], metavar="PATTERN", help="works by name, as in a shell")
    parser.add_argument("--named", action="store_true", help="only the works that an aim names")
    parser.add_argument("--list", action="store_true", help="name the works and end")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.5, help="measured each time")
    parser.add_argument("--warmup", type=float, default=0.4, help="seconds before, not counted")
    parser.add_argument("--minutes", type=float, default=60, help="begin no work after so long")
    parser.add_argument("--size", type=int, default=512, help="MiB of each LUN")
    parser.add_argument("--directory", type=Path, default=None, help="where the files lie (default: TMPDIR)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="every round's figures")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="the table again")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="the ratios (needs matplotlib)")
    return parser.parse_args()


def select(options: argparse.Namespace, console: Console) -> list[Work]:
    works = chosen(options.only or ["*"])
    if options.named:
        works = [work for work in works if work.name in NAMED]
    works.sort(key=lambda work: (work.name not in NAMED, not work.host))
    if any(NBD in work.rivals for work in works) and any(shutil.which(name) is None for name in FOR_NBD):
        console.print(f"without {NBD}: it needs {' and '.join(FOR_NBD)}")
        works = [_without(work, NBD) for work in works]
    if any(work.host for work in works) and (missing := missing_parts()):
        console.print(f"without Linux hosts: {', '.join(missing)}")
        works = [work for work in works if not work.host]
    return works


def _without(work: Work, rival: str) -> Work:
    fields = {**vars(work), "rivals": tuple(name for name in work.rivals if name != rival)}
    return Work(**fields)


def measure(options: argparse.Namespace, works: list[Work], console: Console) -> runner.Results:
    with (
        tempfile.TemporaryDirectory(dir=options.directory) as name,
        Namespace() as namespace,
        Arena(namespace, Path(name), options.size << 20) as arena,
    ):
        arena.start({who for work in works for who in work.rivals} - {LUND}, {work.kind for work in works})
        end = time.monotonic() + options.minutes * 60
        return runner.run(arena, works, options.rounds, options.warmup, options.seconds, end, console)


def main() -> int:
    options = parse()
    runner.end_tidily()
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = TABLE_WIDTH
    if options.list:
        for work in WORKS.values():
            console.print(work.name, markup=False)
        return 0
    try:
        works = select(options, console)
    except ValueError as error:
        console.print(str(error), markup=False)
        return 2
    lacking = [name for name in NEEDED if shutil.which(name) is None]
    lacking += [name for name in ("lean_client", "libiscsi_client", "bare_target") if not (BUILD / name).exists()]
    if os.geteuid() != 0 or lacking:
        console.print("bench needs root (network namespaces) and " + (", ".join(lacking) or "nothing else"))
        return 1
    expected = runner.expected_s(works, options.rounds, options.warmup, options.seconds) / 60
    console.print(
        f"{len(works)} works, {options.rounds} rounds: about {expected:.0f} minutes, "
        f"and no work begins after {options.minutes:g}"
    )
    about = runner.about()
    found = measure(options, works, console)
    report.show(found, console)
    if options.json:
        report.write_json(options.json, about, found)
    if options.markdown:
        report.write_markdown(options.markdown, about, found)
    if options.plot:
        plot.draw(options.plot, found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
