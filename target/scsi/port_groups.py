"""REPORT and SET TARGET PORT GROUPS, and VPD page 88h (SPC-4 6.37, 6.45, 7.8.14): the ways to the logical units.

An iSCSI portal group is a target port (RFC 7143 4.4.4) and here a target port group of its own, with the same number.
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

from target.scsi.access_state import AccessState, ChangedBy
from target.scsi.it_nexus import ITNexus
from target.scsi.sense import Asc, illegal, invalid_field, invalid_parameter
from target.scsi.task import Reply, Task, data_in
from target.scsi.unit import ACCESS_STATES

AO_SUP, AN_SUP, S_SUP, U_SUP = 0x01, 0x02, 0x04, 0x08
# SPC-4 6.37.2
PORT_GROUP = Struct(
    "state" / Int8ub,  # PREF in bit 7: none is preferred
    "supported_states" / Const(AO_SUP | AN_SUP | S_SUP | U_SUP, Int8ub),
    "target_port_group" / Int16ub,
    Padding(1),
    "status_code" / Int8ub,
    Padding(1),
    "relative_target_ports" / PrefixedArray(Int8ub, Int32ub),
)
PORT_GROUPS = GreedyRange(PORT_GROUP)
LENGTH_ONLY, EXTENDED = 0, 1
PARAMETER_DATA_FORMAT = 5
"""Position in byte 1 of the CDB."""
# SPC-4 table 294: RETURN DATA FORMAT 001b, no time is taken by transitions
EXTENDED_HEADER = bytes((0x10, 0, 0, 0))

# SPC-4 6.45
SET_HEAD = Struct(Padding(4))
SET_DESCRIPTOR = Struct("state" / Int8ub, Padding(1), "target_port_group" / Int16ub)
STATE_MASK = 0x0F

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
    access = task.lu.access
    groups = PORT_GROUPS.build([
        {
            "state": access.of(port),
            "target_port_group": port,
            "status_code": access.changed_by(port),
            "relative_target_ports": [port],
        }
        for port in task.nexus.target_ports
    ])
    body = (EXTENDED_HEADER if form == EXTENDED else b"") + groups
    return data_in(len(body).to_bytes(4, "big") + body, task.fields["allocation_length"])


def set_target_port_groups(task: Task) -> Reply | None:
    """All descriptors are good before the first is obeyed; the answer comes when the states would survive a crash."""
    if not task.wanted:
        return Reply()
    parameters = task.parameter_list(SET_HEAD.sizeof())
    size = SET_DESCRIPTOR.sizeof()
    if (len(parameters) - SET_HEAD.sizeof()) % size:
        raise illegal(Asc.PARAMETER_LIST_LENGTH_ERROR)
    wanted = dict(_wanted(task.nexus, parameters, at) for at in range(SET_HEAD.sizeof(), len(parameters), size))
    if not task.lu.set_access(wanted, ChangedBy.HOST, task.itl):
        return Reply()
    said = ", ".join(f"{group} {state.name.lower().replace('_', '-')}" for group, state in sorted(wanted.items()))
    task.lu.platform.note("access", f"{task.nexus.initiator} sets target port group {said}")
    task.after_save(ACCESS_STATES, task.lu.access.encode(), Reply())
    return None


def _wanted(nexus: ITNexus, parameters: memoryview, at: int) -> tuple[int, AccessState]:
    """One descriptor.  Offline is a state of ports and transitioning none to ask for: neither is supported."""
    descriptor = SET_DESCRIPTOR.parse(parameters[at : at + SET_DESCRIPTOR.sizeof()])
    state = descriptor.state & STATE_MASK
    if state > AccessState.UNAVAILABLE:
        raise invalid_parameter(at, 3)
    if descriptor.target_port_group not in nexus.target_ports:
        raise invalid_parameter(at + 2)
    return descriptor.target_port_group, AccessState(state)


def port_name(nexus: ITNexus, port: int) -> str:
    """RFC 7143 4.2.7.2."""
    return f"{nexus.target_name},t,0x{port:04x}"
