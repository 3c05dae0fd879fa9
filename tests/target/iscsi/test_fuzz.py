"""Fuzz targets over their corpus, some mutations of it, and what the fuzzer has found (`make fuzz`)."""

from __future__ import annotations

import random

import pytest

from tests.support.fuzzing import TARGETS, corpus
from tests.support.fuzzing_writes import writes
from wafl import PlacedWrite, WaflError

MUTATIONS = 150
FOUND: list[tuple[str, str]] = []
"""(target, input in hex)"""


@pytest.mark.parametrize("name", TARGETS)
def test_the_corpus_does_no_harm(name: str) -> None:
    for seed in corpus(name):
        TARGETS[name](seed)


@pytest.mark.parametrize("name", TARGETS)
def test_mutations_of_the_corpus_do_no_harm(name: str) -> None:
    seeds = list(corpus(name))
    for number in range(MUTATIONS):
        dice = random.Random(f"{name} {number}")
        data = bytearray(dice.choice(seeds))
        for _ in range(dice.randint(1, 6)):
            data[dice.randrange(len(data))] = dice.randrange(256)
        if dice.random() < 0.3:
            data += dice.choice(seeds)[1:]
        TARGETS[name](bytes(data))


def test_what_was_found_stays_mended() -> None:
    for name, data in FOUND:
        TARGETS[name](bytes.fromhex(data))


def give_back_at_once(placed: PlacedWrite) -> None:
    placed.lun.core.allocator.break_promise(*placed._places[0])


@pytest.mark.parametrize("fault", ["never given back", "given back too early", "happens before all is there"])
def test_the_target_for_writes_sees(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    add = PlacedWrite.add

    def faulty(placed: PlacedWrite, data: memoryview) -> None:
        add(placed, data)
        if fault == "given back too early" and placed.taken == len(data):
            give_back_at_once(placed)
        elif fault == "happens before all is there" and placed.taken == len(data):
            placed.lun.write(placed.offset, data)

    if fault == "never given back":
        monkeypatch.setattr(PlacedWrite, "drop", lambda placed: None)
    monkeypatch.setattr(PlacedWrite, "add", faulty)

    def seen(data: bytes) -> bool:
        try:
            writes(data)
        except (AssertionError, WaflError):
            return True
        return False

    assert any(seen(data) for data in corpus("writes"))
