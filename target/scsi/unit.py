"""A logical unit and the I_T_L nexuses through which it is seen (SAM-5 4.6, 5.14).

A LogicalUnit is shared by all sessions of a target; an ITLNexus is one session's view of one logical unit, with
its own unit attentions.  Rules: whatever may change the answer to "may a plain READ or WRITE of this nexus go
straight to the store?" ends in `ITLNexus.changed()`, because the fast path asks nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from target.scsi.access_state import NOT_ACCESSIBLE, AccessState, AccessStates, ChangedBy
from target.scsi.erasure import Erasure
from target.scsi.limits import MAX_UNIT_ATTENTIONS
from target.scsi.medium import NOT_PRESENT, Medium
from target.scsi.mode_pages import ModeParameters
from target.scsi.platform import Platform
from target.scsi.reservation import Reservations
from target.scsi.sense import Asc, CheckCondition, SenseKey, Status
from target.scsi.store import BlockStore
from target.scsi.task import NOT_READY, Access, Reply

if TYPE_CHECKING:
    from target.scsi.extended_copy import CopyOutcome
    from target.scsi.it_nexus import ITNexus
    from target.scsi.offload import Outcome

MODES, RESERVATIONS, ACCESS_STATES = "mode pages", "reservations", "access states"
REMOVABLE, WRITE_PROTECTED = "removable", "write_protected"
FULLY_PROVISIONED, NATIVE_BLOCKS = "fully_provisioned", "native_blocks"
"""Names of saved values."""
SWITCHES = (REMOVABLE, WRITE_PROTECTED, FULLY_PROVISIONED, NATIVE_BLOCKS)
"""What an administrator turns on and off: it changes what hosts see, not what the store does."""

RESETS = (
    Asc.POWER_ON_RESET_OR_BUS_DEVICE_RESET_OCCURRED,
    Asc.BUS_DEVICE_RESET_FUNCTION_OCCURRED,
    Asc.I_T_NEXUS_LOSS_OCCURRED,
)


class LogicalUnit:
    """One direct-access block device over one store."""

    def __init__(self, store: BlockStore, platform: Platform) -> None:
        self.store = store
        self.platform = platform
        self.modes = ModeParameters(platform.saved.get(MODES, b""))
        self.reservations = Reservations(platform.saved.get(RESERVATIONS, b""))
        self.reservations_kept = bool(self.reservations.keys)
        """Something may have been written down that a restart would bring back."""
        self.medium = Medium(bool(platform.saved.get(REMOVABLE)))
        self.read_only = bool(platform.saved.get(WRITE_PROTECTED))
        """By the administrator; the store may be it besides."""
        self.fully_provisioned = bool(platform.saved.get(FULLY_PROVISIONED))
        """Nothing of thin provisioning is shown: no UNMAP, no map of what is allocated."""
        self.native_blocks = bool(platform.saved.get(NATIVE_BLOCKS))
        """Physical blocks are reported as large as logical ones: "512n", for hosts that refuse "512e"."""
        self.itls: list[ITLNexus] = []
        self.counters = Counters()
        self.contents = 0
        """Changes when the medium holds something else than before."""
        self.erasure = Erasure(self)
        self.access = AccessStates(platform.saved.get(ACCESS_STATES, b""))

    @property
    def block_bytes(self) -> int:
        return self.store.logical_block_bytes

    @property
    def shift(self) -> int:
        return self.store.logical_block_bytes.bit_length() - 1

    @property
    def blocks(self) -> int:
        return self.store.size_bytes // self.store.logical_block_bytes

    @property
    def write_protected(self) -> bool:
        return self.store.read_only or self.read_only or self.modes.software_write_protect

    @property
    def thin(self) -> bool:
        """Hosts are told that it is thin provisioned, and have the commands for it."""
        return self.store.thin and not self.fully_provisioned

    @property
    def physical_block_bytes(self) -> int:
        """As hosts are told, and never less than a logical block."""
        return self.block_bytes if self.native_blocks else max(self.store.physical_block_bytes, self.block_bytes)

    def failed(self, condition: CheckCondition) -> Reply:
        """CHECK CONDITION in the sense format that the unit is set to (D_SENSE)."""
        return Reply(Status.CHECK_CONDITION, condition.encode(self.modes.descriptor_sense))

    def not_ready(self) -> CheckCondition | None:
        """Why the medium cannot be used now."""
        if not self.store.online:
            return NOT_READY
        return self.erasure.condition or (None if self.medium.loaded else NOT_PRESENT)

    # --- what management tells us -------------------------------------------------------------------------------

    def capacity_changed(self) -> None:
        """The store's size is another one: 2A/09 to everybody (SBC-3 4.3)."""
        self.establish(Asc.CAPACITY_DATA_HAS_CHANGED)
        for itl in self.itls:
            itl.nexus.announce(itl.lun, Asc.CAPACITY_DATA_HAS_CHANGED)

    def state_changed(self) -> None:
        """`online` or `read_only` of the store changed: look again.  Hosts learn it from their next command."""
        for itl in self.itls:
            itl.changed()

    def contents_changed(self, *, resized: bool) -> None:
        """The LUN went back to a snapshot: what hosts have cached of it may be wrong (28/00), and its size (2A/09).
        Reads that are half sent end; they must not mix what was with what is."""
        self.contents += 1
        self.establish(Asc.NOT_READY_TO_READY_CHANGE_MEDIUM_MAY_HAVE_CHANGED)
        if resized:
            self.capacity_changed()

    def replace_store(self, store: BlockStore) -> None:
        """Another store behind the same logical unit: the volume was offline."""
        resized = store.size_bytes != self.store.size_bytes
        renamed = (store.serial, store.naa) != (self.store.serial, self.store.naa)
        self.store = store
        if renamed:
            self.establish(Asc.INQUIRY_DATA_HAS_CHANGED)
        if resized:
            self.capacity_changed()
        self.state_changed()

    def switch(self, name: str, value: bool) -> None:
        """One of SWITCHES, as the administrator wants and keeps it.  INQUIRY (3F/03), the mode parameter header (2A/01)
        or READ CAPACITY(16) (2A/09) says something else then."""
        if name == REMOVABLE and self.medium.removable is not value:
            self.medium = Medium(value)
            self.establish(Asc.INQUIRY_DATA_HAS_CHANGED)
        elif name == WRITE_PROTECTED and self.read_only is not value:
            self.read_only = value
            self.establish(Asc.MODE_PARAMETERS_CHANGED)
        elif name in (FULLY_PROVISIONED, NATIVE_BLOCKS) and getattr(self, name) is not value:
            setattr(self, name, value)
            self.establish(Asc.INQUIRY_DATA_HAS_CHANGED)
            self.establish(Asc.CAPACITY_DATA_HAS_CHANGED)

    def set_access(self, wanted: Mapping[int, AccessState], by: ChangedBy, besides: ITLNexus | None = None) -> bool:
        """Target port groups have other states (SPC-4 5.15.2.7): everybody but the one who asked is told, by 2A/06.
        False if nothing changed.  Keeping the states (`ACCESS_STATES`) is the caller's business."""
        if not self.access.change(wanted, by):
            return False
        self.establish(Asc.ASYMMETRIC_ACCESS_STATE_CHANGED, besides)
        self.state_changed()
        return True

    def threshold_reached(self) -> None:
        """Thin provisioning soft threshold (SBC-3 4.7.3.7.3)."""
        if self.thin:
            self.establish(Asc.THIN_PROVISIONING_SOFT_THRESHOLD_REACHED)

    # --- what commands do ---------------------------------------------------------------------------------------

    def establish(self, attention: Asc, besides: ITLNexus | None = None) -> None:
        """A unit attention condition for every I_T nexus but one."""
        for itl in self.itls:
            if itl is not besides:
                itl.establish(attention)

    def reset(self) -> None:
        """Logical unit reset condition (SAM-5 6.3.3): tasks are the caller's business."""
        self.modes.reset()
        self.medium.reset()
        self.reservations.release_unit()
        for itl in self.itls:
            itl.cancel_copies()
        self.establish(Asc.BUS_DEVICE_RESET_FUNCTION_OCCURRED)


class Counters:
    """What `lun stats` shows of one logical unit; bytes of medium access as asked for by hosts."""

    __slots__ = ("read_bytes", "reads", "write_bytes", "writes")

    def __init__(self) -> None:
        self.reads = self.writes = self.read_bytes = self.write_bytes = 0


class ITLNexus:
    """One initiator's way to one logical unit."""

    __slots__ = ("_copies", "_token_outcomes", "attentions", "lu", "lun", "nexus")

    def __init__(self, nexus: ITNexus, lun: int, lu: LogicalUnit) -> None:
        self.nexus = nexus
        self.lun = lun
        self.lu = lu
        self.attentions: list[Asc] = [Asc.POWER_ON_RESET_OR_BUS_DEVICE_RESET_OCCURRED]
        # Dictionaries once they are asked for: a session may see a thousand LUNs and copy on none.
        self._copies: dict[int, CopyOutcome] | None = None
        self._token_outcomes: dict[int, Outcome] | None = None
        lu.itls.append(self)

    @property
    def copies(self) -> dict[int, CopyOutcome]:
        """By list identifier, of which there are 256."""
        if self._copies is None:
            self._copies = {}
        return self._copies

    @property
    def token_outcomes(self) -> dict[int, Outcome]:
        if self._token_outcomes is None:
            self._token_outcomes = {}
        return self._token_outcomes

    def detach(self) -> None:
        """The nexus is lost or the LUN no longer mapped: RESERVE(6) ends, registrations stay (SPC-4 5.13.1)."""
        self.lu.itls.remove(self)
        self.lu.medium.allow(self)
        if self.lu.reservations.release_unit(self):
            self.lu.state_changed()

    def cancel_copies(self) -> None:
        """A reset ends copies that go on in the background, too (SPC-4 5.16.4.4)."""
        operations: list[CopyOutcome | Outcome] = [*(self._copies or {}).values()]
        operations += (self._token_outcomes or {}).values()
        for operation in operations:
            if operation.going_on and operation.cancel is not None:
                operation.cancel()

    def establish(self, attention: Asc) -> None:
        self.pend(attention)
        self.changed()

    def pend(self, attention: Asc) -> None:
        """As `establish`; that it has changed is the caller's to say."""
        if attention in RESETS:
            # After a reset the host reads everything anew; what was pending says nothing more (SAM-5 5.14.4).
            self.attentions = [attention]
        elif attention not in self.attentions and len(self.attentions) < MAX_UNIT_ATTENTIONS:
            self.attentions.append(attention)

    def clear(self, attention: Asc) -> None:
        if attention in self.attentions:
            self.attentions.remove(attention)
            self.changed()

    def take_attention(self) -> CheckCondition | None:
        """The first pending unit attention, which this reports and so clears."""
        if not self.attentions:
            return None
        attention = self.attentions.pop(0)
        self.changed()
        return CheckCondition(SenseKey.UNIT_ATTENTION, attention)

    @property
    def access_state(self) -> AccessState:
        """Of the way that leads through this nexus."""
        return self.lu.access.of(self.nexus.target_port)

    def not_accessible(self) -> CheckCondition | None:
        """Why this way to the logical unit cannot be used now."""
        return NOT_ACCESSIBLE.get(self.access_state)

    def allows(self, access: Access) -> bool:
        """No reservation of another nexus stands against it."""
        return self.lu.reservations.allows(self, access)

    def open_for(self, access: Access) -> bool:
        """A plain READ or WRITE needs no further question: what the fast path is built on."""
        lu = self.lu
        return (
            not self.attentions
            and self.not_accessible() is None
            and lu.not_ready() is None
            and not (access is Access.WRITE and lu.write_protected)
            and self.allows(access)
        )

    def changed(self) -> None:
        self.nexus.itl_changed(self)

