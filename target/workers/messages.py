"""The messages between a front and its workers.  What carries them: `target.workers.channel`.

    to a worker                                                 from a worker
    begin     serve this volume; payload: the settings          change   statements for the settings, which it may not
    settings  the settings are these now (payload)                       write itself (payload)
    portals   where the front listens                           event    something happened (payload)
    login     a host's connection
    request   an HTTP request (payload: its body)
    ping
    stop      end in order

Every message but `login`, `portals`, `event` and `stop` has an answer.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from target.config import Config
from target.management.state import PORTAL_LIMIT

TEXT = 16 << 10
MAX_ROWS = 10_000
Tag = Annotated[int, Field(ge=1, le=65535)]
Port = Annotated[int, Field(ge=0, le=65535)]


class Message(BaseModel):
    model_config = ConfigDict(extra="forbid")

    id: int = Field(default=0, ge=0)
    """Of the question; 0: none is answered."""
    payload: bool = False
    """The first descriptor beside the packet is a file with more."""


class Listening(BaseModel):
    """One portal of the front."""

    model_config = ConfigDict(extra="forbid")

    host: str = Field(max_length=100)
    port: Port
    """As it was asked for."""
    actual_port: Port | None
    """None: it does not listen now."""
    group: Tag
    fixed: bool
    problem: str = Field(max_length=TEXT)


Portals = Annotated[list[Listening], Field(max_length=PORTAL_LIMIT)]


class Begin(Message):
    kind: Literal["begin"] = "begin"
    volume: str = Field(max_length=64)
    directory: str = Field(max_length=4096)
    config: Config
    portals: Portals


class SettingsNow(Message):
    kind: Literal["settings"] = "settings"


class PortalsNow(Message):
    kind: Literal["portals"] = "portals"
    portals: Portals


class Login(Message):
    kind: Literal["login"] = "login"
    host: str = Field(max_length=100)
    port: Port
    group: Tag


class Request(Message):
    kind: Literal["request"] = "request"
    method: str = Field(max_length=16)
    path: str = Field(max_length=TEXT)
    query: str = Field(max_length=TEXT)
    content_type: str = Field(max_length=200)


class Ping(Message):
    kind: Literal["ping"] = "ping"


class Stop(Message):
    kind: Literal["stop"] = "stop"


class Change(Message):
    kind: Literal["change"] = "change"


class Happened(Message):
    kind: Literal["event"] = "event"


class Answer(Message):
    kind: Literal["answer"] = "answer"
    status: int = Field(default=200, ge=100, le=599)
    """Of a request; the payload is its body."""
    content_type: str = Field(default="", max_length=200)
    error: str = Field(default="", max_length=100)
    """The name of a refusal."""
    message: str = Field(default="", max_length=TEXT)


AnyMessage = Annotated[
    Begin | SettingsNow | PortalsNow | Login | Request | Ping | Stop | Change | Happened | Answer,
    Field(discriminator="kind"),
]


class Event(BaseModel):
    """The payload of `event`."""

    model_config = ConfigDict(extra="forbid")

    event: str = Field(max_length=200)
    message: str
    subject: str
    severity: int = Field(ge=0, le=100)
    data: dict[str, Any]


class Blob(BaseModel):
    """Bytes, as JSON can have them."""

    model_config = ConfigDict(extra="forbid")

    hex: str = Field(pattern=r"^([0-9a-f]{2})*$")


Value = bool | int | float | str | Blob | None


class Statement(BaseModel):
    """One of a change."""

    model_config = ConfigDict(extra="forbid")

    sql: str = Field(max_length=TEXT, pattern=r"^\s*(INSERT|UPDATE|DELETE)\s")
    rows: list[list[Value]] = Field(max_length=MAX_ROWS)
    """Its parameters, as often as it is done."""
