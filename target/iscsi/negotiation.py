"""Negotiation of text keys by the rules of RFC 7143 6.2, from the table in keys.py.

One `Negotiation` lives as long as a connection: through login, and for declarations in full feature phase.  It
takes pairs in and gives the pairs to answer; it keeps the results in `values`, which start as the defaults.
Keys of authentication and SendTargets are not for it: it hands them back.
"""

from __future__ import annotations

from collections.abc import Callable

from target.iscsi import text
from target.iscsi.errors import TextError
from target.iscsi.keys import DEFAULTS, KEYS, Form, Key, Result, Sender, Value, When
from target.iscsi.text import Pairs

REJECT = "Reject"
IRRELEVANT = "Irrelevant"
NOT_UNDERSTOOD = "NotUnderstood"

_NUMERIC: dict[Result, Callable[[int, int], int]] = {Result.MINIMUM: min, Result.MAXIMUM: max}
_LOGICAL: dict[Result, Callable[[bool, bool], bool]] = {
    Result.AND: lambda a, b: a and b,
    Result.OR: lambda a, b: a or b,
}


class Negotiation:
    """The keys of one connection.  Raises TextError for what ends a login (or is a protocol error in a Text)."""

    def __init__(self, *, leading: bool = True) -> None:
        self.values: dict[str, Value] = dict(DEFAULTS)
        self.declared: dict[str, Value] = {}
        """What the peer declared, apart from the defaults."""
        self.discovery = False
        self.leading = leading
        self._answered: set[str] = set()
        self._announced: set[str] = set()

    def receive(self, pairs: Pairs, when: When) -> tuple[Pairs, Pairs]:
        """(answers, pairs that belong to authentication or ask for something)."""
        answers: Pairs = []
        others: Pairs = []
        names = [name for name, _ in pairs]
        if len(set(names)) != len(names):
            raise TextError("a key is there twice")
        # declarations first: SessionType decides which of the others are irrelevant
        for name, value in sorted(pairs, key=lambda pair: not _is_declaration(pair[0])):
            key = KEYS.get(name)
            if key is None:
                answers.append((name, NOT_UNDERSTOOD))
            elif Sender.INITIATOR not in key.sender or when not in key.when:
                raise TextError(f"{name} is not the initiator's to send at this stage")
            elif key.result in (Result.SECURITY, Result.REQUEST):
                others.append((name, value))
            else:
                self._one(key, value, answers)
        return answers, others

    def announce(self, name: str) -> Pairs:
        """Our own declaration of a key, once."""
        ours = KEYS[name].ours
        assert isinstance(ours, int)
        if name in self._announced:
            return []
        self._announced.add(name)
        return [(name, str(ours))]

    def _one(self, key: Key, value: str, answers: Pairs) -> None:
        if key.result is Result.OBSOLETE:
            answers.append((key.name, str(key.ours)))
        elif value in text.RESERVED_VALUES and key.form is not Form.TEXT:
            return  # an answer to something we declared; nothing follows from it
        elif key.result is Result.DECLARED:
            self._declare(key, value, answers)
        elif key.name in self._answered:
            raise TextError(f"{key.name} is negotiated a second time")
        else:
            self._answered.add(key.name)
            answers.append((key.name, self._negotiate(key, value)))

    def _declare(self, key: Key, value: str, answers: Pairs) -> None:
        try:
            parsed = _parse(key, value)
        except TextError:
            if key.form is Form.NUMBER:
                answers.append((key.name, REJECT))
                return
            raise
        if key.name != "MaxRecvDataSegmentLength" and self.declared.get(key.name, parsed) != parsed:
            raise TextError(f"{key.name} is declared a second time with another value")
        self.declared[key.name] = self.values[key.name] = parsed
        if key.name == "SessionType":
            self.discovery = parsed == "Discovery"

    def _negotiate(self, key: Key, value: str) -> str:
        if (self.discovery and not key.discovery) or (key.leading and not self.leading):
            return IRRELEVANT
        try:
            parsed = _parse(key, value)
        except TextError:
            return REJECT
        if key.form is Form.LIST:
            return self._choose(key, text.parse_list(value))
        ours = key.ours
        if key.form is Form.BOOLEAN:
            self.values[key.name] = truth = _LOGICAL[key.result](bool(parsed), bool(ours))
            return text.format_boolean(truth)
        assert isinstance(ours, int)
        self.values[key.name] = number = _NUMERIC[key.result](int(parsed), ours)
        return str(number)

    def _choose(self, key: Key, offer: list[str]) -> str:
        assert isinstance(key.ours, tuple)
        for item in offer:
            if item in key.ours:
                self.values[key.name] = item
                return item
        return REJECT


def _is_declaration(name: str) -> bool:
    key = KEYS.get(name)
    return key is not None and key.result is Result.DECLARED


def _parse(key: Key, value: str) -> Value:
    if key.form is Form.BOOLEAN:
        return text.parse_boolean(value)
    if key.form is Form.NUMBER:
        number = text.parse_number(value)
        if not key.low <= number <= key.high:
            raise TextError(f"{key.name} out of range")
        return number
    if key.form is Form.NAME:
        return text.check_iscsi_name(value)
    if key.form is Form.LIST:
        text.parse_list(value)
    if key.name == "SessionType" and value not in ("Normal", "Discovery"):
        raise TextError(f"SessionType {value[:40]!r}")
    return value
