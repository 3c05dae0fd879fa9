"""`make bench-clone`: who goes first, and which way its ratios go."""

from __future__ import annotations

from scripts.bench.clone_site import Round, ratios, turns


def test_each_goes_first_in_its_turn() -> None:
    order: list[str] = []

    def work(name: str) -> Round:
        order.append(name)
        return {"seconds": len(order)}

    found = turns({name: lambda name=name: work(name) for name in "abc"}, 4, lambda name, figures: None)
    assert "".join(order) == "abcbcacababc"
    assert [each["seconds"] for each in found["b"]] == [2, 4, 9, 11]


def test_a_ratio_is_taken_round_by_round() -> None:
    polite, idle = ([{"p99_us": value} for value in values] for values in ((30, 30, 90), (20, 10, 90)))
    assert ratios(polite, idle, "p99_us") == {"median": 1.5, "lowest": 1.0, "highest": 3.0}
