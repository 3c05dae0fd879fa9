"""`python -m tests.support.timed_lund FILE ARGUMENTS OF LUND`: lund that notes in FILE when each consistency point
began and ended, one pair of seconds of the monotonic clock a line."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from target.daemon import main
from wafl import VolumeService
from wafl.checkpoint import Checkpoint


def install(path: Path) -> None:
    run = VolumeService._run

    async def timed(self: VolumeService, checkpoint: Checkpoint) -> None:
        begun = time.monotonic()
        await run(self, checkpoint)
        with path.open("a") as out:
            out.write(f"{begun} {time.monotonic()}\n")

    VolumeService._run = timed  # type: ignore[method-assign]


if __name__ == "__main__":
    install(Path(sys.argv[1]))
    sys.exit(main(sys.argv[2:]))
