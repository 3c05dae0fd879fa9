"""Giving up a log: for a volume whose log device is lost, or whose log is damaged where it had been flushed."""

from __future__ import annotations

import time

from wafl.device import Device
from wafl.labels import read_superblock
from wafl.volume import DEFAULT_CACHE_BYTES, Volume


def discard_log(device: Device) -> int:
    """The volume on `device` goes on from its last consistency point, as if its log had been empty; the generation of
    that.  What was acknowledged and flushed since is lost.  Closes the device.
    Raises NotAVolume, UnsupportedFeature, CorruptVolume, VolumeFailed, OSError."""
    superblock = read_superblock(device, read_only=False)
    device.sync()
    volume = Volume(device, superblock, read_only=False, cache_bytes=DEFAULT_CACHE_BYTES, clock=time.time)
    generation = volume.generation
    # No log is open, and that is what this consistency point says of the log.
    volume.close()
    return generation
