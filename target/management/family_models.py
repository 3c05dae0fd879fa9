"""The objects of the API about families: LUNs, the snapshots they read through, and what binds them together."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from target.management.models import Comment, LunBacking, Name, Path, Request

MAX_NUMBER = 10**9
MAX_ROLLOUT = 250
"""LUNs made in one go: hosts wait meanwhile, about a millisecond a LUN on a volume that has the most."""


class Stretch(BaseModel):
    offset: int
    length: int
    own_bytes: int = Field(description="In blocks of the LUN's own")
    backing_bytes: int = Field(description="Read through the backing snapshot; the rest reads zeros")


class LunLayout(BaseModel):
    path: str
    size_bytes: int
    own_bytes: int
    backing_bytes: int
    zero_bytes: int = Field(description="In no block at all")
    exact: bool = Field(description="False: a large LUN, of which an even choice of pointer blocks was read")
    backing: str = Field(default="", description="Path of what the LUN reads through")
    stretches: list[Stretch] = Field(description="In order, of about the same length, covering the LUN")


class CloneEstimate(BaseModel):
    path: str
    backing: str = Field(description="Path of what the LUN reads through")
    missing_blocks: int = Field(description="Blocks of 4096 bytes to copy")
    exact: bool = Field(
        description="They have just been counted; else hosts may have written over or discarded some of them"
    )
    missing_bytes: int
    needed_bytes: int = Field(description="What the volume will hold more: the blocks and the pointers to them")
    available_bytes: int = Field(description="What the volume has for it; guests keep the rest")
    fits: bool
    rate_bytes_s: float | None = Field(description="Of the clone that runs, or the last of the volume; null: not known")
    seconds: float | None = Field(description="At that rate; null: not known")


class Dependent(BaseModel):
    path: str
    kind: Literal["lun", "snapshot"] = Field(description="A LUN, or a later snapshot that has such LUNs in it")
    snapshot: str | None = Field(default=None, description="Name of the later snapshot, which has to be deleted")
    luns: int = Field(default=0, description="Of a later snapshot: how many such LUNs it has")
    derived: list[str] = Field(default=[], description="Of a later snapshot: LUNs that were made from those in it")
    backing: str | None = Field(default=None, description="Of a LUN: path of what it reads through")
    missing_bytes: int = Field(default=0, description="Of a LUN: what its clone has to copy")
    clone: str = Field(default="none", description="Of a LUN: state of its clone")


class SnapshotFamily(BaseModel):
    """A snapshot, what depends on it, and what it costs to free it."""

    volume: str
    snapshot: str
    id: int
    created_at: float
    leaving: bool = Field(description="It goes as soon as nothing depends on it")
    dependents: list[Dependent]
    clones_needed: list[str] = Field(description="LUNs to clone before it can go, those on later snapshots too")
    snapshots_in_the_way: list[str] = Field(description="Later snapshots that have to go before it")
    missing_bytes: int = Field(description="What all those clones have to copy")


class Rollout(Request):
    pattern: Path = Field(
        description="Path of the LUNs, with %d or %03d where their number goes", examples=["/vol/vol0/vm%03d"]
    )
    count: Annotated[int, Field(ge=1, le=MAX_ROLLOUT)]
    first: Annotated[int, Field(ge=0, le=MAX_NUMBER)] = Field(default=1, description="Number of the first LUN")
    backing: LunBacking
    igroup: Name | None = Field(default=None, description="Map all of them to it, under the lowest ids that are free")
    ostype: str | None = Field(default=None, description="Default: the parent's")
    reserved: bool | None = Field(default=None, description="Default: what the parent is")
    comment: Comment = ""
