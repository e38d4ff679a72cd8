"""Densities, entropies and divergences against scipy and by hand."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from internal_rl.models.distributions import Categorical, Gaussian, Mixture

MEAN = np.array([[0.3, -1.2, 2.0], [0.0, 0.5, -0.1]], np.float32)
LOG_STD = np.array([[0.0, -0.7, 0.4], [0.2, -1.5, 0.0]], np.float32)
VALUE = np.array([[0.1, 0.2, -0.3], [1.0, 0.4, 0.0]], np.float32)
LOGITS = np.array([[0.0, math.log(2), math.log(5)], [3.0, 3.0, -1e9]], np.float32)
DRAWS = 20_000


@pytest.fixture(scope="module")
def gaussian() -> Gaussian:
    return Gaussian(jnp.asarray(MEAN), jnp.asarray(LOG_STD))


def test_gaussian_log_prob_and_entropy(gaussian: Gaussian) -> None:
    normal = scipy.stats.norm(MEAN, np.exp(LOG_STD))
    np.testing.assert_allclose(gaussian.log_prob(VALUE), normal.logpdf(VALUE).sum(-1), rtol=1e-5)
    np.testing.assert_allclose(gaussian.entropy(), normal.entropy().sum(-1), rtol=1e-5)


def test_gaussian_kl_by_hand() -> None:
    # a mean of 2 costs 4 / 2; a std of e costs (e^2 - 1) / 2 - 1; the standard normal costs nothing
    mean, log_std = (
        np.array([[2.0, 0.0], [0.0, 0.0], [0.0, 0.0]]),
        np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 0.0]]),
    )
    kl = Gaussian(mean, log_std).kl_to_standard()
    np.testing.assert_allclose(kl, [2.0, (math.e**2 - 1) / 2 - 1, 0.0], atol=1e-5)


def test_gaussian_samples_and_monte_carlo_kl(gaussian: Gaussian) -> None:
    """E[log p(x) - log n(x)] under p is the KL; the draws have the mean and the deviations of p."""
    keys = jax.random.split(jax.random.key(0), DRAWS)
    samples = np.asarray(jax.jit(jax.vmap(gaussian.sample))(keys))
    np.testing.assert_allclose(samples.mean(0), MEAN, atol=0.05)
    np.testing.assert_allclose(samples.std(0), np.exp(LOG_STD), rtol=0.03)
    standard = scipy.stats.norm.logpdf(samples).sum(-1)
    estimate = (np.asarray(gaussian.log_prob(samples)) - standard).mean(0)
    np.testing.assert_allclose(gaussian.kl_to_standard(), estimate, rtol=0.03)


def test_categorical_log_prob_by_hand() -> None:
    categorical = Categorical(jnp.asarray(LOGITS))  # (1, 2, 5) / 8 and (1, 1, 0) / 2
    value = np.array([[2, 1], [0, 1]])
    expected = np.log([[5 / 8, 1 / 2], [1 / 8, 1 / 2]])
    log_prob = np.stack([categorical.log_prob(jnp.asarray(row)) for row in value])
    np.testing.assert_allclose(log_prob, expected, rtol=1e-5)


def test_categorical_samples_have_its_frequencies() -> None:
    categorical = Categorical(jnp.asarray(LOGITS))
    keys = jax.random.split(jax.random.key(1), DRAWS)
    samples = np.asarray(jax.jit(jax.vmap(categorical.sample))(keys))
    shares = [np.bincount(samples[:, row], minlength=3) / DRAWS for row in range(2)]
    np.testing.assert_allclose(shares, [[1 / 8, 2 / 8, 5 / 8], [1 / 2, 1 / 2, 0]], atol=0.015)


def test_mixture_log_prob_against_scipy() -> None:
    """Two components of three dimensions with weights 1/4 and 3/4."""
    weights = np.array([0.25, 0.75])
    mixture = Mixture(jnp.log(weights) + 2.0, jnp.asarray(MEAN), jnp.asarray(LOG_STD))
    normal = scipy.stats.norm(MEAN, np.exp(LOG_STD))
    joint = np.log(weights) + normal.logpdf(VALUE[0]).sum(-1)
    np.testing.assert_allclose(mixture.joint_log_prob(VALUE[0]), joint, rtol=1e-5)
    np.testing.assert_allclose(mixture.log_prob(VALUE[0]), np.logaddexp.reduce(joint), rtol=1e-5)


def test_mixture_samples_come_from_the_chosen_component() -> None:
    """A batch of two: means 10 and -10 with weights 1/5 and 4/5, and a row of its second alone."""
    logits = jnp.log(jnp.array([[0.2, 0.8], [1e-30, 1.0]]))
    mean = jnp.broadcast_to(jnp.array([10.0, -10.0])[None, :, None], (2, 2, 1))
    log_std = jnp.broadcast_to(jnp.log(jnp.array([0.5, 2.0]))[None, :, None], (2, 2, 1))
    keys = jax.random.split(jax.random.key(2), DRAWS)
    samples = np.asarray(jax.jit(jax.vmap(Mixture(logits, mean, log_std).sample))(keys))[..., 0]
    assert (samples[:, 0] > 0).mean() == pytest.approx(0.2, abs=0.015)
    assert (samples[:, 1] < 0).all()
    np.testing.assert_allclose(
        [samples[samples > 0].std(), samples[:, 1].std()], [0.5, 2.0], rtol=0.03
    )
