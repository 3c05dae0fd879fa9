"""The API's objects for policies of a volume (see `models`)."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, Field

from target.management.models import Request
from target.management.policies import MAX_PREFIXES
from wafl import MAX_SNAPSHOTS

Percent = Annotated[int, Field(ge=1, le=100)]
Count = Annotated[int, Field(ge=0, le=MAX_SNAPSHOTS)]
Hour = Annotated[int, Field(ge=0, le=23)]
Prefix = Annotated[str, Field(max_length=255)]


class Autodelete(BaseModel):
    volume: str
    enabled: bool
    trigger_percent: int = Field(description="A volume as full as this loses its oldest snapshots")
    target_percent: int = Field(description="until it is as full as this")
    prefixes: list[str] = Field(description="Only snapshots whose names begin so; '' is every snapshot")


class AutodeletePatch(Request):
    enabled: bool | None = None
    trigger_percent: Percent | None = None
    target_percent: Percent | None = None
    prefixes: list[Prefix] | None = Field(default=None, max_length=MAX_PREFIXES)


class SnapshotSchedule(BaseModel):
    volume: str
    weekly: int = Field(description="How many are kept; taken on Sunday at 0:00")
    nightly: int = Field(description="How many are kept; taken at 0:00")
    hourly: int = Field(description="How many are kept; taken at `hours`")
    hours: list[int] = Field(description="Hours of the day, in the daemon's local time")
    next_at: float | None = Field(default=None, description="When the next one is taken")


class SchedulePut(Request):
    weekly: Count = 0
    nightly: Count = 0
    hourly: Count = 0
    hours: list[Hour] = Field(default=list(range(24)), max_length=24)
