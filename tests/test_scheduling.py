"""Which worker of `make test` has what (tests/conftest.py)."""

from __future__ import annotations

from pathlib import Path

from tests.conftest import HOSTS_APART, scope

REAL = Path(__file__).parent / "real"


def test_modules_with_linux_hosts_are_on_two_workers_and_libiscsi_on_another() -> None:
    modules = {f"tests/real/{path.name}" for path in REAL.glob("test_*.py")}
    assert modules >= HOSTS_APART
    scopes = {module: scope(f"{module}::test_it[a::b]") for module in modules}
    assert {module for module, name in scopes.items() if name == "hosts apart"} == HOSTS_APART
    assert [module for module, name in scopes.items() if name == "libiscsi"] == ["tests/real/test_libiscsi.py"]
    assert set(scopes.values()) == {"hosts", "hosts apart", "libiscsi"}


def test_every_other_test_is_on_its_own() -> None:
    assert scope("tests/wafl/test_check.py::test_it[1]") == "tests/wafl/test_check.py::test_it[1]"
