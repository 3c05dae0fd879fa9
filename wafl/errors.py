"""Errors of the volume.  Each class has a short stable `name` (the word that tools and the API show) and carries
what a person needs to act.

Rules: every exception that crosses the package border is one of these, or an OSError of the device that the volume
could not translate.  An error raised by a call that changes state means that nothing was changed, except that a write
or UNMAP of a range may have done a part of it.
"""

from __future__ import annotations

ADVICE = ": run the checker"


class WaflError(Exception):
    """Base of all errors of the volume."""

    name = "volume-error"


class CorruptVolume(WaflError):
    """A block's contents do not match the checksum in the pointer to it.  Never answered with data or zeros."""

    name = "corrupt-volume"

    def __init__(self, vbn: int, expected: int, found: int, where: str = "") -> None:
        place = f" ({where})" if where else ""
        super().__init__(f"block {vbn}{place}: crc32c {found:08x} where the pointer says {expected:08x}")
        self.vbn = vbn
        self.expected = expected
        self.found = found
        self.where = where


class DamagedRecord(CorruptVolume):
    """A record or a pointer that fits its checksum and says what cannot be."""

    def __init__(self, what: str, vbn: int = 0) -> None:
        what = what.removesuffix(ADVICE)  # where one tells of another
        WaflError.__init__(self, what + ADVICE)
        self.vbn = vbn
        self.expected = self.found = 0
        self.where = what


class NoSpace(WaflError):
    """The volume has no room for the request beside what it keeps back for its own consistency points."""

    name = "no-space"

    def __init__(self, message: str = "the volume is full: delete a snapshot or a LUN, or grow the volume") -> None:
        super().__init__(message)


class SpaceHeld(NoSpace):
    """There would be room, but something reads the volume and keeps what was freed from being used again: not for
    long."""


class SnapshotBusy(WaflError):
    """Something still reads through the snapshot; `holders` names all of it."""

    name = "snapshot-busy"

    def __init__(self, snapshot: str, holders: list[str]) -> None:
        super().__init__(f"snapshot {snapshot} is in use by {', '.join(holders)}")
        self.snapshot = snapshot
        self.holders = holders


class NoSuchLun(WaflError):
    name = "no-such-lun"


class NoSuchSnapshot(WaflError):
    name = "no-such-snapshot"


class NameTaken(WaflError):
    name = "name-taken"


class InvalidName(WaflError):
    name = "invalid-name"


class InvalidSize(WaflError):
    name = "invalid-size"


class VolumeLocked(WaflError):
    """Another process, or another mount in this one, has the volume."""

    name = "volume-locked"


class CannotRepair(WaflError):
    """The volume has damage that nothing else in it makes good."""

    name = "cannot-repair"


class UnsupportedFeature(WaflError):
    """The volume uses a format feature that this version does not know."""

    name = "unsupported-feature"


class NotAVolume(WaflError):
    """Neither label, or no fsinfo of the label's volume, could be read."""

    name = "not-a-volume"


class LogMismatch(WaflError):
    """The log device is not there, too small, or not this volume's."""

    name = "log-mismatch"


class BackingLost(WaflError):
    """The snapshot or the inode that a LUN reads through is not there."""

    name = "backing-lost"


class ChainTooDeep(WaflError):
    """A LUN may stand on `MAX_CHAIN_DEPTH` snapshots, not on more."""

    name = "chain-too-deep"

    def __init__(self, lun: str, limit: int) -> None:
        super().__init__(
            f"{lun} would stand on more than {limit} snapshots: clone its parent to the end, and take a snapshot then"
        )


class LimitReached(WaflError):
    """A named limit of the format (snapshots, LUNs, generations) is reached."""

    name = "limit-reached"


class ReadOnlyVolume(WaflError):
    name = "read-only-volume"


class VolumeFailed(WaflError):
    """A consistency point could not be written: the volume refuses changes until it is mounted again."""

    name = "volume-failed"


class LunBusy(WaflError):
    """The LUN is not in a state that allows the request."""

    name = "lun-busy"
