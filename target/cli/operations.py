"""Waiting for an operation with a bar."""

from __future__ import annotations

from typing import Any

from target.cli.client import RefusedError
from target.cli.root import Context

WAIT_S = 0.5
"""How often the bar moves."""


def follow_operation(ctx: Context, operation: dict[str, Any], label: str) -> dict[str, Any]:
    """The operation when it is done.  Ctrl-C leaves it running.  Raises RefusedError if it failed."""
    with ctx.out.progress(label, None, as_bytes=False) as update:
        while operation["state"] == "running":
            operation = ctx.client.get(f"/v1/operations/{operation['id']}/wait", timeout=WAIT_S)
            update(operation["completed"], operation["total"] or 1)
    if operation["state"] == "failed":
        raise RefusedError(operation["error"]["error"], operation["error"]["message"], operation["error"])
    if operation["state"] == "cancelled":
        raise RefusedError("cancelled", f"{label} was cancelled")
    return operation
