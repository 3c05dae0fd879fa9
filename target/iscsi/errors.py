"""The protocol core's own errors: whose fault, and what the answer is.

Nothing else leaves the core for bytes that a peer sent.
"""

from __future__ import annotations

from target.iscsi.constants import LoginStatus, RejectReason


class IscsiError(Exception):
    """Base of everything the core raises about a peer."""


class FormatError(IscsiError):
    """The bytes of a PDU can no longer be told apart: the connection ends (RFC 7143 7.7, error recovery level 0)."""


class PduRejected(IscsiError):
    """One PDU is refused with a Reject; the connection goes on (RFC 7143 11.17)."""

    def __init__(self, reason: RejectReason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class TextError(IscsiError):
    """Text that breaks RFC 7143 6.1 or a limit."""


class LoginFailure(IscsiError):
    """Login ends with this status.  The text is for the log and never holds a secret."""

    def __init__(self, status: int, detail: str, target_address: str = "") -> None:
        super().__init__(detail)
        self.status = status
        self.target_address = target_address


def login_error(detail: str) -> LoginFailure:
    """The initiator broke the rules of login in a way that has no status of its own."""
    return LoginFailure(LoginStatus.INITIATOR_ERROR, detail)
