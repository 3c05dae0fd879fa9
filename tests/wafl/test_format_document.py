"""docs/format.md and the declarations of wafl.format say the same, byte by byte."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from wafl import format as declared

DOCUMENT = (Path(__file__).resolve().parents[2] / "docs" / "format.md").read_text()
RECORDS = re.findall(r"^Record (\w+), (\d+) bytes:\n\n((?:\|.*\n)+)", DOCUMENT, re.MULTILINE)
CONSTANTS = re.findall(r"^\| ([A-Z_]+) \| (\d+) \|$", DOCUMENT, re.MULTILINE)


def documented_fields(table: str) -> list[tuple[int, int, str]]:
    """(offset, size, name) of each row."""
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in table.splitlines()[2:]]
    return [(int(offset), int(size), name) for offset, size, name, *_ in cells]


def declared_fields(record: Any) -> list[tuple[int, int, str]]:
    fields, offset = [], 0
    for field in record.subcons:
        fields.append((offset, field.sizeof(), field.name))
        offset += field.sizeof()
    return fields


@pytest.mark.parametrize(("name", "size", "table"), RECORDS, ids=[name for name, *_ in RECORDS])
def test_a_record_is_laid_out_as_documented(name: str, size: str, table: str) -> None:
    record = getattr(declared, name)
    assert record.sizeof() == int(size)
    assert documented_fields(table) == declared_fields(record)


def test_every_declared_record_is_documented() -> None:
    records = {value.declaration for value in vars(declared).values() if isinstance(value, declared.Record)}
    assert {getattr(declared, name) for name, *_ in RECORDS} == records


@pytest.mark.parametrize(("name", "value"), CONSTANTS)
def test_a_constant_has_the_documented_value(name: str, value: str) -> None:
    assert getattr(declared, name) == int(value)


def test_the_documented_planes_are_the_declared_ones() -> None:
    planes = re.findall(r"^\| (\d+) - (\d+) \| u(\d+) \|", DOCUMENT, re.MULTILINE)
    found = [(slice(int(first), int(last) + 1), int(bits)) for first, last, bits in planes]
    assert found == [(declared.VBN_PLANE, 64), (declared.CRC_PLANE, 32), (declared.BIRTH_PLANE, 32)]


@pytest.mark.parametrize("enum", [declared.InodeType, declared.EntryState, declared.VtocFlag, declared.FsinfoFlag])
def test_the_numbers_of_states_and_flags_are_documented(enum: Any) -> None:
    words = DOCUMENT.lower()
    for member in enum:
        if member:
            assert re.search(rf"\b{member.value} [^,|]*{member.name.lower().replace('_', ' ').split()[0]}", words)


def test_magics_are_documented() -> None:
    for magic in (declared.LABEL_MAGIC, declared.FSINFO_MAGIC):
        assert f"`{magic.decode().encode('unicode_escape').decode()}`" in DOCUMENT
