"""RESERVE(6), RELEASE(6), PERSISTENT RESERVE IN and OUT (SPC-4 6.15, 6.16): parameters in, parameters out.

The rules are in `reservation`; here its notices become unit attentions, and PREEMPT AND ABORT aborts tasks.
Registrations are kept in memory: PTPL_C=0, and APTPL=1 is refused.
"""

from __future__ import annotations

from collections.abc import Callable

from construct import Const, GreedyBytes, GreedyRange, Int8ub, Int16ub, Int32ub, Int64ub, Padding, Prefixed, Struct

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
from target.scsi.unit import LogicalUnit

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
R_HOLDER = 0x01
# SPC-4 7.6.4.7, the form with an ISID
TRANSPORT_ID = Struct("format_protocol" / Const(0x45, Int8ub), Padding(1), "name" / Prefixed(Int16ub, GreedyBytes))

# SPC-4 6.16.3
OUT_PARAMETERS = Struct(
    "key" / Int64ub, "service_action_key" / Int64ub, Padding(4), "flags" / Int8ub, Padding(1), Padding(2)
)
SPEC_I_PT, ALL_TG_PT, APTPL = 0x08, 0x04, 0x01


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
    _refuse_under_reserve_6(task)
    built = CAPABILITIES.build({"capabilities": 0, "flags": TMV_ALLOW_COMMANDS_1, "type_mask": TYPE_MASK})
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
        "flags": R_HOLDER if holds else 0,
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
    """The parameter list of every service action but REGISTER AND MOVE, checked."""

    def __init__(self, task: Task, registering: bool) -> None:
        parameters = task.parameter_list()
        if len(parameters) != OUT_PARAMETERS.sizeof():
            raise illegal(Asc.PARAMETER_LIST_LENGTH_ERROR)
        parsed = OUT_PARAMETERS.parse(parameters)
        self.key: int = parsed.key
        self.service_action_key: int = parsed.service_action_key
        # SPC-4 table 198: the flags are ignored where nothing is registered
        if registering and parsed.flags & (SPEC_I_PT | ALL_TG_PT | APTPL):
            raise invalid_parameter(20)


def _type_of(task: Task) -> PersistentType:
    """SCOPE must be the logical unit, TYPE one of the six."""
    scope_type = task.fields["scope_type"]
    if scope_type >> 4:
        raise invalid_field(2, 7)
    try:
        return PersistentType(scope_type & 0x0F)
    except ValueError:
        raise invalid_field(2, 3) from None


def out(
    change: Callable[[Reservations, Registrant, OutParameters, Task], list[Notice]], registering: bool = False
) -> Callable[[Task], Reply]:
    """A handler that applies one service action and delivers what it owes."""

    def handler(task: Task) -> Reply:
        reservations = _refuse_under_reserve_6(task)
        parameters = OutParameters(task, registering)
        notices = change(reservations, registrant_of(task.itl), parameters, task)
        deliver(task.lu, notices)
        task.lu.state_changed()
        return Reply()

    return handler


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


register = out(lambda r, who, p, t: r.register(who, p.key, p.service_action_key, ignore=False), registering=True)
register_and_ignore = out(lambda r, who, p, t: r.register(who, p.key, p.service_action_key, True), registering=True)
reserve = out(lambda r, who, p, t: r.reserve(who, p.key, _type_of(t)))
release = out(lambda r, who, p, t: r.release(who, p.key, _type_of(t)))
clear = out(lambda r, who, p, t: r.clear(who, p.key))
preempt = out(lambda r, who, p, t: r.preempt(who, p.key, p.service_action_key, _type_of(t)))
preempt_and_abort = out(lambda r, who, p, t: _abort(t, r.preempt(who, p.key, p.service_action_key, _type_of(t))))

