"""/v1 (the daemon), /v1/operations, /v1/events, /metrics."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response, StreamingResponse
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from target.management import metrics, models
from target.management.events import Event
from target.management.operations import Operation
from target.management.services import services_of

router = APIRouter()

MAX_WAIT_S = 3600.0


@router.get("/v1", tags=["daemon"])
async def daemon(request: Request) -> models.DaemonInfo:
    """What answers here."""
    core = services_of(request).core
    return models.DaemonInfo(
        version=request.app.version,
        pid=os.getpid(),
        nodename=core.state.nodename,
        started_at=core.started_at,
        state_directory=str(core.directory),
    )


# -- operations --------------------------------------------------------------------------------------------


def operation_model(operation: Operation) -> models.Operation:
    error = operation.error
    body = None if error is None else models.ErrorBody(error=error.name, message=error.message, holders=error.holders)
    return models.Operation(
        id=operation.id,
        kind=operation.kind,
        subject=operation.subject,
        state=operation.state.value,
        completed=operation.completed,
        total=operation.total,
        percent=operation.percent,
        message=operation.message,
        created_at=operation.created_at,
        finished_at=operation.finished_at,
        error=body,
        result=operation.result,
    )


@router.get("/v1/operations", tags=["operations"])
async def operations(request: Request) -> list[models.Operation]:
    """Those that run, and the last ones that ended."""
    return [operation_model(each) for each in services_of(request).core.operations.list()]


@router.get("/v1/operations/{operation_id}", tags=["operations"])
async def operation(request: Request, operation_id: str) -> models.Operation:
    return operation_model(services_of(request).core.operations.get(operation_id))


@router.get("/v1/operations/{operation_id}/wait", tags=["operations"])
async def wait(
    request: Request, operation_id: str, timeout: Annotated[float, Query(ge=0, le=MAX_WAIT_S)] = 60.0
) -> models.Operation:
    """Answers when the operation has ended, or after `timeout` seconds with the state it is in."""
    return operation_model(await services_of(request).core.operations.wait(operation_id, timeout))


@router.delete("/v1/operations/{operation_id}", tags=["operations"])
async def cancel(request: Request, operation_id: str) -> models.Operation:
    """Cancel it; answers when it has stopped.  One that has ended stays as it is."""
    return operation_model(await services_of(request).core.operations.cancel(operation_id))


# -- events ------------------------------------------------------------------------------------------------


def event_line(event: Event) -> bytes:
    shown = models.Event(
        seq=event.seq,
        time=event.time,
        kind=event.kind,
        severity=event.severity.name.lower(),  # type: ignore[arg-type]
        subject=event.subject,
        message=event.message,
        data=event.data,
    )
    return json.dumps(shown.model_dump(), ensure_ascii=False, default=str).encode() + b"\n"


@router.get(
    "/v1/events", tags=["events"], response_class=StreamingResponse,
    responses={200: {"content": {"application/jsonl": {"schema": models.Event.model_json_schema()}}}},
)  # fmt: skip
async def events(request: Request, since: Annotated[int, Query(ge=0)] = 0, follow: bool = False) -> StreamingResponse:
    """JSON lines of `Event`, oldest first; with `follow` the answer goes on with what happens."""
    log = services_of(request).core.events

    async def lines() -> AsyncIterator[bytes]:
        if follow:
            async for event in log.follow(since):
                yield event_line(event)
        else:
            for event in log.since(since):
                yield event_line(event)

    return StreamingResponse(lines(), media_type="application/jsonl")


# -- metrics -----------------------------------------------------------------------------------------------


@router.get("/metrics", tags=["daemon"], response_class=Response)
async def metrics_page(request: Request) -> Response:
    """For Prometheus."""
    return Response(metrics.page(services_of(request)), media_type=CONTENT_TYPE_LATEST)
