"""Space kept for reserved LUNs.

The rule: a reserved LUN may always write every one of its blocks.  So the volume keeps back for it

    (its size in blocks - its private blocks) + the pointer blocks that may still come with them

A *private* block is one that no snapshot and no other pointer can hold (wafl.recount): overwriting it gives the old one
back.  Every other block of the LUN, a hole, a ZERO or one that a snapshot may hold or that is shared, takes a new one
when it is written.  So a snapshot
raises the reserve to the LUN's full size, and each block written after it lowers it again.

How it is kept:

- `Allocator.reserve` is part of the floor for everybody but reserved LUNs (`floor_guest`).  It is the sum over all LUNs
  as of the last `refresh`, or more: writes of reserved LUNs only lower what they need, and nobody adds up again for
  that.  Whatever raises a need says so at once (`raised`, `refresh`).
- When room is tight, data runs come out exact: a reserved LUN gets what it writes now (`Core.new_run`), and nothing is
  left between `Allocator.next` and `end` for anybody else to take without asking.
- Overwriting takes the new block before it gives back the old one: beside the reserve there is a working room, and a
  reserved LUN that finds even that used up writes piece by piece, with consistency points in between.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from wafl.buffers import Core
from wafl.errors import NoSpace
from wafl.format import BLOCK_BYTES, POINTERS, height_for
from wafl.recount import Recount

if TYPE_CHECKING:
    from wafl.filesystem import FileSystem
    from wafl.inode import Inode
    from wafl.lun import Lun

NEW_LUN_BLOCKS = 16
"""For its inode and its vtoc entry."""
UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB")


def pointer_blocks(blocks: int, height: int) -> int:
    """The fewest pointer blocks of a tree of this height that name so many blocks."""
    total = 0
    for _ in range(height):
        blocks = -(-blocks // POINTERS)
        total += blocks
    return total


def still_needed(size_blocks: int, private: int, height: int) -> int:
    """Blocks that a LUN takes at most when all of it is written."""
    private = min(private, size_blocks)
    # Private blocks lie below pointer blocks that are private too: so many of those are there already.
    return size_blocks - private + pointer_blocks(size_blocks, height) - pointer_blocks(private, height)


def size_text(blocks: int) -> str:
    """For people; never less than it is."""
    size, unit = float(blocks * BLOCK_BYTES), 0
    while size >= 1024 and unit < len(UNITS) - 1:
        size, unit = size / 1024, unit + 1
    return f"{size:.1f} {UNITS[unit]}" if unit else f"{size:.0f} {UNITS[unit]}"


class Reserve:
    """What a mounted volume keeps back for its reserved LUNs."""

    def __init__(self, core: Core, files: FileSystem) -> None:
        self._core = core
        self._files = files
        self.since = 0
        """Generation of the newest snapshot that holds blocks, or through which blocks were shared, 0 without one: what
        was born later is private."""
        self.snapshot_wanted = False
        """One will be made by the next consistency point: then nothing is private."""
        self._given_up: set[Inode] = set()
        """LUNs with blocks that a recount could not read."""

    # --- figures ---------------------------------------------------------------------------------------------------

    def needed_by(self, lun: Lun, size_bytes: int | None = None) -> int:
        """Blocks kept back for a LUN if it is reserved (and had the other size)."""
        inode = lun.inode
        size_blocks = -(-(lun.size_bytes if size_bytes is None else size_bytes) // BLOCK_BYTES)
        height = max(inode.height, height_for(size_blocks))
        return still_needed(size_blocks, 0 if self.snapshot_wanted else inode.private_blocks, height)

    def needed_by_new(self, size_bytes: int) -> int:
        """The same for a LUN of this size that has nothing yet."""
        size_blocks = -(-size_bytes // BLOCK_BYTES)
        return still_needed(size_blocks, 0, height_for(size_blocks))

    def needed_more(self, lun: Lun, blocks: int) -> int:
        """What a reserved LUN needs beyond that, at most, when `blocks` of its private blocks are so no longer."""
        if self.snapshot_wanted:
            return 0
        size_blocks, private = -(-lun.size_bytes // BLOCK_BYTES), lun.inode.private_blocks
        return still_needed(size_blocks, max(0, private - blocks), lun.inode.height) - self.needed_by(lun)

    def needed(self) -> int:
        """Blocks kept back for all reserved LUNs."""
        return sum(self.needed_by(lun) for lun in self._files.luns.values() if lun.reserved)

    def needed_after_snapshot(self) -> int:
        """The same once a snapshot holds all that is there now."""
        return sum(
            still_needed(-(-lun.size_bytes // BLOCK_BYTES), 0, lun.inode.height)
            for lun in self._files.luns.values() if lun.reserved
        )  # fmt: skip

    @property
    def counting(self) -> bool:
        """Whether a recount would make a figure exact."""
        return any(self._is_stale(lun) for lun in self._files.luns.values())

    @property
    def missing(self) -> int:
        """Blocks by which the volume has less room than its reserved LUNs may still take."""
        return self.missing_of(self.needed())

    def missing_of(self, needed: int) -> int:
        """The same where `needed` is known."""
        allocator = self._core.allocator
        have = allocator.free + allocator.end - allocator.next - allocator.floor_reserved
        return max(0, needed - max(0, have))

    def report(self) -> list[str]:
        """For the mount's report.  An older version kept nothing back for reserved LUNs."""
        missing = self.missing
        if not missing or self.counting or self._files.zombies:
            return []  # what is not counted, or not given back yet, would be missed for nothing
        return [
            f"space-reserved LUNs may need {size_text(missing)} more than the volume has: they write as long as there "
            "is room; make some, or disable a reservation"
        ]

    def _any(self) -> bool:
        return any(lun.reserved for lun in self._files.luns.values())

    # --- the floors ------------------------------------------------------------------------------------------------

    def refresh(self) -> bool:
        """Add up again.  True if less is kept back than before."""
        allocator = self._core.allocator
        before = allocator.reserve
        allocator.set_reserve(self.needed() + (allocator.margin if self._any() else 0))
        return allocator.reserve < before

    def raised(self, lun: Lun, before: int) -> None:
        """A change that is over may have made a LUN need more than `before`."""
        if lun.reserved and not lun.destroyed:
            more = self.needed_by(lun) - before
            if more > 0:
                allocator = self._core.allocator
                allocator.set_reserve(allocator.reserve + more)

    def check_new(self, name: str, size_bytes: int, *, reserved: bool) -> None:
        """Room for a new LUN.  Raises NoSpace."""
        if not reserved:
            self.refresh()
            self._core.ensure(NEW_LUN_BLOCKS, self._core.allocator.floor_guest)
            return
        blocks = NEW_LUN_BLOCKS + self.needed_by_new(size_bytes) + self.first_working_room()
        self.check_room(
            blocks, f"space for all of LUN {name}",
            "make it with -o noreserve, delete a snapshot or a LUN, or grow the volume",
        )  # fmt: skip

    def check_enabled(self, lun: Lun) -> None:
        """Room for a LUN to become a reserved one.  Raises NoSpace."""
        self.check_room(
            self.needed_by(lun) + self.first_working_room(), f"space for all of LUN {lun.name}",
            "delete a snapshot or a LUN, or grow the volume",
        )  # fmt: skip

    def check_size(self, lun: Lun, size_bytes: int) -> None:
        """Room for a LUN to grow.  Raises NoSpace."""
        if not lun.reserved:
            self.refresh()
            self._core.ensure(2 * lun.inode.height + 8, self._core.allocator.floor_guest)
            return
        more = self.needed_by(lun, size_bytes) - self.needed_by(lun)
        self.check_room(
            2 * lun.inode.height + 8 + more, f"space for all of LUN {lun.name} at its new size",
            "disable its reservation, delete a snapshot or a LUN, or grow the volume",
        )  # fmt: skip

    def check_snapshot(self, name: str, blocks: int) -> bool:
        """Room for a snapshot that takes `blocks` itself; True if it has to be made at once, because what reserved
        LUNs write before would come on top.  Raises NoSpace."""
        more = max(0, self.needed_after_snapshot() - self.needed())
        self.check_room(
            blocks + more, f"snapshot {name}",
            "disable the reservation of a LUN, delete another snapshot, or grow the volume" if more
            else "delete another snapshot or a LUN, or grow the volume",
        )  # fmt: skip
        allocator = self._core.allocator
        left = allocator.free + allocator.end - allocator.next - allocator.floor_guest - blocks - more
        return left < self.needed()

    def check_room(self, blocks: int, what: str, advice: str) -> None:
        """Room for `blocks` more to be kept back.  Raises NoSpace, with nothing changed."""
        self.refresh()
        allocator = self._core.allocator
        try:
            self._core.ensure(blocks, allocator.floor_guest)
        except NoSpace:
            have = allocator.free + allocator.end - allocator.next - allocator.floor_guest
            raise NoSpace(f"{what} needs {size_text(blocks - have)} more than there is: {advice}") from None

    def first_working_room(self) -> int:
        """The first reserved LUN of a volume brings it."""
        return 0 if self._any() else self._core.allocator.margin

    # --- what a snapshot changes -----------------------------------------------------------------------------------

    def follow(self, newest: int, *, wanted: bool) -> None:
        """`newest` is the generation of the newest snapshot that holds blocks, 0 without one; `wanted`: another will be
        made by the next consistency point.  At mount, at each freeze, and when a snapshot has gone.  Blocks that were
        shared through a snapshot which has gone count as if it were still there."""
        newest = max(newest, self._files.references.since)
        self.since, self.snapshot_wanted = newest, wanted
        # A snapshot made just now holds all there is; at mount, nothing was written since or the record would say so.
        made_now = newest >= self._core.generation
        for lun in self._files.luns.values():
            inode = lun.inode
            if inode.private_since < newest:
                inode.set_private(0, newest, exact=made_now or inode.private_exact)
        self.refresh()

    # --- recounting ------------------------------------------------------------------------------------------------

    def _is_stale(self, lun: Lun) -> bool:
        inode = lun.inode
        return (not inode.private_exact or inode.private_since != self.since) and inode not in self._given_up

    def recounts(self) -> Iterator[Iterator[None]]:
        """The work of one LUN after the other, in slices.  Raises CorruptVolume, OSError."""
        for lun in list(self._files.luns.values()):
            if not lun.destroyed and self._is_stale(lun):
                yield self._recount(lun)

    def _recount(self, lun: Lun) -> Iterator[None]:
        inode = lun.inode
        if not self.since and not self._has_graveyard(inode) and self._files.references.inode is None:
            # Without snapshots, and without blocks of several LUNs, every block is private; the inode counts them.
            inode.set_private(inode.blocks, 0)
            inode.touch(self._core)
        else:
            recount = Recount(inode, self.since)
            while inode.recount is recount and inode is lun.inode and not lun.destroyed:
                try:
                    if not recount.slice(self._core):
                        break
                except Exception:
                    inode.recount = None
                    self._given_up.add(inode)
                    raise
                yield
        self.refresh()
        yield

    def _has_graveyard(self, inode: Inode) -> bool:
        return any(
            zombie.owner == inode.number and zombie.owner_generation == inode.generation
            for zombie in self._files.zombies.values()
        )

