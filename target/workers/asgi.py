"""Asking an ASGI application (its specification, version 3) without a server before it."""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping
from typing import Any

from target.management.api import App, Receive, Scope


async def _stays() -> MutableMapping[str, Any]:
    """A client that waits for its answer."""
    never: asyncio.Future[MutableMapping[str, Any]] = asyncio.get_running_loop().create_future()
    return await never


def body_once(body: bytes, then: Receive = _stays) -> Receive:
    """Receives the whole of a body, and after it what `then` does."""
    left: list[MutableMapping[str, Any]] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> MutableMapping[str, Any]:
        return left.pop() if left else await then()

    return receive


async def whole_answer(app: App, scope: Scope, receive: Receive) -> tuple[int, str, bytes]:
    """Status, content type, body.  Raises what the application raises before it has answered."""
    start: MutableMapping[str, Any] = {}
    body = bytearray()

    async def keep(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            start.update(message)
        else:
            body.extend(message.get("body", b""))

    try:
        await app(scope, receive, keep)
    except Exception:
        # Starlette says that something went wrong, and raises it once more for the server's log.
        if not start:
            raise
    kind = dict(start["headers"]).get(b"content-type", b"").decode("latin-1")
    return start["status"], kind, bytes(body)
