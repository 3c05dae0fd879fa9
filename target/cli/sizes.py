"""Sizes as people write them: 512, 10k, 4m, 20g, 1t, with powers of 1024."""

from __future__ import annotations

import re

import click

UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40, "p": 1 << 50}
SIZE = re.compile(r"(\d{1,19})(?:\.(\d{1,6}))?([kmgtp]?)i?b?\Z", re.IGNORECASE)
LIMIT_BYTES = 1 << 62


def parse_size(text: str) -> int:
    """Bytes.  Raises ValueError with a sentence for the user."""
    match = SIZE.match(text.strip())
    if not match:
        raise ValueError(f"{text!r} is not a size; write 512, 10k, 4m, 20g or 1t")
    whole, fraction, unit = match.groups()
    factor = UNITS[unit.lower()]
    size = int(whole) * factor
    if fraction:
        part, rest = divmod(int(fraction) * factor, 10 ** len(fraction))
        if rest:
            raise ValueError(f"{text!r} is not a whole number of bytes")
        size += part
    if size > LIMIT_BYTES:
        raise ValueError(f"{text!r} is too large")
    return size


def format_size(size: float | None) -> str:
    """Three significant digits and a unit: what a table has room for."""
    if size is None:
        return "-"
    for unit in ("", "k", "m", "g", "t"):
        if abs(size) < 1024:
            digits = 0 if size == int(size) or size >= 100 else 1 if size >= 10 else 2
            return f"{size:.{digits}f}{unit}"
        size /= 1024
    return f"{size:.3g}p"


class SizeType(click.ParamType):  # type: ignore[type-arg]
    name = "size"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        try:
            return parse_size(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


class RateType(SizeType):
    """Bytes a second; a trailing /s is accepted."""

    name = "rate"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        rate = super().convert(str(value).removesuffix("/s"), param, ctx)
        return rate or self.fail(f"{value!r} would never end; write 100k, 20m or 1g", param, ctx)


SIZE_TYPE = SizeType()
RATE_TYPE = RateType()
