"""Growing a mounted volume: more blocks at its end, while hosts go on.

Order.  Each step leaves the old volume or the new one, both whole:

1. The device is made as large as the volume will be (a file; a block device must be so already).  A volume that is
   smaller than its device mounts as ever: the head ring says where its tail is.
2. The new tail is prepared: an empty ring and the second label.  To the old volume these are blocks behind its end.
3. In memory the maps get their new rows, the new tail becomes the volume's own and the old one free.  One consistency
   point makes all of it durable; its fsinfo, in the head ring and in the new tail, says the new size.  The old tail is
   busy until then, so nothing overwrites it.
4. The old tail is wiped, so that nobody who looks for a ring there later finds consistency points of the past.

Growing is not logged.  It makes its own consistency points before it returns, and nothing comes in between.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np

from wafl.device import Device
from wafl.errors import InvalidSize
from wafl.format import (
    BLOCK_BYTES,
    BLOCK_SHIFT,
    LABEL,
    LABEL_MAGIC,
    LABEL_VBN,
    MAX_VOLUME_BYTES,
    RING_SLOTS,
    TAIL_BLOCKS,
    Geometry,
    height_for,
    unseal,
)
from wafl.inode import grow_height
from wafl.labels import read_block_at

if TYPE_CHECKING:
    from wafl.volume import Volume

MIN_GROWTH_BYTES = 1 << 20
"""The rows that the maps gain must find room in what they describe, for two consistency points."""


def grow(volume: Volume, size_bytes: int) -> None:
    """Make the volume as large as `size_bytes` says, in whole blocks.
    Raises InvalidSize with nothing changed; OSError if the device cannot be made larger or written; VolumeFailed."""
    geometry = _check(volume, size_bytes)
    volume.device.grow(geometry.blocks << BLOCK_SHIFT)
    # What is under way or dirty goes first: the data run is given back and no buffer is frozen.
    volume.commit_now()
    _prepare_tail(volume.device, geometry, volume.geometry)
    old_tail = volume.geometry.tail_ring
    _change(volume, geometry)
    volume.commit_now()
    with suppress(OSError):  # whoever uses these blocks will hear of it; the volume has grown
        volume.device.pwrite(old_tail << BLOCK_SHIFT, [bytes(BLOCK_BYTES)] * TAIL_BLOCKS)


def _check(volume: Volume, size_bytes: int) -> Geometry:
    if size_bytes > MAX_VOLUME_BYTES:
        raise InvalidSize(f"a volume has at most {MAX_VOLUME_BYTES} bytes, not {size_bytes}")
    if size_bytes < volume.size_bytes:
        raise InvalidSize(f"a volume cannot shrink: {volume.name} has {volume.size_bytes} bytes, not {size_bytes}")
    least = volume.size_bytes + MIN_GROWTH_BYTES
    if size_bytes < least:
        raise InvalidSize(f"{volume.name} has {volume.size_bytes} bytes and grows to {least} at least")
    return Geometry(size_bytes >> BLOCK_SHIFT, volume.geometry.nvlog_blocks)


def _prepare_tail(device: Device, geometry: Geometry, old: Geometry) -> None:
    """An empty ring and the second label at the new end; the next sync makes them durable."""
    for vbn in (LABEL_VBN, old.second_label):
        label = read_block_at(device, vbn)
        if label is not None and unseal(LABEL, LABEL_MAGIC, label):
            break
    else:
        raise InvalidSize("neither label of the volume can be read: run the checker before it grows")
    device.pwrite(geometry.tail_ring << BLOCK_SHIFT, [bytes(BLOCK_BYTES)] * RING_SLOTS + [label])


def _change(volume: Volume, geometry: Geometry) -> None:
    """Everything in memory that depends on the size of the volume."""
    allocator, old = volume.core.allocator, volume.geometry
    allocator.grow(geometry.blocks, TAIL_BLOCKS)
    allocator.drop_from_summary(np.arange(old.tail_ring, old.blocks, dtype=np.uint64))
    volume.geometry = geometry
    volume.core.prepare_anew(old.blocks)
    for inode in (volume.files.active_map.inode, volume.summary.inode):
        grow_height(volume.core, inode, height_for(allocator.chunks))
        inode.size_bytes = allocator.chunks * BLOCK_BYTES
    volume.files.references.grow()
    volume.audit.rebase()
