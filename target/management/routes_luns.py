"""/v1/luns, /v1/clones, /v1/alua and /v1/data.  In URLs a LUN is `VOLUME/LUN`: /vol/vol0/lun0 is /v1/luns/vol0/lun0."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from target.management import clone_models, models
from target.management.clone_settings import change_settings, settings_now
from target.management.services import services_of

router = APIRouter(prefix="/v1")

MAX_READ_BYTES = 8 << 20
Offset = Annotated[int, Query(ge=0, le=models.MAX_SIZE_BYTES)]


def _path(volume: str, lun: str) -> str:
    return f"/vol/{volume}/{lun}"


@router.get("/luns", tags=["luns"])
async def luns(request: Request, volume: str | None = None) -> list[models.Lun]:
    """Of all volumes that are online, or of one."""
    return services_of(request).luns.all(volume)


@router.post("/luns", tags=["luns"], status_code=201)
async def create(request: Request, wanted: models.LunCreate) -> models.Lun:
    """Empty, or backed by a LUN in a snapshot: then at once, whatever its size."""
    return await services_of(request).luns.create(wanted)


@router.get("/luns/{volume}/{lun:path}", tags=["luns"])
async def get(request: Request, volume: str, lun: str) -> models.Lun:
    return services_of(request).luns.get(_path(volume, lun))


@router.patch("/luns/{volume}/{lun:path}", tags=["luns"])
async def patch(request: Request, volume: str, lun: str, wanted: models.LunPatch) -> models.Lun:
    """Change what is given: size, name, online, reservation, comment, serial."""
    return await services_of(request).luns.patch(_path(volume, lun), wanted)


@router.delete("/luns/{volume}/{lun:path}", tags=["luns"], status_code=204)
async def destroy(request: Request, volume: str, lun: str, force: bool = False) -> None:
    """Refused while it is mapped or in use, unless `force`."""
    await services_of(request).luns.destroy(_path(volume, lun), force)


# -- clones ------------------------------------------------------------------------------------------------


@router.get("/clones", tags=["clones"])
async def clones(request: Request) -> list[models.CloneStatus]:
    """Every LUN that has a clone job, or could have one."""
    return services_of(request).clones.all()


@router.get("/clone-settings", tags=["clones"])
async def clone_settings(request: Request) -> clone_models.CloneSettings:
    """What all clone jobs together obey."""
    return settings_now(services_of(request).core)


@router.patch("/clone-settings", tags=["clones"])
async def change_clone_settings(
    request: Request, wanted: clone_models.CloneSettingsPatch
) -> clone_models.CloneSettings:
    """Kept over a restart; before the configuration file."""
    return await change_settings(services_of(request).core, wanted)


@router.get("/clones/{volume}/{lun:path}", tags=["clones"])
async def clone(request: Request, volume: str, lun: str) -> models.CloneStatus:
    return services_of(request).clones.get(_path(volume, lun))


@router.put("/clones/{volume}/{lun:path}", tags=["clones"])
async def start(request: Request, volume: str, lun: str, wanted: clone_models.CloneStart) -> models.CloneStatus:
    """Start it, or go on after a stop or a failure."""
    return await services_of(request).clones.start(_path(volume, lun), wanted)


@router.patch("/clones/{volume}/{lun:path}", tags=["clones"])
async def change_clone(
    request: Request, volume: str, lun: str, wanted: clone_models.ClonePatch
) -> models.CloneStatus:
    """Change a job's options while it runs or waits."""
    return await services_of(request).clones.patch(_path(volume, lun), wanted)


@router.delete("/clones/{volume}/{lun:path}", tags=["clones"])
async def stop(request: Request, volume: str, lun: str) -> models.CloneStatus:
    """Stop it; what is filled stays filled."""
    return await services_of(request).clones.stop(_path(volume, lun))


# -- paths -------------------------------------------------------------------------------------------------


@router.get("/alua/{volume}/{lun:path}", tags=["luns"])
async def access_states(request: Request, volume: str, lun: str) -> list[models.PortGroupAccess]:
    """The asymmetric access state of every portal group."""
    return services_of(request).alua.get(_path(volume, lun))


@router.put("/alua/{volume}/{lun:path}", tags=["luns"])
async def set_access_state(
    request: Request, volume: str, lun: str, wanted: models.PortGroupPut
) -> list[models.PortGroupAccess]:
    """Hosts are told (2A/06), and it outlives a restart."""
    return await services_of(request).alua.put(_path(volume, lun), wanted)


# -- data --------------------------------------------------------------------------------------------------


@router.get("/data/{volume}/{lun:path}", tags=["data"], response_class=Response)
async def read(
    request: Request, volume: str, lun: str, length: Annotated[int, Query(ge=1, le=MAX_READ_BYTES)], offset: Offset = 0
) -> Response:
    """Bytes of a LUN, for export.  204 if the whole piece is unmapped, so that the copy can be sparse."""
    data = await services_of(request).data.read(_path(volume, lun), offset, length)
    if data is None:
        return Response(status_code=204)
    return Response(data, media_type="application/octet-stream")


@router.put("/data/{volume}/{lun:path}", tags=["data"], status_code=204)
async def write(request: Request, volume: str, lun: str, offset: Offset = 0) -> None:
    """Write the body into a LUN that no host uses, for import.  The last piece should be followed by a flush."""
    await services_of(request).data.write(_path(volume, lun), offset, await request.body())


@router.post("/data/{volume}/{lun:path}", tags=["data"], status_code=204)
async def flush(request: Request, volume: str, lun: str) -> None:
    """Answers once everything written before is durable."""
    await services_of(request).data.flush(_path(volume, lun))
