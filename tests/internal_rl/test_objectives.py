"""The losses against numbers worked out by hand."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from internal_rl.objectives import (
    batch_relative_advantage,
    behaviour_loss,
    clipped_surrogate,
    elbo,
    global_norm,
    masked_mean,
    warm_up,
)

MASK = jnp.array([[True, True, False], [True, False, False]])
LOG_PROB = jnp.array([[-1.0, -2.0, -50.0], [-6.0, np.nan, -np.inf]])  # padding may hold anything


def test_masked_mean() -> None:
    assert masked_mean(LOG_PROB, MASK) == pytest.approx(
        -3.0
    )  # over three steps, not over two episodes
    assert masked_mean(LOG_PROB, jnp.zeros_like(MASK)) == 0


def test_masked_mean_gives_padding_no_gradient() -> None:
    gradient = jax.grad(lambda x: masked_mean(x, MASK))(jnp.arange(6.0).reshape(2, 3))
    np.testing.assert_allclose(gradient, np.array([[1, 1, 0], [1, 0, 0]]) / 3, rtol=1e-6)


def test_behaviour_loss_weighs_the_next_observation() -> None:
    target = jnp.array([[-3.0, -3.0, 9.0], [-9.0, 0.0, 0.0]])
    loss, nll, target_nll = behaviour_loss(LOG_PROB, target, 0.1, MASK)
    assert (float(nll), float(target_nll)) == pytest.approx((3.0, 5.0))
    assert float(loss) == pytest.approx(3.5)


def test_elbo_is_nll_plus_alpha_kl() -> None:
    kl = jnp.array([[0.5, 1.0, 100.0], [3.0, 7.0, np.nan]])
    parts = elbo(LOG_PROB, kl, jnp.float32(0.2), MASK)
    assert [float(part) for part in parts] == pytest.approx([3.0 + 0.2 * 1.5, 3.0, 1.5])
    scored = jnp.array([[True, False, False], [True, False, False]])  # NLL and KL of the same steps
    parts = elbo(LOG_PROB, kl, jnp.float32(0.2), scored)
    assert [float(part) for part in parts] == pytest.approx([3.5 + 0.2 * 1.75, 3.5, 1.75])


@pytest.mark.parametrize(
    ("step", "expected"),
    [(0, 0.0), (99, 0.0), (100, 0.0), (101, 0.01), (150, 0.5), (200, 1.0), (9_999, 1.0)],
)
def test_warm_up(step: int, expected: float) -> None:
    assert float(warm_up(jnp.int32(step), 0.2, 100, 100)) == pytest.approx(0.2 * expected)


@pytest.mark.parametrize(("step", "expected"), [(5, 0.0), (6, 0.3)])
def test_warm_up_without_a_ramp_is_a_step(step: int, expected: float) -> None:
    assert float(warm_up(jnp.int32(step), 0.3, 5, 0)) == pytest.approx(expected)


def test_batch_relative_advantage() -> None:
    # mean 1/4, standard deviation sqrt(1/4 * 3/4), to which 1/1000 is added
    scale = math.sqrt(3) / 4 + 1e-3
    advantage = batch_relative_advantage(jnp.array([0.0, 0.0, 1.0, 0.0]), jnp.ones(4, bool))
    np.testing.assert_allclose(advantage, np.array([-0.25, -0.25, 0.75, -0.25]) / scale, rtol=1e-5)


@pytest.mark.parametrize("value", [0.0, 1.0, 3.0])
def test_equal_returns_have_no_advantage(value: float) -> None:
    assert (np.asarray(batch_relative_advantage(jnp.full(8, value), jnp.ones(8, bool))) == 0).all()


def test_unusable_episodes_have_no_advantage_and_no_say() -> None:
    usable = jnp.array([True, True, False, True, True, False])
    returns = jnp.array([0.0, 0.0, 9.0, 1.0, 0.0, -5.0])
    advantage = batch_relative_advantage(returns, usable)
    np.testing.assert_allclose(
        advantage[usable], batch_relative_advantage(returns[usable], jnp.ones(4, bool))
    )
    assert advantage[~usable].tolist() == [0, 0]


# One decision of each kind with a clip of 0.2: ratio, advantage, loss, and the loss's derivative by
# the log-probability, which is -ratio * A, and 0 where the clipped gain is the smaller one.
KINDS = {
    "inside, good": (1.1, 2.0, -2.2, -2.2),
    "inside, bad": (0.9, -2.0, 1.8, 1.8),
    "too far up, good": (1.5, 2.0, -2.4, 0.0),
    "too far down, bad": (0.5, -2.0, 1.6, 0.0),
    "too far up, bad": (1.5, -2.0, 3.0, 3.0),
    "too far down, good": (0.5, 2.0, -1.0, -1.0),
}


@pytest.mark.parametrize("kind", KINDS)
def test_clipped_surrogate_of_one_decision(kind: str) -> None:
    ratio, advantage, loss, gradient = KINDS[kind]
    old = jnp.array([[-1.3, 0.0]])
    log_prob = old + jnp.array([[math.log(ratio), 9.0]])
    mask = jnp.array([[True, False]])

    def objective(x: jax.Array) -> jax.Array:
        return clipped_surrogate(x, old, jnp.array([advantage]), mask, 0.2).loss

    assert float(objective(log_prob)) == pytest.approx(loss, rel=1e-5)
    np.testing.assert_allclose(jax.grad(objective)(log_prob), [[gradient, 0.0]], rtol=1e-5)


def test_clipped_surrogate_averages_over_the_decisions_of_all_episodes() -> None:
    ratio = np.array([[1.1, 1.5, 99.0], [0.5, 99.0, 99.0]])
    surrogate = clipped_surrogate(
        jnp.log(ratio), jnp.zeros((2, 3)), jnp.array([2.0, -1.0]), MASK, 0.2
    )
    assert float(surrogate.loss) == pytest.approx(-(2.2 + 2.4 - 0.8) / 3, rel=1e-5)
    assert float(surrogate.clip_fraction) == pytest.approx(2 / 3)
    kl = [r - 1 - math.log(r) for r in (1.1, 1.5, 0.5)]
    assert float(surrogate.approx_kl) == pytest.approx(sum(kl) / 3, rel=1e-4)


def test_clipped_surrogate_survives_any_number_at_an_unused_slot() -> None:
    """exp of a huge difference is infinite; its gradient must not make the used slots nan."""
    old = jnp.array([[0.0, -1e4]])
    mask = jnp.array([[True, False]])

    def objective(x: jax.Array) -> jax.Array:
        return clipped_surrogate(x, old, jnp.array([1.0]), mask, 0.2).loss

    np.testing.assert_allclose(jax.grad(objective)(jnp.zeros((1, 2))), [[-1.0, 0.0]])


def test_global_norm() -> None:
    assert (
        float(global_norm({"a": jnp.array([3.0]), "b": [jnp.array([[0.0, 4.0], [12.0, 0.0]])]}))
        == 13.0
    )
