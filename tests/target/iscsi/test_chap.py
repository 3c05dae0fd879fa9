"""CHAP, one-way and mutual."""

from __future__ import annotations

import base64
import hmac
from dataclasses import replace

import pytest

from target.iscsi.chap import ALGORITHMS
from target.iscsi.constants import LoginStatus
from target.iscsi.ports import ChapPolicy
from tests.support.initiator import ChapClient, Initiator, Reply
from tests.target.iscsi.conftest import Bench

SECRET, TARGET_SECRET = b"the initiator's", b"the target's own"
ONE_WAY = ChapPolicy(inbound={"host": SECRET})
MUTUAL = ChapPolicy(inbound={"host": SECRET}, outbound=("lazylun", TARGET_SECRET))
FAILED = LoginStatus.AUTHENTICATION_FAILURE


@pytest.fixture
def chap() -> ChapClient:
    return ChapClient("host", SECRET)


def status(reply: Reply) -> int:
    return int(reply.status_class << 8 | reply.status_detail)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("mutual", [False, True], ids=["one-way", "mutual"])
def test_each_algorithm_logs_in(bench: Bench, chap: ChapClient, algorithm: str, mutual: bool) -> None:
    bench.directory.policy = MUTUAL if mutual else ONE_WAY
    chap = replace(chap, algorithm=algorithm, target_secret=TARGET_SECRET if mutual else None)
    initiator = bench.initiator()
    assert status(initiator.login(chap)) == 0
    assert bench.host.registry.sessions()[0].chap_name == "host"


def test_the_first_algorithm_that_both_know_is_taken(bench: Bench, chap: ChapClient) -> None:
    bench.directory.policy = ONE_WAY
    chap.algorithm = "99,7,5"
    assert status(bench.initiator().login(chap)) == 0
    assert chap.algorithm == "7"


def test_no_algorithm_in_common_fails(bench: Bench, chap: ChapClient) -> None:
    bench.directory.policy = ONE_WAY
    chap.algorithm = "99"
    assert status(bench.initiator().login(chap)) == FAILED


def test_values_in_base64_are_understood(bench: Bench, chap: ChapClient) -> None:
    bench.directory.policy = MUTUAL
    chap.encode = lambda value: "0b" + base64.b64encode(value).decode()
    chap.target_secret = TARGET_SECRET
    assert status(bench.initiator().login(chap)) == 0


@pytest.mark.parametrize("name", ["0x616263", "0bYWJj", "name with spaces", "näme"])
def test_a_name_is_text_whatever_it_looks_like(bench: Bench, name: str) -> None:
    bench.directory.policy = ChapPolicy(inbound={name: SECRET})
    assert status(bench.initiator().login(ChapClient(name, SECRET))) == 0


WRONG = {
    "secret": {"secret": b"something else"},
    "name": {"name": "nobody"},
    "empty name": {"name": ""},
    "long name": {"name": "x" * 256},
    "response without prefix": {"encode": lambda value: value.hex()},
    "damaged hex": {"encode": lambda value: "0x" + "zz" * 16},
    "damaged base64": {"encode": lambda value: "0b!!!!"},
    "long response": {"encode": lambda value: "0x" + (value + b"x").hex()},
    "short response": {"encode": lambda value: "0x" + value[:-1].hex()},
    "empty response": {"encode": lambda value: "0x"},
}


@pytest.mark.parametrize("case", WRONG)
def test_anything_wrong_fails_and_the_log_has_no_secret(bench: Bench, chap: ChapClient, case: str) -> None:
    bench.directory.policy = ONE_WAY
    initiator = bench.initiator()
    assert status(initiator.login(replace(chap, **WRONG[case]))) == FAILED  # type: ignore[arg-type]
    failure = initiator.link.failure()
    assert failure is not None
    assert SECRET.decode() not in failure.detail
    assert initiator.name in failure.who


@pytest.mark.parametrize("case", ["secret", "name"])
def test_an_unknown_name_costs_the_same_comparison_as_a_wrong_secret(
    bench: Bench, chap: ChapClient, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[tuple[int, int]] = []
    compare = hmac.compare_digest

    def counted(one: bytes, other: bytes) -> bool:
        compared.append((len(one), len(other)))
        return compare(one, other)

    bench.directory.policy = ONE_WAY
    monkeypatch.setattr(hmac, "compare_digest", counted)
    assert status(bench.initiator().login(replace(chap, **WRONG[case]))) == FAILED  # type: ignore[arg-type]
    assert len(compared) == 1
    assert len(set(*compared)) == 1


def test_no_proof_where_one_is_needed_fails(bench: Bench) -> None:
    bench.directory.policy = ONE_WAY
    assert status(bench.initiator().login()) == FAILED


def test_silence_about_authentication_fails_where_proof_is_needed(bench: Bench) -> None:
    bench.directory.policy = ONE_WAY
    initiator = bench.initiator()
    assert status(initiator.login_pdu(0, 1, initiator.names())) == FAILED


def test_skipping_the_security_stage_fails_where_proof_is_needed(bench: Bench) -> None:
    bench.directory.policy = ONE_WAY
    initiator = bench.initiator()
    assert status(initiator.login_pdu(1, 3, initiator.names())) == FAILED


def test_only_chap_offered_where_nothing_is_known_fails(bench: Bench) -> None:
    initiator = bench.initiator()
    assert status(initiator.login_pdu(0, 1, [*initiator.names(), ("AuthMethod", "CHAP")])) == FAILED


def begin(initiator: Initiator) -> dict[str, str]:
    initiator.login_pdu(0, None, [*initiator.names(), ("AuthMethod", "CHAP,None")])
    return initiator.login_pdu(0, None, [("CHAP_A", "5")]).text


def test_our_own_challenge_sent_back_is_refused(bench: Bench, chap: ChapClient) -> None:
    bench.directory.policy = MUTUAL
    initiator = bench.initiator()
    text = begin(initiator)
    chap.target_secret, chap.challenge = TARGET_SECRET, bytes.fromhex(text["CHAP_C"][2:])
    assert status(initiator.login_pdu(0, 1, chap.answer(text))) == FAILED


def test_one_secret_for_both_directions_is_refused(bench: Bench, chap: ChapClient) -> None:
    bench.directory.policy = ChapPolicy(inbound={"host": SECRET}, outbound=("lazylun", SECRET))
    chap.target_secret = SECRET
    assert status(bench.initiator().login(chap)) == FAILED


def test_a_challenge_to_a_target_without_a_secret_is_refused(bench: Bench, chap: ChapClient) -> None:
    bench.directory.policy = ONE_WAY
    chap.target_secret = TARGET_SECRET
    assert status(bench.initiator().login(chap)) == FAILED


def test_a_challenge_that_is_too_long_is_refused(bench: Bench, chap: ChapClient) -> None:
    bench.directory.policy = MUTUAL
    chap.target_secret, chap.challenge = TARGET_SECRET, bytes(1025)
    assert status(bench.initiator().login(chap)) == FAILED


@pytest.mark.parametrize("identifier", ["256", "-1", "x", ""])
def test_an_impossible_identifier_is_refused(bench: Bench, chap: ChapClient, identifier: str) -> None:
    bench.directory.policy = MUTUAL
    chap.target_secret = TARGET_SECRET
    initiator = bench.initiator()
    pairs = dict(chap.answer(begin(initiator)))
    assert status(initiator.login_pdu(0, 1, {**pairs, "CHAP_I": identifier}.items())) == FAILED


@pytest.mark.parametrize("keys", [{"CHAP_A": "5"}, {"CHAP_N": "host"}, {"AuthMethod": "None"}, {"CHAP_R": "0x00"}])
def test_keys_out_of_turn_fail(bench: Bench, keys: dict[str, str]) -> None:
    bench.directory.policy = ONE_WAY
    initiator = bench.initiator()
    begin(initiator)
    assert status(initiator.login_pdu(0, 1, keys.items())) == FAILED


def test_each_login_gets_a_challenge_of_its_own(bench: Bench) -> None:
    bench.directory.policy = ONE_WAY
    assert begin(bench.initiator())["CHAP_C"] != begin(bench.initiator())["CHAP_C"]


def test_discovery_has_its_own_policy(bench: Bench, chap: ChapClient) -> None:
    bench.directory.discovery_policy = ONE_WAY
    assert status(bench.initiator(target=None).login()) == FAILED
    assert status(bench.initiator(target=None).login(chap)) == 0
    assert status(bench.initiator().login()) == 0
