"""REPORT TARGET PORT GROUPS and VPD page 88h (SPC-4 6.37, 7.8.14): the ways to the logical units, all equally good.

An iSCSI portal group is a target port (RFC 7143 4.4.4) and here a target port group of its own, with the same number.
Every one is active/optimized always, so the asymmetric access is implicit and there is nothing to set.
"""

from __future__ import annotations

from construct import (
    Const,
    GreedyBytes,
    GreedyRange,
    Int8ub,
    Int16ub,
    Int32ub,
    Padding,
    Prefixed,
    PrefixedArray,
    Struct,
)

from target.scsi.it_nexus import ITNexus
from target.scsi.sense import invalid_field
from target.scsi.task import Reply, Task, data_in

ACTIVE_OPTIMIZED = 0x00
AO_SUP = 0x01
# SPC-4 6.37.2
PORT_GROUP = Struct(
    "state" / Const(ACTIVE_OPTIMIZED, Int8ub),
    "supported_states" / Const(AO_SUP, Int8ub),
    "target_port_group" / Int16ub,
    Padding(1),
    "status_code" / Const(0, Int8ub),
    Padding(1),
    "relative_target_ports" / PrefixedArray(Int8ub, Int32ub),
)
PORT_GROUPS = GreedyRange(PORT_GROUP)
LENGTH_ONLY, EXTENDED = 0, 1
PARAMETER_DATA_FORMAT = 5
"""Position in byte 1 of the CDB."""
# SPC-4 table 294: RETURN DATA FORMAT 001b, no time is taken by transitions
EXTENDED_HEADER = bytes((0x10, 0, 0, 0))

# SPC-4 7.8.14
SCSI_PORT = Struct(
    Padding(2),
    "relative_port" / Int16ub,
    Padding(2),
    "initiator_port_transport_id" / Const(b"", Prefixed(Int16ub, GreedyBytes)),
    Padding(2),
    "target_port_designators" / Prefixed(Int16ub, GreedyBytes),
)


def report_target_port_groups(task: Task) -> Reply:
    form = task.fields["service_action"] >> PARAMETER_DATA_FORMAT
    if form not in (LENGTH_ONLY, EXTENDED):
        raise invalid_field(1, 7)
    groups = PORT_GROUPS.build([
        {"target_port_group": port, "relative_target_ports": [port]} for port in task.nexus.target_ports
    ])
    body = (EXTENDED_HEADER if form == EXTENDED else b"") + groups
    return data_in(len(body).to_bytes(4, "big") + body, task.fields["allocation_length"])


def port_name(nexus: ITNexus, port: int) -> str:
    """RFC 7143 4.2.7.2."""
    return f"{nexus.target_name},t,0x{port:04x}"
