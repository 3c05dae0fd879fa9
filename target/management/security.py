"""CHAP accounts: per initiator, with a default, one-way and mutual.

A secret goes in and never comes out: no answer, event or log line has one.
"""

from __future__ import annotations

import ipaddress

from pydantic import SecretStr

from target.management import models
from target.management.core import Core
from target.management.names import check_initiator
from target.management.refusal import Refused
from target.management.state import ACCOUNT_LIMIT, AuthMethod, ChapAccount

MIN_SECRET_BYTES = 12
"""RFC 7143 12.1.3: 96 bits."""
MAX_SECRET_BYTES = 255


class Security:
    def __init__(self, core: Core) -> None:
        self.core = core

    def all(self) -> list[models.Account]:
        """The default first."""
        named = sorted((a for a in self.core.state.accounts.values() if a.initiator), key=lambda a: a.initiator)
        return [_model(account) for account in (self.core.state.default_account, *named)]

    async def put(self, initiator: str, wanted: models.AccountPut) -> models.Account:
        """Set the account of an initiator, or with an empty name the default."""
        account = _account(check_initiator(initiator) if initiator else "", wanted)
        row = (
            account.initiator, str(account.method), account.user, account.secret, account.out_user, account.out_secret,
            " ".join(account.networks),
        )  # fmt: skip
        async with self.core.changing:
            if len(self.core.state.accounts) >= ACCOUNT_LIMIT and account.initiator not in self.core.state.accounts:
                raise Refused("limit-reached", f"{ACCOUNT_LIMIT} accounts are the limit")
            await self.core.store.change(
                lambda cursor: cursor.execute("INSERT OR REPLACE INTO account VALUES (?, ?, ?, ?, ?, ?, ?)", row)
            )
        whom = account.initiator or "initiators without an account"
        self.core.events.emit(
            "iscsi.security.changed", f"{whom}: {account.method} from the next login on", subject=initiator
        )
        return _model(account)

    async def delete(self, initiator: str) -> None:
        folded = check_initiator(initiator)
        async with self.core.changing:
            if folded not in self.core.state.accounts:
                raise Refused("no-such-account", f"{folded} has no account; see 'lun iscsi security show'")
            await self.core.store.change(
                lambda cursor: cursor.execute("DELETE FROM account WHERE initiator = ?", (folded,))
            )
        self.core.events.emit("iscsi.security.changed", f"{folded}: the default from the next login on", subject=folded)


def _account(initiator: str, wanted: models.AccountPut) -> ChapAccount:
    method = AuthMethod(wanted.method)
    if method is not AuthMethod.CHAP:
        if wanted.user or wanted.secret or wanted.out_user or wanted.out_secret:
            raise Refused("invalid-argument", f"method {method} takes no names and no secrets")
        if method is AuthMethod.DENY and wanted.networks:
            raise Refused("invalid-argument", "method deny takes no networks: it lets nobody in from anywhere")
        return ChapAccount(initiator, method, networks=_networks(wanted.networks))
    if not wanted.user or wanted.secret is None:
        raise Refused("invalid-argument", "method chap needs user and secret")
    if bool(wanted.out_user) != (wanted.out_secret is not None):
        raise Refused("invalid-argument", "mutual CHAP needs both out_user and out_secret")
    secret, out_secret = _bytes(wanted.secret), _bytes(wanted.out_secret)
    # RFC 7143 12.1.3: the same secret both ways would let an initiator answer the target with its own reflection.
    if out_secret and out_secret == secret:
        raise Refused("invalid-argument", "the target's secret must differ from the initiator's")
    networks = _networks(wanted.networks)
    return ChapAccount(initiator, method, wanted.user, secret, wanted.out_user or "", out_secret, networks)


def _networks(wanted: list[str]) -> tuple[str, ...]:
    try:
        return tuple(dict.fromkeys(str(ipaddress.ip_network(each)) for each in wanted))
    except ValueError as error:
        raise Refused(
            "invalid-argument", f"{error}; write a network as ADDRESS/BITS, as in 192.0.2.0/24 or 2001:db8::/64"
        ) from None


def _bytes(secret: SecretStr | None) -> bytes:
    if secret is None:
        return b""
    encoded = secret.get_secret_value().encode()
    if not MIN_SECRET_BYTES <= len(encoded) <= MAX_SECRET_BYTES:
        wanted = f"{MIN_SECRET_BYTES} to {MAX_SECRET_BYTES} bytes"
        raise Refused("invalid-argument", f"a CHAP secret has {wanted}, not {len(encoded)}")
    return encoded


def _model(account: ChapAccount) -> models.Account:
    return models.Account(
        initiator=account.initiator,
        method=account.method.value,
        user=account.user,
        mutual=bool(account.out_user),
        out_user=account.out_user,
        networks=list(account.networks),
    )
