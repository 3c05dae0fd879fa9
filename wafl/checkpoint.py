"""The consistency point: from one tree on disk to the next.

Order (DESIGN 4.2): data and metadata, sync, fsinfo, sync.

- `freeze` runs in one go, when the first step is taken.  Pointer blocks got their places when they were first changed
  (wafl.buffers), so only the record files and the two maps are left.  Their number is what the reserve is made for.
- Before the first write the maps are compared with the books (wafl.audit).
- The rest is writing: lowest level first, each block's checksum put into its parent, in slices, while guests go on.
  A guest who changes a frozen block leaves a copy behind.
- Blocks freed in this generation become allocatable after the last sync, and not before.

A failed write fails the volume: it takes no more changes, and the disk still has the last consistency point.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Generator
from operator import itemgetter
from typing import TYPE_CHECKING

from crc32c import crc32c

from wafl.bits import Vbns
from wafl.buffers import ACTIVE, CLEAN, DEAD, INODE_FILE, VOLUME, Buffer, DirtyLists
from wafl.errors import LimitReached, VolumeFailed
from wafl.format import (
    BLOCK_SHIFT,
    FSINFO,
    FSINFO_MAGIC,
    INODE,
    INODE_ROOT_CRC,
    MAX_GENERATION,
    SNAPSHOT_IFILE_CRC,
    FsinfoFlag,
    seal,
)
from wafl.inode import Inode
from wafl.maps import RowImage
from wafl.types import Step

if TYPE_CHECKING:
    from wafl.volume import Volume

SLICE_BLOCKS = 16
"""Blocks that are checksummed and written between two yields: 50 microseconds, for a guest may be waiting."""

_U32 = struct.Struct("<I")


class Checkpoint:
    """One consistency point, as an iterator of Steps.  If it is driven to its end from elsewhere (a shortage of
    space forces that), iteration just ends; if it failed there, it fails here too."""

    def __init__(self, volume: Volume, *, clean: bool = False) -> None:
        self._volume = volume
        self._clean = clean
        self._steps = self._run()
        self._error: BaseException | None = None
        self.done = False
        self.syncing = False
        """The last step was a SYNC: whoever takes over does it again."""

    def __iter__(self) -> Checkpoint:
        return self

    def __next__(self) -> Step:
        return self._advance(lambda: next(self._steps))

    def throw(self, error: BaseException) -> Step:
        """The driver's sync failed.  Fails the volume and raises VolumeFailed."""
        return self._advance(lambda: self._steps.throw(error))

    def _advance(self, step: Callable[[], Step]) -> Step:
        volume = self._volume
        if self._error is not None:
            raise VolumeFailed(f"the consistency point could not be written: {self._error}") from self._error
        if self.done:
            raise StopIteration
        if volume.running is None:
            volume.running = self
        elif volume.running is not self:
            raise RuntimeError("another consistency point is being written")
        try:
            taken = step()
            self.syncing = taken is Step.SYNC
            return taken
        except StopIteration:
            self.done, volume.running = True, None
            raise
        except BaseException as error:
            self.done, volume.running, self._error = True, None, error
            volume.fail(error)
            raise VolumeFailed(f"the consistency point could not be written: {error}") from error

    def _run(self) -> Generator[Step, None, None]:
        volume = self._volume
        core = volume.core
        core.check_writable()
        generation = core.generation
        if generation >= MAX_GENERATION:
            raise LimitReached("the volume has used up its consistency points")
        lists, images, freed = self._freeze()
        frozen = self._frozen_fields()
        yield Step.SLICE
        for stratum in (ACTIVE, INODE_FILE, VOLUME):
            if stratum == VOLUME:
                self._seal_snapshots()
            yield from self._write_stratum(lists[stratum], images[stratum])
        assert not core.copies
        yield Step.SYNC
        self._write_fsinfo(generation, frozen)
        yield Step.SYNC
        core.durable, core.frozen = generation, 0
        volume.snapshots_table.made()
        core.allocator.release(freed)
        while core.allocator.release_ripe():
            yield Step.SLICE

    # --- freezing --------------------------------------------------------------------------------------------------

    def _freeze(self) -> tuple[DirtyLists, list[list[RowImage]], list[Vbns]]:
        volume = self._volume
        core, allocator = volume.core, volume.core.allocator
        allocator.give_back_run()
        volume.files.freeze()
        volume.snapshots_table.freeze(volume.now_us())
        moved: set[int] = set()
        while rows := allocator.dirty_summary - moved:
            volume.summary.assign(rows)
            moved |= rows
        volume.audit.check()
        volume.snapshots_table.count_shared()
        images: list[list[RowImage]] = [[], [], []]
        active_rows, summary_rows = allocator.clean()
        images[ACTIVE] = volume.files.active_map.images(allocator.active, active_rows)
        images[ACTIVE] += volume.files.references.clean()
        images[VOLUME] = volume.summary.images(allocator.summary, summary_rows)
        freed = allocator.freeze_frees()
        dirty = core.swap_dirty()
        if core.log is not None:
            core.log.switch(core.generation)
        return dirty, images, freed

    def _frozen_fields(self) -> dict[str, int]:
        """What fsinfo says beside the roots, as of the freeze that just happened."""
        volume = self._volume
        allocator = volume.core.allocator
        return {
            "volume_blocks": volume.geometry.blocks,
            "written_us": volume.now_us(),
            "next_inode_generation": volume.files.next_inode_generation,
            "next_snapshot_id": volume.snapshots_table.next_id,
            "active_blocks": allocator.active_count,
            "summary_blocks": allocator.summary_count,
            "allocation_hint": allocator.hint,
            **volume.nvlog.frozen(),
        }

    # --- writing ---------------------------------------------------------------------------------------------------

    def _write_stratum(self, levels: list[list[Buffer]], images: list[RowImage]) -> Generator[Step, None, None]:
        for first in range(0, len(images), SLICE_BLOCKS):
            batch: list[tuple[int, bytes | bytearray]] = []
            for leaf, slot, vbn, data in images[first : first + SLICE_BLOCKS]:
                leaf.crcs[slot] = crc32c(data)
                batch.append((vbn, data))
            self._write_batch(batch)
            yield Step.SLICE
        for buffers in levels:
            for first in range(0, len(buffers), SLICE_BLOCKS):
                self._write_batch([
                    block for buffer in buffers[first : first + SLICE_BLOCKS]
                    if (block := self._finish(buffer)) is not None
                ])  # fmt: skip
                yield Step.SLICE

    def _finish(self, buffer: Buffer) -> tuple[int, bytes | bytearray] | None:
        """The frozen contents of a buffer, its checksum put where it belongs; None if it was gone before the
        freeze."""
        core = self._volume.core
        copy = core.copies.pop(buffer, None)
        moved = False
        if copy is not None:
            data, parent, slot, vbn = copy.data, copy.parent, copy.slot, copy.vbn
            if buffer.generation == core.frozen:  # it changed its place in the tree and nothing else
                buffer.generation, moved = CLEAN, True
        elif buffer.generation == core.frozen:
            data, parent, slot, vbn = buffer.data, buffer.parent, buffer.slot, buffer.vbn
            buffer.generation = CLEAN
        else:
            assert buffer.generation == DEAD
            return None
        crc = crc32c(data)
        if isinstance(parent, Buffer):
            frozen_parent = core.copies.get(parent)
            if frozen_parent is not None:
                frozen_parent.crcs[slot] = crc
        else:
            self._seal_inode(parent, crc)
        if parent.vbns[slot] == vbn:
            parent.crcs[slot] = crc
        if moved:
            buffer.parent.crcs[buffer.slot] = crc
        return vbn, data

    def _seal_inode(self, inode: Inode, crc: int) -> None:
        """The checksum of a file's root goes into the frozen inode record."""
        if inode.stratum == ACTIVE:
            ifile = self._volume.files.ifile
            block = ifile.blocks[inode.number // ifile.per_block]
            _U32.pack_into(block.data, inode.number % ifile.per_block * INODE.size + INODE_ROOT_CRC, crc)

    def _seal_snapshots(self) -> None:
        """The inode file's root is final: snapshots made now get its checksum."""
        volume = self._volume
        table = volume.snapshots_table.table
        for snapshot in volume.snapshots_table.making:
            snapshot.ifile.crcs[0] = crc = volume.files.ifile.inode.crcs[0]
            block = table.blocks[snapshot.slot // table.per_block]
            _U32.pack_into(block.data, table.place(snapshot.slot) + SNAPSHOT_IFILE_CRC, crc)

    def _write_batch(self, batch: list[tuple[int, bytes | bytearray]]) -> None:
        """Write blocks in the order of the disk, neighbours in one call."""
        batch.sort(key=itemgetter(0))
        pwrite = self._volume.core.device.pwrite
        first = 0
        for at in range(1, len(batch) + 1):
            if at == len(batch) or batch[at][0] != batch[at - 1][0] + 1:
                pwrite(batch[first][0] << BLOCK_SHIFT, [data for _, data in batch[first:at]])
                first = at

    def _write_fsinfo(self, generation: int, frozen: dict[str, int]) -> None:
        volume = self._volume
        roots = {
            f"{name}_{key}": value
            for name, inode in (
                ("ifile", volume.files.ifile.inode),
                ("summary", volume.summary.inode),
                ("snapshot_table", volume.snapshots_table.table.inode),
            )
            for key, value in inode.root().items()
        }
        for vbn in volume.geometry.fsinfo_vbns(generation):
            block = seal(
                FSINFO, magic=FSINFO_MAGIC, uuid=volume.uuid_bytes, generation=generation, vbn=vbn,
                flags=int(FsinfoFlag.CLEAN if self._clean else FsinfoFlag.NONE), **frozen, **roots,
            )  # fmt: skip
            volume.core.device.pwrite(vbn << BLOCK_SHIFT, (block,))
