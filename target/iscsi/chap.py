"""CHAP, one-way and mutual: RFC 7143 12.1.3 over RFC 1994.

    START --AuthMethod=CHAP--> ALGORITHM --CHAP_A--> RESPONSE --CHAP_N, CHAP_R [, CHAP_I, CHAP_C]--> DONE
    START --AuthMethod=None--> DONE   (only where the policy asks for no proof)

A step's keys arrive together and nothing else with them; everything else is an authentication failure, and so is a
wrong name or secret: the answer never says which.  Secrets are compared in constant time and appear in no error.
Randomness is passed in.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from enum import Enum, auto

from target.iscsi import limits, text
from target.iscsi.constants import LoginStatus
from target.iscsi.errors import LoginFailure, TextError
from target.iscsi.ports import ChapPolicy
from target.iscsi.text import Pairs

Entropy = Callable[[int], bytes]

# the numbers of IANA: CHAP_A -> hash
ALGORITHMS: dict[str, str] = {"5": "md5", "6": "sha1", "7": "sha256", "8": "sha3_256"}


class Step(Enum):
    START = auto()
    ALGORITHM = auto()
    RESPONSE = auto()
    DONE = auto()


STEP_KEYS: dict[Step, tuple[frozenset[str], ...]] = {
    Step.START: (frozenset({"AuthMethod"}),),
    Step.ALGORITHM: (frozenset({"CHAP_A"}),),
    Step.RESPONSE: (
        frozenset({"CHAP_N", "CHAP_R"}),
        frozenset({"CHAP_N", "CHAP_R", "CHAP_I", "CHAP_C"}),
    ),
    Step.DONE: (),
}
"""The sets of keys that a step accepts; anything else fails the login."""


def failure(detail: str) -> LoginFailure:
    return LoginFailure(LoginStatus.AUTHENTICATION_FAILURE, detail)


class Authentication:
    """The target's side of one login's security stage."""

    def __init__(self, policy: ChapPolicy, entropy: Entropy) -> None:
        self.step = Step.START
        self.method = text.NONE
        self.name = ""
        self._policy = policy
        self._entropy = entropy
        self._hash = ""
        self._identifier = 0
        self._challenge = b""
        self._steps: dict[Step, Callable[[dict[str, str]], Pairs]] = {
            Step.START: self._choose_method,
            Step.ALGORITHM: self._send_challenge,
            Step.RESPONSE: self._check_response,
        }

    @property
    def required(self) -> bool:
        return bool(self._policy.inbound)

    @property
    def satisfied(self) -> bool:
        """May the initiator leave the security stage?  Saying nothing of AuthMethod means None."""
        return self.step is Step.DONE or (self.step is Step.START and not self.required)

    def receive(self, pairs: Pairs) -> Pairs:
        """The keys of one request -> the keys of the answer.  Raises LoginFailure."""
        if not pairs:
            return []
        given = dict(pairs)
        if frozenset(given) not in STEP_KEYS[self.step]:
            raise failure(f"unexpected security keys {', '.join(sorted(given))}")
        try:
            return self._steps[self.step](given)
        except TextError as error:
            raise failure(str(error)) from None

    def _choose_method(self, given: dict[str, str]) -> Pairs:
        acceptable = "CHAP" if self.required else text.NONE
        if acceptable not in text.parse_list(given["AuthMethod"]):
            raise failure(f"AuthMethod={acceptable} is needed and was not offered")
        self.method = acceptable
        self.step = Step.ALGORITHM if self.required else Step.DONE
        return [("AuthMethod", acceptable)]

    def _send_challenge(self, given: dict[str, str]) -> Pairs:
        offered = text.parse_list(given["CHAP_A"])
        algorithm = next((item for item in offered if item in ALGORITHMS), None)
        if algorithm is None:
            raise failure("no CHAP algorithm in common")
        self._hash = ALGORITHMS[algorithm]
        self._identifier = self._entropy(1)[0]
        # 12.1.3: as long as the response, so that a longer hash is not weakened by a short challenge
        self._challenge = self._entropy(hashlib.new(self._hash).digest_size)
        self.step = Step.RESPONSE
        return [
            ("CHAP_A", algorithm),
            ("CHAP_I", str(self._identifier)),
            ("CHAP_C", text.format_binary(self._challenge)),
        ]

    def _check_response(self, given: dict[str, str]) -> Pairs:
        name = given["CHAP_N"]
        if not name or len(name.encode()) > limits.CHAP_NAME_BYTES:
            raise failure("CHAP name of an impossible length")
        answer = text.parse_binary(given["CHAP_R"], hashlib.new(self._hash).digest_size)
        secret = self._policy.inbound.get(name)
        # an unknown name costs the same hash and comparison as a wrong secret
        expected = self.digest(self._identifier, secret or self._entropy(16), self._challenge)
        if not hmac.compare_digest(answer, expected) or secret is None:
            raise failure(f"CHAP failed for {name[:80]!r}")
        reply = self._prove_ourselves(given, secret) if "CHAP_C" in given else []
        self.name = name
        self.step = Step.DONE
        return reply

    def _prove_ourselves(self, given: dict[str, str], inbound_secret: bytes) -> Pairs:
        if self._policy.outbound is None:
            raise failure("the initiator asks for mutual CHAP and the target has no secret")
        name, secret = self._policy.outbound
        identifier = text.parse_number(given["CHAP_I"])
        if identifier > 255:
            raise failure("CHAP_I out of range")
        challenge = text.parse_binary(given["CHAP_C"], limits.CHAP_CHALLENGE_BYTES)
        # 9.2.1: a reflected challenge, or one secret for both directions, would let the peer answer with our own words
        if hmac.compare_digest(challenge, self._challenge):
            raise failure("our own CHAP challenge came back")
        if hmac.compare_digest(secret, inbound_secret):
            raise failure("the same CHAP secret for both directions")
        return [("CHAP_N", name), ("CHAP_R", text.format_binary(self.digest(identifier, secret, challenge)))]

    def digest(self, identifier: int, secret: bytes, challenge: bytes) -> bytes:
        """RFC 1994 4.1: hash(identifier, secret, challenge)."""
        return hashlib.new(self._hash, bytes((identifier,)) + secret + challenge, usedforsecurity=False).digest()
