"""Shared by all tests: what to do when the environment lacks something, and Hypothesis profiles."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import NoReturn

import pytest
from hypothesis import HealthCheck, settings

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
