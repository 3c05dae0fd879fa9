"""The asyncio driver of a scrub: a slice in a thread, a rest, the next slice."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from wafl.scrub import Scrub


@dataclass(slots=True)
class Pace:
    """How fast a scrub may read.  May be changed while it runs."""

    limit_bytes_s: int | None = None


async def drive_scrub(scrub: Scrub, pace: Pace, after_slice: Callable[[], None]) -> None:
    """Run it to its end; `after_slice` is called on the loop's thread.  Between slices it rests at least as long as the
    last one took, so it never has more than half of a disk.  When it is cancelled, its thread has ended on return.
    Raises CorruptVolume, OSError."""
    loop = asyncio.get_running_loop()
    while (part := scrub.plan()) is not None:
        began, before = loop.time(), scrub.verified_bytes
        reading = asyncio.ensure_future(asyncio.to_thread(part.read))
        try:
            await asyncio.shield(reading)
        finally:
            await asyncio.wait([reading])
            part.release()
        after_slice()
        took = loop.time() - began
        rest = took
        if pace.limit_bytes_s:
            rest = max(rest, (scrub.verified_bytes - before) / pace.limit_bytes_s - took)
        await asyncio.sleep(rest)
