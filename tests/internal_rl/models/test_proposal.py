"""The proposal: its algebra by hand."""

from collections.abc import Callable
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from envs.api import Dense, MultiHot
from internal_rl.config import Config
from internal_rl.models.model import Model, Params
from internal_rl.models.policy import LatentInput, LatentPolicy
from internal_rl.models.proposal import Proposal, add_dimensions, keep_heaviest

SPEC, COMPONENTS, LATENT = MultiHot(size=6, active=2), 3, 2
OBSERVATION = jnp.array([[0, 4], [1, 5], [3, 3]])


@pytest.fixture(scope="module")
def fitted(make_rngs: Callable, normal: Callable) -> Model[Proposal]:
    """A proposal with no number at its initial value."""
    model = Model.of(Proposal(SPEC, LATENT, COMPONENTS, make_rngs()))
    params = {
        name: normal(*value.shape, seed=seed)
        for seed, (name, value) in enumerate(model.params.items())
    }
    return model.with_params(params)


def test_experts_are_linear_in_the_observation(fitted: Model[Proposal]) -> None:
    params = fitted.params
    counts = np.zeros((3, 6))
    for row, ones in enumerate(np.asarray(OBSERVATION)):
        for one in ones:
            counts[row, one] += 1
    expected = (counts @ params["table"]).reshape(3, COMPONENTS, LATENT) + params["bias"]
    np.testing.assert_allclose(fitted.module().means(OBSERVATION), expected, rtol=1e-5)


def test_dense_observations_are_multiplied(make_rngs: Callable) -> None:
    proposal = Proposal(Dense(6), LATENT, COMPONENTS, make_rngs())
    multi_hot = Proposal(SPEC, LATENT, COMPONENTS, make_rngs())
    dense = jax.nn.one_hot(OBSERVATION, 6).sum(-2)
    np.testing.assert_allclose(proposal.means(dense), multi_hot.means(OBSERVATION), rtol=1e-5)


def test_keeping_the_heaviest_drops_the_others(
    fitted: Model[Proposal], make_rngs: Callable
) -> None:
    params = {**fitted.params, "log_weight": jnp.array([0.1, -3.0, 2.0])}
    two = Model.of(Proposal(SPEC, LATENT, 2, make_rngs()))
    kept = two.with_params(keep_heaviest(params, 2)).module()(OBSERVATION)
    full = fitted.with_params(params).module()(OBSERVATION)
    np.testing.assert_allclose(kept.mean, full.mean[:, [2, 0]], rtol=1e-6)
    np.testing.assert_allclose(kept.logits[0], [2.0, 0.1], rtol=1e-6)


def test_added_dimensions_are_standard_normal(
    fitted: Model[Proposal], make_rngs: Callable, normal: Callable
) -> None:
    active, latent = np.array([False, True, True]), normal(3, 3, seed=9)
    full = Model.of(Proposal(SPEC, 3, COMPONENTS, make_rngs()))
    full = full.with_params(add_dimensions(fitted.params, active))
    before = fitted.module()(OBSERVATION).log_prob(latent[:, active])
    after = full.module()(OBSERVATION).log_prob(latent)
    np.testing.assert_allclose(after, before + scipy.stats.norm.logpdf(latent[:, 0]), rtol=1e-4)


def test_the_policy_starts_as_the_proposal(
    config: Config, make_rngs: Callable, stream: jax.Array
) -> None:
    """Up to the gain, and with a std of its own; PPO moves the components' maps only where
    it is told to."""
    observation = jnp.arange(18).reshape(3, 6, 1) % 6
    proposal = Proposal(SPEC, LATENT, COMPONENTS, make_rngs())
    proposal.log_weight[...] = jnp.array([0.0, 1.0, -1.0])
    for train_components in (False, True):
        settings = replace(
            config.policy, gain=1.5, initial_std=0.3, train_components=train_components
        )
        policy = LatentPolicy(config.model.width, LATENT, settings, make_rngs(1), proposal)
        mixture = policy.unroll(LatentInput(stream, observation))
        np.testing.assert_allclose(mixture.mean, 1.5 * proposal.means(observation), rtol=1e-5)
        np.testing.assert_allclose(np.exp(mixture.log_std), 0.3, rtol=1e-5)
        weights = jax.nn.softmax(mixture.logits)
        expected = np.broadcast_to(jax.nn.softmax(proposal.log_weight[...]), weights.shape)
        np.testing.assert_allclose(weights, expected, atol=0.1)
        model = Model.of(policy)

        def log_prob(params: Params, model: Model[LatentPolicy] = model) -> jax.Array:
            mixture = model.with_params(params).module().unroll(LatentInput(stream, observation))
            return mixture.log_prob(jnp.ones(2)).sum()

        gradient = jax.grad(log_prob)(model.params)
        assert (np.abs(gradient["proposal"]["table"]).max() > 0) == train_components
        for name in ("offset", "log_std"):
            assert np.abs(gradient[name]).max() > 0, name
        assert np.abs(gradient["proposal"]["log_weight"]).max() > 0
