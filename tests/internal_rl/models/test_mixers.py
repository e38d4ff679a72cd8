"""The two sequence mixers: both faces agree, time runs forwards, episodes do not mix."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from internal_rl.models.backbone import episode_starts
from internal_rl.models.hawk import Hawk, linear_recurrence
from internal_rl.models.transformer import NUM_BUCKETS, Attention, distance_bucket

WIDTH, LENGTH = 8, 20  # more than 16 steps: the logarithmic buckets take part
Mixer = Hawk | Attention


@pytest.fixture(scope="module", params=["hawk, 1 head", "hawk, 2 heads", "transformer"])
def mixer(request: pytest.FixtureRequest, make_rngs: Callable, normal: Callable) -> Mixer:
    if request.param == "transformer":
        attention = Attention(WIDTH, 2, 4, 1.0, 1.0, make_rngs())
        attention.bias[...] = normal(*attention.bias.shape, seed=1)
        return attention
    return Hawk(WIDTH, 1 if "1" in request.param else 2, 1.0, 1.0, make_rngs())


@pytest.fixture(scope="module")
def x(normal: Callable) -> jax.Array:
    return normal(2, LENGTH, WIDTH, seed=2)


@pytest.fixture(scope="module")
def unroll(mixer: Mixer) -> Callable[[jax.Array, jax.Array], jax.Array]:
    return jax.jit(mixer.unroll)


def test_step_equals_unroll_at_every_step(
    mixer: Mixer, unroll: Callable, x: jax.Array, assert_close: Callable
) -> None:
    with jax.default_matmul_precision("highest"):
        expected = unroll(x, episode_starts(2, LENGTH))
        step, memory = jax.jit(mixer.step), mixer.init_memory(2, LENGTH)
        for t in range(LENGTH):
            y, memory = step(x[:, t], memory, jnp.int32(t))
            assert_close(y, expected[:, t])


def test_a_change_reaches_no_earlier_output(unroll: Callable, x: jax.Array) -> None:
    first, changed = episode_starts(2, LENGTH), 7
    before = np.asarray(unroll(x, first))
    after = np.asarray(unroll(x.at[:, changed].add(1.0), first))
    np.testing.assert_array_equal(after[:, :changed], before[:, :changed])
    # a change is felt at its own step and, through the memory, at the next ones
    assert (np.abs(after - before).max(-1)[:, changed : changed + 6] > 1e-4).all()


def test_packed_episodes_equal_each_alone(
    unroll: Callable, x: jax.Array, assert_close: Callable
) -> None:
    cut = 13
    packed = unroll(x, episode_starts(2, LENGTH).at[:, cut].set(True))
    one_row = unroll(x, episode_starts(2, LENGTH))
    assert (
        np.abs(packed - one_row)[:, cut:].max() > 1e-2
    )  # without the mark the second would see the first
    shifted = jnp.roll(
        x, -cut, 1
    )  # the second episode at the row's start; what follows it is later
    assert_close(packed[:, :cut], one_row[:, :cut])
    assert_close(packed[:, cut:], unroll(shifted, episode_starts(2, LENGTH))[:, : LENGTH - cut])


def test_linear_recurrence_by_hand() -> None:
    a = jnp.array([[9.0, 0.5, 0.5, 0.0, 1.0]])[..., None]
    b = jnp.array([[1.0, 2.0, -1.0, 3.0, 0.5]])[..., None]
    # 1; 0.5 * 1 + 2; 0.5 * 2.5 - 1; 0 + 3; 3 + 0.5. The first decay meets an empty state.
    np.testing.assert_allclose(linear_recurrence(a, b)[0, :, 0], [1.0, 2.5, 0.25, 3.0, 3.5])


@pytest.fixture
def hawk(make_rngs: Callable) -> Hawk:
    return Hawk(WIDTH, 1, 1.0, 1.0, make_rngs())


def test_hawk_decay_at_the_start_runs_evenly_from_half_to_99_hundredths(hawk: Hawk) -> None:
    decay, _ = jax.jit(hawk._gates)(np.zeros(WIDTH))  # a zero input leaves the gates half open
    np.testing.assert_allclose(decay, 0.5 + 0.07 * np.arange(8), rtol=1e-4)


def test_hawk_scales_its_input_by_the_decay(hawk: Hawk) -> None:
    """b_t = sqrt(1 - a_t^2) i_t x_t, here with an open gate: unit noise keeps unit variance."""
    hawk.recurrence_gate.kernel[...] = np.zeros((1, WIDTH, WIDTH))
    hawk.input_gate.kernel[...] = np.zeros((1, WIDTH, WIDTH))
    hawk.input_gate.bias[...] = np.full(WIDTH, 30.0)
    x = np.arange(WIDTH) - 3.0
    a, b = jax.jit(hawk._gates)(x)
    np.testing.assert_allclose(b, np.sqrt(1 - np.square(a)) * x, rtol=1e-4)


def test_hawk_derivative_is_finite_where_the_decay_is_one(hawk: Hawk) -> None:
    hawk.recurrence_gate.bias[...] = np.full(WIDTH, -1e9, np.float32)
    assert (np.asarray(jax.jit(hawk._gates)(np.ones(WIDTH))[0]) == 1).all()
    graphdef, params = nnx.split(hawk, nnx.Param)
    x, first = np.ones((1, 3, WIDTH), np.float32), episode_starts(1, 3)
    gradient = jax.jit(jax.grad(lambda p, x: nnx.merge(graphdef, p).unroll(x, first).sum(), (0, 1)))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient(params, x)))


def test_distance_buckets_by_hand() -> None:
    # above 15: 16 + floor(16 log(d / 16) / log(8)), at most 31
    expected = {
        0: 0,
        1: 1,
        15: 15,
        16: 16,
        17: 16,
        20: 17,
        32: 21,
        64: 26,
        127: 31,
        128: 31,
        10_000: 31,
    }
    found = distance_bucket(jnp.array(list(expected)))
    assert dict(zip(expected, found.tolist(), strict=True)) == expected


def test_all_buckets_are_used_in_order() -> None:
    buckets = np.asarray(distance_bucket(jnp.arange(129)))
    assert np.unique(buckets).tolist() == list(range(32)) == list(range(NUM_BUCKETS))
    assert (np.diff(buckets) >= 0).all()


def test_attention_bias_belongs_to_the_distance_back_in_time(
    x: jax.Array, assert_close: Callable, make_rngs: Callable
) -> None:
    attention = Attention(WIDTH, 2, 4, 1.0, 1.0, make_rngs())
    bias = np.zeros((NUM_BUCKETS, 2), np.float32)
    bias[3] = 1e4  # all weight on the step three before
    attention.bias[...] = bias
    value = np.asarray(x @ attention.qkv.kernel[...]).reshape(2, LENGTH, 3, WIDTH)[:, :, 2]
    mixed = jax.jit(attention.unroll)(x, episode_starts(2, LENGTH))
    assert_close(mixed[:, 3:], (value @ np.asarray(attention.out.kernel[...]))[:, :-3])
