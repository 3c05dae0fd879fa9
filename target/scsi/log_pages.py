"""LOG SENSE (SPC-4 6.8, 7.3): what has been read and written, and how much room a thin unit has."""

from __future__ import annotations

from collections.abc import Callable

from construct import Const, GreedyBytes, Int8ub, Int16ub, Int32ub, Int64ub, Padding, Prefixed, Struct

from target.scsi.limits import THRESHOLD_SET_BYTES
from target.scsi.sense import invalid_field
from target.scsi.task import Reply, Task, data_in
from target.scsi.unit import LogicalUnit

SPF = 0x40
# SPC-4 7.3.1
LOG_PAGE = Struct("page_code" / Int8ub, "subpage_code" / Int8ub, "parameters" / Prefixed(Int16ub, GreedyBytes))
# SPC-4 7.3.2.2: FORMAT AND LINKING 11b, a binary list
PARAMETER = Struct(
    "parameter_code" / Int16ub, "control" / Const(0x03, Int8ub), "value" / Prefixed(Int8ub, GreedyBytes)
)

# SBC-3 6.4.4: in threshold sets
RESOURCE_COUNT = Struct("count" / Int32ub, "scope" / Int8ub, Padding(3))
DEDICATED, SHARED = 1, 2
# SPC-4 7.3.9.2
STATISTICS = Struct(
    "read_commands" / Int64ub,
    "write_commands" / Int64ub,
    "blocks_received" / Int64ub,
    "blocks_transmitted" / Int64ub,
    Padding(32),  # processing intervals: not measured
)

Parameters = dict[int, bytes]


def _thin_provisioning(lu: LogicalUnit) -> Parameters:
    store = lu.store
    return {
        0x0001: RESOURCE_COUNT.build({"count": _sets(store.available_bytes), "scope": SHARED}),
        0x0002: RESOURCE_COUNT.build({"count": _sets(store.used_bytes), "scope": DEDICATED}),
    }


def _sets(length: int) -> int:
    return min(length // THRESHOLD_SET_BYTES, 0xFFFFFFFF)


def _statistics(lu: LogicalUnit) -> Parameters:
    counters = lu.counters
    return {
        0x0001: STATISTICS.build({
            "read_commands": counters.reads,
            "write_commands": counters.writes,
            "blocks_received": counters.write_bytes >> lu.shift,
            "blocks_transmitted": counters.read_bytes >> lu.shift,
        }),
    }


THIN_PROVISIONING, STATISTICS_AND_PERFORMANCE = 0x0C, 0x19
LOG_PAGES: dict[int, Callable[[LogicalUnit], Parameters]] = {
    THIN_PROVISIONING: _thin_provisioning,
    STATISTICS_AND_PERFORMANCE: _statistics,
}


def _here(lu: LogicalUnit) -> list[int]:
    return [0, *(page for page in sorted(LOG_PAGES) if page != THIN_PROVISIONING or lu.thin)]


LISTS: dict[int, Callable[[LogicalUnit], bytes]] = {
    0x00: lambda lu: bytes(_here(lu)),
    0xFF: lambda lu: bytes((0, 0, 0, 0xFF)) + b"".join(bytes((page, 0)) for page in _here(lu)[1:]),
}
"""Page 00h by its subpage: what there is."""


def log_sense(task: Task) -> Reply:
    fields = task.fields
    if fields["flags"] & 1:  # SP: there is nothing to save
        raise invalid_field(1, 0)
    page, subpage = fields["page"] & 0x3F, fields["subpage"]
    built = LOG_PAGE.build({
        "page_code": page | (SPF if subpage else 0),
        "subpage_code": subpage,
        "parameters": _contents(task.lu, page, subpage, fields["parameter_pointer"]),
    })
    return data_in(built, fields["allocation_length"])


def _contents(lu: LogicalUnit, page: int, subpage: int, pointer: int) -> bytes:
    if page not in _here(lu):
        raise invalid_field(2, 5)
    if not page:
        listed = LISTS.get(subpage)
        if listed is None:
            raise invalid_field(3)
        if pointer:
            raise invalid_field(5)
        return listed(lu)
    if subpage:
        raise invalid_field(3)
    parameters = LOG_PAGES[page](lu)
    if pointer > max(parameters):  # SPC-4 6.8
        raise invalid_field(5)
    return b"".join(
        PARAMETER.build({"parameter_code": code, "value": value})
        for code, value in sorted(parameters.items())
        if code >= pointer
    )
