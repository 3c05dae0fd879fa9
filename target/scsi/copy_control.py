"""RECEIVE COPY STATUS(LID4) and COPY OPERATION ABORT (SPC-4 6.3, 6.23): to look at a copy that goes on, and to end it.

List identifiers are those of the commands that began the copies: one byte of EXTENDED COPY(LID1), four of the tokens'.
"""

from __future__ import annotations

from target.scsi.offload import copy_information
from target.scsi.sense import invalid_field
from target.scsi.task import Reply, Task, data_in


def receive_copy_status(task: Task) -> Reply:
    body = copy_information(task)
    return data_in(len(body).to_bytes(4, "big") + body, task.fields["allocation_length"])


def copy_operation_abort(task: Task) -> Reply:
    """The command that began the copy ends with COPY ABORTED, if it is not answered yet."""
    identifier = task.fields["list_identifier"]
    for operation in (task.itl.copies.get(identifier), task.itl.token_outcomes.get(identifier)):
        if operation is not None and operation.going_on and operation.cancel is not None:
            operation.cancel()
            return Reply()
    raise invalid_field(2)
