"""The FastAPI application: routes over the services, refusals as JSON, nothing that blocks the loop.

Every handler is `async`, so it runs on the daemon's own loop: FastAPI would put a plain one into a thread,
where the volume must not be touched.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, MutableMapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from cloner import CloneError
from target.management import (
    models,
    routes_access,
    routes_families,
    routes_iscsi,
    routes_luns,
    routes_policies,
    routes_system,
    routes_volumes,
)
from target.management.refusal import Refused, one_line, refusal_of
from target.management.services import Services
from wafl import WaflError

log = logging.getLogger("lund.api")

MAX_BODY_BYTES = 256 << 10
"""A request with a thousand initiators of the longest name still fits."""
MAX_DATA_BYTES = 8 << 20
"""One piece of an import."""
DATA_PREFIX = "/v1/data/"

HTTP_REFUSALS = {404: "no-such-resource", 405: "method-not-allowed"}

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Around = Callable[[App], App]


def product_version() -> str:
    try:
        return version("lazylun")
    except PackageNotFoundError:
        return "unknown"


def make_app(services: Services, around: Around | None = None) -> FastAPI:
    """`around` gets every request whose body is not too long, and the application that is inside."""
    app = FastAPI(
        title="lazylun management API",
        version=product_version(),
        description="Volumes, LUNs, snapshots, lazy clones and access of one lund.  Sizes in bytes, times in seconds.",
        openapi_url="/v1/openapi.json",
        docs_url=None,
        redoc_url=None,
        responses={"4XX": {"model": models.ErrorBody}, "5XX": {"model": models.ErrorBody}},
    )
    app.state.services = services
    for module in (
        routes_system, routes_volumes, routes_policies, routes_luns, routes_families, routes_access, routes_iscsi,
    ):  # fmt: skip
        app.include_router(module.router)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http_error)
    for kind in (Refused, WaflError, CloneError, OSError):
        app.add_exception_handler(kind, _refused)
    app.add_exception_handler(Exception, _internal)
    if around is not None:
        app.add_middleware(around)
    app.add_middleware(BodyLimit)
    return app


def refusal_response(refused: Refused) -> JSONResponse:
    body = models.ErrorBody(error=refused.name, message=refused.message, holders=refused.holders)
    return JSONResponse(body.model_dump(), status_code=refused.status)


async def _refused(_request: Request, error: Exception) -> JSONResponse:
    return refusal_response(refusal_of(error))


async def _internal(request: Request, error: Exception) -> JSONResponse:
    # Starlette logs the traceback itself; the answer is one line like any other.
    return refusal_response(refusal_of(error))


async def _invalid(_request: Request, error: Exception) -> JSONResponse:
    """Which field, and what is wrong with it.  Never the value: it may be a secret."""
    assert isinstance(error, RequestValidationError)
    problems = [f"{_field_name(each['loc'])}: {one_line(each['msg'])}" for each in error.errors()[:5]]
    return refusal_response(Refused("invalid-argument", "; ".join(problems)))


def _field_name(location: tuple[int | str, ...]) -> str:
    return ".".join(str(part) for part in location if part not in ("body", "query", "path")) or "body"


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    name = HTTP_REFUSALS.get(error.status_code, "invalid-argument")
    refused = Refused(name, f"{request.method} {request.url.path[:200]}: {error.detail}; see /v1/openapi.json")
    return refusal_response(refused)


class BodyLimit:
    """Refuses bodies that are too large, by their announced length or as they come in."""

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        limit = MAX_DATA_BYTES if scope["path"].startswith(DATA_PREFIX) else MAX_BODY_BYTES
        too_large = Refused("too-large", f"the request's body has more than {limit} bytes")
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        if not announced.isdigit() or int(announced) > limit:
            await refusal_response(too_large)(scope, receive, send)
            return
        taken, overflown = 0, False

        async def counted() -> MutableMapping[str, Any]:
            nonlocal taken, overflown
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > limit:
                overflown = True
                raise too_large
            return message

        async def unless_overflown(message: MutableMapping[str, Any]) -> None:
            # FastAPI makes a refusal of its own of whatever goes wrong while it reads a body.
            if not overflown:
                await send(message)

        await self.app(scope, counted, unless_overflown)
        if overflown:
            await refusal_response(too_large)(scope, receive, send)
