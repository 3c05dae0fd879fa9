"""MODE SENSE and MODE SELECT, 6 and 10 (SPC-4 6.9 - 6.12, 7.5)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from construct import Int8ub, Int16ub, Int24ub, Int32ub, Int64ub, Padding, Struct

from target.scsi.mode_pages import PAGE_CONTROL, PAGES, PS, SPF, ModePage, difference
from target.scsi.sense import Asc, illegal, invalid_field, invalid_parameter
from target.scsi.task import Reply, Task, data_in
from target.scsi.unit import MODES, LogicalUnit

# SPC-4 7.5.5
HEADER_6 = Struct(
    "mode_data_length" / Int8ub,
    "medium_type" / Int8ub,
    "device_specific" / Int8ub,
    "block_descriptor_length" / Int8ub,
)
HEADER_10 = Struct(
    "mode_data_length" / Int16ub,
    "medium_type" / Int8ub,
    "device_specific" / Int8ub,
    "longlba" / Int8ub,
    Padding(1),
    "block_descriptor_length" / Int16ub,
)
# SBC-3 6.5.2
BLOCK_DESCRIPTOR = Struct("blocks" / Int32ub, Padding(1), "block_length" / Int24ub)
LONG_BLOCK_DESCRIPTOR = Struct("blocks" / Int64ub, Padding(4), "block_length" / Int32ub)
WP, DPOFUA = 0x80, 0x10
DBD, LLBAA = 0x08, 0x10
ALL_PAGES, ALL_SUBPAGES = 0x3F, 0xFF
PF, SP = 0x10, 0x01


def mode_sense_6(task: Task) -> Reply:
    pages, descriptor = _pages(task), _block_descriptor(task, long_lba=False)
    length = HEADER_6.sizeof() + len(descriptor) + len(pages)
    head = HEADER_6.build({
        "mode_data_length": min(length - 1, 0xFF),
        "medium_type": 0,
        "device_specific": _device_specific(task.lu),
        "block_descriptor_length": len(descriptor),
    })
    return data_in(head + descriptor + pages, task.fields["allocation_length"])


def mode_sense_10(task: Task) -> Reply:
    long_lba = bool(task.fields["flags"] & LLBAA)
    pages, descriptor = _pages(task), _block_descriptor(task, long_lba)
    length = HEADER_10.sizeof() + len(descriptor) + len(pages)
    head = HEADER_10.build({
        "mode_data_length": length - 2,
        "medium_type": 0,
        "device_specific": _device_specific(task.lu),
        "longlba": int(long_lba and bool(descriptor)),
        "block_descriptor_length": len(descriptor),
    })
    return data_in(head + descriptor + pages, task.fields["allocation_length"])


def _device_specific(lu: LogicalUnit) -> int:
    return DPOFUA | (WP if lu.write_protected else 0)


def _block_descriptor(task: Task, long_lba: bool) -> bytes:
    if task.fields["flags"] & DBD:
        return b""
    lu = task.lu
    built: bytes
    if long_lba:
        built = LONG_BLOCK_DESCRIPTOR.build({"blocks": lu.blocks, "block_length": lu.block_bytes})
    else:
        built = BLOCK_DESCRIPTOR.build({"blocks": min(lu.blocks, 0xFFFFFFFF), "block_length": lu.block_bytes})
    return built


def _pages(task: Task) -> bytes:
    control, page = divmod(task.fields["page"], 0x40)
    value = PAGE_CONTROL[control]
    return b"".join(_shown(value(task.lu.modes, each), each) for each in _chosen(page, task.fields["subpage"]))


def _shown(page: bytes, declared: ModePage) -> bytes:
    """With PS if the page can be saved."""
    return bytes((page[0] | (PS if declared.changeable else 0),)) + page[1:]


def _chosen(page: int, subpage: int) -> list[ModePage]:
    """SPC-4 table 166."""
    if subpage not in (0, ALL_SUBPAGES) and (page, subpage) not in PAGES:
        raise invalid_field(3)
    chosen = [
        each for key, each in sorted(PAGES.items())
        if page in (key[0], ALL_PAGES) and subpage in (key[1], ALL_SUBPAGES)
    ]
    if not chosen:
        raise invalid_field(2, 5)
    return chosen


# --- MODE SELECT ------------------------------------------------------------------------------------------------------


def mode_select_6(task: Task) -> Reply | None:
    return _mode_select(task, HEADER_6)


def mode_select_10(task: Task) -> Reply | None:
    return _mode_select(task, HEADER_10)


def _mode_select(task: Task, header: Any) -> Reply | None:
    """Nothing is changed unless the whole list is good."""
    flags = task.fields["flags"]
    if not flags & PF:
        raise invalid_field(1, 4)
    if task.wanted:
        _select_pages(task, header)
    if not flags & SP:
        return Reply()
    task.after_save(MODES, task.lu.modes.keep(), Reply())
    return None


def _select_pages(task: Task, header: Any) -> None:
    size = header.sizeof()
    parameters = bytes(task.parameter_list(size))
    head = header.parse(parameters)
    if head.medium_type:
        raise invalid_parameter(size // 4)
    at = size + head.block_descriptor_length
    _check_block_descriptor(task.lu, parameters[size:at], head, size)
    changes = list(_selected(task.lu, parameters, at))
    if [task.lu.modes.change(page, wanted) for page, wanted in changes].count(True):
        task.lu.establish(Asc.MODE_PARAMETERS_CHANGED, besides=task.itl)
        task.lu.state_changed()


def _check_block_descriptor(lu: LogicalUnit, descriptor: bytes, head: Any, at: int) -> None:
    """The geometry cannot be changed; a host that sends back what it was told is content (SBC-3 6.5.2)."""
    announced = head.block_descriptor_length
    if not announced:
        return
    form = LONG_BLOCK_DESCRIPTOR if head.get("longlba", 0) & 1 else BLOCK_DESCRIPTOR
    if announced != form.sizeof():
        raise invalid_parameter(at - 1)
    if len(descriptor) < announced:
        raise illegal(Asc.PARAMETER_LIST_LENGTH_ERROR)
    parsed = form.parse(descriptor)
    every = (1 << 64 if form is LONG_BLOCK_DESCRIPTOR else 1 << 32) - 1
    if parsed.blocks not in (0, every, min(lu.blocks, every)):
        raise invalid_parameter(at)
    if parsed.block_length != lu.block_bytes:
        raise invalid_parameter(at + announced - (4 if form is LONG_BLOCK_DESCRIPTOR else 3))


def _selected(lu: LogicalUnit, parameters: bytes, at: int) -> Iterator[tuple[ModePage, bytes]]:
    """Each page of the list and its new contents."""
    while at < len(parameters):
        code = parameters[at] & 0x7F
        short = illegal(Asc.PARAMETER_LIST_LENGTH_ERROR)
        head = 4 if code & SPF else 2
        if len(parameters) < at + head:
            raise short
        page = PAGES.get((code & ~SPF, parameters[at + 1] if code & SPF else 0))
        if page is None:
            raise invalid_parameter(at, 5)
        length = int.from_bytes(parameters[at + head // 2 : at + head], "big")
        size = page.declaration.sizeof()
        if bool(code & SPF) != bool(page.subpage) or length != size - head:
            raise invalid_parameter(at + head // 2)
        wanted = bytes((code,)) + parameters[at + 1 : at + size]
        if len(wanted) < size:
            raise short
        wrong = difference(lu.modes, page, wanted)
        if wrong is not None:
            raise invalid_parameter(at + wrong)
        yield page, wanted
        at += size
