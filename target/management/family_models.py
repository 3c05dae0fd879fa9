"""The objects of the API about families: LUNs, the snapshots they read through, and what binds them together."""

from __future__ import annotations

from pydantic import BaseModel, Field


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
