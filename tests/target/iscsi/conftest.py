"""A target in memory and initiators logged in to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from target.iscsi.host import Host
from tests.support.initiator import Initiator, Link, make_host
from tests.support.memory_target import MemoryDirectory, MemoryDisk, one_disk


@dataclass
class Bench:
    """One target with one disk."""

    directory: MemoryDirectory
    disk: MemoryDisk
    host: Host

    def initiator(self, *, piece: int = 1 << 30, **settings: Any) -> Initiator:
        """An initiator on a fresh link, not logged in."""
        return Initiator(Link(self.host, piece=piece), **settings)

    def logged_in(self, **settings: Any) -> Initiator:
        initiator = self.initiator(**settings)
        reply = initiator.login()
        assert reply.status_class == 0, (reply, initiator.link.failure())
        return initiator


@pytest.fixture
def bench() -> Bench:
    directory, disk = one_disk(4)
    return Bench(directory, disk, make_host(directory))


@pytest.fixture
def session(bench: Bench) -> Initiator:
    return bench.logged_in()


MakeBench = Callable[..., Bench]


@pytest.fixture
def make_bench() -> MakeBench:
    def make(**settings: Any) -> Bench:
        directory, disk = one_disk(4)
        return Bench(directory, disk, make_host(directory, **settings))

    return make
