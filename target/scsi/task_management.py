"""Task management functions (SAM-5 clause 7) on the tasks and logical units of a nexus.

A task is in the device server only while it waits for a flush, so to abort one is to drop it: what it wrote is
written, what it promised is not said.  The control mode page says TAS=1: tasks of other nexuses end with TASK
ABORTED status.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum, auto

from target.scsi.it_nexus import ITNexus, nexuses_of
from target.scsi.unit import LogicalUnit


class ServiceResponse(Enum):
    """SAM-5 7.1."""

    FUNCTION_COMPLETE = auto()
    FUNCTION_REJECTED = auto()
    INCORRECT_LOGICAL_UNIT_NUMBER = auto()


def abort_task(nexus: ITNexus, field: int, tag: int) -> bool:
    """ABORT TASK (SAM-5 7.2): True if the task was here."""
    task = nexus.tasks.get(tag)
    itl = nexus.find(field)
    if task is None or itl is None or task.lu is not itl.lu:
        return False
    del nexus.tasks[tag]
    return True


def abort_task_set(nexus: ITNexus, lu: LogicalUnit) -> None:
    """SAM-5 7.3: the tasks of this nexus."""
    nexus.abort(lu, issuer=nexus)


def clear_task_set(nexus: ITNexus, lu: LogicalUnit) -> None:
    """SAM-5 7.5: the tasks of every nexus (TST=0)."""
    for other in nexuses_of([lu]):
        other.abort(lu, issuer=nexus)


def logical_unit_reset(nexus: ITNexus, lu: LogicalUnit) -> None:
    """SAM-5 7.7: every task ends, and every nexus, this one too, is told."""
    clear_task_set(nexus, lu)
    lu.reset()


UnitFunction = Callable[[ITNexus, LogicalUnit], None]


def on_unit(function: UnitFunction, nexus: ITNexus, field: int) -> ServiceResponse:
    """One of the three functions above, on the logical unit that the LUN names."""
    itl = nexus.find(field)
    if itl is None:
        return ServiceResponse.INCORRECT_LOGICAL_UNIT_NUMBER
    function(nexus, itl.lu)
    return ServiceResponse.FUNCTION_COMPLETE


def target_reset(nexus: ITNexus) -> ServiceResponse:
    """Hard reset of what this initiator sees; units mapped to others only are not its business."""
    for lu in list(dict.fromkeys(itl.lu for itl in nexus.itls.values())):
        logical_unit_reset(nexus, lu)
    return ServiceResponse.FUNCTION_COMPLETE
