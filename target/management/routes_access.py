"""/v1/igroups and /v1/maps."""

from __future__ import annotations

from fastapi import APIRouter, Request

from target.management import models
from target.management.services import services_of

router = APIRouter(prefix="/v1")


@router.get("/igroups", tags=["igroups"])
async def igroups(request: Request) -> list[models.Igroup]:
    return services_of(request).igroups.all()


@router.post("/igroups", tags=["igroups"], status_code=201)
async def create_igroup(request: Request, wanted: models.IgroupCreate) -> models.Igroup:
    return await services_of(request).igroups.create(wanted)


@router.get("/igroups/{igroup}", tags=["igroups"])
async def igroup(request: Request, igroup: str) -> models.Igroup:
    return services_of(request).igroups.get(igroup)


@router.delete("/igroups/{igroup}", tags=["igroups"], status_code=204)
async def destroy_igroup(request: Request, igroup: str, force: bool = False) -> None:
    """Refused while LUNs are mapped to it, unless `force`."""
    await services_of(request).igroups.destroy(igroup, force)


@router.post("/igroups/{igroup}/initiators", tags=["igroups"])
async def add_initiators(request: Request, igroup: str, wanted: models.InitiatorsAdd) -> models.Igroup:
    return await services_of(request).igroups.add(igroup, wanted.initiators)


@router.delete("/igroups/{igroup}/initiators/{initiator}", tags=["igroups"])
async def remove_initiator(request: Request, igroup: str, initiator: str, force: bool = False) -> models.Igroup:
    """Refused while it is logged in and would lose LUNs, unless `force`."""
    return await services_of(request).igroups.remove(igroup, initiator, force)


@router.get("/maps", tags=["maps"])
async def maps(request: Request) -> list[models.LunMap]:
    return services_of(request).maps.all()


@router.post("/maps", tags=["maps"], status_code=201)
async def create_map(request: Request, wanted: models.MapCreate) -> models.LunMap:
    return await services_of(request).maps.create(wanted)


@router.delete("/maps", tags=["maps"], status_code=204)
async def delete_map(request: Request, path: str, igroup: str) -> None:
    await services_of(request).maps.delete(path, igroup)
