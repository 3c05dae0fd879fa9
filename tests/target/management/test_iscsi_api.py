"""iSCSI as an administrator rules it: networks of accounts, redirection, logouts, and secrets that stay inside."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from target.config import Config
from target.daemon import Daemon
from target.iscsi.constants import LoginStatus, Opcode
from target.iscsi.ports import LoginRefused
from target.management.names import PortalAddress
from target.management.serving import new_device
from target.portal.logs import INFOS
from tests.support.initiator import ChapClient, Initiator, Reply
from tests.support.served_portal import SocketLink
from tests.target.management.conftest import HOST, Api, Play

LUN = "/vol/vol0/lun0"
OTHER = "iqn.2000-01.com.example:other"
ISID = b"\x80\0\0\0\0\1"
SECRET, OUT_SECRET = "initiator-secret-1", "outgoing-secret-2"


def status(reply: Reply) -> int:
    return int(reply.status_class << 8 | reply.status_detail)


async def served(api: Api) -> str:
    """A volume with a LUN that HOST sees; the target's name."""
    await api.volume()
    target: str = (await api.lun())["target"]
    await api.igroup()
    await api.post("/maps", {"path": LUN, "igroup": "hosts"})
    return target


async def on_a_link(api: Api, act: Callable[[Initiator], Any], target: str | None = None) -> Any:
    """`act` with an initiator that is connected to the daemon, in a thread."""
    address = api.daemon.portal.listening[0]
    return await asyncio.to_thread(lambda: act(Initiator(SocketLink(address), name=HOST, target=target)))


# -- networks ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("networks", "peer", "admitted"),
    [
        ([], "203.0.113.9", True),
        (["192.0.2.0/24"], "192.0.2.77", True),
        (["192.0.2.0/24"], "192.0.3.1", False),
        (["192.0.2.7"], "192.0.2.7", True),
        (["192.0.2.0/25", "2001:db8::/64"], "2001:db8::5", True),
        (["192.0.2.0/24"], "2001:db8::5", False),
        (["::/0"], "192.0.2.7", False),
        (["fe80::/10"], "fe80::1%eth0", True),
    ],
)
def test_an_account_says_where_its_initiator_may_come_from(
    play: Play, networks: list[str], peer: str, admitted: bool
) -> None:
    async def scene(api: Api) -> None:
        account = {"user": "u", "secret": SECRET, "networks": networks}
        await api.call("PUT", f"/iscsi/security/{HOST}", account)
        for target in ("t", None):
            if admitted:
                api.daemon.directory.chap_policy(HOST, target, peer)
                continue
            with pytest.raises(LoginRefused) as refused:
                api.daemon.directory.chap_policy(HOST, target, peer)
            assert (refused.value.status_class, refused.value.status_detail) == (2, 2)

    play(scene)


def test_networks_of_the_default_account_and_without_chap_hold_over_a_restart(play: Play) -> None:
    async def before(api: Api) -> None:
        made = await api.call("PUT", "/iscsi/security-default", {"method": "none", "networks": ["10.0.0.0/8"]})
        assert made["networks"] == ["10.0.0.0/8"]

    async def after(api: Api) -> None:
        api.daemon.directory.chap_policy(HOST, None, "10.1.2.3")
        with pytest.raises(LoginRefused):
            api.daemon.directory.chap_policy(HOST, None, "192.0.2.1")

    play(before, after)


@pytest.mark.parametrize(
    "account",
    [
        {"method": "none", "networks": ["192.0.2.1/24"]},
        {"method": "none", "networks": ["everywhere"]},
        {"method": "none", "networks": ["192.0.2.0/33"]},
        {"method": "deny", "networks": ["192.0.2.0/24"]},
        {"method": "none", "networks": ["192.0.2.0/24"] * 65},
    ],
    ids=str,
)
def test_networks_that_say_nothing_are_refused(play: Play, account: dict[str, Any]) -> None:
    async def scene(api: Api) -> None:
        assert (await api.refused("PUT", f"/iscsi/security/{HOST}", account)).name == "invalid-argument"
        assert len(await api.get("/iscsi/security")) == 1

    play(scene)


def test_a_login_from_elsewhere_is_refused_on_the_wire(play: Play) -> None:
    async def scene(api: Api) -> None:
        target = await served(api)
        await api.call("PUT", "/iscsi/security-default", {"method": "none", "networks": ["192.0.2.0/24"]})
        reply = await on_a_link(api, lambda i: i.login(), target)
        assert status(reply) == LoginStatus.AUTHORIZATION_FAILURE

    play(scene)


# -- redirection -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("permanent", "expected"), [(False, 0x0101), (True, 0x0102)])
@pytest.mark.workers
def test_new_sessions_are_sent_to_the_new_address(play: Play, permanent: bool, expected: int) -> None:
    async def before(api: Api) -> None:
        target = await served(api)
        body = {"address": "[2001:db8::9]:3261", "permanent": permanent}
        made = await api.call("PUT", "/iscsi/redirects/vol0", body)
        assert (made["target"], made["address"]) == (target, "[2001:db8::9]:3261")

    async def after(api: Api) -> None:
        (redirect,) = await api.get("/iscsi/redirects")
        reply = await on_a_link(api, lambda i: i.login(), redirect["target"])
        assert (status(reply), reply.text) == (expected, {"TargetAddress": "[2001:db8::9]:3261"})
        await api.call("DELETE", "/iscsi/redirects/vol0")
        assert status(await on_a_link(api, lambda i: i.login(), redirect["target"])) == 0

    play(before, after)


def test_a_redirection_goes_with_its_volume(play: Play) -> None:
    async def scene(api: Api) -> None:
        await api.volume()
        await api.call("PUT", "/iscsi/redirects/vol0", {"address": "192.0.2.1"})
        await api.call("DELETE", "/volumes/vol0")
        await api.volume()
        assert await api.get("/iscsi/redirects") == []

    play(scene)


def test_redirections_that_lead_nowhere_are_refused(play: Play) -> None:
    async def scene(api: Api) -> None:
        await api.volume()
        host, port = api.daemon.portal.listening[0]
        for address in ("0.0.0.0:3260", "[::]:3260", "192.0.2.1:0", "elsewhere", f"{host}:{port}"):
            refusal = await api.refused("PUT", "/iscsi/redirects/vol0", {"address": address})
            assert refusal.name == "invalid-argument"
        assert (await api.refused("PUT", "/iscsi/redirects/nowhere", {"address": "192.0.2.1"})).name == "no-such-volume"
        assert (await api.refused("DELETE", "/iscsi/redirects/vol0")).name == "no-such-redirect"

    play(scene)


# -- logout ------------------------------------------------------------------------------------------------


@pytest.mark.workers
def test_an_initiator_is_asked_to_log_out_and_closed_if_it_does_not(play: Play) -> None:
    ready = threading.Event()

    def stay(initiator: Initiator) -> list[int]:
        assert initiator.login().status_class == 0
        ready.set()
        link: Any = initiator.link
        events = []
        while not link.gone:
            events += [r.async_event for r in link.receive(1) if r.opcode is Opcode.ASYNC_MESSAGE]
        return events

    async def scene(api: Api) -> None:
        target = await served(api)
        staying = asyncio.ensure_future(on_a_link(api, stay, target))
        assert await asyncio.to_thread(ready.wait, 20)
        sessions = await api.get("/iscsi/sessions")
        asked = await api.post(f"/iscsi/sessions/{sessions[0]['id']}/logout", {"time_s": 0})
        assert asked["initiator"] == HOST
        assert await asyncio.wait_for(staying, 20) == [1, 3]
        assert await api.get("/iscsi/sessions") == []

    play(scene)


def test_a_logout_of_a_session_that_is_not_there_is_refused(play: Play) -> None:
    async def scene(api: Api) -> None:
        assert (await api.refused("POST", "/iscsi/sessions/vol0.1/logout", {})).name == "no-such-session"

    play(scene)


# -- secrets -----------------------------------------------------------------------------------------------


def test_no_secret_is_in_any_answer_event_metric_or_log_line(play: Play, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    seen: list[str] = []

    def log_in(initiator: Initiator, secret: str, algorithm: str) -> int:
        chap = ChapClient("user", secret.encode(), algorithm, target_secret=OUT_SECRET.encode())
        return status(initiator.login(chap))

    async def scene(api: Api) -> None:
        target = await served(api)
        account = {"user": "user", "secret": SECRET, "out_user": "target", "out_secret": OUT_SECRET}
        await api.call("PUT", f"/iscsi/security/{HOST}", account)
        for algorithm in "5678":
            assert await on_a_link(api, lambda i, a=algorithm: log_in(i, SECRET, a), target) == 0
        wrong = await on_a_link(api, lambda i: log_in(i, "wrong-secret-of-mine", "7"), target)
        assert wrong == LoginStatus.AUTHENTICATION_FAILURE
        for url in ("", "/sessions", "/connections", "/security", "/portals", "/redirects"):
            seen.append(str(await api.get(f"/iscsi{url}")))
        for url in ("/metrics", "/openapi.json", "/v1", "/v1/events"):
            seen.append((await api.http.get(url)).text)
        seen.append(str(list(api.core.events.since(0))))
        seen.append(repr(api.core.state))

    play(scene)
    for text in (*seen, caplog.text):
        for secret in (SECRET, OUT_SECRET, "wrong-secret-of-mine"):
            assert secret not in text
            assert secret.encode().hex() not in text
    assert "CHAP failed for 'user'" in caplog.text


# -- settings ----------------------------------------------------------------------------------------------


def test_keepalive_times_are_settings(tmp_path: Path) -> None:
    config = Config.model_validate({"iscsi": {"nop_interval_s": 7, "nop_timeout_s": 3}})

    async def scene() -> None:
        daemon = Daemon(tmp_path, [(PortalAddress("127.0.0.1", 0), 1)], tmp_path / "lund.sock", config)
        try:
            await daemon.start()
            assert (daemon.portal.config.nop_interval_s, daemon.portal.config.nop_timeout_s) == (7, 3)
        finally:
            await daemon.stop()

    asyncio.run(scene())


@pytest.mark.parametrize("key", ["nop_interval_s", "nop_timeout_s"])
def test_keepalive_cannot_be_turned_off(key: str) -> None:
    """Half-open connections would keep their reservations for ever."""
    with pytest.raises(ValidationError):
        Config.model_validate({"iscsi": {key: 0}})


def test_hosts_are_told_where_the_management_is(tmp_path: Path) -> None:
    config = Config.model_validate({"management": {"addresses": ["https://store1.example/"]}})

    async def run() -> tuple[str, ...]:
        daemon = Daemon(tmp_path, [(PortalAddress("127.0.0.1", 0), 1)], tmp_path / "lund.sock", config)
        try:
            return new_device(daemon.core, "vol0").open_nexus(HOST, ISID, {}).management_addresses
        finally:
            await daemon.stop()

    assert asyncio.run(run()) == ("https://store1.example/",)


@pytest.mark.parametrize("address", ["", "store1", "https://", "https://a b", "x" * 300])
def test_what_is_no_url_is_no_address_of_the_management(address: str) -> None:
    with pytest.raises(ValidationError):
        Config.model_validate({"management": {"addresses": [address]}})


# -- events ------------------------------------------------------------------------------------------------


@pytest.mark.workers
def test_a_resize_and_a_new_map_are_told_before_the_host_asks(play: Play) -> None:
    async def scene(api: Api) -> None:
        target = await served(api)
        await api.lun("/vol/vol0/lun1")
        loop = asyncio.get_running_loop()

        def call(method: str, url: str, body: dict[str, Any]) -> None:
            asyncio.run_coroutine_threadsafe(api.call(method, url, body), loop).result()

        def act(host: Initiator) -> list[tuple[int, str]]:
            link = host.link
            assert host.login().status_class == 0
            call("PATCH", "/luns/vol0/lun0", {"size_bytes": 2 << 20})
            told = link.receive(1)  # type: ignore[attr-defined]
            call("POST", "/maps", {"path": "/vol/vol0/lun1", "igroup": "hosts"})
            told += link.receive(1)  # type: ignore[attr-defined]
            link.close()  # type: ignore[attr-defined]
            assert {reply.opcode for reply in told} == {Opcode.ASYNC_MESSAGE}
            return [(reply.async_event, reply.data[14:16].hex()) for reply in told]

        assert await on_a_link(api, act, target) == [(0, "2a09"), (0, "3f0e")]

    play(scene)


def test_sessions_without_end_do_not_drive_everything_else_out_of_the_events(play: Play) -> None:
    async def scene(api: Api) -> None:
        target = await served(api)
        directory = api.daemon.directory
        await api.post("/igroups/hosts/initiators", {"initiators": [OTHER]})
        for _ in range(3 * INFOS):
            directory.open_nexus(HOST, ISID, target, 1).close()
        directory.open_nexus(OTHER, ISID, target, 1).close()
        kinds = [event.kind for event in api.core.events.since(0) if event.subject == HOST]
        assert kinds == ["iscsi.session.opened", "iscsi.session.closed"] * (INFOS // 2)
        assert len([event for event in api.core.events.since(0) if event.subject == OTHER]) == 2

    play(scene)
