"""The dependency direction of DESIGN section 3, read from the imports themselves."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("wafl", "cloner", "target")
MODULES = sorted(p for name in PACKAGES for p in (ROOT / name).rglob("*.py"))

# prefix of the importing module -> prefixes it must not import
FORBIDDEN = {
    "wafl": ("cloner", "target"),
    "cloner": ("target",),
    "target.iscsi": ("wafl", "cloner", "target.scsi", "target.portal", "target.management", "target.cli"),
    "target.scsi": ("wafl", "cloner", "target.iscsi", "target.portal", "target.management", "target.cli"),
    "target.portal": ("wafl", "cloner", "target.scsi", "target.management", "target.cli"),
    "target.cli": ("wafl", "cloner", "target.iscsi", "target.scsi", "target.portal", "target.management"),
}
# sans-I/O packages: time and randomness are passed in, nothing waits
SANS_IO = ("target.iscsi", "target.scsi")
IMPURE = (
    "asyncio", "socket", "selectors", "threading", "time", "random", "secrets", "uvloop", "concurrent", "subprocess",
)


def within(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


def module_name(path: Path) -> str:
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    return name.removesuffix(".__init__")


PURE = [p for p in MODULES if any(within(module_name(p), s) for s in SANS_IO)]


def imports_of(path: Path) -> list[str]:
    found: list[str] = []
    package = module_name(path) if path.name == "__init__.py" else module_name(path).rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parent = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parent, base]).rstrip(".")
            found += [base, *(f"{base}.{alias.name}" for alias in node.names)]
    return found


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_imports_follow_the_layers(path: Path) -> None:
    name = module_name(path)
    banned = [b for prefix, bans in FORBIDDEN.items() if within(name, prefix) for b in bans]
    wrong = [i for i in imports_of(path) if any(within(i, b) for b in banned)]
    assert not wrong, f"{name} must not import {wrong}"


@pytest.mark.parametrize("path", PURE, ids=module_name)
def test_sans_io_packages_touch_no_clock_socket_or_randomness(path: Path) -> None:
    wrong = [i for i in imports_of(path) if any(within(i, b) for b in IMPURE)]
    assert not wrong, f"{module_name(path)} imports {wrong}"


@pytest.mark.parametrize("path", [p for p in MODULES if within(module_name(p), "cloner")], ids=module_name)
def test_cloner_uses_only_public_names_of_wafl(path: Path) -> None:
    wrong = [i for i in imports_of(path) if i.startswith("wafl.") and not _is_public(i)]
    assert not wrong, f"{module_name(path)} reaches into wafl: {wrong}"


def _is_public(name: str) -> bool:
    exported = ast.parse((ROOT / "wafl" / "__init__.py").read_text())
    for node in ast.walk(exported):
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets):
            return name.removeprefix("wafl.") in ast.literal_eval(node.value)
    return False


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_a_long_module_says_why_at_its_head(path: Path) -> None:
    text = path.read_text()
    if text.count("\n") > 500:
        docstring = ast.get_docstring(ast.parse(text)) or ""
        assert "Length:" in docstring, f"{path} has over 500 lines and no 'Length:' reason in its docstring"
