"""Igroups, maps, CHAP accounts, and what the iSCSI core is told about them."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from target.iscsi.ports import LoginRefused, Nexus
from tests.target.management.conftest import HOST, Api, Play

OTHER = "iqn.2000-01.com.example:host2"
ISID = b"\x40\x00\x01\x00\x00\x00"
PEER = "192.0.2.50"
LUN = "/vol/vol0/lun0"
SECRET, OUT_SECRET = "correct-horse-battery", "staple-of-the-target"
TEST_UNIT_READY = bytes(6)


async def mapped(api: Api) -> str:
    """A volume, a LUN, an igroup, a map; the target's name."""
    await api.volume()
    target: str = (await api.lun())["target"]
    await api.igroup()
    await api.post("/maps", {"path": LUN, "igroup": "hosts"})
    return target


def attentions(nexus: Nexus, lun: int = 0) -> list[int]:
    """ASC and ASCQ of everything TEST UNIT READY reports until it is silent."""
    found = []
    for _ in range(20):
        response = nexus.execute(lun << 48, TEST_UNIT_READY, 0, memoryview(b""), 1, lambda late: None)
        assert response is not None
        if response.status == 0:
            return found
        found.append(int.from_bytes(response.sense[12:14], "big"))
        if response.sense[2] & 0xF != 6:
            return found
    raise AssertionError("unit attentions without end")


def test_an_initiator_sees_and_enters_only_targets_with_something_for_it(play: Play) -> None:
    async def scene(api: Api) -> None:
        target = await mapped(api)
        directory = api.daemon.directory
        assert [name for name, _ in directory.visible_targets(HOST, ("127.0.0.1", 3260))] == [target]
        assert directory.visible_targets(OTHER, ("127.0.0.1", 3260)) == []
        directory.open_nexus(HOST.upper(), ISID, target, 1).close()
        with pytest.raises(LoginRefused) as refused:
            directory.open_nexus(OTHER, ISID, target, 1)
        assert (refused.value.status_class, refused.value.status_detail) == (2, 2)
        with pytest.raises(LoginRefused) as refused:
            directory.open_nexus(HOST, ISID, target + "x", 1)
        assert (refused.value.status_class, refused.value.status_detail) == (2, 3)

    play(scene)


def test_sessions_are_told_of_maps_sizes_and_states_while_they_live(play: Play) -> None:
    async def scene(api: Api) -> None:
        target = await mapped(api)
        nexus = api.daemon.directory.open_nexus(HOST, ISID, target, 1)
        assert attentions(nexus) == [0x2900]
        await api.lun("/vol/vol0/lun1")
        await api.post("/maps", {"path": "/vol/vol0/lun1", "igroup": "hosts"})
        assert attentions(nexus) == [0x3F0E]
        await api.call("PATCH", "/luns/vol0/lun0", {"size_bytes": 2 << 20})
        assert attentions(nexus) == [0x2A09]
        await api.call("DELETE", "/maps", path="/vol/vol0/lun1", igroup="hosts")
        assert attentions(nexus) == [0x3F0E]
        await api.call("PATCH", "/luns/vol0/lun0", {"online": False})
        assert attentions(nexus)[0] >> 8 == 0x04
        await api.call("PATCH", "/luns/vol0/lun0", {"online": True})
        assert attentions(nexus) == []
        await api.call("PATCH", "/luns/vol0/lun0", {"path": "/vol/vol0/renamed", "comment": "c"})
        assert attentions(nexus) == []
        nexus.close()

    play(scene)


def test_a_session_lives_through_its_volume_going_offline_and_coming_back(play: Play) -> None:
    async def scene(api: Api) -> None:
        target = await mapped(api)
        nexus = api.daemon.directory.open_nexus(HOST, ISID, target, 1)
        attentions(nexus)
        await api.call("PATCH", "/volumes/vol0", {"online": False})
        assert attentions(nexus)[0] >> 8 == 0x04
        await api.call("PATCH", "/volumes/vol0", {"online": True})
        assert attentions(nexus) == []
        nexus.close()

    play(scene)


def test_a_volume_that_was_never_online_answers_logins_with_service_unavailable(play: Play) -> None:
    async def before(api: Api) -> None:
        await mapped(api)
        await api.call("PATCH", "/volumes/vol0", {"online": False})

    async def after(api: Api) -> None:
        with pytest.raises(LoginRefused) as refused:
            api.daemon.directory.open_nexus(HOST, ISID, api.core.target_name("vol0"), 1)
        assert (refused.value.status_class, refused.value.status_detail) == (3, 1)

    play(before, after)


@pytest.mark.workers
def test_maps_are_there_after_a_restart_under_the_same_ids(play: Play) -> None:
    async def before(api: Api) -> None:
        await mapped(api)
        await api.lun("/vol/vol0/lun1")
        await api.post("/maps", {"path": "/vol/vol0/lun1", "igroup": "hosts", "lun_id": 7})

    async def after(api: Api) -> None:
        assert [(m["path"], m["lun_id"]) for m in await api.get("/maps")] == [(LUN, 0), ("/vol/vol0/lun1", 7)]

    play(before, after)


@pytest.mark.parametrize(
    ("method", "url", "body", "params", "error"),
    [
        ("POST", "/maps", {"path": LUN, "igroup": "hosts"}, {}, "already-mapped"),
        ("POST", "/maps", {"path": LUN, "igroup": "nobody"}, {}, "no-such-igroup"),
        ("POST", "/maps", {"path": "/vol/vol0/no", "igroup": "hosts"}, {}, "no-such-lun"),
        ("POST", "/maps", {"path": "/vol/vol0/lun1", "igroup": "hosts", "lun_id": 0}, {}, "lun-id-taken"),
        ("POST", "/maps", {"path": "/vol/vol0/lun1", "igroup": "hosts", "lun_id": 16384}, {}, "invalid-argument"),
        ("POST", "/maps", {"path": LUN, "igroup": "same"}, {}, "map-conflict"),
        ("DELETE", "/maps", None, {"path": "/vol/vol0/lun1", "igroup": "hosts"}, "no-such-map"),
        ("DELETE", "/igroups/hosts", None, {}, "igroup-in-use"),
        ("POST", "/igroups", {"name": "hosts"}, {}, "name-taken"),
        ("POST", "/igroups", {"name": "x", "initiators": ["host1"]}, {}, "invalid-name"),
        ("POST", "/igroups", {"name": "x", "ostype": "dos"}, {}, "invalid-argument"),
        ("DELETE", f"/igroups/hosts/initiators/{OTHER}", None, {}, "no-such-initiator"),
    ],
    ids=str,
)
def test_a_refusal_of_access_changes_nothing(
    play: Play, method: str, url: str, body: dict[str, Any] | None, params: dict[str, str], error: str
) -> None:
    async def scene(api: Api) -> None:
        await mapped(api)
        await api.lun("/vol/vol0/lun1")
        await api.igroup("same", HOST)
        before = await api.get("/igroups"), await api.get("/maps")
        assert (await api.refused(method, url, body, **params)).name == error
        assert (await api.get("/igroups"), await api.get("/maps")) == before

    play(scene)


def test_an_initiator_that_is_logged_in_leaves_its_igroup_only_with_force(play: Play) -> None:
    async def scene(api: Api) -> None:
        target = await mapped(api)
        nexus = api.daemon.directory.open_nexus(HOST, ISID, target, 1)
        assert (await api.refused("DELETE", f"/igroups/hosts/initiators/{HOST}")).name == "igroup-in-use"
        await api.call("DELETE", f"/igroups/hosts/initiators/{HOST}", force=True)
        assert api.daemon.directory.visible_targets(HOST, ("127.0.0.1", 3260)) == []
        nexus.close()

    play(scene)


def test_everybody_means_initiators_that_no_igroup_names_too(play: Play) -> None:
    async def scene(api: Api) -> None:
        await api.volume()
        target = (await api.lun())["target"]
        await api.igroup("open", "*")
        await api.post("/maps", {"path": LUN, "igroup": "open"})
        api.daemon.directory.open_nexus("iqn.2008-11.org.linux-kvm", ISID, target, 1).close()
        assert "igroup.open" in [event.kind for event in api.core.events.since(0)]

    play(scene)


# -- CHAP --------------------------------------------------------------------------------------------------


def test_accounts_decide_what_a_login_must_prove(play: Play) -> None:
    async def scene(api: Api) -> None:
        directory = api.daemon.directory
        assert directory.chap_policy(HOST, "t", PEER).inbound == {}
        account = {"user": "u", "secret": SECRET, "out_user": "o", "out_secret": OUT_SECRET}
        await api.call("PUT", f"/iscsi/security/{HOST}", account)
        await api.call("PUT", "/iscsi/security-default", {"method": "deny"})
        policy = directory.chap_policy(HOST, "t", PEER)
        assert policy.inbound == {"u": SECRET.encode()}
        assert policy.outbound == ("o", OUT_SECRET.encode())
        with pytest.raises(LoginRefused) as refused:
            directory.chap_policy(OTHER, "t", PEER)
        assert (refused.value.status_class, refused.value.status_detail) == (2, 2)
        await api.call("DELETE", f"/iscsi/security/{HOST}")
        with pytest.raises(LoginRefused):
            directory.chap_policy(HOST, "t", PEER)

    play(scene)


def test_discovery_asks_for_a_proof_only_when_told_to(play: Play) -> None:
    async def scene(api: Api) -> None:
        directory = api.daemon.directory
        await api.call("PUT", "/iscsi/security-default", {"user": "u", "secret": SECRET})
        assert directory.chap_policy(HOST, None, PEER).inbound == {}
        await api.call("PATCH", "/iscsi", {"discovery_authentication": True})
        assert directory.chap_policy(HOST, None, PEER).inbound == {"u": SECRET.encode()}

    play(scene)


@pytest.mark.workers
def test_accounts_are_there_after_a_restart_and_their_secrets_nowhere_to_be_seen(
    play: Play, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)

    async def before(api: Api) -> None:
        account = {"user": "u", "secret": SECRET, "out_user": "o", "out_secret": OUT_SECRET}
        answers = [await api.call("PUT", f"/iscsi/security/{HOST}", account)]
        answers.append(await api.call("PUT", "/iscsi/security-default", account))
        seen.append(str(answers))

    async def after(api: Api) -> None:
        accounts = await api.get("/iscsi/security")
        assert [(a["initiator"], a["user"], a["mutual"]) for a in accounts] == [("", "u", True), (HOST, "u", True)]
        seen.append(str(accounts) + str(list(api.core.events.since(0))))

    seen: list[str] = []
    play(before, after)
    for text in (*seen, caplog.text):
        assert SECRET not in text
        assert OUT_SECRET not in text


@pytest.mark.parametrize(
    "account",
    [
        {"user": "u"},
        {"secret": SECRET},
        {"user": "u", "secret": "short-" + "x" * 5},
        {"user": "u", "secret": SECRET, "out_user": "o"},
        {"user": "u", "secret": SECRET, "out_user": "o", "out_secret": SECRET},
        {"method": "none", "user": "u", "secret": SECRET},
        {"user": "u", "secret": SECRET, "secrt": SECRET},
        {"user": "u", "secret": [SECRET]},
    ],
    ids=lambda account: ",".join(account),
)
def test_a_bad_account_is_refused_without_repeating_its_secret(play: Play, account: dict[str, Any]) -> None:
    async def scene(api: Api) -> None:
        refusal = await api.refused("PUT", f"/iscsi/security/{HOST}", account)
        assert refusal.name == "invalid-argument"
        assert SECRET not in str(refusal.body)
        assert "short-" not in str(refusal.body)
        assert len(await api.get("/iscsi/security")) == 1

    play(scene)
