"""Status, sense keys, additional sense codes, and sense data in both formats (SPC-4 4.5).

A handler that cannot do its command raises `CheckCondition`; the router turns it into status and sense data in the
format that the logical unit is set to.  Nothing here knows a command.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

from construct import Bytes, Const, Int8ub, Int16ub, Int32ub, Int64ub, Padding, Struct


class Status(IntEnum):
    """SAM-5 5.3.1."""

    GOOD = 0x00
    CHECK_CONDITION = 0x02
    CONDITION_MET = 0x04
    BUSY = 0x08
    RESERVATION_CONFLICT = 0x18
    TASK_SET_FULL = 0x28
    TASK_ABORTED = 0x40


class SenseKey(IntEnum):
    """SPC-4 4.5.6."""

    NO_SENSE = 0x0
    RECOVERED_ERROR = 0x1
    NOT_READY = 0x2
    MEDIUM_ERROR = 0x3
    HARDWARE_ERROR = 0x4
    ILLEGAL_REQUEST = 0x5
    UNIT_ATTENTION = 0x6
    DATA_PROTECT = 0x7
    COPY_ABORTED = 0xA
    ABORTED_COMMAND = 0xB
    MISCOMPARE = 0xE


class Asc(IntEnum):
    """ADDITIONAL SENSE CODE in the high byte, its QUALIFIER in the low (SPC-4 annex)."""

    NO_ADDITIONAL_SENSE = 0x0000
    OPERATION_IN_PROGRESS = 0x0016
    LOGICAL_UNIT_NOT_READY_MANUAL_INTERVENTION_REQUIRED = 0x0403
    LOGICAL_UNIT_NOT_READY_FORMAT_IN_PROGRESS = 0x0404
    LOGICAL_UNIT_NOT_ACCESSIBLE_TARGET_PORT_IN_STANDBY = 0x040B
    LOGICAL_UNIT_NOT_ACCESSIBLE_TARGET_PORT_IN_UNAVAILABLE = 0x040C
    LOGICAL_UNIT_NOT_READY_SPACE_ALLOCATION_IN_PROGRESS = 0x0414
    LOGICAL_UNIT_NOT_READY_SANITIZE_IN_PROGRESS = 0x041B
    UNREACHABLE_COPY_TARGET = 0x0804
    WRITE_ERROR = 0x0C00
    THIRD_PARTY_DEVICE_FAILURE = 0x0D01
    COPY_TARGET_DEVICE_NOT_REACHABLE = 0x0D02
    INVALID_FIELD_IN_COMMAND_INFORMATION_UNIT = 0x0E03
    UNRECOVERED_READ_ERROR = 0x1100
    PARAMETER_LIST_LENGTH_ERROR = 0x1A00
    MISCOMPARE_DURING_VERIFY_OPERATION = 0x1D00
    INVALID_COMMAND_OPERATION_CODE = 0x2000
    LBA_OUT_OF_RANGE = 0x2100
    UNSUPPORTED_TOKEN_TYPE = 0x2301
    TOKEN_UNKNOWN = 0x2304
    TOKEN_CORRUPT = 0x2305
    TOKEN_REVOKED = 0x2306
    TOKEN_EXPIRED = 0x2307
    INVALID_FIELD_IN_CDB = 0x2400
    LOGICAL_UNIT_NOT_SUPPORTED = 0x2500
    INVALID_FIELD_IN_PARAMETER_LIST = 0x2600
    INVALID_RELEASE_OF_PERSISTENT_RESERVATION = 0x2604
    TOO_MANY_TARGET_DESCRIPTORS = 0x2606
    UNSUPPORTED_TARGET_DESCRIPTOR_TYPE_CODE = 0x2607
    TOO_MANY_SEGMENT_DESCRIPTORS = 0x2608
    UNSUPPORTED_SEGMENT_DESCRIPTOR_TYPE_CODE = 0x2609
    UNEXPECTED_INEXACT_SEGMENT = 0x260A
    INLINE_DATA_LENGTH_EXCEEDED = 0x260B
    WRITE_PROTECTED = 0x2700
    LOGICAL_UNIT_SOFTWARE_WRITE_PROTECTED = 0x2702
    SPACE_ALLOCATION_FAILED_WRITE_PROTECT = 0x2707
    NOT_READY_TO_READY_CHANGE_MEDIUM_MAY_HAVE_CHANGED = 0x2800
    POWER_ON_RESET_OR_BUS_DEVICE_RESET_OCCURRED = 0x2900
    BUS_DEVICE_RESET_FUNCTION_OCCURRED = 0x2903
    I_T_NEXUS_LOSS_OCCURRED = 0x2907
    MODE_PARAMETERS_CHANGED = 0x2A01
    RESERVATIONS_PREEMPTED = 0x2A03
    RESERVATIONS_RELEASED = 0x2A04
    REGISTRATIONS_PREEMPTED = 0x2A05
    ASYMMETRIC_ACCESS_STATE_CHANGED = 0x2A06
    CAPACITY_DATA_HAS_CHANGED = 0x2A09
    COMMANDS_CLEARED_BY_DEVICE_SERVER = 0x2F02
    FORMAT_COMMAND_FAILED = 0x3101
    SANITIZE_COMMAND_FAILED = 0x3103
    THIN_PROVISIONING_SOFT_THRESHOLD_REACHED = 0x3807
    SAVING_PARAMETERS_NOT_SUPPORTED = 0x3900
    MEDIUM_NOT_PRESENT = 0x3A00
    INQUIRY_DATA_HAS_CHANGED = 0x3F03
    REPORTED_LUNS_DATA_HAS_CHANGED = 0x3F0E
    INTERNAL_TARGET_FAILURE = 0x4400
    MEDIUM_REMOVAL_PREVENTED = 0x5302
    INSUFFICIENT_REGISTRATION_RESOURCES = 0x5504
    INSUFFICIENT_RESOURCES_TO_CREATE_ROD_TOKEN = 0x550D


class Field(NamedTuple):
    """Where a bad field is: SPC-4 4.5.2.4.2 (sense-key specific field pointer)."""

    byte: int
    bit: int | None = None
    """The most significant bit of the field, when it does not begin the byte."""
    in_cdb: bool = True


SKSV, CD, BPV = 0x80, 0x40, 0x08
VALID = 0x80
CURRENT_FIXED, CURRENT_DESCRIPTOR = 0x70, 0x72

# SPC-4 4.5.3
FIXED_SENSE = Struct(
    "response_code" / Int8ub,  # VALID in bit 7
    Padding(1),
    "sense_key" / Int8ub,
    "information" / Int32ub,
    "additional_sense_length" / Const(10, Int8ub),
    "command_specific" / Int32ub,
    "asc" / Int16ub,
    "field_replaceable_unit" / Const(0, Int8ub),
    "sense_key_specific" / Bytes(3),
)
# SPC-4 4.5.2
DESCRIPTOR_SENSE = Struct(
    "response_code" / Const(CURRENT_DESCRIPTOR, Int8ub),
    "sense_key" / Int8ub,
    "asc" / Int16ub,
    Padding(3),
    "additional_sense_length" / Int8ub,
)
# SPC-4 4.5.2.2
INFORMATION_DESCRIPTOR = Struct(
    "descriptor_type" / Const(0, Int8ub),
    "additional_length" / Const(0x0A, Int8ub),
    "flags" / Const(VALID, Int8ub),
    Padding(1),
    "information" / Int64ub,
)
# SPC-4 4.5.2.4
SENSE_KEY_SPECIFIC_DESCRIPTOR = Struct(
    "descriptor_type" / Const(2, Int8ub),
    "additional_length" / Const(6, Int8ub),
    Padding(2),
    "sense_key_specific" / Bytes(3),
    Padding(1),
)


class CheckCondition(Exception):
    """The command ends with CHECK CONDITION and this sense data."""

    def __init__(
        self,
        key: SenseKey,
        asc: Asc,
        information: int | None = None,
        field: Field | None = None,
        progress: int | None = None,
    ) -> None:
        super().__init__(f"{key.name} {asc.name}")
        self.key = key
        self.asc = asc
        self.information = information
        self.field = field
        self.progress = progress
        """How much of the operation in progress is done, in 65,536ths (NO SENSE and NOT READY only)."""

    def encode(self, descriptor: bool = False) -> bytes:
        """Sense data; `descriptor` chooses the format (control mode page D_SENSE, REQUEST SENSE DESC)."""
        return self._descriptor() if descriptor else self._fixed()

    def _fixed(self) -> bytes:
        # An information of more than 32 bits cannot be told here: VALID stays 0 (SPC-4 4.5.3).
        told = self.information is not None and self.information < 1 << 32
        built: bytes = FIXED_SENSE.build({
            "response_code": CURRENT_FIXED | (VALID if told else 0),
            "sense_key": self.key,
            "information": self.information if told else 0,
            "command_specific": 0,
            "asc": self.asc,
            "sense_key_specific": self._sense_key_specific(),
        })
        return built

    def _sense_key_specific(self) -> bytes:
        if self.progress is not None:  # SPC-4 4.5.2.4.4
            return bytes((SKSV,)) + self.progress.to_bytes(2, "big")
        return field_pointer(self.field)

    def _descriptor(self) -> bytes:
        descriptors = b""
        if self.information is not None:
            descriptors += INFORMATION_DESCRIPTOR.build({"information": self.information})
        if self.field is not None or self.progress is not None:
            descriptors += SENSE_KEY_SPECIFIC_DESCRIPTOR.build({"sense_key_specific": self._sense_key_specific()})
        head: bytes = DESCRIPTOR_SENSE.build({
            "sense_key": self.key, "asc": self.asc, "additional_sense_length": len(descriptors),
        })
        return head + descriptors


def field_pointer(field: Field | None) -> bytes:
    """The three SENSE KEY SPECIFIC bytes."""
    if field is None:
        return bytes(3)
    flags = SKSV | (CD if field.in_cdb else 0) | (0 if field.bit is None else BPV | field.bit)
    return bytes((flags,)) + field.byte.to_bytes(2, "big")


def illegal(asc: Asc, field: Field | None = None) -> CheckCondition:
    return CheckCondition(SenseKey.ILLEGAL_REQUEST, asc, field=field)


def invalid_field(byte: int, bit: int | None = None) -> CheckCondition:
    """INVALID FIELD IN CDB pointing at the field."""
    return illegal(Asc.INVALID_FIELD_IN_CDB, Field(byte, bit))


def invalid_parameter(byte: int, bit: int | None = None) -> CheckCondition:
    """INVALID FIELD IN PARAMETER LIST pointing at the field."""
    return illegal(Asc.INVALID_FIELD_IN_PARAMETER_LIST, Field(byte, bit, in_cdb=False))


def lba_out_of_range() -> CheckCondition:
    return illegal(Asc.LBA_OUT_OF_RANGE)


NO_SENSE = CheckCondition(SenseKey.NO_SENSE, Asc.NO_ADDITIONAL_SENSE)
