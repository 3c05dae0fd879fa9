"""Test hosts and daemons for real initiators.  On each worker they run one after the other (tests/conftest.py), with a
network namespace and guests of their own."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import unavailable
from tests.support.lund import BIN, Lund
from tests.support.netns import Namespace
from tests.support.openiscsi import OpenIscsi
from tests.support.uml import HostError, UmlHost, missing_parts

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.real)


CHECK_LIMIT_S = 180.0
"""Of the checker on a machine that has other work."""


@pytest.fixture(scope="session")
def namespace() -> Iterator[Namespace]:
    reasons = missing_parts()
    if reasons:
        unavailable("; ".join(reasons))
    with Namespace() as ns:
        yield ns


@pytest.fixture
def tools() -> None:
    """libiscsi's and QEMU's command-line initiators."""
    unavailable_without("iscsi-ls", "iscsi-inq", "iscsi-test-cu", "iscsi-perf", "qemu-img", "qemu-io")


def unavailable_without(*programs: str) -> None:
    missing = [name for name in programs if shutil.which(name) is None]
    if missing:
        unavailable(f"no {', '.join(missing)}")


@pytest.fixture
def lund(namespace: Namespace, tmp_path: Path) -> Iterator[Lund]:
    """A fresh daemon with a volume vol0; every volume is checked when it has stopped."""
    with serving(Lund(namespace, tmp_path / "state")) as daemon:
        yield daemon


@contextlib.contextmanager
def serving(daemon: Lund) -> Iterator[Lund]:
    with daemon:
        daemon.add_volume()
        yield daemon
    check_volumes(daemon)


def check_volumes(lund: Lund) -> None:
    for image in sorted(lund.directory.glob("volumes/*")):
        done = lund.namespace.run([BIN / "wafl", "check", image], timeout_s=CHECK_LIMIT_S)
        assert done.returncode == 0, f"{image} is damaged:\n{done.stdout}{done.stderr}"


@pytest.fixture(scope="session")
def _booted() -> Iterator[dict[str, UmlHost]]:
    """Guests by name."""
    hosts: dict[str, UmlHost] = {}
    try:
        yield hosts
    finally:
        for host in hosts.values():
            host.close()


@pytest.fixture
def guest(
    _booted: dict[str, UmlHost], namespace: Namespace, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[UmlHost]:
    """A Linux host, logged in nowhere.  One guest serves many tests; one that cannot be tidied up is replaced."""
    with lent(_booted, "first", lambda: boot(namespace, tmp_path_factory)) as host:
        yield host


@pytest.fixture
def other_guest(
    _booted: dict[str, UmlHost], namespace: Namespace, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[UmlHost]:
    """A second one."""
    with lent(_booted, "second", lambda: boot(namespace, tmp_path_factory)) as host:
        yield host


def boot(namespace: Namespace, factory: pytest.TempPathFactory) -> UmlHost:
    return UmlHost(namespace, factory.mktemp("guest")).start()


def tidy_up(host: UmlHost) -> None:
    host.sh(
        "cd /; for m in $(awk '$1 ~ /^.dev.sd/ { print $2 }' /proc/mounts); do umount $m; done;"
        "iscsiadm -m session >/dev/null 2>&1 && iscsiadm -m node --logoutall=all >/dev/null;"
        "rm -rf /etc/iscsi/nodes /etc/iscsi/send_targets /tmp/*; ! iscsiadm -m session >/dev/null 2>&1",
        limit_s=20,
    )


@contextlib.contextmanager
def lent(
    booted: dict[str, UmlHost],
    name: str,
    boot: Callable[[], UmlHost],
    tidy: Callable[[UmlHost], None] = tidy_up,
) -> Iterator[UmlHost]:
    """The guest of this name, booted if there is none."""
    if name not in booted:
        booted[name] = boot()
    yield booted[name]
    with contextlib.suppress(HostError):
        tidy(booted[name])
        return
    booted.pop(name).close()


@pytest.fixture
def host(lund: Lund, guest: UmlHost) -> UmlHost:
    """A host to use a daemon with; it is tidied up while the daemon still answers."""
    return guest


@pytest.fixture
def other_host(lund: Lund, other_guest: UmlHost) -> UmlHost:
    return other_guest


@pytest.fixture
def iscsi(host: UmlHost) -> OpenIscsi:
    return OpenIscsi(host)
