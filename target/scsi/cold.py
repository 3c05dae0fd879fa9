"""Commands that wait for the disk (DESIGN 6.2 rule 5).

A command that needs what is not in memory, a block to compare with, a pointer block to change, finds that out before
it has changed anything (`NotInMemory`), and the disk has begun to read by then.  It is put aside, like one that waits
for a flush, so the loop has time for others; when the disk has read, it is done from the beginning, with all its
checks: reservations, sizes and states may be others by then.  One wait serves all that came together.

What is put aside may be overtaken, as SIMPLE and untagged tasks may (SAM-5 8.6).  A command that must keep its place
has it all done first (`finish`), and is never put aside itself.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from target.scsi.limits import COLD_DATA_BYTES, COLD_TRIES
from target.scsi.sense import Asc, CheckCondition, SenseKey

if TYPE_CHECKING:
    from target.scsi.it_nexus import ITNexus
    from target.scsi.task import Attempt, Task
    from target.scsi.unit import LogicalUnit

log = logging.getLogger(__name__)

def put_aside(task: Task, attempt: Attempt) -> None:
    """`attempt` is made again when the disk has read; or the task is made patient, and it is the caller's to make."""
    task.tries += 1
    too_much = task.tries > COLD_TRIES or _kept_bytes(task.nexus) + len(task.data_out) > COLD_DATA_BYTES
    if too_much or not task.nexus.when_warm(lambda: _again(task)):
        task.patient = True
        return
    if not task.waiting:
        task.data_out = memoryview(bytes(task.data_out))  # a piece of a buffer that goes on to other uses
        task.put_aside()
    task.attempt = attempt


def finish(lu: LogicalUnit) -> None:
    """What waits for the disk on this logical unit is done now, by whichever nexus it came."""
    for itl in list(lu.itls):
        for task in list(itl.nexus.tasks.values()):
            if task.lu is lu and task.attempt is not None:
                task.patient = True
                _again(task)


def _kept_bytes(nexus: ITNexus) -> int:
    return sum(len(task.data_out) for task in nexus.tasks.values() if task.attempt is not None)


def _again(task: Task) -> None:
    attempt, task.attempt = task.attempt, None
    if attempt is None or not task.waiting:
        return  # done meanwhile, or aborted
    try:
        reply = attempt()
    except Exception:  # the border of the device server, as in `Nexus.execute`
        log.exception("%s: a command failed inside the device server", task.nexus.initiator)
        reply = task.lu.failed(CheckCondition(SenseKey.HARDWARE_ERROR, Asc.INTERNAL_TARGET_FAILURE))
    if reply is not None:
        task.end(reply)
