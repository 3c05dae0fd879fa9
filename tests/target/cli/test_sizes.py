"""Sizes as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from target.cli.sizes import format_size, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("512", 512),
        ("10k", 10240),
        ("4m", 4 << 20),
        ("20g", 20 << 30),
        ("1t", 1 << 40),
        ("1.5G", 3 << 29),
        ("1GiB", 1 << 30),
    ],
)
def test_sizes_are_powers_of_1024(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "k", "1x", "-1", "1 g", "0.3", "1e9", "9" * 25, "99999999p", "1.5"])
def test_what_is_not_a_size_is_refused_with_a_sentence(text: str) -> None:
    with pytest.raises(ValueError, match=r"size|bytes|large"):
        parse_size(text)


@given(st.integers(0, 1 << 50))
def test_a_shown_size_is_within_one_percent(size: int) -> None:
    shown = format_size(size)
    number, unit = (shown[:-1], shown[-1]) if shown[-1].isalpha() else (shown, "")
    value = float(number) * {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40, "p": 1 << 50}[unit]
    assert value == pytest.approx(size, rel=0.01)
