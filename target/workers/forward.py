"""Which process an HTTP request is for: the front's application, with a worker's in its place where a volume has one.

    about one volume          its worker, by the volume in the path, in the query, or in the body
    about all of them         every worker, and the answers put together
    about anything else, and about volumes without a worker
                              the front: igroups, accounts, portals, discovery; making volumes and bringing them online

The front's own services know no mounted volume, so they say of a volume without a worker what they say of any volume
that is offline.
"""

from __future__ import annotations

import asyncio
import json
import re
from urllib.parse import parse_qs

from fastapi.responses import Response
from starlette.requests import Request

from target.management.api import App, Receive, Scope, Send, refusal_response
from target.management.names import LunPath
from target.management.refusal import Refused
from target.workers.asgi import body_once, whole_answer
from target.workers.front import Worker, Workers
from target.workers.merged import MERGED

OF_A_VOLUME = re.compile(
    r"/v1/(?:volumes|luns|clones|layouts|estimates|alua|data)/([^/]+)(?:/.*)?"
    r"|/v1/(?:operations|iscsi/sessions)/([^/]+)\.[0-9]+(?:/[a-z]+)?"
)
IN_THE_BODY = {("POST", "/v1/luns"): "path", ("POST", "/v1/maps"): "path", ("POST", "/v1/rollouts"): "pattern"}
"""The field with a LUN's path."""
IN_THE_QUERY = {("GET", "/v1/luns"): "volume", ("DELETE", "/v1/maps"): "path"}
MADE = re.compile(r"/v1/volumes(?:/([^/]+))?")
"""After these a volume may have a worker that had none before."""


class Forward:
    """Inside the limit on bodies."""

    def __init__(self, app: App, workers: Workers) -> None:
        self.app = app
        self.workers = workers
        self._serials = asyncio.Lock()
        """Held from looking for a serial number until it has been given: two volumes may be asked for the same one."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            answer = await self._answer(scope, receive)
        except Refused as refused:
            answer = refusal_response(refused)
        if isinstance(answer, Response):
            await answer(scope, receive, send)
        else:
            await self.app(scope, answer, send)

    async def _answer(self, scope: Scope, receive: Receive) -> Response | Receive:
        """A worker's answer, or what the front's application may receive."""
        method, path = scope["method"], scope["path"]
        query = parse_qs(scope["query_string"].decode("latin-1"))
        named = query.get(IN_THE_QUERY.get((method, path), ""), [""])[-1]
        if method == "GET" and path in MERGED and not named:
            return await self._merge(scope, receive)
        body = b""
        if method != "GET":
            body = await Request(scope, receive).body()
            receive = body_once(body, receive)
        made = MADE.fullmatch(path) if method != "GET" else None
        if made is None:
            return await self._pass(scope, receive, named, body)
        async with self.workers.turn(made[1] or _field(body, "name")):
            return await self._pass(scope, receive, named, body)

    async def _pass(self, scope: Scope, receive: Receive, named: str, body: bytes) -> Response | Receive:
        method, path = scope["method"], scope["path"]
        worker = self._worker_of(method, path, named, body)
        if worker is None:
            return await self._made(scope, receive) if MADE.fullmatch(path) and method != "GET" else receive
        if method == "PATCH" and path.startswith("/v1/luns/") and (serial := _field(body, "serial")):
            async with self._serials:
                await self._check_serial(worker, serial)
                return await _ask(worker, scope, body)
        response = await _ask(worker, scope, body)
        if method == "DELETE" and path == f"/v1/volumes/{worker.volume}" and response.status_code < 400:
            await self.workers.retire(worker.volume)
        return response

    def _worker_of(self, method: str, path: str, named: str, body: bytes) -> Worker | None:
        found = OF_A_VOLUME.fullmatch(path)
        if found is not None:
            return self.workers.of(found[1] or found[2])
        if (method, path) in IN_THE_BODY:
            named = _field(body, IN_THE_BODY[method, path])
        return self.workers.of(_volume(named))

    async def _made(self, scope: Scope, receive: Receive) -> Response:
        """The front does it; what the volume is now its worker says."""
        response = await self._here(scope, receive)
        name = MADE.fullmatch(scope["path"])[1] or _field(response.body, "name")  # type: ignore[index]
        worker = self.workers.of(name)
        if worker is not None and response.status_code < 400:
            _, response.body = await worker.request("GET", f"/v1/volumes/{name}")
            response.init_headers({"content-type": "application/json"})
        return response

    async def _merge(self, scope: Scope, receive: Receive) -> Response:
        path, query = scope["path"], scope["query_string"].decode("latin-1")
        answers = await self.workers.gather(path, query)
        here = await self._here(scope, receive)
        if here.status_code >= 400:
            return here
        there = {volume: body for volume, (answer, body) in answers.items() if answer.status < 400}
        content = MERGED[path](bytes(here.body), there)
        return Response(content, media_type=here.headers.get("content-type"))

    async def _here(self, scope: Scope, receive: Receive) -> Response:
        """The whole answer of the front's application."""
        status, kind, body = await whole_answer(self.app, scope, receive)
        return Response(body, status, media_type=kind or None)

    async def _check_serial(self, worker: Worker, serial: str) -> None:
        """Hosts may know LUNs by their serial numbers: no two volumes have the same."""
        for volume, luns in (await self.workers.gather_all("/v1/luns")).items():
            for lun in json.loads(luns) if volume != worker.volume else []:
                if lun["serial"] == serial:
                    raise Refused("name-taken", f"LUN {lun['path']} has serial number {serial} already")


async def _ask(worker: Worker, scope: Scope, body: bytes) -> Response:
    path = scope.get("raw_path") or scope["path"].encode()
    kind = dict(scope["headers"]).get(b"content-type", b"").decode("latin-1")
    answer, content = await worker.request(
        scope["method"], path.decode("latin-1"), scope["query_string"].decode("latin-1"), body, kind
    )
    return Response(content, answer.status, media_type=answer.content_type or None)


def _field(body: bytes | memoryview, name: str) -> str:
    """Of a JSON object; empty if it has none such: whoever reads all of it says what is wrong."""
    try:
        value = json.loads(bytes(body)).get(name)
    except (ValueError, AttributeError, RecursionError):
        return ""
    return value if isinstance(value, str) else ""


def _volume(named: str) -> str:
    """A volume's name, or the volume of a LUN's path."""
    if not named.startswith("/"):
        return named
    try:
        return LunPath.parse(named).volume
    except Refused:
        return ""
