"""Whether a worker lives: it is asked again and again, and whoever has not answered for HUNG_S is hung.

The limit.  A host whose commands are not answered drops its session after some seconds and logs in again; what its
file systems see depends on when that succeeds: Linux gives up after 120 s (node.session.timeo.replacement_timeout).
Half of that is for looking, half for a new process that replays the log.  A worker that is only busy is far from it:
mounts, replays and copies run in threads beside the loop that answers, a consistency point goes in slices, and the
collector has nothing to look at that was there at the start (docs/decisions/0014 has what was measured).

Looks are counted, not seconds: a front that was held up itself, or a machine that stood still, is no reason to
kill anybody.
"""

from __future__ import annotations

import asyncio

from target.management.refusal import Refused
from target.workers.channel import Channel
from target.workers.messages import Ping

LOOK_S = 5.0
LOOKS = 12
HUNG_S = LOOKS * LOOK_S
LOOKS_AT_START = 60
"""Before its first answer: 256 volumes have as many interpreters to start, a second of CPU time each."""
DEATHS, DEATHS_WITHIN_S = 3, 60.0
"""So many in so long, and the volume stays offline."""


async def until_hung(channel: Channel, look_s: float = LOOK_S) -> None:
    """Raises ChannelClosed when the other side is gone before that."""
    looks = LOOKS_AT_START
    while True:
        try:
            asked = channel.call(Ping())
        except Refused:
            return  # a thousand messages wait for it
        for _ in range(looks):
            if asked.done():
                break
            await asyncio.wait([asked], timeout=look_s)
        if not asked.done():
            return
        asked.result()
        looks = LOOKS
        await asyncio.wait([channel.closed], timeout=look_s)


class Deaths:
    """Of the processes of one volume, one after the other."""

    def __init__(self) -> None:
        self._times: list[float] = []

    def too_many(self, now: float, *, hung: bool) -> bool:
        """With the one that has just died.  Who hung had died long before it was found out."""
        within_s = DEATHS_WITHIN_S + (DEATHS * (HUNG_S + LOOK_S) if hung else 0)
        self._times = [*(each for each in self._times if now - each < within_s), now]
        return len(self._times) >= DEATHS
