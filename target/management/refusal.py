"""Why a request is refused, in one line that says what to do about it.

Every refusal has a short name that scripts can test (`snapshot-busy`), a message for people, and the
HTTP status it travels with.  Errors of the volume are translated here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus

import wafl

# Names that are not listed travel as 409 Conflict: the request was understood, the present state forbids it.
STATUS = {
    "no-such-volume": HTTPStatus.NOT_FOUND,
    "no-such-lun": HTTPStatus.NOT_FOUND,
    "no-such-snapshot": HTTPStatus.NOT_FOUND,
    "no-such-igroup": HTTPStatus.NOT_FOUND,
    "no-such-initiator": HTTPStatus.NOT_FOUND,
    "no-such-map": HTTPStatus.NOT_FOUND,
    "no-such-clone": HTTPStatus.NOT_FOUND,
    "no-such-operation": HTTPStatus.NOT_FOUND,
    "no-such-session": HTTPStatus.NOT_FOUND,
    "no-such-portal": HTTPStatus.NOT_FOUND,
    "no-such-portal-group": HTTPStatus.NOT_FOUND,
    "no-such-account": HTTPStatus.NOT_FOUND,
    "no-scrub": HTTPStatus.NOT_FOUND,
    "no-such-resource": HTTPStatus.NOT_FOUND,
    "invalid-argument": HTTPStatus.BAD_REQUEST,
    "invalid-name": HTTPStatus.BAD_REQUEST,
    "invalid-path": HTTPStatus.BAD_REQUEST,
    "invalid-size": HTTPStatus.BAD_REQUEST,
    "method-not-allowed": HTTPStatus.METHOD_NOT_ALLOWED,
    "too-large": HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    "no-space": HTTPStatus.INSUFFICIENT_STORAGE,
    "shutting-down": HTTPStatus.SERVICE_UNAVAILABLE,
    "worker-busy": HTTPStatus.SERVICE_UNAVAILABLE,
    "worker-ended": HTTPStatus.SERVICE_UNAVAILABLE,
    "worker-silent": HTTPStatus.SERVICE_UNAVAILABLE,
    "internal": HTTPStatus.INTERNAL_SERVER_ERROR,
    "io-error": HTTPStatus.INTERNAL_SERVER_ERROR,
    "corrupt-volume": HTTPStatus.INTERNAL_SERVER_ERROR,
    "volume-failed": HTTPStatus.INTERNAL_SERVER_ERROR,
}


class Refused(Exception):
    """A request that changes nothing.  `holders` names what stands in the way, when something does."""

    def __init__(self, name: str, message: str, holders: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.name = name
        self.message = message
        self.holders = list(holders)

    @property
    def status(self) -> int:
        return int(STATUS.get(self.name, HTTPStatus.CONFLICT))

    def __str__(self) -> str:
        return f"{self.name}: {self.message}"


def refusal_of(error: BaseException) -> Refused:
    """The refusal that carries an error of the volume or of the operating system to the user."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, wafl.WaflError):
        return Refused(error.name, one_line(error), getattr(error, "holders", ()))
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return Refused("io-error", f"{where}{error.strerror or error}")
    return Refused("internal", f"{type(error).__name__}: {one_line(error)}; the daemon's log has the details")


def one_line(error: object) -> str:
    return " ".join(str(error).split())
