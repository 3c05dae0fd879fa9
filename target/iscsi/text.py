"""Text of Login and Text PDUs: key=value pairs and the forms of their values (RFC 7143 6.1).

Knows the syntax, not the meaning of any key (keys.py).  Everything refused here is a TextError; nothing is guessed.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable

from target.iscsi import limits
from target.iscsi.errors import TextError

Pairs = list[tuple[str, str]]

RESERVED_VALUES = frozenset(("Reject", "Irrelevant", "NotUnderstood"))
"""Answers that are not values (6.2)."""
NONE = "None"

_KEY = re.compile(r"[A-Za-z][A-Za-z0-9.\-+@_\[\]:#/]*\Z")
_NUMBER = re.compile(r"(?:0|[1-9][0-9]{0,19}|0[xX][0-9a-fA-F]{1,16})\Z")
# 4.2.7.2: what is left after stringprep; upper case is folded by the comparison in the directory, not here
_ISCSI_NAME = re.compile(r"(?:iqn\.|eui\.|naa\.)[^\s\x00-\x2c\x2f\x3b-\x40\x5b-\x60\x7b-\x7f]+\Z", re.IGNORECASE)


def parse_pairs(data: bytes | bytearray | memoryview) -> Pairs:
    """The pairs of one complete text (continuations already joined), in order."""
    if not data:
        return []
    if data[-1]:
        raise TextError("text does not end in NUL")  # 6.1: also after the last pair
    try:
        text = str(data, "utf-8")
    except UnicodeDecodeError:
        raise TextError("text is not UTF-8") from None
    pairs = [_split(item) for item in text.split("\0") if item]
    if len(pairs) > limits.TEXT_KEYS:
        raise TextError(f"more than {limits.TEXT_KEYS} keys in one text")
    return pairs


def _split(item: str) -> tuple[str, str]:
    key, equals, value = item.partition("=")
    if not equals:
        raise TextError(f"no '=' in {item[:80]!r}")
    if len(key) > limits.KEY_NAME_BYTES or not _KEY.match(key):
        raise TextError(f"not a key name: {key[:80]!r}")
    if len(value) > limits.VALUE_BYTES:
        raise TextError(f"the value of {key} is longer than {limits.VALUE_BYTES}")
    return key, value


def format_pairs(pairs: Iterable[tuple[str, str]]) -> bytes:
    return b"".join(f"{key}={value}\0".encode() for key, value in pairs)


def parse_boolean(value: str) -> bool:
    try:
        return {"Yes": True, "No": False}[value]
    except KeyError:
        raise TextError(f"neither Yes nor No: {value[:40]!r}") from None


def format_boolean(value: bool) -> str:
    return "Yes" if value else "No"


def parse_number(value: str) -> int:
    """A decimal or hexadecimal constant (6.1)."""
    if not _NUMBER.match(value):
        raise TextError(f"not a number: {value[:40]!r}")
    return int(value, 0)


def parse_list(value: str) -> list[str]:
    items = value.split(",")
    if not all(items):
        raise TextError(f"an empty item in the list {value[:80]!r}")
    return items


def parse_binary(value: str, limit_bytes: int) -> bytes:
    """A hex (0x) or base64 (0b) constant, of any length up to the limit (6.1: large-binary-value)."""
    prefix, digits = value[:2].lower(), value[2:]
    try:
        if prefix == "0x" and digits:
            result = binascii.unhexlify(digits.rjust(len(digits) + len(digits) % 2, "0"))
        elif prefix == "0b" and digits:
            result = base64.b64decode(digits, validate=True)
        else:
            raise TextError("binary value without 0x or 0b")
    except (binascii.Error, ValueError):
        raise TextError("damaged binary value") from None
    if len(result) > limit_bytes:
        raise TextError(f"binary value longer than {limit_bytes} bytes")
    return result


def format_binary(value: bytes) -> str:
    return "0x" + value.hex()


def readable(value: str) -> str:
    """Without what a terminal would take for a command."""
    return "".join(each if each.isprintable() else "?" for each in value)


def check_iscsi_name(name: str) -> str:
    """An iqn., eui. or naa. name (4.2.7), else TextError."""
    # names get into logs and onto terminals: nothing that does more there than be read
    if len(name.encode()) > limits.ISCSI_NAME_BYTES or not _ISCSI_NAME.match(name) or not name.isprintable():
        raise TextError(f"not an iSCSI name: {name[:80]!r}")
    return name
