"""Every CDB the device server understands (SPC-4 clause 6, SBC-3 clause 5), field by field.

The field names are the standards'; `length` is the TRANSFER LENGTH, NUMBER OF LOGICAL BLOCKS or VERIFICATION LENGTH
in blocks, `allocation_length` and `parameter_list_length` are bytes.
"""

from __future__ import annotations

from construct import Int8ub, Int16ub, Int32ub, Int64ub

from target.scsi.cdb import Cdb, Masked, flags, lenient, reserved, service_action_byte

DPO, FUA = 0x10, 0x08

# --- SPC-4 -------------------------------------------------------------------------------------------------------
TEST_UNIT_READY = Cdb(0x00, reserved(4))
REQUEST_SENSE = Cdb(0x03, "flags" / flags(0x01), reserved(2), "allocation_length" / Int8ub)
INQUIRY = Cdb(0x12, "flags" / flags(0x01), "page_code" / Int8ub, "allocation_length" / Int16ub)
MODE_SELECT_6 = Cdb(0x15, "flags" / flags(0x11), reserved(2), "parameter_list_length" / Int8ub)
RESERVE_6 = Cdb(0x16, "flags" / flags(0x00), reserved(3))
RELEASE_6 = Cdb(0x17, "flags" / flags(0x00), reserved(3))
MODE_SENSE_6 = Cdb(
    0x1A, "flags" / flags(0x08), "page" / Int8ub, "subpage" / Int8ub, "allocation_length" / Int8ub
)
RESERVE_10 = Cdb(0x56, "flags" / flags(0x00), reserved(5), "parameter_list_length" / Int16ub)
RELEASE_10 = Cdb(0x57, "flags" / flags(0x00), reserved(5), "parameter_list_length" / Int16ub)
PREVENT_ALLOW_MEDIUM_REMOVAL = Cdb(0x1E, reserved(3), "prevent" / flags(0x03))
LOG_SENSE = Cdb(
    0x4D,
    "flags" / flags(0x01),
    "page" / Int8ub,
    "subpage" / Int8ub,
    reserved(1),
    "parameter_pointer" / Int16ub,
    "allocation_length" / Int16ub,
)
MODE_SELECT_10 = Cdb(0x55, "flags" / flags(0x11), reserved(5), "parameter_list_length" / Int16ub)
MODE_SENSE_10 = Cdb(
    0x5A, "flags" / flags(0x18), "page" / Int8ub, "subpage" / Int8ub, reserved(3), "allocation_length" / Int16ub
)
REPORT_LUNS = Cdb(0xA0, reserved(1), "select_report" / Int8ub, reserved(3), "allocation_length" / Int32ub, reserved(1))


def _persistent_reserve_in(action: int) -> Cdb:
    return Cdb(
        0x5E,
        "service_action" / service_action_byte(action),
        reserved(5),
        "allocation_length" / Int16ub,
        service_action=action,
    )


def _persistent_reserve_out(action: int) -> Cdb:
    return Cdb(
        0x5F,
        "service_action" / service_action_byte(action),
        "scope_type" / Int8ub,
        reserved(2),
        "parameter_list_length" / Int32ub,
        service_action=action,
    )


PERSISTENT_RESERVE_IN = {action: _persistent_reserve_in(action) for action in range(4)}
PERSISTENT_RESERVE_OUT = {action: _persistent_reserve_out(action) for action in range(8)}

EXTENDED_COPY = Cdb(
    0x83,
    "service_action" / service_action_byte(0x00),
    reserved(8),
    "parameter_list_length" / Int32ub,
    reserved(1),
    service_action=0x00,
)


def _receive_copy_results(action: int) -> Cdb:
    return Cdb(
        0x84,
        "service_action" / service_action_byte(action),
        "list_identifier" / Int8ub,
        reserved(7),
        "allocation_length" / Int32ub,
        reserved(1),
        service_action=action,
    )


RECEIVE_COPY_STATUS, RECEIVE_COPY_DATA, RECEIVE_OPERATING_PARAMETERS, RECEIVE_COPY_FAILURE_DETAILS = map(
    _receive_copy_results, (0x00, 0x01, 0x03, 0x04)
)


def _token(action: int) -> Cdb:
    return Cdb(
        0x83,
        "service_action" / service_action_byte(action),
        reserved(4),
        "list_identifier" / Int32ub,
        "parameter_list_length" / Int32ub,
        reserved(1),
        service_action=action,
    )


POPULATE_TOKEN, WRITE_USING_TOKEN = map(_token, (0x10, 0x11))
COPY_OPERATION_ABORT = Cdb(
    0x83,
    "service_action" / service_action_byte(0x1C),
    "list_identifier" / Int32ub,
    reserved(9),
    service_action=0x1C,
)


def _copy_information(action: int) -> Cdb:
    return Cdb(
        0x84,
        "service_action" / service_action_byte(action),
        "list_identifier" / Int32ub,
        reserved(4),
        "allocation_length" / Int32ub,
        reserved(1),
        service_action=action,
    )


RECEIVE_COPY_STATUS_LID4, RECEIVE_ROD_TOKEN_INFORMATION = map(_copy_information, (0x05, 0x07))

REPORT_TARGET_PORT_GROUPS = Cdb(
    0xA3,
    "service_action" / service_action_byte(0x0A, 0xE0),
    reserved(4),
    "allocation_length" / Int32ub,
    reserved(1),
    service_action=0x0A,
)
REPORT_TIMESTAMP = Cdb(
    0xA3,
    "service_action" / service_action_byte(0x0F),
    reserved(4),
    "allocation_length" / Int32ub,
    reserved(1),
    service_action=0x0F,
)
SET_TARGET_PORT_GROUPS = Cdb(
    0xA4,
    "service_action" / service_action_byte(0x0A),
    reserved(4),
    "parameter_list_length" / Int32ub,
    reserved(1),
    service_action=0x0A,
)
REPORT_SUPPORTED_OPERATION_CODES = Cdb(
    0xA3,
    "service_action" / service_action_byte(0x0C),
    "options" / flags(0x87),
    "requested_opcode" / Int8ub,
    "requested_service_action" / Int16ub,
    "allocation_length" / Int32ub,
    reserved(1),
    service_action=0x0C,
)
REPORT_SUPPORTED_TASK_MANAGEMENT_FUNCTIONS = Cdb(
    0xA3,
    "service_action" / service_action_byte(0x0D),
    "options" / flags(0x80),
    reserved(3),
    "allocation_length" / Int32ub,
    reserved(1),
    service_action=0x0D,
)

# --- SBC-3 -------------------------------------------------------------------------------------------------------
# RDPROTECT, WRPROTECT and VRPROTECT (bits 7-5 of byte 1) must be zero: there is no protection information.


def _six(opcode: int) -> Cdb:
    # SCSI-2 hosts put the LUN into bits 7-5 of byte 1
    return Cdb(opcode, "lba_high" / lenient(0x1F), "lba_low" / Int16ub, "length" / Int8ub)


def _ten(opcode: int, mask: int) -> Cdb:
    return Cdb(opcode, "flags" / flags(mask), "lba" / Int32ub, reserved(1), "length" / Int16ub)


def _twelve(opcode: int, mask: int) -> Cdb:
    return Cdb(opcode, "flags" / flags(mask), "lba" / Int32ub, "length" / Int32ub, reserved(1))


def _sixteen(opcode: int, mask: int) -> Cdb:
    return Cdb(opcode, "flags" / flags(mask), "lba" / Int64ub, "length" / Int32ub, reserved(1))


READ_6, WRITE_6 = _six(0x08), _six(0x0A)
READ_10, WRITE_10 = _ten(0x28, DPO | FUA), _ten(0x2A, DPO | FUA)
READ_12, WRITE_12 = _twelve(0xA8, DPO | FUA), _twelve(0xAA, DPO | FUA)
READ_16, WRITE_16 = _sixteen(0x88, DPO | FUA), _sixteen(0x8A, DPO | FUA)

BYTCHK = 0x06
WRITE_AND_VERIFY_10 = _ten(0x2E, DPO | BYTCHK)
WRITE_AND_VERIFY_12 = _twelve(0xAE, DPO | BYTCHK)
WRITE_AND_VERIFY_16 = _sixteen(0x8E, DPO | BYTCHK)
VERIFY_10 = _ten(0x2F, DPO | BYTCHK)
VERIFY_12 = _twelve(0xAF, DPO | BYTCHK)
VERIFY_16 = _sixteen(0x8F, DPO | BYTCHK)

SYNC_NV, IMMED = 0x04, 0x02
SYNCHRONIZE_CACHE_10 = _ten(0x35, SYNC_NV | IMMED)
SYNCHRONIZE_CACHE_16 = _sixteen(0x91, SYNC_NV | IMMED)
PRE_FETCH_10 = _ten(0x34, IMMED)
PRE_FETCH_16 = _sixteen(0x90, IMMED)

START_STOP_UNIT = Cdb(
    0x1B, "flags" / flags(0x01), reserved(1), "modifier" / flags(0x0F), "start" / flags(0xF7)
)
READ_CAPACITY_10 = Cdb(0x25, reserved(1), "lba" / Int32ub, reserved(2), "pmi" / lenient(0x01))
READ_CAPACITY_16 = Cdb(
    0x9E,
    "service_action" / service_action_byte(0x10),
    "lba" / Int64ub,
    "allocation_length" / Int32ub,
    "pmi" / lenient(0x01),
    service_action=0x10,
)
GET_LBA_STATUS = Cdb(
    0x9E,
    "service_action" / service_action_byte(0x12),
    "lba" / Int64ub,
    "allocation_length" / Int32ub,
    reserved(1),
    service_action=0x12,
)
READ_DEFECT_DATA_10 = Cdb(
    0x37, reserved(1), "format" / flags(0x1F), reserved(4), "allocation_length" / Int16ub
)
READ_DEFECT_DATA_12 = Cdb(
    0xB7, "format" / flags(0x1F), "address_descriptor_index" / Int32ub, "allocation_length" / Int32ub, reserved(1)
)
UNMAP = Cdb(0x42, "flags" / flags(0x00), reserved(5), "parameter_list_length" / Int16ub)
FORMAT_UNIT = Cdb(0x04, "flags" / lenient(0xFF), reserved(3))
SANITIZE_IMMED, SANITIZE_AUSE = 0x80, 0x20


def _sanitize(action: int) -> Cdb:
    return Cdb(
        0x48,
        "service_action" / service_action_byte(action, SANITIZE_IMMED | SANITIZE_AUSE),
        "reserved_2" / Masked(Int32ub, 0),
        "reserved_6" / flags(0x00),
        "parameter_list_length" / Int16ub,
        service_action=action,
    )


SANITIZE_OVERWRITE, SANITIZE_BLOCK_ERASE, SANITIZE_EXIT_FAILURE_MODE = map(_sanitize, (0x01, 0x02, 0x1F))
WRITE_SAME_UNMAP, NDOB = 0x08, 0x01
WRITE_SAME_10 = _ten(0x41, WRITE_SAME_UNMAP)
WRITE_SAME_16 = _sixteen(0x93, WRITE_SAME_UNMAP | NDOB)
COMPARE_AND_WRITE = Cdb(
    0x89, "flags" / flags(DPO | FUA), "lba" / Int64ub, reserved(3), "length" / Int8ub, reserved(1)
)
WRITE_ATOMIC_16 = Cdb(
    0x9C,
    "flags" / flags(DPO | FUA),
    "lba" / Int64ub,
    "atomic_boundary" / Int16ub,
    "length" / Int16ub,
    reserved(1),
)
ORWRITE_16 = _sixteen(0x8B, DPO | FUA)
