"""/v1/iscsi: node name, portals, sessions, connections, accounts."""

from __future__ import annotations

from fastapi import APIRouter, Request

from target.management import models
from target.management.services import services_of

router = APIRouter(prefix="/v1/iscsi", tags=["iscsi"])


@router.get("")
async def status(request: Request) -> models.IscsiStatus:
    return services_of(request).iscsi.status()


@router.patch("")
async def patch(request: Request, wanted: models.IscsiPatch) -> models.IscsiStatus:
    """A new node name renames every target: refused while sessions exist."""
    return await services_of(request).iscsi.patch(wanted)


@router.get("/portals")
async def portals(request: Request) -> list[models.Portal]:
    return services_of(request).iscsi.portals()


@router.post("/portals", status_code=201)
async def add_portal(request: Request, wanted: models.PortalCreate) -> models.Portal:
    return await services_of(request).iscsi.add_portal(wanted.address, wanted.group)


@router.delete("/portals/{address}", status_code=204)
async def remove_portal(request: Request, address: str) -> None:
    await services_of(request).iscsi.remove_portal(address)


@router.get("/sessions")
async def sessions(request: Request) -> list[models.Session]:
    return services_of(request).iscsi.sessions()


@router.delete("/sessions/{session_id}", status_code=204)
async def close_session(request: Request, session_id: str) -> None:
    """End a session; the initiator may log in again."""
    await services_of(request).iscsi.close_session(session_id)


@router.post("/sessions/{session_id}/logout", status_code=202)
async def ask_for_logout(request: Request, session_id: str, wanted: models.LogoutRequest) -> models.Session:
    """Ask the initiator to log out; the session is closed when the time is over."""
    return await services_of(request).iscsi.ask_for_logout(session_id, wanted.time_s)


@router.get("/redirects")
async def redirects(request: Request) -> list[models.Redirect]:
    return services_of(request).redirects.all()


@router.put("/redirects/{volume}")
async def put_redirect(request: Request, volume: str, wanted: models.RedirectPut) -> models.Redirect:
    """New sessions of the volume's target are sent to another address; open ones stay."""
    return await services_of(request).redirects.put(volume, wanted)


@router.delete("/redirects/{volume}", status_code=204)
async def delete_redirect(request: Request, volume: str) -> None:
    await services_of(request).redirects.delete(volume)


@router.get("/connections")
async def connections(request: Request) -> list[models.Connection]:
    return [each for session in services_of(request).iscsi.sessions() for each in session.connections]


@router.get("/security")
async def accounts(request: Request) -> list[models.Account]:
    """The default first.  Never with secrets."""
    return services_of(request).security.all()


@router.put("/security/{initiator}")
async def put_account(request: Request, initiator: str, wanted: models.AccountPut) -> models.Account:
    return await services_of(request).security.put(initiator, wanted)


@router.delete("/security/{initiator}", status_code=204)
async def delete_account(request: Request, initiator: str) -> None:
    await services_of(request).security.delete(initiator)


@router.put("/security-default")
async def put_default(request: Request, wanted: models.AccountPut) -> models.Account:
    """For initiators without an account of their own."""
    return await services_of(request).security.put("", wanted)
