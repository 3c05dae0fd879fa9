"""Numbers of RFC 7143 by name: opcodes, flag masks, reasons, statuses."""

from __future__ import annotations

from enum import IntEnum

NO_TAG = 0xFFFFFFFF
"""The reserved value of an Initiator or Target Transfer Tag."""
IMMEDIATE = 0x40
OPCODE_MASK = 0x3F
FINAL = 0x80
"""F bit (also T in Login, and the always-one top bit of byte 1 elsewhere)."""
CONTINUE = 0x40
"""C bit of Login and Text."""


class Opcode(IntEnum):
    """RFC 7143 11.2.1.2."""

    NOP_OUT = 0x00
    SCSI_COMMAND = 0x01
    TASK_MANAGEMENT_REQUEST = 0x02
    LOGIN_REQUEST = 0x03
    TEXT_REQUEST = 0x04
    DATA_OUT = 0x05
    LOGOUT_REQUEST = 0x06
    SNACK_REQUEST = 0x10
    NOP_IN = 0x20
    SCSI_RESPONSE = 0x21
    TASK_MANAGEMENT_RESPONSE = 0x22
    LOGIN_RESPONSE = 0x23
    TEXT_RESPONSE = 0x24
    DATA_IN = 0x25
    LOGOUT_RESPONSE = 0x26
    R2T = 0x31
    ASYNC_MESSAGE = 0x32
    REJECT = 0x3F


# SCSI Command, byte 1 (11.3.1)
COMMAND_READ = 0x40
COMMAND_WRITE = 0x20
ATTRIBUTE_MASK = 0x07

# SCSI Response, byte 1 (11.4.1)
RESIDUAL_OVERFLOW = 0x04
RESIDUAL_UNDERFLOW = 0x02

# Data-In, byte 1 (11.7): A, O, U, S
DATA_IN_STATUS = 0x01


class Attribute(IntEnum):
    """Task attributes, 11.3.1."""

    UNTAGGED = 0
    SIMPLE = 1
    ORDERED = 2
    HEAD_OF_QUEUE = 3
    ACA = 4


class RejectReason(IntEnum):
    """11.17.1."""

    DATA_DIGEST_ERROR = 0x02
    SNACK_REJECT = 0x03
    PROTOCOL_ERROR = 0x04
    COMMAND_NOT_SUPPORTED = 0x05
    TOO_MANY_IMMEDIATE = 0x06
    TASK_IN_PROGRESS = 0x07
    INVALID_DATA_ACK = 0x08
    INVALID_PDU_FIELD = 0x09
    OUT_OF_RESOURCES = 0x0A
    WAITING_FOR_LOGOUT = 0x0C


class TaskFunction(IntEnum):
    """Task management functions, 11.5.1."""

    ABORT_TASK = 1
    ABORT_TASK_SET = 2
    CLEAR_ACA = 3
    CLEAR_TASK_SET = 4
    LOGICAL_UNIT_RESET = 5
    TARGET_WARM_RESET = 6
    TARGET_COLD_RESET = 7
    TASK_REASSIGN = 8
    # RFC 7144 5.1: only in sessions of protocol level 2
    QUERY_TASK = 9
    QUERY_TASK_SET = 10
    I_T_NEXUS_RESET = 11
    QUERY_ASYNCHRONOUS_EVENT = 12


class TaskResponse(IntEnum):
    """11.6.1."""

    FUNCTION_COMPLETE = 0
    TASK_DOES_NOT_EXIST = 1
    LUN_DOES_NOT_EXIST = 2
    TASK_STILL_ALLEGIANT = 3
    REASSIGNMENT_NOT_SUPPORTED = 4
    FUNCTION_NOT_SUPPORTED = 5
    AUTHORIZATION_FAILED = 6
    FUNCTION_SUCCEEDED = 7
    """RFC 7144 5.2: what was asked for is there."""
    FUNCTION_REJECTED = 255


class Stage(IntEnum):
    """Login stages (CSG and NSG), 11.12.3."""

    SECURITY = 0
    OPERATIONAL = 1
    FULL_FEATURE = 3


class LoginStatus(IntEnum):
    """Status class and detail of a Login Response, 11.13.5."""

    SUCCESS = 0x0000
    TARGET_MOVED_TEMPORARILY = 0x0101
    TARGET_MOVED_PERMANENTLY = 0x0102
    INITIATOR_ERROR = 0x0200
    AUTHENTICATION_FAILURE = 0x0201
    AUTHORIZATION_FAILURE = 0x0202
    NOT_FOUND = 0x0203
    TARGET_REMOVED = 0x0204
    UNSUPPORTED_VERSION = 0x0205
    TOO_MANY_CONNECTIONS = 0x0206
    MISSING_PARAMETER = 0x0207
    CANNOT_INCLUDE_IN_SESSION = 0x0208
    SESSION_TYPE_NOT_SUPPORTED = 0x0209
    SESSION_DOES_NOT_EXIST = 0x020A
    INVALID_DURING_LOGIN = 0x020B
    TARGET_ERROR = 0x0300
    SERVICE_UNAVAILABLE = 0x0301
    OUT_OF_RESOURCES = 0x0302


class LogoutReason(IntEnum):
    """11.14.1."""

    CLOSE_SESSION = 0
    CLOSE_CONNECTION = 1
    REMOVE_FOR_RECOVERY = 2


class LogoutResponse(IntEnum):
    """11.15.1."""

    SUCCESS = 0
    CID_NOT_FOUND = 1
    RECOVERY_NOT_SUPPORTED = 2
    CLEANUP_FAILED = 3


class AsyncEvent(IntEnum):
    """11.9.1."""

    SCSI = 0
    LOGOUT_REQUEST = 1
    CONNECTION_DROP = 2
    SESSION_DROP = 3
    NEGOTIATION_REQUEST = 4


class ScsiStatus(IntEnum):
    """SAM-5 5.3.1, as far as the transport makes them itself."""

    GOOD = 0x00
    CHECK_CONDITION = 0x02
    TASK_SET_FULL = 0x28
    TASK_ABORTED = 0x40


def fixed_sense(key: int, asc: int, ascq: int) -> bytes:
    """Fixed format sense data (SPC-4 4.5.3) for the conditions that RFC 7143 11.4.7.2 makes the transport report."""
    return bytes((0x70, 0, key, 0, 0, 0, 0, 10, 0, 0, 0, 0, asc, ascq, 0, 0, 0, 0))


MEDIUM_ERROR = 0x03
ABORTED_COMMAND = 0x0B
UNEXPECTED_UNSOLICITED_DATA = fixed_sense(ABORTED_COMMAND, 0x0C, 0x0C)
INCORRECT_AMOUNT_OF_DATA = fixed_sense(ABORTED_COMMAND, 0x0C, 0x0D)
WRITE_ERROR = fixed_sense(MEDIUM_ERROR, 0x0C, 0x00)
PROTOCOL_SERVICE_CRC_ERROR = fixed_sense(ABORTED_COMMAND, 0x47, 0x05)
