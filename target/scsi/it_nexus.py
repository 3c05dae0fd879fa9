"""One initiator's session as the device server sees it: an I_T nexus with its LUN inventory and pending tasks.

LUNs are keyed by the raw 8-byte field (SAM-5 4.7) read as one integer, as it comes in the PDU, so that the usual
command finds its logical unit by one dictionary look-up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from target.scsi.limits import MAX_LUN_ID
from target.scsi.sense import Asc, Status
from target.scsi.task import Reply, Task
from target.scsi.tokens import Tokens
from target.scsi.unit import ITLNexus, LogicalUnit

FLAT = 0x4000


def lun_field(lun: int) -> int:
    """The 8-byte LUN of a LUN id: peripheral addressing below 256, flat above (SAM-5 4.7.7)."""
    if not 0 <= lun <= MAX_LUN_ID:
        raise ValueError(f"LUN id {lun} is not in 0..{MAX_LUN_ID}")
    return (lun if lun < 256 else FLAT | lun) << 48


def lun_id(field: int) -> int | None:
    """The LUN id of an 8-byte LUN, or None if it is of another form (bus 0 and flat addressing are understood)."""
    first = field >> 48
    if field & ((1 << 48) - 1):
        return None
    if first < 256:
        return first
    return first & MAX_LUN_ID if first >> 14 == 1 else None


class ITNexus:
    """LUN id -> logical unit for one initiator port, and the tasks it has in the device server."""

    def __init__(self, initiator: str, isid: bytes, target_name: str, target_port: int) -> None:
        self.initiator = initiator
        self.isid = isid
        self.target_name = target_name
        self.target_port = target_port
        """Target portal group tag, which names the target port (RFC 7143 4.4.4)."""
        self.target_ports: tuple[int, ...] = (target_port,)
        """Every port of the target device: what ALL_TG_PT and REPORT TARGET PORT GROUPS mean."""
        self.protocol_level = 1
        """What the session has agreed on (RFC 7144 7.1.1); from 2 on there are more task management functions."""
        self.management_addresses: tuple[str, ...] = ()
        """URLs for VPD page 85h."""
        self.tokens = Tokens()
        """Of the target device; replaced by whoever knows it."""
        self.itls: dict[int, ITLNexus] = {}
        self.tasks: dict[int, Task] = {}
        """By tag; only tasks that were put aside."""

    @property
    def initiator_port(self) -> str:
        """RFC 7143 4.2.7.2: the name under which reservations know this nexus."""
        return f"{self.initiator},i,0x{self.isid.hex()}"

    def find(self, field: int) -> ITLNexus | None:
        itl = self.itls.get(field)
        if itl is None:
            lun = lun_id(field)
            itl = None if lun is None else self.itls.get(lun_field(lun))
        return itl

    def inventory(self) -> list[int]:
        """The 8-byte LUNs of every logical unit this nexus may see, ascending (REPORT LUNS)."""
        return sorted(self.itls)

    def when_warm(self, done: Callable[[], None]) -> bool:
        """`done` is called later, once what the disk has begun to read is there; False: there is nothing like that."""
        return False

    def itl_changed(self, itl: ITLNexus) -> None:
        """Something that decides about the fast path changed."""

    def itls_changed(self) -> None:
        """The same for all of them, each of which has a unit attention pending now."""

    def announce(self, lun: int, attention: Asc) -> None:
        """A unit attention that the initiator may be told of before it asks."""

    def set_map(self, lun_map: Mapping[int, LogicalUnit]) -> bool:
        """Make this the inventory.  True if it differs from before: then the logical units that stay get 3F/0E."""
        gone = [field for field, itl in self.itls.items() if lun_map.get(itl.lun) is not itl.lu]
        for field in gone:
            self._drop(field)
        stay = list(self.itls.values())
        new = sorted(lun_map.keys() - {itl.lun for itl in stay}) if len(lun_map) > len(stay) else []
        for lun in new:
            # Its first unit attention keeps it off the fast path.
            self.itls[lun_field(lun)] = ITLNexus(self, lun, lun_map[lun])
        if not gone and not new:
            return False
        for itl in stay:
            itl.pend(Asc.REPORTED_LUNS_DATA_HAS_CHANGED)
        self.itls_changed()
        self.announce(stay[0].lun if stay else 0, Asc.REPORTED_LUNS_DATA_HAS_CHANGED)
        return True

    def _drop(self, field: int) -> None:
        itl = self.itls.pop(field)
        itl.detach()
        self.itl_changed(itl)

    def set_target_ports(self, ports: Iterable[int]) -> None:
        """Ports come and go; its own stays as long as the nexus.  Hosts look again at the groups (2A/06) and at what
        INQUIRY says of the ports (3F/03)."""
        self.target_ports = tuple(sorted({*ports, self.target_port}))
        for itl in self.itls.values():
            itl.pend(Asc.ASYMMETRIC_ACCESS_STATE_CHANGED)
            itl.pend(Asc.INQUIRY_DATA_HAS_CHANGED)
        self.itls_changed()

    def luns_reported(self) -> None:
        """REPORT LUNS was answered: 3F/0E has nothing more to say on any logical unit (SPC-4 6.33)."""
        for itl in self.itls.values():
            itl.clear(Asc.REPORTED_LUNS_DATA_HAS_CHANGED)

    def lose(self) -> None:
        """I_T nexus loss (SAM-5 6.3.4)."""
        self.tasks.clear()
        for field in list(self.itls):
            self._drop(field)

    def abort(self, lu: LogicalUnit, issuer: ITNexus) -> int:
        """Drop the tasks on `lu`.  Those of another nexus than the issuer's end with TASK ABORTED (TAS=1)."""
        tasks = [task for task in self.tasks.values() if task.lu is lu]
        for task in tasks:
            if issuer is self:
                del self.tasks[task.tag]
            else:
                task.finish(Reply(Status.TASK_ABORTED))
        return len(tasks)


def nexuses_of(units: Iterable[LogicalUnit]) -> list[ITNexus]:
    """Every nexus that sees one of the logical units, once."""
    return list({id(itl.nexus): itl.nexus for lu in units for itl in lu.itls}.values())
