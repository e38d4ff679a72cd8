"""Kept successes: which are kept, where they are put, and what they weigh."""

import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from internal_rl.rollout import Decisions, Episodes
from internal_rl.training import replay

KEPT, BATCH, SLOTS = 3, 6, 2
outcomes = st.lists(st.booleans(), min_size=BATCH, max_size=BATCH)


def played(success: list[bool], first: int = 0, usable: list[bool] | None = None) -> Episodes:
    """A batch whose episodes are numbered from `first` on, in what they decide."""
    number = jnp.arange(first, first + len(success), dtype=jnp.float32)
    shape = (len(success), SLOTS)
    slots = jnp.broadcast_to(number[:, None], shape)
    mask = jnp.ones(shape, bool).at[:, 1].set(False)
    time = jnp.zeros(shape, jnp.int32)
    won = jnp.asarray(success)
    none = jnp.zeros(len(success), jnp.int32)
    fit = jnp.ones(len(success), bool) if usable is None else jnp.asarray(usable)
    decisions = Decisions(slots[..., None], slots[..., None], -slots, mask, time)
    return Episodes(decisions, won.astype(jnp.float32), won, none, none, fit, {})


def numbers(episodes: Episodes | replay.Kept) -> list[int]:
    return np.asarray(episodes.decisions.action[:, 0, 0]).astype(int).tolist()


def some(*success: list[bool]) -> replay.Kept:
    """What is kept after these batches, numbered on."""
    kept = replay.empty(played([True]).decisions, KEPT)
    for index, outcome in enumerate(success):
        kept = replay.keep(kept, played(outcome, index * BATCH))
    return kept


def unchanged(decisions: Decisions) -> jnp.ndarray:
    return decisions.log_prob


@given(st.lists(outcomes, max_size=4))
def test_the_newest_successes_are_kept(batches: list[list[bool]]) -> None:
    kept = some(*batches)
    expected = [
        index * BATCH + row
        for index in reversed(range(len(batches)))
        for row in range(BATCH)
        if batches[index][row]
    ][:KEPT]
    assert int(kept.count) == len(expected)
    assert numbers(kept)[: len(expected)] == expected
    assert (np.asarray(kept.returns)[: len(expected)] == 1).all()


def test_episodes_that_may_not_be_learned_from_are_not_kept() -> None:
    nothing = replay.empty(played([True]).decisions, KEPT)
    batch = played([True] * BATCH, usable=[False] * (BATCH - 1) + [True])
    assert numbers(replay.keep(nothing, batch))[:1] == [BATCH - 1]
    assert int(replay.keep(nothing, batch).count) == 1


@given(outcomes, outcomes)
def test_kept_successes_stand_for_failures_only_and_only_while_there_are_few(
    before: list[bool], outcome: list[bool]
) -> None:
    kept = some(before)
    batch = played(outcome, BATCH)
    mixed, weight = replay.mix(kept, batch, unchanged)
    replaced = np.array(numbers(mixed)) < BATCH
    assert not (replaced & outcome).any()
    missing = max(KEPT - sum(outcome), 0) if any(before) else 0
    assert replaced.sum() <= missing
    assert replaced.any() == (missing > 0 and not all(outcome[:: BATCH // KEPT][:missing]))
    assert {numbers(mixed)[row] for row in np.flatnonzero(replaced)} <= set(numbers(kept))
    np.testing.assert_array_equal(mixed.returns, np.maximum(replaced, outcome))
    np.testing.assert_array_equal(weight, np.ones(BATCH))  # today's policy played all of them
    np.testing.assert_array_equal(mixed.success, outcome)  # what is logged is of the batch itself


def test_a_kept_success_has_the_log_prob_of_today_and_its_ratio_cut_off_at_one() -> None:
    kept = some([True, False, True, False, False, False])  # episodes 0 and 2, of log_prob -0, -2
    batch = played([False] * BATCH, BATCH)
    mixed, weight = replay.mix(kept, batch, lambda old: jnp.full(old.log_prob.shape, -1.0))
    assert numbers(mixed) == [0, 7, 2, 9, 0, 11]
    np.testing.assert_allclose(mixed.decisions.log_prob[jnp.array([0, 2, 4])], -1)
    # Only the slot that holds a decision counts: exp(-1 - 0), and exp(-1 + 2) cut off.
    np.testing.assert_allclose(weight, [np.exp(-1), 1, 1, 1, np.exp(-1), 1], rtol=1e-6)
