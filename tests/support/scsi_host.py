"""A host for the SCSI tests: sends CDBs to a nexus and gives back Responses, with CDBs spelled as the standards do."""

from __future__ import annotations

import struct

from target.iscsi.ports import DataInFailed, Response
from target.nexus import LogicalUnit, Nexus, TargetDevice, lun_field
from tests.support.manual_platform import ManualPlatform
from tests.support.memory_store import MemoryStore

TARGET = "iqn.2024-01.example:vol0"
SIMPLE = 1
TURNS = 100_000


class Host:
    """One initiator port.  `send` finishes flushes by itself; `start` leaves them waiting."""

    def __init__(
        self,
        device: TargetDevice,
        lun_map: dict[int, LogicalUnit],
        name: str = "iqn.host:a",
        isid: bytes = b"\x80abcde",
        tpgt: int = 1,
    ) -> None:
        self.nexus: Nexus = device.open_nexus(name, isid, lun_map, tpgt=tpgt)
        self.tag = 0
        self.late: dict[int, Response] = {}

    def start(self, cdb: bytes, data: bytes = b"", lun: int = 0) -> Response | None:
        """Execute; the response comes at once or appears in `late` under `self.tag`."""
        self.tag += 1
        tag = self.tag
        return self.nexus.execute(
            lun_field(lun), cdb.ljust(16, b"\0"), SIMPLE, memoryview(data), tag, lambda r: self.late.__setitem__(tag, r)
        )

    def send(self, cdb: bytes, data: bytes = b"", lun: int = 0) -> Response:
        response = self.start(cdb, data, lun)
        return self.finish(lun) if response is None else response

    def finish(self, lun: int = 0) -> Response:
        """The end of the command that was put aside last: time passes, everything waited for comes."""
        lu = self.nexus.find(lun_field(lun)).lu  # type: ignore[union-attr]
        for _ in range(TURNS):
            if self.tag in self.late:
                return self.late.pop(self.tag)
            for each in {lu, *(itl.lu for itl in self.nexus.itls.values())}:
                if isinstance(each.store, MemoryStore):
                    each.store.finish_flushes()
                platform = platform_of(each)
                platform.finish_saves()
                if platform.calls:
                    platform.step()
        raise AssertionError("the command never ends")

    def ready(self, lun: int = 0) -> None:
        """Take every unit attention."""
        while (last := self.send(TEST_UNIT_READY, lun=lun)).status == 2 and key_asc(last)[0] == UNIT_ATTENTION:
            pass

    def read(self, lba: int, blocks: int) -> bytes:
        return self.data(self.send(read_16(lba, blocks)))

    def data(self, response: Response, at: int = 0, length: int | None = None) -> bytes:
        """The Data-In of a response, fetched as the transport would."""
        assert response.status == 0, response
        if response.reader is None:
            return bytes(response.data)
        out = bytearray(response.length - at if length is None else length)
        try:
            response.reader(at, memoryview(out))
        except DataInFailed as failed:
            raise AssertionError(f"Data-In failed: {key_asc(failed.response)}") from failed
        return bytes(out)


def unit(store: MemoryStore | None = None, **saved: bytes) -> LogicalUnit:
    return LogicalUnit(store or MemoryStore(), ManualPlatform(saved))


def units(count: int) -> list[LogicalUnit]:
    return [unit(MemoryStore(serial=f"S{i}")) for i in range(count)]


def platform_of(lu: LogicalUnit) -> ManualPlatform:
    assert isinstance(lu.platform, ManualPlatform)
    return lu.platform


def one_host(store: MemoryStore | None = None, **saved: bytes) -> tuple[Host, LogicalUnit, MemoryStore]:
    """A host ready to use LUN 0; `saved` is what the platform has kept for it."""
    store = store or MemoryStore()
    lu = unit(store, **saved)
    host = Host(TargetDevice(TARGET), {0: lu})
    host.ready()
    return host, lu, store


def two_hosts() -> tuple[Host, Host, LogicalUnit, MemoryStore]:
    """Two hosts that share LUN 0."""
    store = MemoryStore()
    lu = unit(store)
    device = TargetDevice(TARGET)
    hosts = [Host(device, {0: lu}, name) for name in ("iqn.host:a", "iqn.host:b")]
    for host in hosts:
        host.ready()
    return hosts[0], hosts[1], lu, store


def key_asc(response: Response) -> tuple[int, int]:
    """(sense key, ASC << 8 | ASCQ) of a CHECK CONDITION, from either format."""
    assert response.status == 2, response
    return sense_of(response.sense)


def sense_of(sense: bytes) -> tuple[int, int]:
    if sense[0] & 0x7F == 0x72:
        return sense[1] & 0x0F, sense[2] << 8 | sense[3]
    return sense[2] & 0x0F, sense[12] << 8 | sense[13]


def information(response: Response) -> int | None:
    sense = response.sense
    return int.from_bytes(sense[3:7], "big") if sense[0] & 0x80 else None


ILLEGAL, UNIT_ATTENTION, NOT_READY, DATA_PROTECT, MEDIUM_ERROR, MISCOMPARE = 5, 6, 2, 7, 3, 0xE
BAD_CDB_FIELD = (ILLEGAL, 0x2400)
BAD_LIST_FIELD = (ILLEGAL, 0x2600)
BAD_OPCODE = (ILLEGAL, 0x2000)
BAD_LBA = (ILLEGAL, 0x2100)
BAD_LIST_LENGTH = (ILLEGAL, 0x1A00)

TEST_UNIT_READY = bytes(6)


def inquiry(page: int | None = None, length: int = 0xFFFF) -> bytes:
    return struct.pack(">BBBHB", 0x12, int(page is not None), page or 0, length, 0)


def request_sense(descriptor: bool = False, length: int = 252) -> bytes:
    return bytes((0x03, int(descriptor), 0, 0, length, 0))


def report_luns(select: int = 0, length: int = 4096) -> bytes:
    return struct.pack(">BBBxxxIBB", 0xA0, 0, select, length, 0, 0)


def ten(opcode: int, lba: int, blocks: int, flags: int = 0) -> bytes:
    return struct.pack(">BBIBHB", opcode, flags, lba, 0, blocks, 0)


def twelve(opcode: int, lba: int, blocks: int, flags: int = 0) -> bytes:
    return struct.pack(">BBIIBB", opcode, flags, lba, blocks, 0, 0)


def sixteen(opcode: int, lba: int, blocks: int, flags: int = 0) -> bytes:
    return struct.pack(">BBQIBB", opcode, flags, lba, blocks, 0, 0)


def six(opcode: int, lba: int, blocks: int) -> bytes:
    return bytes((opcode,)) + lba.to_bytes(3, "big") + bytes((blocks, 0))


def read_16(lba: int, blocks: int, flags: int = 0) -> bytes:
    return sixteen(0x88, lba, blocks, flags)


def write_16(lba: int, blocks: int, flags: int = 0) -> bytes:
    return sixteen(0x8A, lba, blocks, flags)


def compare_and_write(lba: int, blocks: int, flags: int = 0) -> bytes:
    return struct.pack(">BBQ3xBxB", 0x89, flags, lba, blocks, 0)


def get_lba_status(lba: int, length: int = 4096) -> bytes:
    return struct.pack(">BBQIBB", 0x9E, 0x12, lba, length, 0, 0)


def unmap(parameter_length: int, flags: int = 0) -> bytes:
    return struct.pack(">BB5xHB", 0x42, flags, parameter_length, 0)


def unmap_list(*ranges: tuple[int, int]) -> bytes:
    body = b"".join(struct.pack(">QI4x", lba, blocks) for lba, blocks in ranges)
    return struct.pack(">HH4x", 6 + len(body), len(body)) + body


def mode_sense_6(page: int, subpage: int = 0, flags: int = 0, length: int = 255) -> bytes:
    return bytes((0x1A, flags, page, subpage, length, 0))


def mode_sense_10(page: int, subpage: int = 0, flags: int = 0, length: int = 4096) -> bytes:
    return struct.pack(">BBBB3xHB", 0x5A, flags, page, subpage, length, 0)


def mode_select_6(length: int, flags: int = 0x10) -> bytes:
    return bytes((0x15, flags, 0, 0, length, 0))


def mode_select_10(length: int, flags: int = 0x10) -> bytes:
    return struct.pack(">BB5xHB", 0x55, flags, length, 0)


def reserve_in(action: int, length: int = 4096) -> bytes:
    return struct.pack(">BB5xHB", 0x5E, action, length, 0)


def reserve_out(action: int, kind: int = 0, length: int = 24) -> bytes:
    return struct.pack(">BBBxxIB", 0x5F, action, kind, length, 0)


def reserve_out_list(key: int, service_action_key: int = 0, flags: int = 0) -> bytes:
    return struct.pack(">QQ4xBxxx", key, service_action_key, flags)


def report_opcodes(options: int = 0, opcode: int = 0, action: int = 0, length: int = 1 << 16) -> bytes:
    return struct.pack(">BBBBHIBB", 0xA3, 0x0C, options, opcode, action, length, 0, 0)


def write_atomic(lba: int, blocks: int, boundary: int = 0, flags: int = 0) -> bytes:
    return struct.pack(">BBQHHBB", 0x9C, flags, lba, boundary, blocks, 0, 0)


def sanitize(action: int, length: int = 0, flags: int = 0) -> bytes:
    return struct.pack(">BB5xHB", 0x48, flags | action, length, 0)


def overwrite_list(pattern: bytes, count: int = 1, length: int | None = None) -> bytes:
    return struct.pack(">BxH", count, len(pattern) if length is None else length) + pattern


def start_stop(start: int, flags: int = 0) -> bytes:
    return bytes((0x1B, flags, 0, 0, start, 0))


def prevent(value: int) -> bytes:
    return bytes((0x1E, 0, 0, 0, value, 0))


RESERVE_6, RELEASE_6 = bytes((0x16, 0, 0, 0, 0, 0)), bytes((0x17, 0, 0, 0, 0, 0))
