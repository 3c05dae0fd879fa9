"""Why a clone command is refused, or a job fails.  `name` is short and stable, for scripts; the text says what to
do."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType


class CloneError(Exception):
    name = "clone-error"
    data: Mapping[str, object] = MappingProxyType({})
    """What the event of a failed job says besides."""


class NotBacked(CloneError):
    """The LUN has no backing snapshot, so there is nothing to clone."""

    name = "not-backed"

    def __init__(self, lun: str) -> None:
        super().__init__(f"LUN {lun!r} is not backed by a snapshot: there is nothing to clone")


class AlreadyCloning(CloneError):
    name = "already-cloning"

    def __init__(self, lun: str) -> None:
        super().__init__(f"LUN {lun!r} is being cloned already; stop that clone first to start another")


class NotCloning(CloneError):
    name = "not-cloning"

    def __init__(self, lun: str) -> None:
        super().__init__(f"LUN {lun!r} is not being cloned")


class DoesNotFit(CloneError):
    """Started all the same (`force`) the clone would pause when the volume's last free space is reached."""

    name = "does-not-fit"

    def __init__(self, lun: str, needed_bytes: int, available_bytes: int) -> None:
        super().__init__(
            f"the clone of LUN {lun!r}, with those that are under way, needs {needed_bytes} bytes, and the volume has "
            f"{available_bytes} for it: make room, or force it, and it pauses when the room is used up"
        )


class FillStuck(CloneError):
    """A fill changed nothing although nothing stood in its way: a fault of ours, never a reason to detach."""

    name = "fill-stuck"

    def __init__(self, lun: str, level_one: int) -> None:
        super().__init__(f"LUN {lun!r}: the blocks of level-1 buffer {level_one} cannot be filled")


class BadSource(CloneError):
    """A block of the backing cannot be read."""

    name = "bad-source"

    def __init__(self, lun: str, offset: int, source: str, cause: Exception) -> None:
        super().__init__(
            f"byte {offset} of LUN {lun!r} cannot be read from {source}: {cause}; "
            "write over it and start the clone again, or start it with the policy 'ignore' to copy the rest"
        )
        self.data = {"lun": lun, "offset": offset, "source": source, "bad_blocks": 1}


class PassedOver(CloneError):
    """All has been copied but what could not be read."""

    name = "bad-blocks"

    def __init__(self, lun: str, blocks: int, offsets: list[int], source: str) -> None:
        places = ", ".join(map(str, offsets)) + (", …" if blocks > len(offsets) else "")
        super().__init__(
            f"{blocks} blocks of LUN {lun!r} could not be read from {source} (at bytes {places}); all others are "
            "copied, and the backing is kept: write over them and start the clone again"
        )
        self.data = {"lun": lun, "offsets": offsets, "source": source, "bad_blocks": blocks}
