"""What the service manager is told (sd_notify(3)), where systemd asked for it.

A start that replays long logs, and a stop with long last consistency points, take as long as they take: the manager is
asked for more time again and again for as long as the event loop turns.  The same turning is what WatchdogSec= watches.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable

MORE_TIME_S = 60.0
"""Asked for at a time: a loop that hangs for longer is given up, by the limit that workers have, too."""
BEAT_S = 10.0
"""At most, between two signs of life."""
SEND_LIMIT_S = 5.0
"""For what must be heard.  Signs of life wait for nobody: hosts would wait with them, and another one comes."""


def notify(state: str, wait_s: float = SEND_LIMIT_S) -> None:
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as out:
        out.settimeout(wait_s)
        out.sendto(state.encode(), "\0" + address[1:] if address.startswith("@") else address)


def more_time(time_s: float = MORE_TIME_S) -> str:
    return f"EXTEND_TIMEOUT_USEC={time_s * 1e6:.0f}"


def beat_s() -> float:
    """Twice in the time after which systemd acts."""
    wanted = os.environ.get("WATCHDOG_USEC", "")
    mine = os.environ.get("WATCHDOG_PID", "") in ("", str(os.getpid()))
    return min(BEAT_S, int(wanted) / 2e6) if mine and wanted.isdecimal() and int(wanted) else BEAT_S


async def show_life(running: Callable[[], bool]) -> None:
    """For ever.  `running`: neither starting nor stopping, which is when more time is asked for."""
    while True:
        notify("WATCHDOG=1" if running() else f"WATCHDOG=1\n{more_time()}", wait_s=0)
        await asyncio.sleep(beat_s())
