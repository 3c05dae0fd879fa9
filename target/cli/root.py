"""The root of the command tree, and what every command gets: client, output, the shapes of its arguments."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import click

from target.cli.client import SOCKET_VARIABLE, Client, RefusedError, find_socket
from target.cli.output import Output


class Context:
    def __init__(self, socket: str, as_json: bool) -> None:
        self.client = Client(socket)
        self.out = Output(as_json)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("--socket", envvar=SOCKET_VARIABLE, metavar="PATH", help=f"Management socket (or {SOCKET_VARIABLE}).")
@click.option("--json", "as_json", is_flag=True, help="Print the API's objects; sizes are in bytes.")
@click.version_option(package_name="lazylun", prog_name="lun")
@click.pass_context
def main(ctx: click.Context, socket: str | None, as_json: bool) -> None:
    """Manage volumes, LUNs, snapshots, clones and access of a running lund.

    A LUN is named /vol/VOLUME/LUN; inside a snapshot, /vol/VOLUME/.snapshot/SNAP/LUN.
    A SIZE is 512, 10k, 4m, 20g or 1t.
    """
    ctx.obj = Context(find_socket(socket), as_json)


def _want_json(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    context = ctx.find_object(Context)
    if value and context is not None:
        context.out.as_json = True


class LunPathType(click.ParamType):  # type: ignore[type-arg]
    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        parts = str(value).split("/")
        if len(parts) < 4 or parts[:2] != ["", "vol"] or not all(parts[2:]):
            self.fail(f"{value!r} is not a LUN path; write /vol/VOLUME/LUN", param, ctx)
        return str(value)


PATH = LunPathType()


def command(group: click.Group, name: str, **attributes: Any) -> Callable[[Callable[..., None]], click.Command]:
    """A leaf command of `group`: it gets the Context first, and accepts --json at its own end too."""

    def decorate(function: Callable[..., None]) -> click.Command:
        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> None:
            context = click.get_current_context().find_object(Context)
            assert context is not None
            try:
                function(context, *args, **kwargs)
            except RefusedError as refused:
                # Programs find the refusal where they look for the answer; people have the line on stderr.
                if context.out.as_json:
                    context.out.json(refused.body)
                raise

        json_option = click.option(
            "--json", is_flag=True, expose_value=False, hidden=True, callback=_want_json, is_eager=True
        )
        return group.command(name, **attributes)(json_option(run))

    return decorate
