"""The bounded spin of a portal: the loop keeps turning for so long, and then sleeps."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
import uvloop
from pydantic import ValidationError

from target.config import Config
from target.management.refusal import Refused
from target.portal import PortalConfig
from target.portal.spin import SPIN_MAX_US, Spinner
from target.stack import portal_config
from tests.support.served_portal import Served, serve

LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
}


class Clock:
    """Moves by a microsecond with each look."""

    def __init__(self) -> None:
        self.looks = 0

    def __call__(self) -> float:
        self.looks += 1
        return self.looks / 1e6


def turns(loop: asyncio.AbstractEventLoop, clock: Clock) -> int:
    """Looks at the clock until nothing more is due: a loop that slept would not come back by itself."""
    before = -1
    while clock.looks != before:
        before = clock.looks
        loop.run_until_complete(asyncio.sleep(0))
        loop.run_until_complete(asyncio.sleep(0))
    return clock.looks


@pytest.mark.parametrize("kind", LOOPS)
def test_the_loop_turns_for_as_long_as_was_asked_for_and_no_longer(kind: str) -> None:
    loop, clock = LOOPS[kind](), Clock()
    try:
        Spinner(loop, 50, clock).touch()
        assert 50 <= turns(loop, clock) <= 53
    finally:
        loop.close()


def test_what_happens_meanwhile_prolongs_one_spin_and_starts_no_second_one() -> None:
    loop, clock = asyncio.new_event_loop(), Clock()
    try:
        spinner = Spinner(loop, 50, clock)
        for _ in range(20):
            spinner.touch()
        # 20 touches, then 50 looks after the last of them; twenty spins beside each other would take 20 times 50
        assert 70 <= turns(loop, clock) <= 73
    finally:
        loop.close()


def spinners_of(config: PortalConfig) -> Any:
    def test(served: Served) -> Any:
        initiator = served.initiator()
        assert initiator.login().status_class == 0
        return [transport._spinner for transport in served.portal.connections]

    return serve("uvloop", test, config)


def test_only_the_portal_that_was_named_spins() -> None:
    (spinner,) = spinners_of(PortalConfig(spin_us={("127.0.0.1", 0): 100}))
    assert isinstance(spinner, Spinner)
    assert spinner._until > 0, "the login's answers have been sent"
    assert spinners_of(PortalConfig(spin_us={("127.0.0.2", 0): 100})) == [None]


def test_the_configuration_names_portals_by_address_and_port() -> None:
    config = Config.model_validate({"iscsi": {"spin_us": {"192.0.2.1:3261": 100, "[::1]": 20}}})
    assert portal_config(config).spin_us == {("192.0.2.1", 3261): 100, ("::1", 3260): 20}
    with pytest.raises(Refused):
        portal_config(Config.model_validate({"iscsi": {"spin_us": {"everywhere": 100}}}))
    with pytest.raises(ValidationError):
        Config.model_validate({"iscsi": {"spin_us": {"192.0.2.1:3261": SPIN_MAX_US + 1}}})
