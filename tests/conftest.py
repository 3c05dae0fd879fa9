"""Shared by all tests: what to do when the environment lacks something, Hypothesis profiles, and who runs where."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NoReturn

import pytest
from hypothesis import HealthCheck, settings
from xdist.scheduler import LoadScopeScheduling

if TYPE_CHECKING:
    from tests.support.volumes import Workshop

IN_CI = bool(os.environ.get("LAZYLUN_CI") or os.environ.get("CI"))

# A busy two-core machine is no reason for a property to fail: no deadlines.
settings.register_profile("default", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", parent=settings.get_profile("default"), print_blob=True)
settings.load_profile("ci" if IN_CI else "default")


def unavailable(reason: str) -> NoReturn:
    """A visible skip for a person, a failure in CI: there everything must run."""
    if IN_CI:
        pytest.fail(f"cannot run here: {reason}")
    pytest.skip(reason)


@pytest.fixture(scope="session")
def need() -> Callable[[str, bool], None]:
    """`need("root", os.geteuid() == 0)`: skips, or fails in CI, if the condition does not hold."""

    def check(what: str, holds: bool) -> None:
        if not holds:
            unavailable(f"needs {what}")

    return check


@pytest.fixture
def workshop() -> Iterator[Workshop]:
    """Volumes in memory; each one must check clean when the test ends."""
    from tests.support.volumes import Workshop

    shop = Workshop()
    yield shop
    shop.finish()


# Two workers have Linux hosts.  One has power, cables, daemons that are killed, and clones: about half of the time, by
# what each module takes on two cores (in this order 75, 60, 40, 50, 50 and 50 s).  The other one has the rest.
HOSTS_APART = frozenset(
    f"tests/real/test_{name}.py"
    for name in ("power_cut", "multipath", "alua", "daemon_crash", "lazy_clone", "clone_life")
)


def scope(nodeid: str) -> str:
    """What is on one worker, one after the other.  libiscsi's suite mostly sleeps, so it is not with the hosts."""
    module = nodeid.partition("::")[0]
    if module == "tests/real/test_libiscsi.py":
        return "libiscsi"
    if module in HOSTS_APART:
        return "hosts apart"
    return "hosts" if module.startswith("tests/real/") else nodeid


class Scheduling(LoadScopeScheduling):
    """Real initiators first, because they take longest; the rest anywhere."""

    def _split_scope(self, nodeid: str) -> str:
        return scope(nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Scheduling:
    return Scheduling(config, log)
