"""Login: stages, keys, refusals, sessions."""

from __future__ import annotations

import pytest

from target.iscsi import limits
from target.iscsi.constants import LoginStatus, Opcode, Stage
from target.iscsi.login import FIRST_STAGES, TRANSITIONS
from tests.support.initiator import NAME, Initiator, Link, Reply
from tests.support.memory_target import TARGET
from tests.target.iscsi.conftest import Bench, MakeBench


def status(reply: Reply) -> int:
    return int(reply.status_class << 8 | reply.status_detail)


def test_a_plain_login_reaches_full_feature_phase(bench: Bench) -> None:
    initiator = bench.initiator()
    reply = initiator.login()
    assert (status(reply), reply.flags) == (0, 0x87)
    assert reply.tsih != 0
    assert initiator.link.logged_in()


def test_login_works_one_byte_at_a_time(bench: Bench) -> None:
    assert bench.initiator(piece=1).login().tsih != 0


def test_an_initiator_may_begin_with_the_operational_stage(bench: Bench) -> None:
    initiator = bench.initiator()
    reply = initiator.login_pdu(1, 3, [*initiator.names(), *initiator.keys.items()])
    assert status(reply) == 0
    assert reply.text["TargetPortalGroupTag"] == "1"


def test_an_initiator_may_go_from_security_straight_to_full_feature(bench: Bench) -> None:
    initiator = bench.initiator()
    reply = initiator.login_pdu(0, 3, [*initiator.names(), ("AuthMethod", "None")])
    assert (status(reply), reply.flags) == (0, 0x83)
    initiator.enter(reply)
    assert initiator.read(0, 1).status == 0


def test_the_first_answer_names_the_portal_group(bench: Bench) -> None:
    initiator = bench.initiator()
    reply = initiator.login_pdu(0, 1, [*initiator.names(), ("AuthMethod", "None")])
    assert reply.text == {"TargetPortalGroupTag": "1", "AuthMethod": "None"}


NEGOTIATED = [
    ("InitialR2T", "No", "No"),
    ("InitialR2T", "Yes", "Yes"),
    ("ImmediateData", "No", "No"),
    ("MaxBurstLength", "8192", "8192"),
    ("MaxBurstLength", "16777215", str(limits.MAX_BURST_BYTES)),
    ("MaxBurstLength", "511", "Reject"),
    ("FirstBurstLength", "1048576", "262144"),
    ("FirstBurstLength", "0x1000", "4096"),
    ("MaxConnections", "8", "4"),
    ("DefaultTime2Wait", "5", "5"),
    ("DefaultTime2Wait", "0", "2"),
    ("DefaultTime2Retain", "20", "0"),
    ("MaxOutstandingR2T", "65535", "8"),
    ("DataPDUInOrder", "No", "No"),
    ("DataPDUInOrder", "Yes", "Yes"),
    ("DataSequenceInOrder", "No", "No"),
    ("DataSequenceInOrder", "Yes", "Yes"),
    ("ErrorRecoveryLevel", "2", "0"),
    ("ErrorRecoveryLevel", "3", "Reject"),
    ("HeaderDigest", "CRC32C,None", "CRC32C"),
    ("HeaderDigest", "None,CRC32C", "None"),
    ("DataDigest", "Fnord,CRC32C", "CRC32C"),
    ("DataDigest", "Fnord", "Reject"),
    ("InitialR2T", "maybe", "Reject"),
    ("MaxRecvDataSegmentLength", "100", "Reject"),
    ("TaskReporting", "FastAbort,RFC3720", "RFC3720"),
    ("iSCSIProtocolLevel", "2", "2"),
    ("IFMarker", "Yes", "No"),
    ("OFMarkInt", "2048~8192", "Reject"),
    ("X-com.example.fnord", "1", "NotUnderstood"),
    ("Fnord", "1", "NotUnderstood"),
]


@pytest.mark.parametrize(("key", "offer", "answer"), NEGOTIATED)
def test_each_key_is_answered_by_its_result_function(bench: Bench, key: str, offer: str, answer: str) -> None:
    initiator = bench.initiator()
    reply = initiator.login_pdu(1, 3, [*initiator.names(), (key, offer)])
    if key == "MaxRecvDataSegmentLength":
        assert [v for k, v in _pairs(reply) if k == key] == [answer, str(limits.MAX_RECV_DATA_SEGMENT_BYTES)]
    else:
        assert reply.text[key] == answer


def _pairs(reply: Reply) -> list[tuple[str, str]]:
    return [tuple(item.split("=", 1)) for item in reply.data.decode().split("\0") if item]  # type: ignore[misc]


@pytest.mark.parametrize("key", ["MaxBurstLength", "InitialR2T", "MaxConnections", "TaskReporting"])
def test_session_keys_are_irrelevant_in_discovery(bench: Bench, key: str) -> None:
    initiator = bench.initiator(target=None)
    reply = initiator.login_pdu(1, 3, [*initiator.names(), (key, "512" if "Max" in key else "Yes")])
    assert reply.text[key] == "Irrelevant"


ALL_MOVES = [(csg, nsg) for csg in (0, 1, 3) for nsg in (0, 1, 3)]


@pytest.mark.parametrize(("csg", "nsg"), ALL_MOVES)
def test_only_the_moves_of_the_table_are_allowed(bench: Bench, csg: int, nsg: int) -> None:
    initiator = bench.initiator()
    reply = initiator.login_pdu(csg, nsg, initiator.names())
    legal = csg in FIRST_STAGES and nsg in TRANSITIONS[Stage(csg)]
    assert (status(reply) == 0) is legal
    assert (initiator.link.closed is None) is legal


@pytest.mark.parametrize("csg", [0, 2, 3])
def test_a_stage_other_than_the_one_agreed_fails_the_login(bench: Bench, csg: int) -> None:
    initiator = bench.initiator()
    assert status(initiator.login_pdu(0, 1, [*initiator.names(), ("AuthMethod", "None")])) == 0
    assert status(initiator.login_pdu(csg, 3, [])) == LoginStatus.INITIATOR_ERROR


def test_text_may_be_continued_over_several_requests(bench: Bench) -> None:
    initiator = bench.initiator()
    first = initiator.login_pdu(1, None, [], flags=0x44)
    assert first.flags == 0x04
    assert first.data == b""
    data = b"".join(f"{k}={v}\0".encode() for k, v in initiator.names())
    replies = initiator.request(
        Opcode.LOGIN_REQUEST, data[:10], immediate=True, isid=initiator.isid, cid=1, itt=1, flags=0x44
    )
    assert replies[0].data == b""
    replies = initiator.request(
        Opcode.LOGIN_REQUEST, data[10:], immediate=True, isid=initiator.isid, cid=1, itt=1, flags=0x87
    )
    assert status(replies[0]) == 0
    assert replies[0].tsih


REFUSED = {
    "no initiator name": ([("TargetName", TARGET)], LoginStatus.MISSING_PARAMETER),
    "no target name": ([("InitiatorName", NAME)], LoginStatus.MISSING_PARAMETER),
    "unknown target": ([("InitiatorName", NAME), ("TargetName", TARGET + "x")], LoginStatus.NOT_FOUND),
    "not an iSCSI name": ([("InitiatorName", "fred"), ("TargetName", TARGET)], LoginStatus.INITIATOR_ERROR),
    "a name that moves the cursor": (
        [("InitiatorName", NAME + "\x9b1A"), ("TargetName", TARGET)], LoginStatus.INITIATOR_ERROR,
    ),
    "a name that reads backwards": (
        [("InitiatorName", NAME + "\u202e"), ("TargetName", TARGET)], LoginStatus.INITIATOR_ERROR,
    ),
    "a key twice": ([("InitiatorName", NAME), ("InitiatorName", NAME)], LoginStatus.INITIATOR_ERROR),
    "the target's key": ([("InitiatorName", NAME), ("TargetAlias", "x")], LoginStatus.INITIATOR_ERROR),
    "SendTargets in login": ([("InitiatorName", NAME), ("SendTargets", "All")], LoginStatus.INITIATOR_ERROR),
    "security key too late": (
        [("InitiatorName", NAME), ("TargetName", TARGET), ("AuthMethod", "None")], LoginStatus.INITIATOR_ERROR,
    ),
    "strange session type": ([("InitiatorName", NAME), ("SessionType", "Fnord")], LoginStatus.INITIATOR_ERROR),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_bad_text_is_refused_with_its_status(bench: Bench, case: str) -> None:
    pairs, expected = REFUSED[case]
    initiator = bench.initiator()
    assert status(initiator.login_pdu(1, 3, pairs)) == expected
    assert initiator.link.closed is not None
    assert bench.host.registry.sessions() == []


def test_operational_keys_in_the_security_stage_are_refused(bench: Bench) -> None:
    initiator = bench.initiator()
    assert status(initiator.login_pdu(0, 1, [*initiator.names(), ("MaxBurstLength", "512")])) == 0x0200


def test_a_key_negotiated_twice_is_refused(bench: Bench) -> None:
    initiator = bench.initiator()
    initiator.login_pdu(1, None, [*initiator.names(), ("MaxBurstLength", "1024")])
    assert status(initiator.login_pdu(1, 3, [("MaxBurstLength", "1024")])) == 0x0200


def test_names_may_be_repeated_in_the_next_stage(bench: Bench) -> None:
    initiator = bench.initiator()
    initiator.login_pdu(0, 1, [*initiator.names(), ("AuthMethod", "None")])
    assert status(initiator.login_pdu(1, 3, initiator.names())) == 0


def test_a_name_may_not_change_in_the_middle(bench: Bench) -> None:
    initiator = bench.initiator()
    initiator.login_pdu(0, 1, [*initiator.names(), ("AuthMethod", "None")])
    assert status(initiator.login_pdu(1, 3, [("InitiatorName", NAME + "2")])) == 0x0200


def test_text_without_its_final_nul_is_refused(bench: Bench) -> None:
    initiator = bench.initiator()
    reply = initiator.request(Opcode.LOGIN_REQUEST, b"InitiatorName=iqn.x:y", flags=0x87, immediate=True, isid=bytes(6))
    assert status(reply[0]) == 0x0200


def test_a_newer_version_is_refused(bench: Bench) -> None:
    initiator = bench.initiator()
    reply = initiator.login_pdu(0, 1, initiator.names(), version_min=1, version_max=1)
    assert status(reply) == LoginStatus.UNSUPPORTED_VERSION


def test_endless_text_is_refused(bench: Bench) -> None:
    initiator = bench.initiator()
    data = b"X" * 8000
    fields = {"isid": initiator.isid, "cid": 1, "itt": 1, "flags": 0x44, "immediate": True}
    for _ in range(limits.TEXT_BYTES // len(data) + 1):
        reply = initiator.request(Opcode.LOGIN_REQUEST, data, **fields)[0]
    assert status(reply) == 0x0200


def test_endless_login_is_refused(bench: Bench) -> None:
    initiator = bench.initiator()
    reply = initiator.login_pdu(0, None, initiator.names())
    for _ in range(limits.LOGIN_EXCHANGES):
        reply = initiator.login_pdu(0, None, [])
    assert status(reply) == 0x0200


def test_login_has_a_time_limit(bench: Bench) -> None:
    link = Link(bench.host)
    link.pass_time(limits.LOGIN_TIMEOUT_S - 0.1)
    assert link.closed is None
    link.pass_time(0.2)
    assert link.fault() == "login took too long"


def test_anything_before_login_ends_the_connection(bench: Bench) -> None:
    initiator = bench.initiator()
    assert initiator.request(Opcode.NOP_OUT, itt=1) == []
    assert initiator.link.fault()


def test_a_hidden_target_is_not_authorised(bench: Bench) -> None:
    bench.directory.hidden.add(NAME)
    assert status(bench.initiator().login()) == LoginStatus.AUTHORIZATION_FAILURE


# --- sessions


def test_the_same_nexus_again_replaces_the_old_session(bench: Bench) -> None:
    first, second = bench.logged_in(), bench.logged_in()
    assert first.link.closed == "session reinstatement"
    assert bench.disk.closed == 1
    assert [s.tsih for s in bench.host.registry.sessions()] == [second.tsih]


def test_a_login_that_fails_replaces_nothing(bench: Bench) -> None:
    first = bench.logged_in()
    intruder = bench.initiator()
    intruder.login_pdu(1, 3, [*intruder.names(), ("SendTargets", "All")])
    assert first.link.closed is None
    assert first.read(0, 1).status == 0


def test_another_isid_is_another_session(bench: Bench) -> None:
    first, second = bench.logged_in(), bench.logged_in(isid=b"\x80\0\0\0\0\2")
    assert first.tsih != second.tsih
    assert len(bench.host.registry.sessions(TARGET)) == 2


def test_another_initiator_with_the_same_isid_is_another_session(bench: Bench) -> None:
    first = bench.logged_in()
    bench.logged_in(name=NAME + ":other")
    assert first.link.closed is None


def test_the_same_connection_id_again_replaces_the_connection(bench: Bench) -> None:
    first = bench.logged_in()
    first.write(0, b"x" * 512)
    second = bench.initiator()
    second.tsih, second.cmd_sn = first.tsih, first.cmd_sn
    assert status(second.login()) == 0
    assert first.link.closed == "connection reinstatement"
    assert bench.disk.closed == 0
    assert second.read(0, 1).data == b"x" * 512


def test_joining_a_session_that_is_not_there_is_refused(bench: Bench) -> None:
    initiator = bench.initiator()
    initiator.tsih = 77
    assert status(initiator.login()) == LoginStatus.SESSION_DOES_NOT_EXIST


def test_joining_another_initiators_session_is_refused(bench: Bench) -> None:
    first = bench.logged_in()
    thief = bench.initiator(name=NAME + ":thief")
    thief.tsih = first.tsih
    assert status(thief.login()) == LoginStatus.SESSION_DOES_NOT_EXIST


def test_a_lost_connection_ends_the_session(bench: Bench) -> None:
    initiator = bench.logged_in()
    initiator.link.core.lost("cable pulled")
    assert bench.host.registry.sessions() == []
    assert bench.disk.closed == 1


def test_management_lists_and_disconnects_sessions(bench: Bench) -> None:
    initiator = bench.logged_in()
    initiator.read(0, 8)
    (info,) = bench.host.registry.sessions(TARGET)
    assert (info.initiator, info.tsih, info.counters["reads"], info.counters["read_bytes"]) == (
        NAME, initiator.tsih, 1, 4096,
    )  # fmt: skip
    assert info.parameters["MaxBurstLength"] == 16776192
    assert info.connections[0].peer == "127.0.0.1:40000"
    assert bench.host.registry.disconnect(TARGET, initiator.tsih) == 1
    assert initiator.link.closed == "disconnected by management"


def test_too_many_sessions_are_refused(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SESSIONS_PER_TARGET", 1)
    bench.logged_in()
    assert status(bench.initiator(isid=b"\x80\0\0\0\0\2").login()) == LoginStatus.OUT_OF_RESOURCES
    assert bench.disk.closed == 1


def test_an_initiator_that_is_silent_is_asked_and_then_dropped(make_bench: MakeBench) -> None:
    initiator: Initiator = make_bench(nop_interval_s=10, nop_timeout_s=5).logged_in()
    (ping,) = initiator.link.pass_time(10)
    assert (ping.opcode, ping.itt, ping.flags) == (Opcode.NOP_IN, 0xFFFFFFFF, 0x80)
    assert ping.ttt != 0xFFFFFFFF
    initiator.link.pass_time(5)
    assert initiator.link.fault() == "no answer to NOP-In"


def test_an_answer_to_the_question_keeps_the_connection(make_bench: MakeBench) -> None:
    initiator: Initiator = make_bench(nop_interval_s=10, nop_timeout_s=5).logged_in()
    (ping,) = initiator.link.pass_time(10)
    initiator.request(Opcode.NOP_OUT, immediate=True, itt=0xFFFFFFFF, ttt=ping.ttt)
    assert initiator.link.pass_time(5) == []
    assert initiator.link.closed is None


def test_an_alias_is_made_readable(bench: Bench) -> None:
    initiator = bench.initiator()
    initiator.login_pdu(0, 1, [*initiator.names(), ("InitiatorAlias", "\x1b[2Jweb 1\n"), ("AuthMethod", "None")])
    initiator.finish_login()
    (info,) = bench.host.registry.sessions()
    assert info.initiator_alias == "?[2Jweb 1?"


def test_names_are_compared_without_case(bench: Bench) -> None:
    first = bench.logged_in()
    second = bench.logged_in(name=NAME.upper().replace("IQN", "iqn"), target=TARGET.upper())
    assert first.link.closed == "session reinstatement"
    assert second.read(0, 1).status == 0


# --- text in pieces (the C bit), both ways


def test_a_login_request_may_come_in_pieces(bench: Bench) -> None:
    initiator = bench.initiator()
    whole = b"".join(f"{k}={v}\0".encode() for k, v in initiator.names())
    fields = {"isid": initiator.isid, "cid": 1, "itt": 1, "immediate": True}
    for at in range(0, len(whole) - 10, 10):
        (reply,) = initiator.request(Opcode.LOGIN_REQUEST, whole[at : at + 10], flags=0x44, **fields)
        assert (reply.status_class, reply.flags, reply.data) == (0, 0x04, b"")
        last = at + 10
    (reply,) = initiator.request(Opcode.LOGIN_REQUEST, whole[last:], flags=0x87, **fields)
    assert (reply.status_class, reply.flags) == (0, 0x87)


def test_a_long_answer_to_a_login_comes_in_pieces(bench: Bench) -> None:
    """240 keys that nobody knows: the answer is longer than a Login Response, and than the request was."""
    names = [f"X-com.example.{n:040}" for n in range(limits.TEXT_KEYS - 16)]
    initiator = bench.initiator()
    fields = {"isid": initiator.isid, "cid": 1, "itt": 1, "immediate": True}
    whole = b"".join(f"{k}={v}\0".encode() for k, v in [*initiator.names(), *((name, "") for name in names)])
    half = len(whole) // 2
    initiator.request(Opcode.LOGIN_REQUEST, whole[:half], flags=0x44, **fields)
    (reply,) = initiator.request(Opcode.LOGIN_REQUEST, whole[half:], flags=0x87, **fields)
    text, pieces = b"", 1
    while reply.flags & 0x40:
        assert (reply.status_class, reply.flags, len(reply.data)) == (0, 0x44, limits.LOGIN_DATA_SEGMENT_BYTES)
        text, pieces = text + reply.data, pieces + 1
        reply = initiator.login_pdu(1, 3, [])
    assert (reply.status_class, reply.flags, pieces) == (0, 0x87, 3)
    answered = dict(item.split("=") for item in (text + reply.data).decode().split("\0") if item)
    assert [answered[name] for name in names] == ["NotUnderstood"] * len(names)


def test_text_while_an_answer_is_fetched_is_refused(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "LOGIN_DATA_SEGMENT_BYTES", 512)
    initiator = bench.initiator()
    reply = initiator.login_pdu(1, 3, [*initiator.names(), ("X-a", "1"), ("MaxBurstLength", "512")])
    assert reply.flags & 0x40 == 0  # it fits
    initiator = bench.initiator()
    monkeypatch.setattr(limits, "LOGIN_DATA_SEGMENT_BYTES", 16)
    initiator.link.core.framing.data_limit = 512
    reply = initiator.login_pdu(1, 3, initiator.names())
    assert reply.flags == 0x44
    assert status(initiator.login_pdu(1, 3, [("MaxBurstLength", "512")])) == LoginStatus.INITIATOR_ERROR


def test_an_endless_answer_is_refused(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    initiator = bench.initiator()
    monkeypatch.setattr(limits, "TEXT_BYTES", 1024)
    reply = initiator.login_pdu(1, 3, [*initiator.names(), *((f"X-{n}", "") for n in range(80))])
    assert status(reply) == LoginStatus.INITIATOR_ERROR
