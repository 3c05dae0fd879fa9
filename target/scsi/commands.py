"""The command table: every command, its CDB, its handler, and the rules the router applies before the handler runs.

Access says how reservations see the command (SPC-4 table 66, SBC-3 table 13).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from target.scsi import (
    block,
    capacity,
    cdbs,
    copy_control,
    extended_copy,
    format,
    inquiry,
    log_pages,
    mode,
    offload,
    port_groups,
    primary,
    removal,
    reserve,
    supported,
)
from target.scsi.access_state import AccessState
from target.scsi.cdb import Cdb, Fields
from target.scsi.limits import (
    MAX_ATOMIC_WRITE_BYTES,
    MAX_COMPARE_AND_WRITE_BLOCKS,
    MAX_TRANSFER_BYTES,
    MAX_WRITE_SAME_BYTES,
)
from target.scsi.task import Access, Command, DataOut, Handler, Reply, Task
from target.scsi.unit import LogicalUnit

FREE, UNIT, READ, WRITE, RESERVATION = Access.FREE, Access.UNIT, Access.READ, Access.WRITE, Access.RESERVATION

ACTIVE, STANDBY, UNAVAILABLE = AccessState.ACTIVE_NON_OPTIMIZED, AccessState.STANDBY, AccessState.UNAVAILABLE


def parameter_list(fields: Fields, _: LogicalUnit) -> int:
    return fields["parameter_list_length"]


def report_opcodes(task: Task) -> Reply:
    return supported.report_opcodes(task, COMMANDS)


def _read(name: str, cdb: Cdb) -> Command:
    extent = block.extent_6 if cdb.length == 6 else block.extent
    return Command(name, cdb, block.read, READ, extent, MAX_TRANSFER_BYTES)


def _write(name: str, cdb: Cdb) -> Command:
    if cdb.length == 6:
        extent, out = block.extent_6, block.blocks_out_6
    else:
        extent, out = block.extent, block.blocks_out
    return Command(name, cdb, block.write, WRITE, extent, MAX_TRANSFER_BYTES, out, writes=True)


def _write_and_verify(name: str, cdb: Cdb) -> Command:
    return Command(
        name, cdb, block.write_and_verify, WRITE, block.extent, MAX_TRANSFER_BYTES, block.blocks_out, writes=True
    )


def _verify(name: str, cdb: Cdb) -> Command:
    return Command(name, cdb, block.verify, READ, block.extent, MAX_TRANSFER_BYTES, block.verify_out)


def _write_same(name: str, cdb: Cdb, out: DataOut) -> Command:
    return Command(
        name, cdb, capacity.write_same, WRITE, block.extent, MAX_WRITE_SAME_BYTES, out, writes=True, exact=True
    )


def _sanitize(name: str, cdb: Cdb, handler: Handler, supported: Callable[[LogicalUnit], bool] | None = None) -> Command:
    return Command(
        f"SANITIZE, {name}", cdb, handler, WRITE, data_out=parameter_list, writes=True, needs_ready=False,
        supported=supported,
    )  # fmt: skip


def _always(name: str, cdb: Cdb, handler: Handler) -> Command:
    """INQUIRY, REPORT LUNS, REQUEST SENSE: no unit attention stands in their way."""
    return Command(
        name, cdb, handler, FREE, blocked_by_attention=False, needs_ready=False, while_erasing=True,
        worst_access=UNAVAILABLE,
    )  # fmt: skip


def _in(name: str, cdb: Cdb, handler: Handler, access: Access = WRITE, worst: AccessState = ACTIVE) -> Command:
    """About the device server, not the medium."""
    return Command(name, cdb, handler, access, needs_ready=False, worst_access=worst)


def _always_in(name: str, cdb: Cdb, handler: Handler, access: Access = WRITE, worst: AccessState = STANDBY) -> Command:
    return Command(name, cdb, handler, access, needs_ready=False, while_erasing=True, worst_access=worst)


def _out(name: str, cdb: Cdb, handler: Handler, access: Access = WRITE, worst: AccessState = ACTIVE) -> Command:
    return Command(name, cdb, handler, access, data_out=parameter_list, needs_ready=False, worst_access=worst)


COMMANDS: tuple[Command, ...] = (
    Command("TEST UNIT READY", cdbs.TEST_UNIT_READY, primary.ready, UNIT),
    _always("REQUEST SENSE", cdbs.REQUEST_SENSE, primary.request_sense),
    _always("INQUIRY", cdbs.INQUIRY, inquiry.inquiry),
    _always("REPORT LUNS", cdbs.REPORT_LUNS, primary.report_luns),
    _in("MODE SENSE(6)", cdbs.MODE_SENSE_6, mode.mode_sense_6, worst=STANDBY),
    _in("MODE SENSE(10)", cdbs.MODE_SENSE_10, mode.mode_sense_10, worst=STANDBY),
    _out("MODE SELECT(6)", cdbs.MODE_SELECT_6, mode.mode_select_6, worst=STANDBY),
    _out("MODE SELECT(10)", cdbs.MODE_SELECT_10, mode.mode_select_10, worst=STANDBY),
    _always_in("LOG SENSE", cdbs.LOG_SENSE, log_pages.log_sense, FREE),
    Command(
        "PREVENT ALLOW MEDIUM REMOVAL",
        cdbs.PREVENT_ALLOW_MEDIUM_REMOVAL,
        removal.prevent_allow,
        removal.prevent_access,
        needs_medium=False,
    ),
    Command(
        "START STOP UNIT",
        cdbs.START_STOP_UNIT,
        removal.start_stop_unit,
        removal.start_stop_access,
        needs_medium=False,
    ),
    _in("RESERVE(6)", cdbs.RESERVE_6, reserve.reserve_unit, RESERVATION),
    _in("RELEASE(6)", cdbs.RELEASE_6, reserve.release_unit, RESERVATION),
    _in("RESERVE(10)", cdbs.RESERVE_10, reserve.reserve_unit, RESERVATION),
    _in("RELEASE(10)", cdbs.RELEASE_10, reserve.release_unit, RESERVATION),
    *(
        _in(f"PERSISTENT RESERVE IN, {name}", cdbs.PERSISTENT_RESERVE_IN[action], handler, RESERVATION, STANDBY)
        for action, name, handler in (
            (0, "READ KEYS", reserve.read_keys),
            (1, "READ RESERVATION", reserve.read_reservation),
            (2, "REPORT CAPABILITIES", reserve.report_capabilities),
            (3, "READ FULL STATUS", reserve.read_full_status),
        )
    ),
    *(
        replace(
            _out(f"PERSISTENT RESERVE OUT, {name}", cdbs.PERSISTENT_RESERVE_OUT[action], handler, RESERVATION, STANDBY),
            fenced=handler is reserve.preempt_and_abort,
        )
        for action, name, handler in (
            (0, "REGISTER", reserve.register),
            (1, "RESERVE", reserve.reserve),
            (2, "RELEASE", reserve.release),
            (3, "CLEAR", reserve.clear),
            (4, "PREEMPT", reserve.preempt),
            (5, "PREEMPT AND ABORT", reserve.preempt_and_abort),
            (6, "REGISTER AND IGNORE EXISTING KEY", reserve.register),
            (7, "REGISTER AND MOVE", reserve.register_and_move),
        )
    ),
    _always_in(
        "REPORT TARGET PORT GROUPS",
        cdbs.REPORT_TARGET_PORT_GROUPS,
        port_groups.report_target_port_groups,
        FREE,
        UNAVAILABLE,
    ),
    _out(
        "SET TARGET PORT GROUPS",
        cdbs.SET_TARGET_PORT_GROUPS,
        port_groups.set_target_port_groups,
        worst=UNAVAILABLE,
    ),
    _always_in("REPORT TIMESTAMP", cdbs.REPORT_TIMESTAMP, primary.report_timestamp, FREE),
    _always_in("REPORT SUPPORTED OPERATION CODES", cdbs.REPORT_SUPPORTED_OPERATION_CODES, report_opcodes),
    _always_in(
        "REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS",
        cdbs.REPORT_SUPPORTED_TASK_MANAGEMENT_FUNCTIONS,
        supported.report_tmfs,
    ),
    # Not in the list of SPC-4 5.15.2.4.4; without it Linux makes no disk of a path that is in standby.
    Command(
        "READ CAPACITY(10)", cdbs.READ_CAPACITY_10, capacity.read_capacity_10, FREE, worst_access=STANDBY
    ),
    Command(
        "READ CAPACITY(16)", cdbs.READ_CAPACITY_16, capacity.read_capacity_16, FREE, worst_access=STANDBY
    ),
    Command("GET LBA STATUS", cdbs.GET_LBA_STATUS, capacity.get_lba_status, READ),
    _read("READ(6)", cdbs.READ_6),
    _read("READ(10)", cdbs.READ_10),
    _read("READ(12)", cdbs.READ_12),
    _read("READ(16)", cdbs.READ_16),
    _write("WRITE(6)", cdbs.WRITE_6),
    _write("WRITE(10)", cdbs.WRITE_10),
    _write("WRITE(12)", cdbs.WRITE_12),
    _write("WRITE(16)", cdbs.WRITE_16),
    _write_and_verify("WRITE AND VERIFY(10)", cdbs.WRITE_AND_VERIFY_10),
    _write_and_verify("WRITE AND VERIFY(12)", cdbs.WRITE_AND_VERIFY_12),
    _write_and_verify("WRITE AND VERIFY(16)", cdbs.WRITE_AND_VERIFY_16),
    _verify("VERIFY(10)", cdbs.VERIFY_10),
    _verify("VERIFY(12)", cdbs.VERIFY_12),
    _verify("VERIFY(16)", cdbs.VERIFY_16),
    Command("SYNCHRONIZE CACHE(10)", cdbs.SYNCHRONIZE_CACHE_10, block.synchronize_cache, WRITE, block.extent),
    Command("SYNCHRONIZE CACHE(16)", cdbs.SYNCHRONIZE_CACHE_16, block.synchronize_cache, WRITE, block.extent),
    Command("PRE-FETCH(10)", cdbs.PRE_FETCH_10, block.pre_fetch, READ, block.extent),
    Command("PRE-FETCH(16)", cdbs.PRE_FETCH_16, block.pre_fetch, READ, block.extent),
    Command(
        "UNMAP",
        cdbs.UNMAP,
        capacity.unmap,
        WRITE,
        data_out=parameter_list,
        writes=True,
        supported=capacity.is_thin,
    ),
    _write_same("WRITE SAME(10)", cdbs.WRITE_SAME_10, lambda _, lu: lu.block_bytes),
    _write_same("WRITE SAME(16)", cdbs.WRITE_SAME_16, capacity.write_same_out),
    Command(
        "COMPARE AND WRITE",
        cdbs.COMPARE_AND_WRITE,
        block.compare_and_write,
        WRITE,
        block.extent,
        limit_blocks=MAX_COMPARE_AND_WRITE_BLOCKS,
        data_out=block.twice_blocks_out,
        writes=True,
        exact=True,
    ),
    Command(
        "WRITE ATOMIC(16)",
        cdbs.WRITE_ATOMIC_16,
        block.write_atomic,
        WRITE,
        block.extent,
        MAX_ATOMIC_WRITE_BYTES,
        block.blocks_out,
        writes=True,
        exact=True,
    ),
    _sanitize("OVERWRITE", cdbs.SANITIZE_OVERWRITE, format.sanitize_overwrite),
    _sanitize("BLOCK ERASE", cdbs.SANITIZE_BLOCK_ERASE, format.sanitize_block_erase, capacity.is_thin),
    _sanitize("EXIT FAILURE MODE", cdbs.SANITIZE_EXIT_FAILURE_MODE, format.sanitize_exit_failure_mode),
    Command(
        "FORMAT UNIT", cdbs.FORMAT_UNIT, format.format_unit, WRITE, data_out=format.format_out, writes=True,
        needs_ready=False,
    ),
    Command(
        "ORWRITE(16)",
        cdbs.ORWRITE_16,
        block.orwrite,
        WRITE,
        block.extent,
        MAX_TRANSFER_BYTES,
        block.blocks_out,
        writes=True,
    ),
    _out("EXTENDED COPY(LID1)", cdbs.EXTENDED_COPY, extended_copy.extended_copy),
    _in("RECEIVE COPY RESULTS, COPY STATUS", cdbs.RECEIVE_COPY_STATUS, extended_copy.copy_status),
    _in("RECEIVE COPY RESULTS, RECEIVE DATA", cdbs.RECEIVE_COPY_DATA, extended_copy.copy_data),
    _in(
        "RECEIVE COPY RESULTS, FAILED SEGMENT DETAILS",
        cdbs.RECEIVE_COPY_FAILURE_DETAILS,
        extended_copy.failure_details,
    ),
    _in("RECEIVE COPY STATUS(LID4)", cdbs.RECEIVE_COPY_STATUS_LID4, copy_control.receive_copy_status),
    _in("COPY OPERATION ABORT", cdbs.COPY_OPERATION_ABORT, copy_control.copy_operation_abort),
    _in(
        "RECEIVE COPY RESULTS, OPERATING PARAMETERS",
        cdbs.RECEIVE_OPERATING_PARAMETERS,
        extended_copy.operating_parameters,
    ),
    Command("POPULATE TOKEN", cdbs.POPULATE_TOKEN, offload.populate_token, READ, data_out=parameter_list),
    Command(
        "WRITE USING TOKEN", cdbs.WRITE_USING_TOKEN, offload.write_using_token, WRITE, data_out=parameter_list,
        writes=True,
    ),
    _in("RECEIVE ROD TOKEN INFORMATION", cdbs.RECEIVE_ROD_TOKEN_INFORMATION, offload.rod_token_information, FREE),
    _in("READ DEFECT DATA(10)", cdbs.READ_DEFECT_DATA_10, supported.read_defect_data_10, READ),
    _in("READ DEFECT DATA(12)", cdbs.READ_DEFECT_DATA_12, supported.read_defect_data_12, READ),
)
