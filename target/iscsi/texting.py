"""Text Requests in full feature phase: declarations, and SendTargets (RFC 7143 6.4, 11.10, 11.11, appendix C).

A request may be continued with the C bit, and so may the answer: its pieces fit what the initiator can receive, and
each is fetched with an empty request that carries our transfer tag.  One exchange a connection at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from target.iscsi import limits, pdus
from target.iscsi.answers import Message
from target.iscsi.constants import CONTINUE, FINAL, NO_TAG, Opcode, RejectReason
from target.iscsi.errors import PduRejected, TextError
from target.iscsi.framing import Pdu
from target.iscsi.host import Host
from target.iscsi.keys import When
from target.iscsi.negotiation import Negotiation
from target.iscsi.session import Identity
from target.iscsi.text import Pairs, format_pairs, parse_pairs

ListTargets = Callable[[str], Pairs]
"""SendTargets' value -> the pairs that answer it."""


class TextExchange:
    """The Text Requests of one connection."""

    def __init__(self, negotiation: Negotiation, list_targets: ListTargets, take_tag: Callable[[], int]) -> None:
        self._negotiation = negotiation
        self._list_targets = list_targets
        self._take_tag = take_tag
        self._itt = NO_TAG
        self._ttt = NO_TAG
        self._gathered = bytearray()
        self._answer = b""

    def receive(self, pdu: Pdu, segment_max: int) -> Message:
        """One Text Request -> the Text Response.  Raises PduRejected; the exchange is then forgotten (6.2)."""
        try:
            return self._receive(pdu, segment_max)
        except TextError as error:
            self._forget()
            raise PduRejected(RejectReason.PROTOCOL_ERROR, str(error)) from None
        except PduRejected:
            self._forget()
            raise

    def _receive(self, pdu: Pdu, segment_max: int) -> Message:
        request = pdus.parse_header(pdus.TEXT_REQUEST, pdu.header)
        if request.itt == NO_TAG:
            raise PduRejected(RejectReason.INVALID_PDU_FIELD, "Text Request with the reserved tag")
        if request.flags & FINAL and request.flags & CONTINUE:
            raise PduRejected(RejectReason.PROTOCOL_ERROR, "F and C together")
        if request.ttt == NO_TAG:
            self._forget()  # 11.10.4: a new exchange
            self._itt = request.itt
        elif (request.itt, request.ttt) != (self._itt, self._ttt):
            raise PduRejected(RejectReason.INVALID_PDU_FIELD, "Text Request continues nothing")
        if not self._answer:
            self._gather(pdu)
            if request.flags & CONTINUE:
                return self._response(request, b"", more=True)
            pairs, self._gathered = parse_pairs(self._gathered), bytearray()
            self._answer = self._converse(pairs)
        piece, self._answer = self._answer[:segment_max], self._answer[segment_max:]
        return self._response(request, piece, more=bool(self._answer))

    def _gather(self, pdu: Pdu) -> None:
        if len(self._gathered) + len(pdu.data) > limits.TEXT_BYTES:
            raise PduRejected(RejectReason.OUT_OF_RESOURCES, "text too long")
        self._gathered += pdu.data

    def _converse(self, pairs: Pairs) -> bytes:
        answers, requests = self._negotiation.receive(pairs, When.FULL_FEATURE)
        for name, value in requests:
            if name == "SendTargets":
                answers += self._list_targets(value)
        data = format_pairs(answers)
        if len(data) > limits.SENDTARGETS_BYTES:
            raise PduRejected(RejectReason.OUT_OF_RESOURCES, "the answer would be too long")
        return data

    def _response(self, request: Any, data: bytes, more: bool) -> Message:
        final = request.flags & FINAL and not more
        self._ttt = NO_TAG if final else self._take_tag()
        # 11.11.1: C says that this text is not whole, F that the exchange is over
        flags = FINAL if final else CONTINUE if more and self._answer else 0
        response = Message(
            Opcode.TEXT_RESPONSE, data, flags=flags, itt=self._itt, ttt=self._ttt, lun=request.lun
        )
        if final:
            self._forget()
        return response

    def _forget(self) -> None:
        self._itt = self._ttt = NO_TAG
        self._gathered = bytearray()
        self._answer = b""


def send_targets(host: Host, identity: Identity, local: tuple[str, int], value: str) -> Pairs:
    """Appendix C.  In discovery, All or one name; in a normal session only its own target: an empty value asks for
    it.  There the RFC wants All refused; it is answered with the one target, which tells nothing new."""
    pairs: Pairs = []
    for name, addresses in host.directory.visible_targets(identity.initiator, local):
        if identity.target is not None:
            wanted = name == identity.target and value in ("", "All", name)
        else:
            wanted = value in ("All", name)
        if wanted:
            pairs.append(("TargetName", name))
            pairs += [("TargetAddress", address) for address in addresses or host.addresses(local[0])]
    return pairs
