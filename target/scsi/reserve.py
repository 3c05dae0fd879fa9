"""RESERVE(6), RELEASE(6), PERSISTENT RESERVE IN and OUT (SPC-4 6.15, 6.16): parameters in, parameters out.

The rules are in `reservation`; here its notices become unit attentions, and PREEMPT AND ABORT aborts tasks.  With
APTPL a command is answered when what it changed would survive a power cut.
"""

from __future__ import annotations

from collections.abc import Callable

from construct import (
    Const,
    ConstructError,
    GreedyBytes,
    GreedyRange,
    Int8ub,
    Int16ub,
    Int32ub,
    Int64ub,
    Padding,
    Prefixed,
    Struct,
)

from target.scsi.reservation import (
    Notice,
    PersistentType,
    Registrant,
    ReservationConflict,
    Reservations,
    registrant_of,
)
from target.scsi.sense import Asc, illegal, invalid_field, invalid_parameter
from target.scsi.task import Reply, Task, data_in
from target.scsi.unit import RESERVATIONS, LogicalUnit

# SPC-4 6.15.2
READ_KEYS = Struct(
    "generation" / Int32ub, "additional_length" / Int32ub, "reservation_keys" / GreedyRange(Int64ub)
)
# SPC-4 6.15.3.2
READ_RESERVATION_HEADER = Struct("generation" / Int32ub, "additional_length" / Int32ub)
RESERVATION = Struct(
    "key" / Int64ub,
    Padding(4),
    Padding(1),
    "scope_type" / Int8ub,
    Padding(2),
)
# SPC-4 6.15.4
CAPABILITIES = Struct(
    "length" / Const(8, Int16ub),
    "capabilities" / Int8ub,
    "flags" / Int8ub,
    "type_mask" / Int16ub,
    Padding(2),
)
SIP_C_ATP_C_PTPL_C = 0x08 | 0x04 | 0x01
PTPL_A = 0x01
TMV_ALLOW_COMMANDS_1 = 0x80 | 0x10
"""The type mask is valid; TEST UNIT READY passes whatever is reserved, MODE SENSE and such do not."""
TYPE_MASK = 0xEA01
"""SPC-4 table 180: bit (8 + type) for types 1 to 7, bit 0 for type 8."""

# SPC-4 6.15.5
FULL_STATUS = Struct(
    "key" / Int64ub,
    Padding(4),
    "flags" / Int8ub,  # R_HOLDER 01h, ALL_TG_PT 02h
    "scope_type" / Int8ub,
    Padding(4),
    "relative_target_port" / Int16ub,
    "transport_id" / Prefixed(Int32ub, GreedyBytes),
)
R_HOLDER, FULL_STATUS_ALL_TG_PT = 0x01, 0x02
# SPC-4 7.6.4.7, the form with an ISID
TRANSPORT_ID = Struct("format_protocol" / Const(0x45, Int8ub), Padding(1), "name" / Prefixed(Int16ub, GreedyBytes))

# SPC-4 6.16.3
OUT_PARAMETERS = Struct(
    "key" / Int64ub, "service_action_key" / Int64ub, Padding(4), "flags" / Int8ub, Padding(1), Padding(2)
)
FLAGS_AT = 20
SPEC_I_PT, ALL_TG_PT, APTPL = 0x08, 0x04, 0x01
REGISTER, REGISTER_AND_IGNORE = 0x00, 0x06
# SPC-4 6.16.4
MOVE_PARAMETERS = Struct(
    "key" / Int64ub,
    "service_action_key" / Int64ub,
    Padding(1),
    "flags" / Int8ub,
    "relative_target_port" / Int16ub,
    "transport_id_length" / Int32ub,
)
UNREG = 0x02
ISID_BYTES = 6
MAX_NAME = 223
"""RFC 7143 4.2.7.1."""


def reserve_unit(task: Task) -> Reply:
    """RESERVE(6) and (10): the whole unit, for this nexus (SPC-2 7.21; extents and third parties are refused)."""
    task.lu.reservations.reserve_unit(task.itl)
    task.lu.state_changed()
    return Reply()


def release_unit(task: Task) -> Reply:
    """SPC-2 7.21: releasing what another holds is GOOD and does nothing."""
    task.lu.reservations.release_unit(task.itl)
    task.lu.state_changed()
    return Reply()


# --- PERSISTENT RESERVE IN --------------------------------------------------------------------------------------------


def _refuse_under_reserve_6(task: Task) -> Reservations:
    """SPC-4 5.13.3: RESERVE(6) of anybody makes these conflict."""
    reservations = task.lu.reservations
    if reservations.unit_holder is not None:
        raise ReservationConflict
    return reservations


def read_keys(task: Task) -> Reply:
    reservations = _refuse_under_reserve_6(task)
    keys = list(reservations.keys.values())
    built = READ_KEYS.build({
        "generation": reservations.generation, "additional_length": 8 * len(keys), "reservation_keys": keys,
    })
    return data_in(built, task.fields["allocation_length"])


def read_reservation(task: Task) -> Reply:
    reservations = _refuse_under_reserve_6(task)
    body = b""
    if reservations.type is not None:
        body = RESERVATION.build({"key": reservations.holder_key, "scope_type": reservations.type})
    head = READ_RESERVATION_HEADER.build({"generation": reservations.generation, "additional_length": len(body)})
    return data_in(head + body, task.fields["allocation_length"])


def report_capabilities(task: Task) -> Reply:
    reservations = _refuse_under_reserve_6(task)
    built = CAPABILITIES.build({
        "capabilities": SIP_C_ATP_C_PTPL_C,
        "flags": TMV_ALLOW_COMMANDS_1 | (PTPL_A if reservations.persistent else 0),
        "type_mask": TYPE_MASK,
    })
    return data_in(built, task.fields["allocation_length"])


def read_full_status(task: Task) -> Reply:
    reservations = _refuse_under_reserve_6(task)
    body = b"".join(_full_status(reservations, who, key) for who, key in reservations.keys.items())
    head = READ_RESERVATION_HEADER.build({"generation": reservations.generation, "additional_length": len(body)})
    return data_in(head + body, task.fields["allocation_length"])


def _full_status(reservations: Reservations, who: Registrant, key: int) -> bytes:
    holds = reservations.holds(who)
    built: bytes = FULL_STATUS.build({
        "key": key,
        "flags": (R_HOLDER if holds else 0) | (FULL_STATUS_ALL_TG_PT if who in reservations.all_ports else 0),
        "scope_type": reservations.type if holds else 0,
        "relative_target_port": who.target_port,
        "transport_id": transport_id(who),
    })
    return built


def transport_id(who: Registrant) -> bytes:
    name = f"{who.initiator},i,0x{who.isid.hex()}".encode() + b"\0"
    built: bytes = TRANSPORT_ID.build({"name": name + bytes(-len(name) % 4)})
    return built


# --- PERSISTENT RESERVE OUT -------------------------------------------------------------------------------------------


class OutParameters:
    """The parameter list of every service action but REGISTER AND MOVE, checked as far as it can be without state."""

    def __init__(self, task: Task) -> None:
        parameters = task.parameter_list()
        size = OUT_PARAMETERS.sizeof()
        registering = task.command.cdb.service_action in (REGISTER, REGISTER_AND_IGNORE)
        # SPC-4 table 198: the flags are ignored where nothing is registered
        self.flags = parameters[FLAGS_AT] if registering and len(parameters) >= size else 0
        if len(parameters) < size or (len(parameters) > size and not self.flags & SPEC_I_PT):
            raise illegal(Asc.PARAMETER_LIST_LENGTH_ERROR)
        parsed = OUT_PARAMETERS.parse(parameters)
        self.key: int = parsed.key
        self.service_action_key: int = parsed.service_action_key
        self.initiators = transport_ids(bytes(parameters[size:])) if self.flags & SPEC_I_PT else []


def transport_ids(parameters: bytes) -> list[tuple[str, bytes]]:
    """The initiator ports after the fixed part: (name, ISID) each."""
    size = int.from_bytes(parameters[:4], "big")
    if len(parameters) != 4 + size:
        raise illegal(Asc.PARAMETER_LIST_LENGTH_ERROR)
    found, at = [], 4
    while at < len(parameters):
        length = 4 + int.from_bytes(parameters[at + 2 : at + 4], "big")
        found.append(initiator_port(parameters[at : at + length], OUT_PARAMETERS.sizeof() + at))
        at += length
    return found


def initiator_port(transport_id: bytes, at: int) -> tuple[str, bytes]:
    """(name, ISID) of an iSCSI TransportID that names one port (SPC-4 7.6.4.7, TPID FORMAT 01b)."""
    try:
        name, mark, isid = TRANSPORT_ID.parse(transport_id).name.rstrip(b"\0").decode().rpartition(",i,0x")
        parsed = bytes.fromhex(isid)
    except (ConstructError, ValueError):
        raise invalid_parameter(at) from None
    if not mark or len(parsed) != ISID_BYTES or not 0 < len(name) <= MAX_NAME:
        raise invalid_parameter(at)
    return name.lower(), parsed


def _type_of(task: Task) -> PersistentType:
    """SCOPE must be the logical unit, TYPE one of the six."""
    scope_type = task.fields["scope_type"]
    if scope_type >> 4:
        raise invalid_field(2, 7)
    try:
        return PersistentType(scope_type & 0x0F)
    except ValueError:
        raise invalid_field(2, 3) from None


Change = Callable[[Reservations, Registrant, OutParameters, Task], list[Notice]]


def out(change: Change) -> Callable[[Task], Reply | None]:
    """A handler that applies one service action."""

    def handler(task: Task) -> Reply | None:
        reservations = _refuse_under_reserve_6(task)
        parameters = OutParameters(task)
        return _changed(task, change(reservations, registrant_of(task.itl), parameters, task))

    return handler


def _changed(task: Task, notices: list[Notice]) -> Reply | None:
    """Deliver what the change owes, and answer once it is as durable as it was asked to be."""
    lu = task.lu
    deliver(lu, notices)
    lu.state_changed()
    saved = lu.reservations.encode()
    if not saved and not lu.reservations_kept:
        return Reply()
    lu.reservations_kept = True
    task.after_save(RESERVATIONS, saved, Reply())
    return None


def deliver(lu: LogicalUnit, notices: list[Notice]) -> None:
    for notice in notices:
        for itl in lu.itls:
            if registrant_of(itl) in notice.to:
                itl.establish(notice.attention)


def _abort(task: Task, notices: list[Notice]) -> list[Notice]:
    """PREEMPT AND ABORT also ends the preempted nexuses' tasks (SPC-4 5.13.11.2.6)."""
    victims = {who for n in notices if n.attention is Asc.REGISTRATIONS_PREEMPTED for who in n.to}
    for itl in list(task.lu.itls):
        if registrant_of(itl) in victims:
            itl.nexus.abort(task.lu, task.nexus)
    return notices


def _register(reservations: Reservations, who: Registrant, parameters: OutParameters, task: Task) -> list[Notice]:
    if task.command.cdb.service_action == REGISTER:
        reservations.check_key(who, parameters.key)
        if parameters.initiators and who in reservations.keys:
            raise invalid_parameter(FLAGS_AT, 3)
    elif parameters.flags & SPEC_I_PT:
        raise invalid_parameter(FLAGS_AT, 3)
    all_ports = bool(parameters.flags & ALL_TG_PT)
    ports = task.nexus.target_ports if all_ports else (who.target_port,)
    initiators = [(who.initiator, who.isid), *parameters.initiators]
    registrants = [Registrant(name, isid, port) for name, isid in initiators for port in ports]
    notices = reservations.register(registrants, parameters.service_action_key, all_ports)
    reservations.persistent = bool(parameters.flags & APTPL)
    return notices


def register_and_move(task: Task) -> Reply | None:
    """SPC-4 5.13.8, 6.16.4."""
    reservations = _refuse_under_reserve_6(task)
    parameters = bytes(task.parameter_list(MOVE_PARAMETERS.sizeof()))
    size = MOVE_PARAMETERS.sizeof()
    parsed = MOVE_PARAMETERS.parse(parameters)
    if len(parameters) != size + parsed.transport_id_length:
        raise illegal(Asc.PARAMETER_LIST_LENGTH_ERROR)
    who = registrant_of(task.itl)
    name, isid = initiator_port(parameters[size:], size)
    other = Registrant(name, isid, parsed.relative_target_port)
    if not parsed.service_action_key:
        raise invalid_parameter(8)
    if other.target_port not in task.nexus.target_ports or other == who:
        raise invalid_parameter(18)
    notices = reservations.move(who, parsed.key, other, parsed.service_action_key, bool(parsed.flags & UNREG))
    reservations.persistent = bool(parsed.flags & APTPL)
    return _changed(task, notices)


register = out(_register)
reserve = out(lambda r, who, p, t: r.reserve(who, p.key, _type_of(t)))
release = out(lambda r, who, p, t: r.release(who, p.key, _type_of(t)))
clear = out(lambda r, who, p, t: r.clear(who, p.key))
preempt = out(lambda r, who, p, t: r.preempt(who, p.key, p.service_action_key, _type_of(t)))
preempt_and_abort = out(lambda r, who, p, t: _abort(t, r.preempt(who, p.key, p.service_action_key, _type_of(t))))
