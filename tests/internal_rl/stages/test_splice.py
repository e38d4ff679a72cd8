"""Prefixes of other episodes: what the controlled base model sees, and what is scored."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from internal_rl.config import Config
from internal_rl.data.batches import Batch
from internal_rl.models.metacontroller import Metacontroller
from internal_rl.models.model import Model
from internal_rl.models.steered import SteeredModel
from internal_rl.stages import discover
from internal_rl.stages.discover import Before, rows_before, splice

ROWS, LENGTH = 512, 7


def rows() -> tuple[jax.Array, jax.Array, Before]:
    """Observations that name their row and step, and a mask of rows of 1 to 7 steps."""
    lengths = np.random.default_rng(0).integers(1, LENGTH + 1, size=ROWS)
    observation = jnp.arange(ROWS * LENGTH).reshape(ROWS, LENGTH, 1)
    mask = jnp.arange(LENGTH) < jnp.asarray(lengths)[:, None]
    return observation, mask, rows_before(Batch(observation, None, None, mask, None))


def test_a_prefix_comes_from_the_row_before() -> None:
    observation, mask, before = rows()
    seen, own = map(
        np.asarray,
        splice(observation, mask, before, jax.random.split(jax.random.key(0), ROWS), 0.5),
    )
    starts = LENGTH - own.sum(1)
    assert (
        own == (np.arange(LENGTH) >= starts[:, None])
    ).all()  # once its own, a row stays its own
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
    config: Config,
    make_backbone: Callable,
    make_metacontroller: Callable,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Only the controlled model sees the other observations: latents stay, predictions change."""
    base, metacontroller = make_backbone("hawk"), make_metacontroller()
    rng = np.random.default_rng(0)
    observation = jnp.asarray(rng.integers(base.embedding.table[...].shape[0], size=(3, 6, 4)))
    first = jnp.zeros((3, 6), bool).at[:, 0].set(True)
    action = jnp.asarray(rng.integers(4, size=(3, 6)))
    batch = Batch(observation, action, action, jnp.ones((3, 6), bool), first)
    rows = batch, jax.random.split(jax.random.key(1), 3), rows_before(batch)
    model = Model.of(metacontroller)
    params = {"metacontroller": model.params}
    loss_fn = discover.discovery_loss(config, model)
    infer, unroll = Metacontroller.infer, SteeredModel.unroll
    found: dict[str, Any] = {}

    def listening_infer(self, *inputs):
        found["inference"] = infer(self, *inputs)
        return found["inference"]

    def listening_unroll(self, e, first, latent):
        prediction = unroll(self, e, first, latent)
        found["steered by"] = latent
        found["log_prob"] = prediction.action.log_prob(action)
        return prediction

    monkeypatch.setattr(Metacontroller, "infer", listening_infer)
    monkeypatch.setattr(SteeredModel, "unroll", listening_unroll)

    @jax.jit
    def run(seen: jax.Array) -> dict[str, Any]:
        """The loss where the rows that are acted on show `seen`."""
        monkeypatch.setattr(discover, "splice", lambda *_: (seen, batch.mask))
        loss_fn(params, jnp.int32(0), Model.of(base), rows)
        return dict(found)

    plain = run(observation)
    spliced = run(jnp.roll(observation, 1, axis=0))
    jax.tree.map(np.testing.assert_array_equal, plain["inference"], spliced["inference"])
    np.testing.assert_array_equal(spliced["steered by"], spliced["inference"].latent)
    assert np.abs(plain["log_prob"] - spliced["log_prob"]).min() > 0


def test_an_empty_row_is_nobodys_neighbour() -> None:
    mask = np.array([[True, True], [False, False], [True, False], [False, False]])
    before = rows_before(Batch(np.arange(8).reshape(4, 2), None, None, mask, None))
    assert before.observation[[0, 2], 0].tolist() == [4, 0]
    assert before.length[[0, 2]].tolist() == [1, 2]
