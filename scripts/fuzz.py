#!/usr/bin/env python3
"""`make fuzz`: a coverage-guided fuzzer (atheris) on the iSCSI side and, through it, on device server and volume.

    fuzz.py [TARGET ...] [--seconds N] [--state DIR]

Each target of tests/support/fuzzing.py runs for its share of the time in a process of its own, one after the other,
starting from the corpus of the tests and from what earlier runs kept in DIR.  A find is a file in DIR/found: the
input, to be put into FOUND of tests/target/iscsi/test_fuzz.py once it is understood.  Exit status 1 if there is any.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

INSTRUMENTED = [
    "target.iscsi",
    "target.scsi",
    "target.nexus",
    "target.lun_store",
    "wafl.placed",
    "wafl.gather",
    "wafl.ahead",
]
INPUT_BYTES = 8192
ONE_INPUT_S = 60
"""An input takes milliseconds; a machine that stands still for a while is no find."""
MEMORY_MIB = 2048


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="framing, text, login, session, writes; or all")
    parser.add_argument("--seconds", type=int, default=600, help="all targets together (default 600)")
    parser.add_argument("--state", type=Path, default=ROOT / "var" / "fuzz", metavar="DIR", help="corpus and finds")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.one:
        run_one(chosen.one, chosen.seconds, chosen.state)
        return 0
    from tests.support.fuzzing import TARGETS

    targets = chosen.targets or list(TARGETS)
    if unknown := set(targets) - set(TARGETS):
        parser.error(f"no such target: {', '.join(sorted(unknown))}")
    for name in targets:
        print(f"fuzz: {name} for {chosen.seconds // len(targets)} s", flush=True)
        share = ["--seconds", str(chosen.seconds // len(targets)), "--state", str(chosen.state)]
        # the fuzzer ends its process itself, with or without a find
        subprocess.run([sys.executable, __file__, "--one", name, *share], check=False)
    found = sorted((chosen.state / "found").glob("*"))
    print(f"fuzz: {len(found)} finds" + "".join(f"\n  {path}" for path in found))
    return 1 if found else 0


def run_one(name: str, seconds: int, state: Path) -> None:
    """Until the time is over or something is found.  Does not return."""
    import atheris

    with atheris.instrument_imports(include=INSTRUMENTED):
        from tests.support.fuzzing import TARGETS, corpus

    kept, found = state / name, state / "found"
    for directory in (kept, found):
        directory.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(corpus(name)):
        (kept / f"seed-{number:04}").write_bytes(seed)
    arguments = [
        sys.argv[0], str(kept), f"-max_total_time={seconds}", f"-max_len={INPUT_BYTES}", f"-timeout={ONE_INPUT_S}",
        f"-rss_limit_mb={MEMORY_MIB}", f"-artifact_prefix={found}/{name}-", f"-report_slow_units={ONE_INPUT_S}",
        "-print_final_stats=1",
    ]  # fmt: skip
    atheris.Setup(arguments, TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main())
