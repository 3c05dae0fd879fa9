"""`lun clone status -f`: a bar on a terminal, a line for each change elsewhere, exit status 0 if it ended well."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any

from target.cli.client import RefusedError
from target.cli.output import Column
from target.cli.root import Context

BLOCK_BYTES = 4096
POLL_S = 0.25
ENDED = ("completed", "failed", "stopped", "none")


def follow_clone(ctx: Context, url: str, columns: Sequence[Column]) -> dict[str, Any]:
    """The job when it has ended.  Ctrl-C leaves it running."""
    lines = not ctx.out.as_json and not sys.stdout.isatty()
    said: tuple[str, int] | None = None
    job = ctx.client.get(url)
    with ctx.out.progress(_label(job), job["total_blocks"] * BLOCK_BYTES) as update:
        while True:
            update(job["completed_blocks"] * BLOCK_BYTES, job["total_blocks"] * BLOCK_BYTES, _label(job))
            if lines and (job["state"], int(job["percent"])) != said:
                said = job["state"], int(job["percent"])
                ctx.out.table([job], columns)
                sys.stdout.flush()
            if job["state"] in ENDED:
                return dict(job)
            time.sleep(POLL_S)
            job = ctx.client.get(url)


def _label(job: dict[str, Any]) -> str:
    state, why = job["state"], job["message"]
    if state == "running":
        return str(job["path"])
    return f"{job['path']} {state}" + (f": {why}" if why else "")


def check_ended_well(job: dict[str, Any]) -> None:
    """Raises RefusedError unless the LUN stands on its own."""
    path, state = job["path"], job["state"]
    if state == "failed":
        raise RefusedError("clone-failed", job["message"] or f"the clone of {path} failed")
    if state == "stopped":
        raise RefusedError("clone-stopped", f"the clone of {path} was stopped; 'lun clone start {path}' goes on")
    if state == "none" and job["backing"]:
        raise RefusedError("not-cloning", f"{path} is not being cloned; 'lun clone start {path}' starts it")
