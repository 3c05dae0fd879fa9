"""`lun iscsi …`: node name, portals, sessions, and who must prove what."""

from __future__ import annotations

from typing import Any

import click

from target.cli.client import segment
from target.cli.output import number, text, when, yes
from target.cli.root import Context, command, main

STATUS = (
    text("Node name", "nodename"), text("Portals", "portals"), text("Targets", "targets"),
    number("Sessions", "sessions"), number("Connections", "connections"),
)  # fmt: skip
SESSION = (
    text("Id", "id"), text("Kind", "kind"), text("Initiator", "initiator"), text("Target", "target"),
    number("TSIH", "tsih"), text("ISID", "isid"), text("CHAP", "authenticated_as"),
)  # fmt: skip
CONNECTION = (
    text("Session", "session"), number("CID", "cid"), text("Initiator", "initiator"), text("Target", "target"),
    text("Portal", "local_address"), text("Peer", "peer_address"), text("Header digest", "header_digest"),
    text("Data digest", "data_digest"),
)  # fmt: skip
PORTAL = (
    text("Portal", "address"), number("Group", "group"), yes("Listening", "listening"),
    text("From", "configured_by"), text("Problem", "problem"),
)  # fmt: skip
ACCOUNT = (
    text("Initiator", "initiator"), text("Method", "method"), text("User", "user"), yes("Mutual", "mutual"),
    text("Target's user", "out_user"), text("Networks", "networks"),
)  # fmt: skip
REDIRECT = (
    text("Volume", "volume"), text("Target", "target"), text("Address", "address"), yes("Permanent", "permanent"),
)  # fmt: skip


@main.group()
def iscsi() -> None:
    """The iSCSI service."""


@command(iscsi, "status")
def status(ctx: Context) -> None:
    """Node name, portals, targets, sessions."""
    ctx.out.details("iscsi", ctx.client.get("/v1/iscsi"), STATUS)


@command(iscsi, "nodename")
@click.argument("iqn", required=False)
def nodename(ctx: Context, iqn: str | None) -> None:
    """Print the node name, or set it.  Targets are named NODENAME:VOLUME."""
    if iqn is not None:
        ctx.out.done(ctx.client.patch("/v1/iscsi", {"nodename": iqn}), f"node name: {iqn}")
        return
    service = ctx.client.get("/v1/iscsi")
    if ctx.out.as_json:
        ctx.out.json(service)
    else:
        click.echo(service["nodename"])


@iscsi.group()
def portal() -> None:
    """Addresses the target listens on."""


@command(portal, "show")
def portal_show(ctx: Context) -> None:
    """List the portals."""
    ctx.out.table(ctx.client.get("/v1/iscsi/portals"), PORTAL, empty="no portals")


@command(portal, "add")
@click.option("--group", type=click.IntRange(1, 65535), default=1, show_default=True, help="Its portal group tag.")
@click.argument("address", metavar="ADDR[:PORT]")
def portal_add(ctx: Context, address: str, group: int) -> None:
    """Listen on one more address.  Portals of one group are one target port for multipath, groups are paths apart."""
    added = ctx.client.post("/v1/iscsi/portals", {"address": address, "group": group})
    ctx.out.done(added, f"listening on {address} in portal group {group}")


@command(portal, "remove")
@click.argument("address", metavar="ADDR[:PORT]")
def portal_remove(ctx: Context, address: str) -> None:
    """Stop listening; connections that came through it stay."""
    ctx.out.done(ctx.client.delete(f"/v1/iscsi/portals/{segment(address)}"), f"not listening on {address} any more")


@iscsi.group()
def session() -> None:
    """Sessions of initiators."""


@command(session, "show")
@click.option("-v", "verbose", is_flag=True, help="With what was negotiated.")
def session_show(ctx: Context, verbose: bool) -> None:
    """List the sessions."""
    sessions = ctx.client.get("/v1/iscsi/sessions")
    if not verbose or ctx.out.as_json:
        ctx.out.table(sessions, SESSION, empty="no sessions")
        return
    for each in sessions:
        each["peers"] = [f"{c['peer_address']} to {c['local_address']}" for c in each["connections"]]
        keys = [text(key, key) for key in each["parameters"]]
        columns = [*SESSION[1:], when("Since", "created_at"), text("Connections", "peers"), *keys]
        ctx.out.details(each["id"], {**each, **each["parameters"]}, columns)


@command(session, "close")
@click.argument("session_id", metavar="ID")
def session_close(ctx: Context, session_id: str) -> None:
    """End a session; the initiator may come back."""
    ctx.out.done(ctx.client.delete(f"/v1/iscsi/sessions/{segment(session_id)}"), f"session {session_id} is closed")


@command(session, "logout")
@click.argument("session_id", metavar="ID")
@click.option("--time", "time_s", type=click.IntRange(0, 3600), default=10, show_default=True, metavar="SECONDS")
def session_logout(ctx: Context, session_id: str, time_s: int) -> None:
    """Ask an initiator to log out.  When the time is over its session ends."""
    asked = ctx.client.post(f"/v1/iscsi/sessions/{segment(session_id)}/logout", {"time_s": time_s})
    ctx.out.done(asked, f"{asked['initiator']} is asked to log out within {time_s} s")


@iscsi.group()
def redirect() -> None:
    """Send logins to a volume's target somewhere else."""


@command(redirect, "show")
def redirect_show(ctx: Context) -> None:
    """List the redirections."""
    ctx.out.table(ctx.client.get("/v1/iscsi/redirects"), REDIRECT, empty="nothing is redirected")


@command(redirect, "set")
@click.argument("volume")
@click.argument("address", metavar="ADDR[:PORT]")
@click.option("--permanent", is_flag=True, help="Initiators are to remember the new address.")
def redirect_set(ctx: Context, volume: str, address: str, permanent: bool) -> None:
    """Send new sessions to ADDR; open ones stay until they end."""
    body = {"address": address, "permanent": permanent}
    made = ctx.client.put(f"/v1/iscsi/redirects/{segment(volume)}", body)
    ctx.out.done(made, f"{made['target']} is at {made['address']}")


@command(redirect, "off")
@click.argument("volume")
def redirect_off(ctx: Context, volume: str) -> None:
    """Serve the volume's target here again."""
    ctx.out.done(ctx.client.delete(f"/v1/iscsi/redirects/{segment(volume)}"), f"{volume} is served here again")


@iscsi.group()
def connection() -> None:
    """TCP connections of sessions."""


@command(connection, "show")
def connection_show(ctx: Context) -> None:
    """List the connections."""
    ctx.out.table(ctx.client.get("/v1/iscsi/connections"), CONNECTION, empty="no connections")


@iscsi.group()
def security() -> None:
    """CHAP accounts: what initiators must prove at login."""


def _account(
    ctx: Context, method: str, user: str | None, secret_file: Any, out_user: str | None, out_secret_file: Any,
    networks: tuple[str, ...],
) -> dict[str, Any]:  # fmt: skip
    """Secrets are never arguments: every user of the machine could read those."""
    if method != "chap":
        if user or secret_file or out_user or out_secret_file:
            raise click.UsageError(f"-s {method} takes no names and no secrets")
        return {"method": method, "networks": list(networks)}
    if not user:
        raise click.UsageError("-s chap needs the CHAP name with -n NAME")
    secret = _secret(secret_file, f"CHAP secret of {user}")
    body: dict[str, Any] = {"method": method, "user": user, "secret": secret, "networks": list(networks)}
    if out_user:
        body |= {"out_user": out_user, "out_secret": _secret(out_secret_file, f"CHAP secret of the target, {out_user}")}
    elif out_secret_file:
        raise click.UsageError("--out-secret-file needs the target's CHAP name with -m NAME")
    return body


def _secret(file: Any, label: str) -> str:
    if file is None:
        return str(click.prompt(label, hide_input=True, confirmation_prompt=True, err=True))
    return str(file.readline()).rstrip("\r\n")


_METHOD = click.option(
    "-s", "method", type=click.Choice(["chap", "none", "deny"], case_sensitive=False), default="chap", show_default=True
)
_USER = click.option("-n", "user", metavar="NAME", help="CHAP name the initiator uses.")
_SECRET = click.option("--secret-file", type=click.File("r"), help="File with its secret ('-': stdin); else asked for.")
_OUT_USER = click.option("-m", "out_user", metavar="NAME", help="CHAP name of the target (mutual CHAP).")
_OUT_SECRET = click.option("--out-secret-file", type=click.File("r"), help="File with the target's secret.")
_NETWORK = click.option(
    "--network", "networks", multiple=True, metavar="CIDR", help="Let it in from here only; as often as wanted."
)


@command(security, "add")
@click.option("-i", "initiator", required=True, metavar="INITIATOR")
@_METHOD
@_USER
@_SECRET
@_OUT_USER
@_OUT_SECRET
@_NETWORK
def security_add(ctx: Context, initiator: str, **account: Any) -> None:
    """Say what one initiator must prove; replaces what was said before."""
    made = ctx.client.put(f"/v1/iscsi/security/{segment(initiator)}", _account(ctx, **account))
    ctx.out.done(made, f"{initiator}: {made['method']}")


@command(security, "default")
@_METHOD
@_USER
@_SECRET
@_OUT_USER
@_OUT_SECRET
@_NETWORK
def security_default(ctx: Context, **account: Any) -> None:
    """Say what initiators without an account must prove."""
    made = ctx.client.put("/v1/iscsi/security-default", _account(ctx, **account))
    ctx.out.done(made, f"default: {made['method']}")


@command(security, "discovery")
@click.argument("state", type=click.Choice(["enable", "disable"]))
def security_discovery(ctx: Context, state: str) -> None:
    """Ask for the same proof at discovery.  Disabled unless enabled here."""
    made = ctx.client.patch("/v1/iscsi", {"discovery_authentication": state == "enable"})
    ctx.out.done(made, f"authentication of discovery sessions: {state}d")


@command(security, "show")
def security_show(ctx: Context) -> None:
    """List the accounts, without secrets."""
    accounts = ctx.client.get("/v1/iscsi/security")
    if not ctx.out.as_json:
        accounts = [{**a, "initiator": a["initiator"] or "(default)"} for a in accounts]
    ctx.out.table(accounts, ACCOUNT)


@command(security, "delete")
@click.argument("initiator")
def security_delete(ctx: Context, initiator: str) -> None:
    """Remove an initiator's account; the default applies to it again."""
    ctx.out.done(ctx.client.delete(f"/v1/iscsi/security/{segment(initiator)}"), f"{initiator}: the default applies")
