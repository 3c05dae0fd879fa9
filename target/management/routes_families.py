"""What is about families, LUNs and the snapshots they read through: layouts, estimates, trees."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request

from target.management import family_models as models
from target.management.models import Lun
from target.management.services import services_of
from wafl import MAX_STRETCHES

router = APIRouter(prefix="/v1")


@router.get("/layouts/{volume}/{lun:path}", tags=["luns"])
async def layout(
    request: Request, volume: str, lun: str, stretches: Annotated[int, Query(ge=1, le=MAX_STRETCHES)] = 64
) -> models.LunLayout:
    """Where the LUN's blocks live, in at most so many stretches: blocks of its own, its backing's, or none."""
    return await services_of(request).layouts.get(f"/vol/{volume}/{lun}", stretches)


@router.get("/estimates/{volume}/{lun:path}", tags=["clones"])
async def estimate(request: Request, volume: str, lun: str) -> models.CloneEstimate:
    """What the clone of a LUN takes, or what is left of it: blocks to copy, space, time."""
    return await services_of(request).families.estimate(f"/vol/{volume}/{lun}")


@router.get("/volumes/{volume}/families", tags=["clones"])
async def families(request: Request, volume: str) -> list[models.SnapshotFamily]:
    """Every snapshot, oldest first, with what depends on it and what it costs to free it."""
    return services_of(request).families.tree(volume)


@router.post("/rollouts", tags=["luns"], status_code=201)
async def rollout(request: Request, wanted: models.Rollout) -> list[Lun]:
    """Many LUNs of one parent at once, all or none, and their maps if an igroup is named."""
    return await services_of(request).rollouts.create(wanted)
