"""Mode pages (SPC-4 7.5, SBC-3 6.5): contents, what a host may change, and the values one logical unit has.

Each page is declared once with construct; `ModeParameters` holds the changed values only.  Pages with something to
change can be saved (PS=1): a reset or a restart brings the saved values back, or the defaults.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from construct import Const, Int8ub, Int16ub, Int32ub, Padding, Struct

SPF, PS = 0x40, 0x80

# SPC-4 7.5.6 in its SBC-3 6.5.8 form.  No recovery to tune: a bad block is an error at once.
READ_WRITE_ERROR_RECOVERY = Struct(
    "page_code" / Const(0x01, Int8ub),
    "page_length" / Const(0x0A, Int8ub),
    "awre_arre" / Int8ub,
    "read_retry_count" / Int8ub,
    Padding(4),
    "write_retry_count" / Int8ub,
    Padding(1),
    "recovery_time_limit" / Int16ub,
)
WCE = 0x04
# SBC-3 6.5.5
CACHING = Struct(
    "page_code" / Const(0x08, Int8ub),
    "page_length" / Const(0x12, Int8ub),
    "flags" / Int8ub,  # WCE 04h, RCD 01h
    "retention_priority" / Int8ub,
    "disable_prefetch_transfer_length" / Int16ub,
    "minimum_prefetch" / Int16ub,
    "maximum_prefetch" / Int16ub,
    "maximum_prefetch_ceiling" / Int16ub,
    "cache_flags" / Int8ub,
    "cache_segments" / Int8ub,
    "cache_segment_size" / Int16ub,
    Padding(4),
)
D_SENSE, SWP, TAS = 0x04, 0x08, 0x40
UNRESTRICTED_REORDERING = 0x10
# SPC-4 7.5.8
CONTROL = Struct(
    "page_code" / Const(0x0A, Int8ub),
    "page_length" / Const(0x0A, Int8ub),
    "tst_flags" / Int8ub,  # TST=0 (one task set), D_SENSE 04h
    "queue_flags" / Int8ub,  # QUEUE ALGORITHM MODIFIER in bits 7-4
    "protect_flags" / Int8ub,  # SWP 08h
    "autoload_flags" / Int8ub,  # TAS 40h
    Padding(2),
    "busy_timeout_period" / Int16ub,
    "extended_self_test_completion_time" / Int16ub,
)
# SPC-4 7.5.9, a subpage
CONTROL_EXTENSION = Struct(
    "page_code" / Const(0x0A | SPF, Int8ub),
    "subpage_code" / Const(0x01, Int8ub),
    "page_length" / Const(0x1C, Int16ub),
    "flags" / Int8ub,
    "initial_command_priority" / Int8ub,
    "maximum_sense_data_length" / Int8ub,
    Padding(25),
)
# SPC-4 7.5.11: nothing is predicted, so nothing is reported (MRIE=0)
INFORMATIONAL_EXCEPTIONS = Struct(
    "page_code" / Const(0x1C, Int8ub),
    "page_length" / Const(0x0A, Int8ub),
    "flags" / Int8ub,
    "mrie" / Int8ub,
    "interval_timer" / Int32ub,
    "report_count" / Int32ub,
)


def _zeros(page: Any) -> dict[str, int]:
    return {field.name: 0 for field in page.subcons if field.name and not isinstance(field.subcon, Const)}


@dataclass(frozen=True)
class ModePage:
    """One page: its declaration, default values, and the bits that MODE SELECT may change."""

    page: int
    subpage: int
    declaration: Any
    defaults: dict[str, int]
    changeable: dict[str, int]

    def build(self, values: dict[str, int]) -> bytes:
        built: bytes = self.declaration.build({**_zeros(self.declaration), **values})
        return built


PAGES: dict[tuple[int, int], ModePage] = {
    (page.page, page.subpage): page
    for page in (
        ModePage(0x01, 0, READ_WRITE_ERROR_RECOVERY, {"awre_arre": 0xC0}, {}),
        ModePage(0x08, 0, CACHING, {"flags": WCE}, {}),
        ModePage(
            0x0A,
            0,
            CONTROL,
            {"queue_flags": UNRESTRICTED_REORDERING, "autoload_flags": TAS, "busy_timeout_period": 0xFFFF},
            {"tst_flags": D_SENSE, "protect_flags": SWP},
        ),
        ModePage(0x0A, 1, CONTROL_EXTENSION, {}, {}),
        ModePage(0x1C, 0, INFORMATIONAL_EXCEPTIONS, {}, {}),
    )
}


Values = dict[tuple[int, int], dict[str, int]]


class ModeParameters:
    """The current and saved values of one logical unit."""

    def __init__(self, saved: bytes = b"") -> None:
        self._saved: Values = _decode(saved)
        self.reset()

    def reset(self) -> None:
        """The saved values are current again (SPC-4 5.11)."""
        self._changed = dict(self._saved)
        self._derive()

    def _derive(self) -> None:
        control = self._changed.get((0x0A, 0), {})
        self.descriptor_sense = bool(control.get("tst_flags", 0) & D_SENSE)
        self.software_write_protect = bool(control.get("protect_flags", 0) & SWP)

    def current(self, page: ModePage) -> bytes:
        return page.build({**page.defaults, **self._changed.get((page.page, page.subpage), {})})

    def saved(self, page: ModePage) -> bytes:
        return page.build({**page.defaults, **self._saved.get((page.page, page.subpage), {})})

    def keep(self) -> bytes:
        """Make the current values the saved ones; what must be written down for that."""
        self._saved = dict(self._changed)
        return json.dumps([[*key, values] for key, values in self._saved.items()]).encode()

    def change(self, page: ModePage, wanted: bytes) -> bool:
        """Take the changeable bits of `wanted`, a whole page already compared by `difference`.  True if any changed."""
        before = self.current(page)
        parsed = page.declaration.parse(wanted)
        self._changed[page.page, page.subpage] = {
            name: page.defaults.get(name, 0) & ~mask | parsed[name] & mask for name, mask in page.changeable.items()
        }
        self._derive()
        return self.current(page) != before


def _decode(saved: bytes) -> Values:
    """What `keep` wrote; a page that is no longer there is left out."""
    return {(page, subpage): values for page, subpage, values in json.loads(saved or b"[]") if (page, subpage) in PAGES}


def default(_: ModeParameters, page: ModePage) -> bytes:
    return page.build(page.defaults)


def changeable(_: ModeParameters, page: ModePage) -> bytes:
    return page.build(page.changeable)


# PC field of MODE SENSE (SPC-4 6.11.1.2)
PAGE_CONTROL: dict[int, Callable[[ModeParameters, ModePage], bytes]] = {
    0: ModeParameters.current,
    1: changeable,
    2: default,
    3: ModeParameters.saved,
}


def difference(parameters: ModeParameters, page: ModePage, wanted: bytes) -> int | None:
    """The first byte where `wanted` differs from the current page in bits that cannot be changed."""
    current, mask = parameters.current(page), changeable(parameters, page)
    head = 4 if page.subpage else 2
    for at in range(head, len(current)):
        if (current[at] ^ wanted[at]) & ~mask[at] & 0xFF:
            return at
    return None
