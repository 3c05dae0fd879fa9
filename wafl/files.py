"""What a LUN needs of the file system that it lives in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from wafl.buffers import Core
from wafl.inode import Inode
from wafl.types import Backing
from wafl.views import View

if TYPE_CHECKING:
    from wafl.lun import Lun
    from wafl.references import References
    from wafl.reserve import Reserve


class Files(Protocol):
    """Implemented by wafl.filesystem."""

    core: Core
    reserve: Reserve
    references: References

    def touch_lun(self, lun: Lun) -> None:
        """The LUN's vtoc entry changed."""

    def log_lun(self, lun: Lun) -> None:
        """An administrator changed the LUN: its vtoc entry goes into the log."""

    def graveyard_of(self, inode: Inode, level: int) -> Inode:
        """The zombie inode that takes the LUN's buried subtrees of this level."""

    def find_view(self, backing: Backing, nowait: bool) -> View | None:
        """None only with `nowait`: the disk would have to be waited for.  Raises BackingLost."""

    def snapshot_generation(self, number: int) -> int:
        """The consistency point that made the snapshot with this id."""

    def linger(self, lun: Lun, backing: Backing) -> None:
        """Keep the backing snapshot busy until the loss of this backing is durable."""
