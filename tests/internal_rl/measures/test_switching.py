"""Scores of the switches against the changes of the hidden subgoal."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import maximum_bipartite_matching

from internal_rl.measures.switching import count_matches, f1, subgoal_changes, switching_scores

EVENTS = st.lists(st.booleans(), min_size=12, max_size=12).map(lambda x: np.array(x))


def events(*times: int, length: int = 12) -> np.ndarray:
    found = np.zeros(length, bool)
    found[list(times)] = True
    return found


def test_subgoal_changes_never_at_the_first_step_nor_in_padding() -> None:
    subgoal = np.array([[3, 3, 1, 1, 1, 3], [0, 2, 2, 9, 9, 1]])
    mask = np.array([[True] * 6, [True] * 3 + [False] * 3])
    assert np.argwhere(subgoal_changes(subgoal, mask)).tolist() == [[0, 2], [0, 5], [1, 1]]


@pytest.mark.parametrize(
    ("found", "true", "matches"),
    [
        ((4,), (5,), 1),
        ((4,), (6,), 0),
        ((4, 5, 6), (5,), 1),  # one event matches once
        ((5,), (4, 6), 1),
        (
            (4, 6),
            (5, 7),
            2,
        ),  # each with the later one; nearest-first would pair 6 with 5 and lose 4
        ((), (3,), 0),
    ],
)
def test_count_matches_by_hand(found: tuple, true: tuple, matches: int) -> None:
    assert count_matches(events(*found), events(*true)) == matches


@given(EVENTS, EVENTS, st.integers(0, 3))
def test_count_matches_is_the_largest_matching(
    found: np.ndarray, true: np.ndarray, tolerance: int
) -> None:
    near = np.abs(np.flatnonzero(found)[:, None] - np.flatnonzero(true)) <= tolerance
    largest = (maximum_bipartite_matching(csr_matrix(near)) >= 0).sum() if near.size else 0
    assert count_matches(found, true, tolerance) == largest


def test_f1_by_hand() -> None:
    found, true = np.stack([events(2, 6, 9), events()]), np.stack([events(3, 9), events(4)])
    # 2 matches; precision 2/3, recall 2/3
    assert f1(found, true) == pytest.approx(2 / 3)
    assert f1(found, true, tolerance=0) == pytest.approx(2 * (1 / 3) * (1 / 3) / (2 / 3))
    assert f1(events()[None], events()[None]) == 0


def test_switching_scores_by_hand() -> None:
    mask = np.array([[True] * 8, [True] * 5 + [False] * 3])
    subgoal = np.array([[0, 0, 0, 1, 1, 1, 2, 2], [5, 5, 4, 4, 4, 0, 1, 2]])
    switch = np.array([[1, 0.05, 0.5, 0, 0, 0.49, 0, 0], [1, 0, 0.99, 0.3, 0.95, 1, 1, 0.4]])
    # Without the first steps 11 count. Found: (0, 2), (1, 2), (1, 4).
    # True: (0, 3), (0, 6), (1, 2). 2 match.
    scores = switching_scores(switch, subgoal, mask)
    assert scores["switch_rate"] == pytest.approx(3 / 11)
    assert scores["true_switch_rate"] == pytest.approx(3 / 11)
    assert scores["switch_f1"] == pytest.approx(2 * 2 / 6)
    assert scores["mid_share"] == pytest.approx(3 / 11)  # 0.5, 0.49, 0.3
    assert scores["switch_f1_within_1"] == scores["switch_f1"]


def test_scores_within_one_step_stay_beside_a_larger_tolerance() -> None:
    switch, subgoal = events(5)[None].astype(float), np.repeat([0, 1], [2, 10])[None]
    scores = switching_scores(switch, subgoal, np.ones((1, 12), bool), tolerance=5)
    assert (scores["switch_f1"], scores["switch_f1_within_1"]) == (1, 0)  # the change is at step 2


def test_random_f1_is_what_chance_gives_at_the_same_rate() -> None:
    rng = np.random.default_rng(1)
    true = rng.random((300, 40)) < 0.2
    subgoal, mask = np.cumsum(true, 1), np.ones((300, 40), bool)
    scores = switching_scores(subgoal_changes(subgoal, mask).astype(float), subgoal, mask)
    assert scores["switch_f1"] == 1
    independent = (rng.random((300, 40)) < 0.2) & (np.arange(40) > 0)
    assert scores["random_f1"] == pytest.approx(
        f1(independent, subgoal_changes(subgoal, mask)), abs=0.03
    )
