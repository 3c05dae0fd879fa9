"""Where the daemon's log goes: stderr, and syslog for what an administrator should hear of.

Syslog is written by a thread of its own, so that a stalled syslogd never stalls a host's I/O.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import sys
from logging.handlers import QueueHandler, QueueListener, SysLogHandler
from pathlib import Path

NOTICE = logging.INFO + 5
SYSLOG_SOCKET = Path("/dev/log")
SYSLOG_BACKLOG = 10_000
"""Lines kept while syslogd does not take any; later ones are dropped."""


class Syslog(SysLogHandler):
    def mapPriority(self, levelName: str) -> str:  # the names of logging
        return "notice" if levelName == "NOTICE" else super().mapPriority(levelName)


class DroppingQueueHandler(QueueHandler):
    def enqueue(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(queue.Full):
            self.queue.put_nowait(record)


def start_logging(level: str, *, syslog: bool) -> QueueListener | None:
    """Set the root logger up.  The listener, if there is one, is to be stopped at the end."""
    logging.addLevelName(NOTICE, "NOTICE")
    root = logging.getLogger()
    root.setLevel(level.upper())
    # systemd puts the time before each line itself.
    stamp = "" if "JOURNAL_STREAM" in os.environ else "%(asctime)s "
    stderr = logging.StreamHandler(sys.stderr)
    stderr.setFormatter(logging.Formatter(f"{stamp}%(levelname)s %(name)s: %(message)s"))
    root.addHandler(stderr)
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    if not syslog or not SYSLOG_SOCKET.is_socket():
        return None
    try:
        handler = Syslog(str(SYSLOG_SOCKET), facility=SysLogHandler.LOG_DAEMON)
    except OSError as error:
        root.info("no syslog: %s", error.strerror)
        return None
    handler.ident = f"lund[{os.getpid()}]: "
    handler.setLevel(NOTICE)
    lines: queue.Queue[logging.LogRecord] = queue.Queue(SYSLOG_BACKLOG)
    root.addHandler(DroppingQueueHandler(lines))
    listener = QueueListener(lines, handler, respect_handler_level=True)
    listener.start()
    return listener
