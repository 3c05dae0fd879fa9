"""Giving space back in the background: trees of destroyed and unmapped LUNs, deleted snapshots.  And counting anew
what reserved LUNs need after that (wafl.recount).

The first two are restartable at any point, because what is left to do is on disk: zombie inodes, and snapshot entries
in state DELETING.

Deleting snapshot S, one row (one map block) at a time: a block goes out of the summary if S's map has it and neither
any live snapshot's map nor the volume itself does.  All live snapshots are asked, never only the neighbours: once
blocks can be shared, a block's life is not one unbroken run of snapshots.  A live snapshot with the same map block
(equal vbn) settles a row without reading it.  wafl.holdings does the asking.

S's own map and inode file must stay readable until the end, for a crash in the middle starts again with them: the
blocks of these files, of every snapshot being deleted, are put aside and given back together with the entry.  That
list is good only while no snapshot comes; if one does, the pass is done again.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from typing import TYPE_CHECKING

import numpy as np

from wafl.ahead import trim_is_ready
from wafl.bits import Bits, Vbns, are_set, clear_each, positions
from wafl.errors import CorruptVolume, NoSpace
from wafl.format import MAP_BITS
from wafl.holdings import Holdings, among, in_row
from wafl.inode import Inode
from wafl.snapshots import Snapshot
from wafl.tree import trim
from wafl.types import Step

if TYPE_CHECKING:
    from wafl.volume import Volume

TRIM_SLICE = 8
"""Level-1 subtrees freed between two yields."""
READ_TRIES = 16
"""How often the driver is asked to wait for what a slice needs: pointers are read level by level."""


class Reclaim:
    """The background work of one mounted volume."""

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        self._core = volume.core
        self.holdings = Holdings(volume)
        self._work: Generator[Step, None, None] | None = None
        self._nowait = False
        """Whoever drives it at this moment would rather wait for the disk elsewhere."""

    @property
    def pending(self) -> bool:
        files = self._volume.files
        return bool(files.zombies or self._volume.snapshots_table.deleting or files.reserve.counting)

    def run(self, *, nowait: bool = False) -> Generator[Step, None, None]:
        """Slices until all is done, or until only a consistency point helps on (no room to work in, or a snapshot
        in the making whose map cannot be read yet).  However many run at a time, they share the work: a shortage of
        space may drive it on while somebody else's iteration rests.  With `nowait` trees that are not in memory are
        read by the driver (Step.READ)."""
        while step := self.advance(nowait=nowait):
            yield step

    def advance(self, *, nowait: bool = False) -> Step | None:
        """One slice; None at the end."""
        self._core.check_writable()
        self._nowait = nowait
        if self._work is None:
            self._work = self._slices()
        try:
            return next(self._work)
        except BaseException as error:
            self._work = None
            if isinstance(error, StopIteration):
                return None
            raise

    def _slices(self) -> Generator[Step, None, None]:
        """What cannot be read keeps its space and holds up nothing else; its error comes at the end."""
        failed: Exception | None = None
        for work in self._works():
            try:
                yield from work
            except (CorruptVolume, OSError) as error:
                failed = failed or error
        if failed is not None:
            raise failed

    def _works(self) -> Iterator[Generator[Step, None, None]]:
        for zombie in list(self._volume.files.zombies.values()):
            yield self._trim_zombie(zombie)
        for snapshot in list(self._volume.snapshots_table.deleting.values()):
            yield self._free_snapshot(snapshot)
        for recount in self._volume.files.reserve.recounts():
            yield self._count(recount)

    def _count(self, recount: Iterator[None]) -> Generator[Step, None, None]:
        for _ in recount:
            yield Step.SLICE

    def _until(self, ready: Callable[[], bool]) -> Iterator[Step]:
        """The driver waits for the disk, a few times at most, until this is in memory."""
        for _ in range(READ_TRIES):
            if not self._nowait or ready():
                break
            yield Step.READ

    # --- zombies ---------------------------------------------------------------------------------------------------

    def _trim_zombie(self, zombie: Inode) -> Generator[Step, None, None]:
        files = self._volume.files
        # By identity: while this rests, the number of a freed inode may go to another zombie.
        while files.zombies.get(zombie.number) is zombie:
            yield from self._until(
                lambda: files.zombies.get(zombie.number) is not zombie
                or trim_is_ready(self._core, zombie, files.references, TRIM_SLICE)
            )
            if files.zombies.get(zombie.number) is not zombie:
                return
            if not self._trim_some(zombie):
                return
            yield Step.SLICE

    def _trim_some(self, zombie: Inode) -> bool:
        """One slice.  False for want of room."""
        files = self._volume.files
        for _ in range(TRIM_SLICE):
            try:
                self._core.ensure(2 * zombie.height + 4, self._core.allocator.floor_ops, wait=False)
            except NoSpace:
                return False
            freed = trim(self._core, zombie, files.references.is_shared, files.references.let_go)
            if freed is None:
                files.free_inode(zombie)
                return True
            self._account(zombie, freed)
        self._core.allocator.apply_frees(nowait=self._nowait)
        return True

    def _account(self, zombie: Inode, freed: int) -> None:
        counted = min(freed, zombie.blocks)
        zombie.blocks -= counted
        owner = self._volume.files.inodes.get(zombie.owner)
        if owner is not None and owner.generation == zombie.owner_generation:
            of_owner = min(freed - counted, owner.blocks)
            owner.blocks -= of_owner
            owner.touch(self._core)
            counted += of_owner
        self._core.uncounted_data -= freed - counted

    # --- snapshots -------------------------------------------------------------------------------------------------

    def _free_snapshot(self, snapshot: Snapshot) -> Generator[Step, None, None]:
        table, holdings = self._volume.snapshots_table, self.holdings
        yield from holdings.prepare_spines(self._until)
        aside: list[Vbns] | None = None
        while aside is None:
            if table.making:
                return
            aside = yield from self._pass(snapshot)
        last = np.concatenate([np.empty(0, np.uint64), *aside])
        last = last[~among(last, holdings.needed(but=snapshot))]
        if len(last):
            self._core.allocator.drop_from_summary(last)
        table.drop(snapshot)
        yield Step.SLICE

    def _pass(self, snapshot: Snapshot) -> Generator[Step, None, list[Vbns] | None]:
        """Over all rows; what has to wait for the end.  None: a snapshot has come, whose map was not asked."""
        table, holdings = self._volume.snapshots_table, self.holdings
        arrivals = table.arrivals
        aside: list[Vbns] = []
        for found in holdings.rows(snapshot, until=self._until):
            if not isinstance(found, Step):
                row, theirs = found
                bits = yield from holdings.alone(snapshot, row, theirs, self._until)
                yield from holdings.prepare_spines(self._until)  # another may be on its way out meanwhile
                if table.making or table.arrivals != arrivals:
                    return None
                aside.append(self._give_back(row, bits))
                found = Step.SLICE
            yield found
        return aside if not table.making and table.arrivals == arrivals else None

    def _give_back(self, row: int, bits: Bits) -> Vbns:
        """Blocks of this row that no live snapshot's map has go out of the summary, but for the volume's own and what
        must stay readable: that is returned."""
        allocator, holdings = self._core.allocator, self.holdings
        gone = bits & allocator.row(allocator.summary, row)
        clear_each(gone, in_row(holdings.own(), row))
        kept = in_row(holdings.needed(), row)
        kept = kept[are_set(gone, kept)]
        clear_each(gone, kept)
        now = positions(gone, row * MAP_BITS)
        if len(now):
            allocator.drop_from_summary(now)
        return kept + np.uint64(row * MAP_BITS)
