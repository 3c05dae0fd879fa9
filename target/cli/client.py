"""The way to the daemon: HTTP over its Unix socket.

A refusal of the daemon becomes `RefusedError` (exit status 1, one line); a daemon that is not there becomes
`Unreachable` (exit status 3).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import click

if TYPE_CHECKING:
    import httpx

SOCKET_VARIABLE = "LUN_SOCKET"
SOCKET_PLACES = (Path("/run/lund.sock"), Path("/var/lib/lazylun/lund.sock"), Path("var/lund.sock"))
"""Where to look when nothing was said; the last is what `make run` makes."""
# Long work answers at once with an operation; the slowest plain call is a consistency point on a busy disk.
TIMEOUT_S = 600.0


class RefusedError(click.ClickException):
    exit_code = 1

    def __init__(self, name: str, message: str, body: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.name = name
        self.body = body or {"error": name, "message": message, "holders": []}

    def show(self, file: Any = None) -> None:
        click.echo(f"lun: {self.name}: {self.message}", err=True)


class Unreachable(click.ClickException):
    exit_code = 3

    def show(self, file: Any = None) -> None:
        click.echo(f"lun: daemon-not-reachable: {self.message}", err=True)


def find_socket(option: str | None) -> str:
    """Empty: nothing was said, and there is none."""
    if option:
        return option
    for place in SOCKET_PLACES:
        # A socket found by looking around is trusted only if it is ours or root's.
        try:
            if place.stat().st_uid in (0, os.geteuid()):
                return str(place)
        except OSError:
            continue
    return ""


def lun_url(path: str, collection: str = "luns") -> str:
    """`/vol/vol0/lun0` -> `/v1/luns/vol0/lun0`."""
    return f"/v1/{collection}/{quote(path.removeprefix('/vol/'), safe='/')}"


def segment(text: str) -> str:
    """One path segment of a URL."""
    if "/" in text:
        raise RefusedError("invalid-name", f"{text!r} cannot be a name: it has a '/' in it")
    return quote(text, safe="*")


class Client:
    def __init__(self, socket: str) -> None:
        self.socket = socket
        self._http: httpx.Client | None = None

    @property
    def http(self) -> httpx.Client:
        if not self.socket:
            places = ", ".join(map(str, SOCKET_PLACES))
            raise Unreachable(f"no lund at {places}; start it, or say where with --socket PATH or {SOCKET_VARIABLE}")
        if self._http is None:
            import httpx

            # A Unix socket has no certificate; otherwise httpx reads all of the machine's for nothing (50 ms).
            transport = httpx.HTTPTransport(uds=self.socket, verify=False)
            self._http = httpx.Client(
                transport=transport, base_url="http://lund", timeout=TIMEOUT_S, trust_env=False, verify=False
            )
        return self._http

    def get(self, url: str, /, **params: Any) -> Any:
        return self._json("GET", url, params=_clean(params))

    def post(self, url: str, body: Mapping[str, Any] | None = None) -> Any:
        return self._json("POST", url, json=_clean(body or {}))

    def put(self, url: str, body: Mapping[str, Any] | None = None) -> Any:
        return self._json("PUT", url, json=_clean(body or {}))

    def patch(self, url: str, body: Mapping[str, Any]) -> Any:
        return self._json("PATCH", url, json=_clean(body))

    def delete(self, url: str, /, **params: Any) -> Any:
        return self._json("DELETE", url, params=_clean(params))

    def put_bytes(self, url: str, data: bytes, /, **params: Any) -> Any:
        headers = {"Content-Type": "application/octet-stream"}
        return self._json("PUT", url, content=data, params=_clean(params), headers=headers)

    def get_bytes(self, url: str, /, **params: Any) -> bytes:
        return self._request("GET", url, params=_clean(params)).content

    def lines(self, url: str, /, **params: Any) -> Iterator[dict[str, Any]]:
        """A stream of JSON lines, as they come."""
        import httpx

        try:
            with self.http.stream("GET", url, params=_clean(params), timeout=httpx.Timeout(30, read=None)) as answer:
                if answer.status_code >= 400:
                    answer.read()
                    raise _refusal(answer)
                for line in answer.iter_lines():
                    if line.strip():
                        yield json.loads(line)
        except httpx.RemoteProtocolError:
            raise Unreachable(f"lund on {self.socket} closed the stream; it is stopping") from None
        except httpx.TransportError as error:
            raise self._unreachable(error) from None

    def _json(self, method: str, path: str, **how: Any) -> Any:
        answer = self._request(method, path, **how)
        return answer.json() if answer.content else None

    def _request(self, method: str, path: str, **how: Any) -> httpx.Response:
        import httpx

        try:
            answer = self.http.request(method, path, **how)
        except (httpx.TransportError, OSError) as error:
            raise self._unreachable(error) from None
        if answer.status_code >= 400:
            raise _refusal(answer)
        return answer

    def _unreachable(self, error: Exception) -> Unreachable:
        cause: BaseException = error
        while deeper := cause.__cause__ or cause.__context__:  # httpx wraps what the system said
            cause = deeper
        if isinstance(cause, PermissionError):
            return Unreachable(f"{self.socket} is not for you; become root, or the user that lund runs as")
        why = cause.strerror if isinstance(cause, OSError) and cause.strerror else str(error)
        return Unreachable(
            f"no answer on {self.socket} ({why}); is lund running? Say where with --socket PATH or {SOCKET_VARIABLE}"
        )


def _clean(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def _refusal(answer: httpx.Response) -> RefusedError:
    try:
        body = answer.json()
        return RefusedError(body["error"], body["message"], body)
    except (ValueError, KeyError, TypeError):
        return RefusedError("unexpected-answer", f"HTTP {answer.status_code} from the daemon; is it a lund socket?")
