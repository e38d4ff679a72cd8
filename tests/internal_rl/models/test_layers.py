"""The small layers against plain NumPy."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from internal_rl.models.layers import GRU, MLP, RMSNorm, linear, rms_normalise


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def test_linear_has_the_asked_variance_and_no_bias_at_the_start(make_rngs: Callable) -> None:
    layer = linear(200, 300, 0.1, make_rngs())
    assert np.var(layer.kernel[...]) == pytest.approx(0.1 / 200, rel=0.03)
    assert (np.asarray(layer.bias[...]) == 0).all()
    assert linear(2, 3, 0.1, make_rngs(), bias=False).bias is None


def test_rms_normalise_by_hand() -> None:
    x = jnp.array([[3.0, 4.0], [0.0, 0.0]])
    root = np.sqrt(12.5)  # of the mean of 9 and 16
    np.testing.assert_allclose(rms_normalise(x), [[3 / root, 4 / root], [0, 0]], rtol=1e-5)


def test_rms_norm_has_a_gain_per_channel() -> None:
    norm = RMSNorm(2)
    norm.gain[...] = jnp.array([2.0, -1.0])
    root = np.sqrt(12.5)
    np.testing.assert_allclose(norm(jnp.array([3.0, 4.0])), [6 / root, -4 / root], rtol=1e-5)


def test_mlp_has_relu_between_layers_and_none_after_the_last(make_rngs: Callable) -> None:
    mlp = MLP((2, 2, 1), make_rngs())
    mlp.layers[0].kernel[...] = jnp.eye(2)
    mlp.layers[0].bias[...] = jnp.array([0.0, 1.0])
    mlp.layers[1].kernel[...] = jnp.array([[1.0], [-2.0]])
    # hidden relu([-3, 5 + 1]) = [0, 6] -> -12; hidden relu([4, -2 + 1]) = [4, 0] -> 4
    np.testing.assert_allclose(mlp(jnp.array([[-3.0, 5.0], [4.0, -2.0]])), [[-12.0], [4.0]])


def test_mlp_scales_its_last_layer_apart_and_can_go_without_biases(make_rngs: Callable) -> None:
    mlp = MLP((300, 300, 300), make_rngs(), scale=1.0, scale_last=0.01, bias=False)
    variances = [float(np.var(layer.kernel[...])) * 300 for layer in mlp.layers]
    assert variances == pytest.approx([1.0, 0.01], rel=0.03)
    assert all(layer.bias is None for layer in mlp.layers)


@pytest.fixture(scope="module")
def gru(make_rngs: Callable) -> GRU:
    return GRU(3, 4, make_rngs())


@pytest.fixture(scope="module")
def inputs(normal: Callable) -> jax.Array:
    return normal(2, 5, 3, seed=1)


def numpy_gru(gru: GRU, x: np.ndarray, h: np.ndarray) -> np.ndarray:
    """Cho et al. 2014, with the reset gate after the product (Keras' reset_after)."""
    x_gates = np.split(
        np.asarray(x) @ np.asarray(gru.input.kernel[...]) + np.asarray(gru.input.bias[...]), 3, -1
    )
    h_gates = np.split(h @ np.asarray(gru.recurrent.kernel[...]), 3, -1)
    reset, update = sigmoid(x_gates[0] + h_gates[0]), sigmoid(x_gates[1] + h_gates[1])
    return update * h + (1 - update) * np.tanh(x_gates[2] + reset * h_gates[2])


def test_gru_step_and_unroll_against_numpy(gru: GRU, inputs: jax.Array) -> None:
    states, h = np.asarray(gru.unroll(inputs)), np.zeros((2, 4))
    for t in range(5):
        np.testing.assert_allclose(
            gru.step(inputs[:, t], jnp.asarray(h, jnp.float32)), states[:, t], rtol=1e-4
        )
        h = numpy_gru(gru, inputs[:, t], h)
        np.testing.assert_allclose(states[:, t], h, rtol=1e-4, atol=1e-6)


def test_gru_keeps_its_state_where_masked(gru: GRU, inputs: jax.Array) -> None:
    mask = jnp.array([[True, True, False, True, False]] * 2)
    states = np.asarray(gru.unroll(inputs, mask))
    without = np.asarray(gru.unroll(inputs[:, np.array([0, 1, 3])]))
    np.testing.assert_array_equal(states[:, 2], states[:, 1])
    np.testing.assert_array_equal(states[:, 4], states[:, 3])
    np.testing.assert_allclose(states[:, [0, 1, 3]], without, rtol=1e-6)


def test_gru_memory_is_spread_from_two_steps_to_the_longest(make_rngs: Callable) -> None:
    """Without input and recurrence a unit keeps the share 1 - 1/tau of its state at each step."""
    gru = GRU(3, 3, make_rngs(), memory=32.0)
    gru.recurrent.kernel[...] = jnp.zeros((3, 9))
    kept = gru.step(jnp.zeros((1, 3)), jnp.ones((1, 3)))
    np.testing.assert_allclose(kept[0], [1 - 1 / 2, 1 - 1 / 8, 1 - 1 / 32], rtol=1e-6)


def test_gru_in_reverse_is_the_gru_of_the_reversed_sequence(gru: GRU, inputs: jax.Array) -> None:
    backwards = gru.unroll(inputs, reverse=True)
    np.testing.assert_allclose(backwards, gru.unroll(inputs[:, ::-1])[:, ::-1], rtol=1e-6)
