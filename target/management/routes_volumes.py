"""/v1/volumes and the snapshots of each."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request

from target.management import models
from target.management.clone_models import CloneStart
from target.management.routes_system import operation_model
from target.management.services import services_of

router = APIRouter(prefix="/v1/volumes")


@router.get("", tags=["volumes"])
async def volumes(request: Request) -> list[models.Volume]:
    return services_of(request).volumes.all()


@router.post("", tags=["volumes"], status_code=201)
async def create(request: Request, wanted: models.VolumeCreate) -> models.Volume:
    return await services_of(request).volumes.create(wanted)


@router.get("/{volume}", tags=["volumes"])
async def volume(request: Request, volume: str) -> models.Volume:
    return services_of(request).volumes.get(volume)


@router.patch("/{volume}", tags=["volumes"])
async def patch(request: Request, volume: str, wanted: models.VolumePatch) -> models.Volume:
    """Take it online or offline; make it larger."""
    return await services_of(request).volumes.patch(volume, wanted)


@router.delete("/{volume}", tags=["volumes"], status_code=204)
async def destroy(request: Request, volume: str, force: bool = False) -> None:
    """Remove it and its file; `force` although it has LUNs."""
    await services_of(request).volumes.destroy(volume, force)


@router.post("/{volume}/check", tags=["volumes"], status_code=202)
async def check(request: Request, volume: str) -> models.Operation:
    """Check the whole volume; the operation's result has the findings."""
    return operation_model(services_of(request).volumes.check(volume))


@router.get("/{volume}/scrub", tags=["volumes"])
async def scrub_status(request: Request, volume: str) -> models.ScrubStatus:
    """The scrub that runs, or what the last one found."""
    return services_of(request).scrubs.status(volume)


@router.put("/{volume}/scrub", tags=["volumes"])
async def scrub_start(request: Request, volume: str, wanted: models.ScrubStart) -> models.ScrubStatus:
    """Read every block in the background; for one that runs, change its limit."""
    return await services_of(request).scrubs.start(volume, wanted.limit_bytes_s)


@router.delete("/{volume}/scrub", tags=["volumes"])
async def scrub_stop(request: Request, volume: str) -> models.ScrubStatus:
    """Stop it; nothing of it runs any more when this returns."""
    return await services_of(request).scrubs.stop(volume)


@router.get("/{volume}/snapshots", tags=["snapshots"])
async def snapshots(request: Request, volume: str, space: bool = False) -> list[models.Snapshot]:
    """Oldest first; with `space` also what each holds and what its deletion would give back."""
    found = services_of(request).snapshots
    return await found.all_with_space(volume) if space else found.all(volume)


@router.get("/{volume}/reclaimable", tags=["snapshots"])
async def reclaimable(
    request: Request, volume: str, snapshot: Annotated[list[str], Query(min_length=1, max_length=255)]
) -> models.Reclaimable:
    """What deleting all of these snapshots would give back: more than the sum of what each alone would."""
    return await services_of(request).snapshots.reclaimable(volume, snapshot)


@router.post("/{volume}/snapshots", tags=["snapshots"], status_code=201)
async def create_snapshot(request: Request, volume: str, wanted: models.SnapshotCreate) -> models.Snapshot:
    return await services_of(request).snapshots.create(volume, wanted.name)


@router.get("/{volume}/snapshots/{snapshot}", tags=["snapshots"])
async def snapshot(request: Request, volume: str, snapshot: str) -> models.Snapshot:
    """With everything that depends on it."""
    return services_of(request).snapshots.get(volume, snapshot)


@router.get("/{volume}/snapshots/{snapshot}/luns", tags=["snapshots"])
async def snapshot_luns(request: Request, volume: str, snapshot: str) -> list[models.SnapshotLun]:
    return services_of(request).snapshots.luns(volume, snapshot)


@router.patch("/{volume}/snapshots/{snapshot}", tags=["snapshots"])
async def rename(request: Request, volume: str, snapshot: str, wanted: models.SnapshotPatch) -> models.Snapshot:
    return await services_of(request).snapshots.rename(volume, snapshot, wanted.name)


@router.delete("/{volume}/snapshots/{snapshot}", tags=["snapshots"], status_code=204)
async def delete(request: Request, volume: str, snapshot: str) -> None:
    """Refused with `snapshot-busy` and all holders while something depends on it."""
    await services_of(request).snapshots.delete(volume, snapshot)


@router.put("/{volume}/snapshots/{snapshot}/departure", tags=["snapshots"])
async def depart(
    request: Request, volume: str, snapshot: str, wanted: CloneStart | None = None
) -> models.Snapshot | None:
    """Clone the LUNs that hold it, and delete it when they are done; null: nothing holds it, and it is gone.  Asked for
    once more it starts again the clones that failed or were stopped.  The body is for the clones that are started."""
    return await services_of(request).departures.ask(volume, snapshot, wanted or CloneStart())


@router.delete("/{volume}/snapshots/{snapshot}/departure", tags=["snapshots"])
async def stay(request: Request, volume: str, snapshot: str) -> models.Snapshot:
    """It stays after all; clones that run go on."""
    return await services_of(request).departures.cancel(volume, snapshot)


@router.post("/{volume}/snapshots/{snapshot}/restore", tags=["snapshots"])
async def restore(request: Request, volume: str, snapshot: str, wanted: models.SnapshotRestore) -> models.Restored:
    """Put one LUN, or the whole volume, back to what the snapshot has.  At once, whatever the size; a clone then
    copies in the background and lets the snapshot go.  Refused while hosts see the LUNs, unless `force`."""
    return await services_of(request).restores.restore(volume, snapshot, wanted)
