"""Codes of segments: which latent, under which label, decoded how well."""

import numpy as np
import pytest

from internal_rl.measures.codes import (
    Codes,
    nearest_neighbour_accuracy,
    same_subgoal_latents,
    segment_codes,
)

SUBGOAL = np.array([[1, 1, 2, 2, 2, 0], [2, 1, 1, 7, 7, 7]])
MASK = np.array([[True] * 6, [True] * 3 + [False] * 3])
TIME = np.arange(6)


@pytest.fixture
def codes() -> Codes:
    latent = np.stack(
        [TIME + 100.0 * np.arange(2)[:, None], np.zeros((2, 6))], -1
    )  # tells episode and step
    target = 10 * np.arange(2)[:, None] + TIME
    return segment_codes(latent, SUBGOAL, target, MASK)


def test_segment_codes_are_taken_at_the_last_step_of_each_completed_segment(codes: Codes) -> None:
    # ends: episode 0 at steps 1 and 4 (subgoal 0 is cut off), episode 1 at step 0 (not at padding)
    assert codes.latent[:, 0].tolist() == [1.0, 4.0, 100.0]
    assert codes.subgoal.tolist() == [1, 2, 2]
    assert codes.place.tolist() == [1, 4, 10]
    assert codes.ordinal.tolist() == [0, 1, 0]
    assert codes.episode.tolist() == [0, 0, 1]


def test_first_segments_are_the_first_of_each_episode(codes: Codes) -> None:
    first = codes.of_first_segments()
    assert first.latent[:, 0].tolist() == [1.0, 100.0]
    assert (first.subgoal.tolist(), first.place.tolist(), first.episode.tolist()) == (
        [1, 2],
        [1, 10],
        [0, 1],
    )


def test_nearest_neighbour_accuracy_by_hand() -> None:
    """Codes of odd episodes are looked up among those of even ones."""
    codes = Codes(
        latent=np.array([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [1.0, 1.0], [9.0, 1.0], [1.0, 2.0]]),
        subgoal=np.array([0, 1, 2, 0, 1, 2]),
        place=np.array([5, 5, 5, 5, 6, 5]),
        ordinal=np.array([0, 1, 0, 0, 1, 1]),
        episode=np.array([0, 0, 2, 1, 1, 3]),
    )
    # (1, 1) is nearest to subgoal 0: right. (9, 1) to 1: right. (1, 2) to 0: wrong, it is 2.
    accuracy = nearest_neighbour_accuracy(codes, "subgoal")
    assert accuracy == pytest.approx({"all": 2 / 3, "chance": 2 / 6, "0": 1.0, "1": 0.5})
    accuracy = nearest_neighbour_accuracy(codes, "place")
    assert accuracy == pytest.approx({"all": 2 / 3, "chance": 5 / 6, "0": 1.0, "1": 0.5})


def test_nearest_neighbour_accuracy_needs_both_halves() -> None:
    none = np.array([], int)
    assert (
        nearest_neighbour_accuracy(Codes(np.zeros((0, 2)), none, none, none, none), "subgoal") == {}
    )
    only_even = Codes(np.zeros((2, 2)), *(np.array([0, 2]) for _ in range(4)))
    assert nearest_neighbour_accuracy(only_even, "subgoal") == {}


def test_same_subgoal_latents_come_from_other_episodes(codes: Codes) -> None:
    latents = same_subgoal_latents(codes, SUBGOAL, MASK, np.random.default_rng(0))[..., 0]
    # Episode 0: subgoal 1 has no code elsewhere, 2 has the one of episode 1, 0 has none.
    assert latents[0].tolist() == [0, 0, 100, 100, 100, 0]
    # Episode 1: 2 and 1 have those of episode 0; padding stays zero.
    assert latents[1].tolist() == [4, 1, 1, 0, 0, 0]


def test_same_subgoal_latents_are_drawn_once_a_segment_among_all_candidates() -> None:
    rng = np.random.default_rng(0)
    subgoal, mask = np.zeros((2, 3), int), np.ones((2, 3), bool)
    candidates = Codes(
        np.array([[1.0], [2.0], [9.0]]), *(np.zeros(3, int) for _ in range(3)), np.array([1, 1, 0])
    )
    drawn = [same_subgoal_latents(candidates, subgoal, mask, rng)[0, :, 0] for _ in range(30)]
    assert all(len(set(held)) == 1 for held in drawn)
    assert {held[0] for held in drawn} == {1.0, 2.0}
