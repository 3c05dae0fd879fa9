"""Why a clone command is refused.  `name` is short and stable, for scripts; the text says what to do."""

from __future__ import annotations


class CloneError(Exception):
    name = "clone-error"


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


class FillStuck(CloneError):
    """A fill changed nothing although nothing stood in its way: a fault of ours, never a reason to detach."""

    name = "fill-stuck"

    def __init__(self, lun: str, level_one: int) -> None:
        super().__init__(f"LUN {lun!r}: the blocks of level-1 buffer {level_one} cannot be filled")
