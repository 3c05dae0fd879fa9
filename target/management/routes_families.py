"""/v1/layouts and what else is about families: LUNs and the snapshots they read through."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request

from target.management import family_models as models
from target.management.services import services_of
from wafl import MAX_STRETCHES

router = APIRouter(prefix="/v1")


@router.get("/layouts/{volume}/{lun:path}", tags=["luns"])
async def layout(
    request: Request, volume: str, lun: str, stretches: Annotated[int, Query(ge=1, le=MAX_STRETCHES)] = 64
) -> models.LunLayout:
    """Where the LUN's blocks live, in at most so many stretches: blocks of its own, its backing's, or none."""
    return await services_of(request).layouts.get(f"/vol/{volume}/{lun}", stretches)
