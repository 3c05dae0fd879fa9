"""PREVENT ALLOW MEDIUM REMOVAL and START STOP UNIT (SPC-4 6.16, SBC-3 5.25): the medium goes and comes,
and starts start nothing."""

from __future__ import annotations

from target.scsi.cdb import Fields
from target.scsi.sense import Asc, invalid_field
from target.scsi.task import Access, Reply, Task

START, LOEJ, NO_FLUSH, POWER_CONDITION = 0x01, 0x02, 0x04, 0xF0


def prevent_allow(task: Task) -> Reply:
    """Where the medium cannot be removed, to prevent it is granted and changes nothing."""
    prevent = task.fields["prevent"]
    if prevent > 1:
        raise invalid_field(4, 1)
    if task.lu.medium.removable:
        change = task.lu.medium.prevent if prevent else task.lu.medium.allow
        change(task.itl)
    return Reply()


def prevent_access(fields: Fields) -> Access:
    return Access.WRITE if fields["prevent"] else Access.FREE


def start_stop_unit(task: Task) -> Reply | None:
    """The unit is shared, so no host stops it for the others, and there is no power to save; a stop flushes what is
    cached, as a host that shuts down expects.  Only a removable medium can be moved."""
    start = task.fields["start"]
    removable = task.lu.medium.removable
    if start & POWER_CONDITION:
        if not removable:
            raise invalid_field(4, 7)
        return Reply()  # SBC-3 5.25: LOEJ and START are ignored
    if start & LOEJ:
        if not removable:
            raise invalid_field(4, 1)
        _move(task, bool(start & START))
    if start & (START | NO_FLUSH) or task.fields["flags"] & 0x01:
        return Reply()
    task.after_flush(Reply())
    return None


def _move(task: Task, loaded: bool) -> None:
    lu = task.lu
    if not lu.medium.move(loaded):
        return
    lu.contents += 1  # half-sent reads end
    if loaded:
        lu.establish(Asc.NOT_READY_TO_READY_CHANGE_MEDIUM_MAY_HAVE_CHANGED, besides=task.itl)
    lu.state_changed()


def start_stop_access(fields: Fields) -> Access:
    """SBC-3 table 13: starting is allowed whoever holds a reservation."""
    return Access.FREE if fields["start"] & (START | LOEJ | POWER_CONDITION) == START else Access.WRITE
