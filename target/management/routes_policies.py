"""/v1/volumes/V/autodelete and /v1/volumes/V/schedule."""

from __future__ import annotations

from fastapi import APIRouter, Request

from target.management import policy_models as models
from target.management.services import services_of

router = APIRouter(prefix="/v1/volumes/{volume}", tags=["policies"])


@router.get("/autodelete")
async def autodelete(request: Request, volume: str) -> models.Autodelete:
    """When snapshots are deleted to make room, and which."""
    return services_of(request).policies.autodelete(volume)


@router.patch("/autodelete")
async def set_autodelete(request: Request, volume: str, wanted: models.AutodeletePatch) -> models.Autodelete:
    """What is left out stays as it is."""
    return await services_of(request).policies.set_autodelete(volume, wanted)


@router.get("/schedule")
async def schedule(request: Request, volume: str) -> models.SnapshotSchedule:
    """The snapshots that are taken by the clock."""
    return services_of(request).policies.schedule(volume)


@router.put("/schedule")
async def set_schedule(request: Request, volume: str, wanted: models.SchedulePut) -> models.SnapshotSchedule:
    """Counts of 0 end a kind; its snapshots stay."""
    return await services_of(request).policies.set_schedule(volume, wanted)
