"""INQUIRY: standard data and the VPD pages (SPC-4 6.6 and 7.8, SBC-3 6.6).

A page is a construct declaration and a function that fills it; `VPD_PAGES` is the list that page 00h shows.  Only
what is true is claimed.
"""

from __future__ import annotations

from collections.abc import Callable

from construct import (
    Array,
    Bytes,
    Const,
    GreedyBytes,
    Int8ub,
    Int16ub,
    Int32ub,
    Int64ub,
    Padding,
    Prefixed,
    Struct,
)

from target.scsi.access_state import AccessState
from target.scsi.it_nexus import ITNexus
from target.scsi.limits import (
    ATOMIC_GRANULARITY_BYTES,
    MAX_ATOMIC_WRITE_BYTES,
    MAX_COMPARE_AND_WRITE_BLOCKS,
    MAX_TRANSFER_BYTES,
    MAX_UNMAP_BLOCKS,
    MAX_UNMAP_DESCRIPTORS,
    MAX_WRITE_SAME_BYTES,
    OPTIMAL_TRANSFER_BYTES,
    THRESHOLD_SET_BYTES,
    UNMAP_GRANULARITY_BYTES,
)
from target.scsi.port_groups import SCSI_PORT, port_name
from target.scsi.sense import invalid_field
from target.scsi.task import Reply, Task, data_in
from target.scsi.third_party import third_party_copy_page
from target.scsi.unit import LogicalUnit

VENDOR = "LAZYLUN"
PRODUCT = "LUN"
REVISION = "0001"

DIRECT_ACCESS = 0x00
NOT_CONNECTED = 0x20
"""PERIPHERAL QUALIFIER 1: through a port in the unavailable state (SPC-4 5.15.2.4.5)."""
NO_LOGICAL_UNIT = 0x7F
"""PERIPHERAL QUALIFIER 3, PERIPHERAL DEVICE TYPE 1Fh."""

RMB = 0x80
VERSION_SPC_4 = 0x06
HISUP_FORMAT_2 = 0x12
THIRD_PARTY_COPY, TPGS_IMPLICIT_AND_EXPLICIT = 0x08, 0x30
MULTIP = 0x10
CMDQUE = 0x02
# SAM-5, SPC-4, SBC-3, iSCSI (SPC-4 table 145): without a version
VERSION_DESCRIPTORS = (0x00A0, 0x0460, 0x04C0, 0x0960)

STANDARD = Struct(
    "peripheral" / Int8ub,
    "rmb" / Int8ub,
    "version" / Const(VERSION_SPC_4, Int8ub),
    "response_data_format" / Const(HISUP_FORMAT_2, Int8ub),
    "additional_length" / Const(96 - 5, Int8ub),
    "flags_5" / Const(TPGS_IMPLICIT_AND_EXPLICIT | THIRD_PARTY_COPY, Int8ub),  # no protection information
    "flags_6" / Int8ub,
    "flags_7" / Const(CMDQUE, Int8ub),
    "vendor" / Bytes(8),
    "product" / Bytes(16),
    "revision" / Bytes(4),
    Padding(22),
    "version_descriptors" / Array(8, Int16ub),
    Padding(22),
)

VPD_HEADER = Struct("peripheral" / Int8ub, "page_code" / Int8ub, "page" / Prefixed(Int16ub, GreedyBytes))

# SPC-4 7.8.6.1
DESIGNATOR = Struct(
    "protocol_code_set" / Int8ub,
    "piv_association_type" / Int8ub,
    Padding(1),
    "designator" / Prefixed(Int8ub, GreedyBytes),
)
BINARY, ASCII, UTF8 = 1, 2, 3
PROTOCOL_ISCSI, PIV = 0x50, 0x80
LOGICAL_UNIT, TARGET_PORT, TARGET_DEVICE = 0x00, 0x10, 0x20
T10_VENDOR_ID, NAA, RELATIVE_TARGET_PORT, TARGET_PORT_GROUP, SCSI_NAME = 1, 3, 4, 5, 8

STORAGE_CONFIGURATION_SERVICE = 0x01
# SPC-4 7.8.8.2: association of the target device
NETWORK_SERVICE = Struct(
    "association_service_type" / Const(TARGET_DEVICE << 1 | STORAGE_CONFIGURATION_SERVICE, Int8ub),
    Padding(1),
    "network_address" / Prefixed(Int16ub, GreedyBytes),
)

# SPC-4 7.8.7: what the target does with task attributes and its cache
EXTENDED_INQUIRY = Struct(
    "protection" / Const(0, Int8ub),
    "task_attributes" / Int8ub,
    "cache" / Int8ub,
    Padding(57),
)
HEADSUP_ORDSUP_SIMPSUP = 0x07
V_SUP = 0x01

# SBC-3 6.6.4
BLOCK_LIMITS = Struct(
    "wsnz" / Int8ub,
    "maximum_compare_and_write_length" / Int8ub,
    "optimal_transfer_length_granularity" / Int16ub,
    "maximum_transfer_length" / Int32ub,
    "optimal_transfer_length" / Int32ub,
    "maximum_prefetch_length" / Const(0, Int32ub),
    "maximum_unmap_lba_count" / Int32ub,
    "maximum_unmap_block_descriptor_count" / Int32ub,
    "optimal_unmap_granularity" / Int32ub,
    "unmap_granularity_alignment" / Int32ub,
    "maximum_write_same_length" / Int64ub,
    "maximum_atomic_transfer_length" / Int32ub,
    "atomic_alignment" / Int32ub,
    "atomic_transfer_length_granularity" / Int32ub,
    "maximum_atomic_transfer_length_with_atomic_boundary" / Const(0, Int32ub),
    "maximum_atomic_boundary_size" / Const(0, Int32ub),
)
UGAVALID = 0x80000000

READS_AFTER_BLOCK_ERASE = 0x40
"""WABEREQ=01b: what SANITIZE unmapped can be read without being written first."""
# SBC-3 6.6.2
BLOCK_DEVICE_CHARACTERISTICS = Struct(
    "medium_rotation_rate" / Const(1, Int16ub),  # non-rotating
    "product_type" / Const(0, Int8ub),
    "wabereq" / Int8ub,
    "flags" / Const(0, Int8ub),
    Padding(55),
)

# SBC-3 6.6.5
LOGICAL_BLOCK_PROVISIONING = Struct(
    "threshold_exponent" / Int8ub,
    "flags" / Int8ub,
    "provisioning_type" / Int8ub,
    Padding(1),
)
LBPU, LBPWS, LBPWS10, LBPRZ = 0x80, 0x40, 0x20, 0x04
FULLY_PROVISIONED, THIN_PROVISIONED = 0, 2

EVPD = 0x01


def inquiry(task: Task) -> Reply:
    fields = task.fields
    if fields["flags"] & EVPD:
        return data_in(vpd(task, fields["page_code"]), fields["allocation_length"])
    if fields["page_code"]:
        raise invalid_field(2)
    ports = len(task.nexus.target_ports)
    return data_in(standard_data(_peripheral(task), task.lu.medium.removable, ports), fields["allocation_length"])


def _peripheral(task: Task) -> int:
    return DIRECT_ACCESS | (NOT_CONNECTED if task.itl.access_state is AccessState.UNAVAILABLE else 0)


def standard_data(peripheral: int, removable: bool = False, ports: int = 1) -> bytes:
    built: bytes = STANDARD.build({
        "peripheral": peripheral,
        "rmb": RMB if removable else 0,
        "flags_6": MULTIP if ports > 1 else 0,
        "vendor": padded(VENDOR, 8),
        "product": padded(PRODUCT, 16),
        "revision": padded(REVISION, 4),
        "version_descriptors": VERSION_DESCRIPTORS + (0,) * (8 - len(VERSION_DESCRIPTORS)),
    })
    return built


def padded(text: str, size: int) -> bytes:
    """Left-aligned ASCII (SPC-4 4.4.1)."""
    return text.encode("ascii", "replace").ljust(size)[:size]


def vpd(task: Task, page_code: int) -> bytes:
    fill = VPD_PAGES.get(page_code)
    if fill is None:
        raise invalid_field(2)
    return vpd_page(_peripheral(task), page_code, fill(task.nexus, task.lu))


def vpd_page(peripheral: int, page_code: int, page: bytes) -> bytes:
    built: bytes = VPD_HEADER.build({"peripheral": peripheral, "page_code": page_code, "page": page})
    return built


def supported_pages(_: ITNexus, __: LogicalUnit) -> bytes:
    return bytes(sorted(VPD_PAGES))


def unit_serial_number(_: ITNexus, lu: LogicalUnit) -> bytes:
    return lu.store.serial.encode("ascii", "replace")


def device_identification(nexus: ITNexus, lu: LogicalUnit) -> bytes:
    """What multipath, udev and clusters know the LUN by, then the port and the device it was reached through."""
    port = bytes(2) + nexus.target_port.to_bytes(2, "big")
    name = port_name(nexus, nexus.target_port)
    return b"".join((
        designator(BINARY, LOGICAL_UNIT | NAA, lu.store.naa),
        designator(ASCII, LOGICAL_UNIT | T10_VENDOR_ID, t10_vendor_id(lu)),
        designator(PROTOCOL_ISCSI | BINARY, PIV | TARGET_PORT | RELATIVE_TARGET_PORT, port),
        designator(PROTOCOL_ISCSI | BINARY, PIV | TARGET_PORT | TARGET_PORT_GROUP, port),
        designator(PROTOCOL_ISCSI | UTF8, PIV | TARGET_PORT | SCSI_NAME, scsi_name(name)),
        designator(PROTOCOL_ISCSI | UTF8, PIV | TARGET_DEVICE | SCSI_NAME, scsi_name(nexus.target_name)),
    ))


def t10_vendor_id(lu: LogicalUnit) -> bytes:
    return padded(VENDOR, 8) + lu.store.serial.encode("ascii", "replace")


def designator(protocol_code_set: int, piv_association_type: int, value: bytes) -> bytes:
    built: bytes = DESIGNATOR.build({
        "protocol_code_set": protocol_code_set, "piv_association_type": piv_association_type, "designator": value[:252],
    })
    return built


def scsi_name(name: str) -> bytes:
    """SPC-4 7.8.6.11."""
    return padded_string(name)


def padded_string(text: str) -> bytes:
    """Null-terminated and padded to a multiple of four."""
    encoded = text.encode() + b"\0"
    return encoded + bytes(-len(encoded) % 4)


def management_network_addresses(nexus: ITNexus, _: LogicalUnit) -> bytes:
    """SPC-4 7.8.8: where the administrator has said that the management is to be found."""
    return b"".join(
        NETWORK_SERVICE.build({"network_address": padded_string(address)}) for address in nexus.management_addresses
    )


def extended_inquiry(_: ITNexus, __: LogicalUnit) -> bytes:
    built: bytes = EXTENDED_INQUIRY.build({"task_attributes": HEADSUP_ORDSUP_SIMPSUP, "cache": V_SUP})
    return built


def mode_page_policy(_: ITNexus, __: LogicalUnit) -> bytes:
    """SPC-4 7.8.9: all pages and subpages, shared by all nexuses, of each logical unit alone."""
    return bytes((0x3F, 0xFF, 0x00, 0x00))


def scsi_ports(nexus: ITNexus, _: LogicalUnit) -> bytes:
    """Every port and what it is called."""
    return b"".join(
        SCSI_PORT.build({
            "relative_port": port,
            "target_port_designators": designator(
                PROTOCOL_ISCSI | UTF8, PIV | TARGET_PORT | SCSI_NAME, scsi_name(port_name(nexus, port))
            ),
        })
        for port in nexus.target_ports
    )


def block_limits(_: ITNexus, lu: LogicalUnit) -> bytes:
    size = lu.block_bytes
    thin = lu.thin
    built: bytes = BLOCK_LIMITS.build({
        "wsnz": 1 if thin else 0,
        "maximum_compare_and_write_length": MAX_COMPARE_AND_WRITE_BLOCKS,
        "optimal_transfer_length_granularity": lu.physical_block_bytes // size,
        "maximum_transfer_length": MAX_TRANSFER_BYTES // size,
        "optimal_transfer_length": OPTIMAL_TRANSFER_BYTES // size,
        "maximum_unmap_lba_count": MAX_UNMAP_BLOCKS if thin else 0,
        "maximum_unmap_block_descriptor_count": MAX_UNMAP_DESCRIPTORS if thin else 0,
        "optimal_unmap_granularity": max(UNMAP_GRANULARITY_BYTES // size, 1) if thin else 0,
        "unmap_granularity_alignment": UGAVALID if thin else 0,
        "maximum_write_same_length": MAX_WRITE_SAME_BYTES // size,
        "maximum_atomic_transfer_length": MAX_ATOMIC_WRITE_BYTES // size,
        "atomic_alignment": max(ATOMIC_GRANULARITY_BYTES // size, 1),
        "atomic_transfer_length_granularity": max(ATOMIC_GRANULARITY_BYTES // size, 1),
    })
    return built


def block_device_characteristics(_: ITNexus, lu: LogicalUnit) -> bytes:
    built: bytes = BLOCK_DEVICE_CHARACTERISTICS.build({"wabereq": READS_AFTER_BLOCK_ERASE if lu.thin else 0})
    return built


def logical_block_provisioning(_: ITNexus, lu: LogicalUnit) -> bytes:
    thin = lu.thin
    built: bytes = LOGICAL_BLOCK_PROVISIONING.build({
        "threshold_exponent": (THRESHOLD_SET_BYTES >> lu.shift).bit_length() - 1 if thin else 0,
        "flags": LBPU | LBPWS | LBPWS10 | LBPRZ if thin else 0,
        "provisioning_type": THIN_PROVISIONED if thin else FULLY_PROVISIONED,
    })
    return built


VPD_PAGES: dict[int, Callable[[ITNexus, LogicalUnit], bytes]] = {
    0x00: supported_pages,
    0x80: unit_serial_number,
    0x83: device_identification,
    0x85: management_network_addresses,
    0x86: extended_inquiry,
    0x87: mode_page_policy,
    0x88: scsi_ports,
    0x8F: lambda _, lu: third_party_copy_page(lu.block_bytes),
    0xB0: block_limits,
    0xB1: block_device_characteristics,
    0xB2: logical_block_provisioning,
}
