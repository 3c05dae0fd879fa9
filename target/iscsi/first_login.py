"""The first Login PDU of a connection, looked at before anybody has taken it: which target does it want?

RFC 7143 6.3.1 has the initiator say TargetName in its first login request.  If the text of that goes on in further PDUs
(the C bit) the name has to be in the first of them: initiators send it among their first keys.
"""

from __future__ import annotations

from target.iscsi import limits
from target.iscsi.constants import OPCODE_MASK, Opcode
from target.iscsi.errors import FormatError, TextError
from target.iscsi.framing import Framing
from target.iscsi.text import parse_pairs

_FRAMING = Framing(limits.LOGIN_DATA_SEGMENT_BYTES)


def bytes_wanted(seen: bytes) -> int:
    """How much has to be there before `target_of` can tell: more than `seen`, or no more if this is all it takes."""
    if len(seen) < limits.BHS_BYTES:
        return limits.BHS_BYTES
    if seen[0] & OPCODE_MASK != Opcode.LOGIN_REQUEST:
        return len(seen)
    try:
        return _FRAMING.size(memoryview(seen), 0)
    except FormatError:
        return len(seen)


def target_of(seen: bytes) -> str | None:
    """The target's name in the form in which names are compared; None for discovery, and for what is no login to a
    target: whoever takes the connection says what is wrong with it."""
    if len(seen) < limits.BHS_BYTES or seen[0] & OPCODE_MASK != Opcode.LOGIN_REQUEST:
        return None
    try:
        data = bytes(_FRAMING.split(memoryview(seen), 0).data)
        pairs = dict(parse_pairs(data[: data.rfind(0) + 1]))
    except (FormatError, TextError):
        return None
    name = pairs.get("TargetName")
    return name.lower() if name and pairs.get("SessionType") != "Discovery" else None
