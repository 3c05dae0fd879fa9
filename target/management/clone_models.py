"""The API's objects for clone jobs (see `models`, which has their status)."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, Field

from cloner import RUNNING_JOBS_MAX, Policy, Priority
from target.management.models import MAX_SIZE_BYTES, Request

Limit = Annotated[int, Field(ge=1, le=MAX_SIZE_BYTES)]
NewLimit = Annotated[int, Field(ge=0, le=MAX_SIZE_BYTES)]


class CloneStart(Request):
    limit_bytes_s: Limit | None = Field(default=None, description="Bytes a second at most")
    priority: Priority = Field(default=Priority.NORMAL, description="Who has a place to work first, and a larger share")
    full_speed: bool = Field(default=False, description="Give way to nobody, hosts included")
    policy: Policy = Field(
        default=Policy.REPORT,
        description="A source block that cannot be read fails the job at once (report) or after all others (ignore)",
    )
    share: bool = Field(default=False, description="Adopt the snapshot's blocks by pointer instead of copying them")
    force: bool = Field(default=False, description="Start although there is no room for all of it")


class ClonePatch(Request):
    """Of a job that has not ended; what is not given stays."""

    limit_bytes_s: NewLimit | None = Field(default=None, description="Bytes a second at most; 0: no limit")
    priority: Priority | None = None
    full_speed: bool | None = None
    policy: Policy | None = None


class CloneSettings(BaseModel):
    """Of all clone jobs together."""

    limit_bytes_s: int | None = Field(default=None, description="Bytes a second at most")
    running: int = Field(description="Jobs at work at once; the others are queued")


class CloneSettingsPatch(Request):
    limit_bytes_s: NewLimit | None = Field(default=None, description="Bytes a second at most; 0: no limit")
    running: Annotated[int, Field(ge=1, le=RUNNING_JOBS_MAX)] | None = None
