"""`lun`: importing the modules of the commands puts them on the tree."""

from __future__ import annotations

from target.cli import (
    alua,
    clones,
    events,
    families,
    igroups,
    iscsi,
    luns,
    policies,
    scrubs,
    snapshots,
    transfer,
    volumes,
)
from target.cli.root import main

__all__ = [
    "alua", "clones", "events", "families", "igroups", "iscsi", "luns", "main", "policies", "scrubs", "snapshots",
    "transfer", "volumes",
]  # fmt: skip

if __name__ == "__main__":
    main()
