"""The login phase of one connection: RFC 7143 6.3, 11.12, 11.13.

Knows the stages and their order, gathers continued text, and drives authentication (chap.py) and negotiation
(negotiation.py).  It makes no session: when the last step is due it calls `establish`, which answers with the TSIH
or refuses.  A `LoginFailure` from `step` means: send `refusal`, then close.

    SECURITY -----> OPERATIONAL -----> FULL_FEATURE
        \\_______________________________/
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from target.iscsi import limits, pdus
from target.iscsi.chap import Authentication, Entropy, Step
from target.iscsi.constants import CONTINUE, FINAL, LoginStatus, Stage
from target.iscsi.errors import LoginFailure, TextError, login_error
from target.iscsi.framing import Pdu
from target.iscsi.keys import When
from target.iscsi.negotiation import Negotiation
from target.iscsi.ports import LoginRefused, TargetDirectory
from target.iscsi.session import Identity
from target.iscsi.text import Pairs, format_pairs, parse_pairs, readable

VERSION = 0x00
"""RFC 7143 has version number 0."""

TRANSITIONS: dict[Stage, frozenset[Stage]] = {
    Stage.SECURITY: frozenset({Stage.OPERATIONAL, Stage.FULL_FEATURE}),
    Stage.OPERATIONAL: frozenset({Stage.FULL_FEATURE}),
    Stage.FULL_FEATURE: frozenset(),
}
"""11.12.3: where T may lead."""
FIRST_STAGES = frozenset({Stage.SECURITY, Stage.OPERATIONAL})
PHASE: dict[Stage, When] = {Stage.SECURITY: When.SECURITY, Stage.OPERATIONAL: When.OPERATIONAL}


@dataclass(frozen=True)
class LoginRequest:
    """What names the login: must stay the same from its first PDU to its last."""

    isid: bytes
    tsih: int
    cid: int
    itt: int


@dataclass
class LoginReply:
    """A Login Response without its sequence numbers."""

    fields: dict[str, Any]
    data: bytes = b""


class Login:
    """One connection's login."""

    def __init__(
        self, directory: TargetDirectory, entropy: Entropy, tpgt: int, establish: Callable[[Login], int], peer: str = ""
    ) -> None:
        self.stage: Stage | None = None
        self.negotiation = Negotiation()
        self.request: LoginRequest | None = None
        self.cmd_sn = 0
        self.identity: Identity | None = None
        self._directory = directory
        self._entropy = entropy
        self._tpgt = tpgt
        self._establish = establish
        self._peer = peer
        self._authentication: Authentication | None = None
        self._gathered = bytearray()
        self._answer = b""
        """What of an answer has not fitted into one response."""
        self._exchanges = 0

    @property
    def done(self) -> bool:
        return self.stage is Stage.FULL_FEATURE

    @property
    def who(self) -> str:
        """The initiator's name for the log, as far as it is known."""
        return str(self.negotiation.declared.get("InitiatorName", "unnamed initiator"))

    def step(self, pdu: Pdu) -> LoginReply:
        """One Login Request -> the response.  Raises LoginFailure."""
        try:
            return self._step(pdu)
        except TextError as error:
            raise login_error(str(error)) from None
        except LoginRefused as refused:
            status = refused.status_class << 8 | refused.status_detail
            raise LoginFailure(status, refused.reason, refused.target_address) from None

    def _step(self, pdu: Pdu) -> LoginReply:
        header = pdus.parse_header(pdus.LOGIN_REQUEST, pdu.header)
        csg, nsg = self._check_header(header, pdu)
        if header.flags & CONTINUE:
            self._gather(pdu)
            if header.flags & FINAL:
                raise login_error("T and C together")  # 11.12.2
            return self._reply(header, csg, None, b"")
        self._gather(pdu)
        pairs, self._gathered = parse_pairs(self._gathered), bytearray()
        if self._answer and pairs:
            raise login_error("text where the rest of an answer was to be fetched")
        data = self._answer or self._format(self._converse(csg, pairs))
        piece, self._answer = data[: limits.LOGIN_DATA_SEGMENT_BYTES], data[limits.LOGIN_DATA_SEGMENT_BYTES :]
        if self._answer:
            return self._reply(header, csg, None, piece, more=True)
        return self._close_exchange(header, csg, nsg, piece)

    def _close_exchange(self, header: Any, csg: Stage, nsg: Stage, data: bytes) -> LoginReply:
        """The whole answer is out with `data`: leave the stage if both want to."""
        transit = nsg if header.flags & FINAL and self._may_leave(csg) else None
        if transit is Stage.FULL_FEATURE:
            self._note_chap_name()
            tsih = self._establish(self)
            self.stage = transit
            reply = self._reply(header, csg, transit, data)
            reply.fields["tsih"] = tsih
            return reply
        self.stage = transit or csg
        return self._reply(header, csg, transit, data)

    # --- the header

    def _check_header(self, header: Any, pdu: Pdu) -> tuple[Stage, Stage]:
        self._exchanges += 1
        if self._exchanges > limits.LOGIN_EXCHANGES:
            raise login_error("login takes too many exchanges")
        if header.version_min > VERSION:
            raise LoginFailure(LoginStatus.UNSUPPORTED_VERSION, f"iSCSI version {header.version_min} wanted")
        request = LoginRequest(header.isid, header.tsih, header.cid, header.itt)
        if self.request is None:
            self.request, self.cmd_sn = request, header.cmd_sn
            self.negotiation.leading = request.tsih == 0
        elif request != self.request:
            raise login_error("ISID, TSIH, CID or ITT changed during login")
        try:
            csg = Stage(header.flags >> 2 & 3)
            nsg = Stage(header.flags & 3) if header.flags & FINAL else csg
        except ValueError:
            raise login_error("reserved login stage") from None
        if csg is not self.stage and not (self.stage is None and csg in FIRST_STAGES):
            raise login_error(f"stage {csg.name} where {self.stage.name if self.stage else 'a first one'} was due")
        if header.flags & FINAL and nsg not in TRANSITIONS[csg]:
            raise login_error(f"no way from {csg.name} to {nsg.name}")
        return csg, nsg

    def _gather(self, pdu: Pdu) -> None:
        if len(self._gathered) + len(pdu.data) > limits.TEXT_BYTES:
            raise login_error("login text too long")
        self._gathered += pdu.data

    # --- the text

    def _converse(self, csg: Stage, pairs: Pairs) -> Pairs:
        # a request without text asks for our next text (6.2); we have nothing left over
        answers, security = self.negotiation.receive(pairs, PHASE[csg])
        if self._authentication is None:
            answers += self._introduce()
        assert self._authentication is not None
        if csg is Stage.SECURITY:
            answers += self._authentication.receive(security)
        elif not self._authentication.satisfied:
            raise LoginFailure(LoginStatus.AUTHENTICATION_FAILURE, "the initiator skips authentication")
        if csg is Stage.OPERATIONAL:
            answers += self.negotiation.announce("MaxRecvDataSegmentLength")
        return answers

    def _introduce(self) -> Pairs:
        """The first text says who wants what (6.3.1); the first answer says which portal group this is (13.9)."""
        declared = self.negotiation.declared
        assert self.request is not None
        if "InitiatorName" not in declared:
            raise LoginFailure(LoginStatus.MISSING_PARAMETER, "InitiatorName is missing")
        # 4.2.7.2: names are compared after stringprep, which folds case
        initiator = str(declared["InitiatorName"]).lower()
        target: str | None = None
        if not self.negotiation.discovery:
            if "TargetName" not in declared:
                raise LoginFailure(LoginStatus.MISSING_PARAMETER, "TargetName is missing")
            target = str(declared["TargetName"]).lower()
        elif self.request.tsih:
            raise LoginFailure(LoginStatus.CANNOT_INCLUDE_IN_SESSION, "a discovery session has one connection")
        policy = self._directory.chap_policy(initiator, target, self._peer)
        self._authentication = Authentication(policy, self._entropy)
        alias = readable(str(declared.get("InitiatorAlias", "")))
        self.identity = Identity(initiator, self.request.isid, target, self._tpgt, alias)
        return [("TargetPortalGroupTag", str(self._tpgt))] if target is not None and not self.request.tsih else []

    def _may_leave(self, csg: Stage) -> bool:
        assert self._authentication is not None
        if csg is not Stage.SECURITY or self._authentication.satisfied:
            return True
        if self._authentication.step is Step.START:
            raise LoginFailure(LoginStatus.AUTHENTICATION_FAILURE, "the initiator offers no authentication")
        return False

    def _note_chap_name(self) -> None:
        assert self.identity is not None
        assert self._authentication is not None
        self.identity = replace(self.identity, chap_name=self._authentication.name)

    # --- the answer

    def _format(self, answers: Pairs) -> bytes:
        data = format_pairs(answers)
        if len(data) > limits.TEXT_BYTES:
            raise login_error("the answer would be too long")
        return data

    def _reply(
        self, header: Any, csg: Stage, transit: Stage | None, data: bytes, more: bool = False
    ) -> LoginReply:
        """`more`: C, another empty request fetches the rest (11.13.2)."""
        flags = csg << 2 | (FINAL | transit if transit is not None else 0) | (CONTINUE if more else 0)
        return LoginReply(_response_fields(header, flags, LoginStatus.SUCCESS), data)

    def refusal(self, pdu: Pdu, failure: LoginFailure) -> LoginReply:
        """The Login Response that ends a login."""
        header = pdus.parse_header(pdus.LOGIN_REQUEST, pdu.header)
        data = format_pairs([("TargetAddress", failure.target_address)]) if failure.target_address else b""
        return LoginReply(_response_fields(header, header.flags & 0x0C, failure.status), data)


def _response_fields(header: Any, flags: int, status: int) -> dict[str, Any]:
    return {
        "flags": flags,
        "version_max": VERSION,
        "version_active": VERSION,
        "isid": header.isid,
        "tsih": header.tsih,
        "itt": header.itt,
        "status_class": status >> 8,
        "status_detail": status & 0xFF,
    }
