"""Prefixes of other episodes: what the controlled base model sees, and what is scored."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from internal_rl.config import Config
from internal_rl.stages.discover import Before, rows_before, splice, steer
from internal_rl.trajectories import Batch

ROWS, LENGTH = 512, 7


def rows() -> tuple[jax.Array, jax.Array, Before]:
    """Observations that name their row and step, and a mask of rows of 1 to 7 steps."""
    lengths = np.random.default_rng(0).integers(1, LENGTH + 1, size=ROWS)
    observation = jnp.arange(ROWS * LENGTH).reshape(ROWS, LENGTH, 1)
    mask = jnp.arange(LENGTH) < jnp.asarray(lengths)[:, None]
    return observation, mask, rows_before(Batch(observation, None, None, mask, None))


def test_a_prefix_comes_from_the_row_before() -> None:
    observation, mask, before = rows()
    seen, own = map(np.asarray, splice(observation, mask, before, jax.random.split(jax.random.key(0), ROWS), 0.5))
    starts = LENGTH - own.sum(1)
    assert (own == (np.arange(LENGTH) >= starts[:, None])).all()  # once its own, a row stays its own
    other = np.roll(np.asarray(observation), 1, axis=0)
    np.testing.assert_array_equal(seen, np.where(own[..., None], observation, other))
    lengths = np.asarray(mask).sum(1)
    assert (starts < lengths).all()  # a step of its own is left
    assert (starts <= np.roll(lengths, 1)).all()  # no padding of the row before is shown
    possible = lengths > 1
    assert 0.4 < (starts > 0)[possible].mean() < 0.6
    assert set(starts) == set(range(LENGTH))


def test_no_share_changes_nothing() -> None:
    observation, mask, before = rows()
    seen, own = splice(observation, mask, before, jax.random.split(jax.random.key(0), ROWS), 0.0)
    np.testing.assert_array_equal(seen, observation)
    assert own.all()


def test_the_posterior_reads_the_episode_itself(
    config: Config, make_backbone: Callable, make_metacontroller: Callable
) -> None:
    """Only the controlled model sees the other observations: latents stay, predictions change."""
    base, metacontroller = make_backbone("hawk"), make_metacontroller()
    rng = np.random.default_rng(0)
    observation = jnp.asarray(rng.integers(base.embedding.table[...].shape[0], size=(3, 6, 4)))
    first = jnp.zeros((3, 6), bool).at[:, 0].set(True)
    action = jnp.asarray(rng.integers(4, size=(3, 6)))
    batch = Batch(observation, action, action, jnp.ones((3, 6), bool), first)
    run = jax.jit(lambda seen: steer(base, metacontroller, batch, jax.random.split(jax.random.key(1), 3), seen))
    plain, plain_log_prob = run(observation)
    spliced, log_prob = run(jnp.roll(observation, 1, axis=0))
    jax.tree.map(np.testing.assert_array_equal, plain, spliced)
    assert np.abs(plain_log_prob - log_prob).min() > 0


def test_an_empty_row_is_nobodys_neighbour() -> None:
    mask = np.array([[True, True], [False, False], [True, False], [False, False]])
    before = rows_before(Batch(np.arange(8).reshape(4, 2), None, None, mask, None))
    assert before.observation[[0, 2], 0].tolist() == [4, 0]
    assert before.length[[0, 2]].tolist() == [1, 2]
