"""Alarms: one per bad diagnostic, none for good or missing ones."""

import pytest

from internal_rl.measures.alarms import alarms

# Of the quickstart's published run of seed 0.
GOOD = {
    "nll_permuted": 3.03,
    "base_nll": 0.767,
    "switch_rate": 0.113,
    "true_switch_rate": 0.113,
    "switch_f1": 0.999,
    "random_f1": 0.285,
    "mid_share": 0.119,
}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({}, []),
        ({"nll_permuted": 0.86}, ["z is not used"]),
        ({"nll_permuted": 0.87}, []),
        ({"switch_rate": 0.01, "switch_f1": 0.1}, ["the switch is dead"]),
        ({"switch_f1": 0.4}, ["the switch does not open where"]),
        ({"mid_share": 0.31}, ["the switch is half open"]),
        (
            {"nll_permuted": 0.7, "mid_share": 0.5, "switch_f1": 0.3},
            ["z is not used", "the switch does not open where", "the switch is half open"],
        ),
    ],
)
def test_discovery(changed: dict[str, float], said: list[str]) -> None:
    found = alarms("discover", {**GOOD, **changed, "code_accuracy": {"all": 1.0}})
    assert len(found) == len(said)
    assert all(text.startswith(start) for text, start in zip(found, said, strict=True))


BAD = GOOD | {"nll_permuted": 0.5, "switch_f1": 0.3, "mid_share": 0.4}


@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("nll_permuted", 2),
        ("base_nll", 2),
        ("switch_f1", 2),
        ("random_f1", 2),
        ("mid_share", 2),
        ("switch_rate", 3),
        ("true_switch_rate", 3),
    ],
)
def test_what_is_not_measured_raises_no_alarm(name: str, left: int) -> None:
    """Of three."""
    assert len(alarms("discover", {**BAD, name: None})) == left
    del (rest := dict(BAD))[name]
    assert len(alarms("discover", rest)) == left


def test_base() -> None:
    assert alarms("pretrain", {"nll": 0.7603, "bayes_nll": 0.7511}) == []
    (text,) = alarms("pretrain", {"nll": 0.7640, "bayes_nll": 0.7511})
    assert "0.013 nats per step above Bayes-optimal" in text
    assert alarms("collect", {"nll": 9.0, "bayes_nll": 0.0}) == []
