"""Bits set one by one, or by the piece where they are many and near to each other: the same bits."""

from __future__ import annotations

import numpy as np
import pytest

from wafl.bits import DENSE, MANY, are_set, positions, set_each

TOTAL = 1 << 20


@pytest.mark.parametrize("number", [0, 1, MANY - 1, MANY, 5 * MANY])
@pytest.mark.parametrize("spread", [1, DENSE // 2, DENSE, 2 * DENSE, 64])
@pytest.mark.parametrize("first", [0, 5, 4099])
def test_bits_that_are_set_are_those_and_those_that_were(number: int, spread: int, first: int) -> None:
    rng = np.random.default_rng(number * spread + first)
    vbns = np.sort(rng.choice(max(1, number * spread), number, replace=False)).astype(np.uint64) + np.uint64(first)
    rng.shuffle(vbns)
    vbns = np.concatenate([vbns, vbns[:3]])  # several times the same
    bits = np.zeros(TOTAL // 8, np.uint8)
    before = np.array([0, 3, 4096, 70_000, TOTAL - 1], np.uint64)
    set_each(bits, before)
    set_each(bits, vbns)
    assert positions(bits).tolist() == sorted({*before.tolist(), *vbns.tolist()})
    assert are_set(bits, vbns).all()
