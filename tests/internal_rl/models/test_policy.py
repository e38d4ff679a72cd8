"""The latent policy: where its latents start, and how fast their spread may change."""

from collections.abc import Callable
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from internal_rl.config import Config
from internal_rl.models.model import Model
from internal_rl.models.policy import LatentInput, LatentPolicy


@pytest.mark.parametrize("rate", [1.0, 5.0])
def test_the_spread_starts_as_configured_and_moves_by_a_rate_of_its_own(
    config: Config, make_rngs: Callable, rate: float
) -> None:
    """Adam moves every parameter by its rate a step: what is multiplied moves that much faster."""
    settings = replace(config.policy, initial_std=2.0, std_rate=rate)
    policy = Model.of(LatentPolicy(6, 3, settings, make_rngs()))
    x = LatentInput(jnp.ones((1, 1, 6)), jnp.zeros((1, 1, 1), jnp.int32))

    def log_std(step: float) -> np.ndarray:
        params = {**policy.params, "log_std": policy.params["log_std"] - step}
        module = policy.with_params(params).module()
        return np.asarray(jax.jit(lambda x: module.unroll(x).log_std)(x)).ravel()

    np.testing.assert_allclose(log_std(0.0), np.log(2), rtol=1e-6)
    np.testing.assert_allclose(log_std(3e-3), np.log(2) - rate * 3e-3, rtol=1e-5)
