"""What the iSCSI core asks: which targets there are, who may see them, what a login must prove.

Everything is answered from the settings in memory; nothing here waits.  A target exists for every registered volume;
while the volume is offline its LUNs are not ready.  An initiator is told of a target, and let into it, only where
something is mapped for it.
"""

from __future__ import annotations

from target.iscsi.ports import ChapPolicy, LoginRefused, Nexus
from target.management import serving
from target.management.core import Core
from target.management.state import AuthMethod, ChapAccount

# RFC 7143 11.13.5: class 2 is the initiator's fault, class 3 the target's.
REDIRECTION, MOVED_TEMPORARILY, MOVED_PERMANENTLY = 1, 1, 2
INITIATOR_ERROR, AUTHORIZATION_FAILURE, NOT_FOUND = 2, 2, 3
TARGET_ERROR, SERVICE_UNAVAILABLE = 3, 1
DISCOVERY_SETTING = "discovery_authentication"


class Directory:
    """A `TargetDirectory`."""

    def __init__(self, core: Core) -> None:
        self.core = core

    def chap_policy(self, initiator: str, target: str | None, peer: str) -> ChapPolicy:
        state = self.core.state
        account = state.account_of(initiator.lower())
        if account.method is AuthMethod.DENY:
            raise LoginRefused(INITIATOR_ERROR, AUTHORIZATION_FAILURE, f"{initiator} is denied by its account")
        if not account.admits(peer):
            reason = f"{initiator} may not come from {peer}; its account names other networks"
            raise LoginRefused(INITIATOR_ERROR, AUTHORIZATION_FAILURE, reason)
        if target is None and state.settings.get(DISCOVERY_SETTING) != "1":
            return ChapPolicy()
        return _policy(account)

    def visible_targets(self, initiator: str, local_address: tuple[str, int]) -> list[tuple[str, list[str]]]:
        """An empty list of addresses: the portal fills in those it listens on."""
        state = self.core.state
        folded = initiator.lower()
        return [(self.core.target_name(name), []) for name in state.volumes if state.sees(folded, name)]

    def open_nexus(self, initiator: str, isid: bytes, target: str, tpgt: int) -> Nexus:
        volume = self._volume(target)
        folded = initiator.lower()
        if volume is None:
            raise LoginRefused(INITIATOR_ERROR, NOT_FOUND, f"there is no target {target}")
        if not self.core.state.sees(folded, volume):
            raise LoginRefused(INITIATOR_ERROR, AUTHORIZATION_FAILURE, f"nothing of {target} is mapped to {initiator}")
        redirect = self.core.state.redirects.get(volume)
        if redirect is not None:
            detail = MOVED_PERMANENTLY if redirect.permanent else MOVED_TEMPORARILY
            raise LoginRefused(REDIRECTION, detail, f"{target} is at {redirect.address}", str(redirect.address))
        if volume not in self.core.served:
            # Hosts try again after this status, and give up after "not found".
            raise LoginRefused(TARGET_ERROR, SERVICE_UNAVAILABLE, f"volume {volume} is offline")
        return serving.open_nexus(self.core, volume, folded, isid, tpgt)

    def _volume(self, target: str) -> str | None:
        nodename, _, volume = target.lower().rpartition(":")
        known = nodename == self.core.state.nodename and volume in self.core.state.volumes
        return volume if known else None


def _policy(account: ChapAccount) -> ChapPolicy:
    if account.method is AuthMethod.NONE:
        return ChapPolicy()
    outbound = (account.out_user, account.out_secret) if account.out_user else None
    return ChapPolicy({account.user: account.secret}, outbound)
