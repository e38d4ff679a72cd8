"""The metacontroller: what it reads, when it switches, what it writes."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from internal_rl.models.layers import rms_normalise
from internal_rl.models.metacontroller import Metacontroller

BATCH, LENGTH, WIDTH, LATENT = 3, 6, 8, 3
FULL = jnp.ones((BATCH, LENGTH), bool)
EMBEDDERS = {
    "gru": {},
    "hawk": {"embedder": "hawk"},
    "lagged": {"embedding_lag": 1, "encoder_norm": True},
}


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def weights(layer) -> np.ndarray:
    return np.asarray(layer.kernel[...], np.float64)


@pytest.fixture(scope="module")
def metacontroller(make_metacontroller: Callable) -> Metacontroller:
    return make_metacontroller()


@pytest.fixture(scope="module", params=EMBEDDERS)
def infer(request: pytest.FixtureRequest, make_metacontroller: Callable) -> Callable:
    """(e, mask) -> Inference with a fixed key."""
    metacontroller = make_metacontroller(**EMBEDDERS[request.param])
    return jax.jit(
        lambda e, mask: metacontroller.infer(e, mask, jax.random.split(jax.random.key(0), BATCH))
    )


@pytest.fixture(scope="module")
def embed(make_metacontroller: Callable) -> dict[str, Callable]:
    return {
        name: jax.jit(make_metacontroller(**settings).embed_sequence)
        for name, settings in EMBEDDERS.items()
    }


@pytest.fixture(scope="module")
def integrate(metacontroller: Metacontroller) -> Callable:
    """(e, proposals) -> (beta, z), for whole episodes."""
    return jax.jit(
        lambda e, proposals: metacontroller.integrate(e, metacontroller.past(e, FULL), proposals)
    )


@pytest.fixture(scope="module")
def proposals(normal: Callable) -> jax.Array:
    return normal(BATCH, LENGTH, LATENT, seed=3)


# --- control ------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [2, 0])
def test_a_zero_latent_leaves_the_stream_exactly_as_it_is(
    make_metacontroller: Callable, stream: jax.Array, rank: int
) -> None:
    control = jax.jit(make_metacontroller(rank=rank).control)
    np.testing.assert_array_equal(control(stream, jnp.zeros((BATCH, LENGTH, LATENT))), stream)
    assert np.abs(control(stream, jnp.ones((BATCH, LENGTH, LATENT))) - stream).max() > 1e-3


def test_the_hypernetwork_has_biases_only_where_asked(make_metacontroller: Callable) -> None:
    assert [layer.bias for layer in make_metacontroller().hypernetwork.layers] == [None, None]
    biased = make_metacontroller(hypernetwork_bias=True).hypernetwork
    assert None not in [layer.bias for layer in biased.layers]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("rank", "expected"), [(1, 1), (2, 2), (0, WIDTH)])
def test_control_is_linear_of_the_asked_rank(
    make_metacontroller: Callable,
    normal: Callable,
    assert_close: Callable,
    rank: int,
    expected: int,
    bias: bool,
) -> None:
    metacontroller = make_metacontroller(rank=rank, hypernetwork_width=20, hypernetwork_bias=bias)
    for layer in metacontroller.hypernetwork.layers if bias else ():
        layer.bias[...] = normal(*layer.bias.shape, seed=8)
    latent = normal(LATENT, seed=4) * 3
    control = jax.jit(
        lambda e: metacontroller.control(e, jnp.broadcast_to(latent, (*e.shape[:-1], LATENT)))
    )
    # rows e of the identity give rows e U^T
    matrix = np.asarray(control(jnp.eye(WIDTH)) - jnp.eye(WIDTH)).T
    singular = np.linalg.svd(matrix, compute_uv=False)
    assert singular[expected - 1] > 1e-3 * singular[0]
    assert (singular[expected:] < 1e-5 * singular[0]).all()

    e = normal(5, WIDTH, seed=6)
    assert_close(control(e), e + e @ matrix.T)
    produced = np.asarray(metacontroller.hypernetwork(latent))
    if rank:
        a, b = np.split(produced.reshape(2 * rank, WIDTH), 2)
        assert_close(matrix, b.T @ a / np.sqrt(WIDTH))
    else:
        assert_close(matrix, produced.reshape(WIDTH, WIDTH) / WIDTH)


# --- switch and integration ---------------------------------------------------------------------


def numpy_integrate(
    metacontroller: Metacontroller,
    e: np.ndarray,
    past: np.ndarray,
    proposals: np.ndarray,
    hard: bool = False,
):
    """Switch and latent one step after another; e is normalised."""
    z, betas, latents = np.zeros((BATCH, LATENT)), [], []
    for t in range(LENGTH):
        hidden = np.concatenate([e[:, t], past[:, t]], -1) @ weights(metacontroller.switch_input)
        hidden += np.asarray(metacontroller.switch_input.bias[...]) + z @ weights(
            metacontroller.switch_latent
        )
        score = np.maximum(hidden, 0) @ weights(metacontroller.switch_output)
        beta = (
            sigmoid(score + np.asarray(metacontroller.switch_output.bias[...]))
            if t
            else np.ones((BATCH, 1))
        )
        if hard:
            beta = (beta >= 0.5).astype(float)
        z = beta * proposals[:, t] + (1 - beta) * z
        betas.append(beta[:, 0])
        latents.append(z)
    return np.stack(betas, 1), np.stack(latents, 1)


def test_switch_and_latent_against_numpy(
    metacontroller: Metacontroller, integrate: Callable, stream: jax.Array, proposals: jax.Array
) -> None:
    switch, latent = integrate(stream, proposals)
    past = np.asarray(metacontroller.past(stream, FULL))
    expected = numpy_integrate(
        metacontroller, np.asarray(rms_normalise(stream)), past, np.asarray(proposals)
    )
    np.testing.assert_allclose(switch, expected[0], rtol=1e-4)
    np.testing.assert_allclose(latent, expected[1], rtol=1e-4, atol=1e-5)
    assert (np.asarray(switch)[:, 0] == 1).all()
    assert ((np.asarray(switch) >= 0.5).mean(0)[1:] < 1).any()
    assert (np.asarray(switch)[:, 1:] >= 0.5).any()


def test_a_hard_switch_is_open_or_shut_and_holds_whole_latents(
    metacontroller: Metacontroller, stream: jax.Array, proposals: jax.Array
) -> None:
    past = metacontroller.past(stream, FULL)
    switch, latent = jax.jit(metacontroller.integrate, static_argnames="hard")(
        stream, past, proposals, hard=True
    )
    arrays = [np.asarray(x) for x in (rms_normalise(stream), past, proposals)]
    expected = numpy_integrate(metacontroller, *arrays, hard=True)
    np.testing.assert_array_equal(switch, expected[0])
    np.testing.assert_array_equal(latent, expected[1].astype(np.float32))
    held = np.asarray(switch)[:, 1:] == 0
    assert held.any()
    assert not held.all()
    np.testing.assert_array_equal(np.asarray(latent)[:, 1:][held], np.asarray(latent)[:, :-1][held])


def test_past_is_the_history_before_each_step(
    metacontroller: Metacontroller, stream: jax.Array
) -> None:
    past = jax.jit(metacontroller.past)
    before, after = np.asarray(past(stream, FULL)), np.asarray(past(stream.at[:, 3].add(1.0), FULL))
    assert (before[:, 0] == 0).all()
    np.testing.assert_array_equal(after[:, :4], before[:, :4])
    assert (np.abs(after - before)[:, 4].max(-1) > 1e-4).all()


def test_the_switch_does_not_see_the_future(
    integrate: Callable, stream: jax.Array, proposals: jax.Array
) -> None:
    before = integrate(stream, proposals)
    after = integrate(stream.at[:, 4].add(1.0), proposals)
    for x, y in zip(before, after, strict=True):
        np.testing.assert_array_equal(np.asarray(x)[:, :4], np.asarray(y)[:, :4])
    assert (np.abs(before[0] - after[0])[:, 4] > 1e-4).all()


def test_the_switch_reads_the_latent_before_and_not_the_proposal(
    integrate: Callable, stream: jax.Array, proposals: jax.Array
) -> None:
    before, after = (integrate(stream, x)[0] for x in (proposals, proposals.at[:, 2].add(2.0)))
    change = np.abs(np.asarray(before) - np.asarray(after))
    assert (change[:, :3] == 0).all()
    assert (change[:, 3] > 1e-4).all()


@pytest.mark.parametrize("hard", [False, True])
def test_single_steps_equal_whole_sequences(
    make_metacontroller: Callable,
    stream: jax.Array,
    proposals: jax.Array,
    hard: bool,
    assert_close: Callable,
) -> None:
    """As in internal RL; its hard switch is the soft one where beta is 0 or 1."""
    metacontroller = make_metacontroller()
    if hard:
        for layer in (metacontroller.switch_output.kernel, metacontroller.switch_output.bias):
            layer[...] = layer[...] * 1e4
    past = metacontroller.past(stream, FULL)
    switch, latent = jax.jit(metacontroller.integrate)(stream, past, proposals)

    history, z = metacontroller.init_history(BATCH), jnp.zeros((BATCH, LATENT))
    read, advance = jax.jit(metacontroller.switch), jax.jit(metacontroller.advance_history)
    for t in range(LENGTH):
        beta = read(stream[:, t], history, z) if t else jnp.ones(BATCH)
        if hard:
            assert set(np.asarray(switch[:, t]).round(6)) <= {0, 1}
            z = jnp.where(beta[:, None] >= 0.5, proposals[:, t], z)
        else:
            z = beta[:, None] * proposals[:, t] + (1 - beta[:, None]) * z
        history = advance(stream[:, t], history)
        np.testing.assert_allclose(beta, switch[:, t], atol=1e-5)
        assert_close(z, latent[:, t])


def test_force_switch_opens_it_at_every_step(
    make_metacontroller: Callable, stream: jax.Array, proposals: jax.Array
) -> None:
    metacontroller = make_metacontroller(force_switch=True)
    switch, latent = metacontroller.integrate(stream, metacontroller.past(stream, FULL), proposals)
    assert (np.asarray(switch) == 1).all()
    np.testing.assert_array_equal(latent, proposals)
    beta = metacontroller.switch(stream[:, 1], metacontroller.init_history(BATCH), proposals[:, 0])
    assert (np.asarray(beta) == 1).all()


# --- inference ----------------------------------------------------------------------------------


def test_the_posterior_sees_the_future(infer: Callable, stream: jax.Array) -> None:
    before, after = (infer(e, FULL).posterior for e in (stream, stream.at[:, -1].add(1.0)))
    assert (np.abs(before.mean - after.mean)[:, 0].max(-1) > 1e-5).all()
    assert (np.abs(before.log_std - after.log_std)[:, 0].max(-1) > 1e-5).all()


def test_inference_integrates_a_sample_of_the_posterior(
    metacontroller: Metacontroller, integrate: Callable, stream: jax.Array, assert_close: Callable
) -> None:
    keys = jax.random.split(jax.random.key(7), BATCH)
    posterior, kl, switch, latent = jax.jit(metacontroller.infer)(stream, FULL, keys)
    noise = jnp.stack([jax.random.normal(key, (LENGTH, LATENT)) for key in keys])
    expected = integrate(stream, posterior.mean + np.exp(posterior.log_std) * noise)
    assert_close(switch, expected[0])
    assert_close(latent, expected[1])
    assert_close(kl, posterior.kl_to_standard())
    assert (
        posterior.mean.shape == posterior.log_std.shape == latent.shape == (BATCH, LENGTH, LATENT)
    )


def test_padding_changes_nothing_before_it(infer: Callable, stream: jax.Array) -> None:
    mask = FULL.at[1, 4:].set(False).at[2, 1:].set(False)
    before, after = (infer(e, mask) for e in (stream, jnp.where(mask[..., None], stream, 9.0)))
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x[mask], y[mask]), before, after)
    unmasked = infer(jnp.where(mask[..., None], stream, 9.0), FULL)
    assert np.abs(unmasked.posterior.mean - before.posterior.mean)[mask].max() > 1e-3


@pytest.mark.parametrize("embedder", EMBEDDERS)
def test_embedding_of_a_padded_sequence_is_that_of_the_sequence(
    embed: dict[str, Callable], stream: jax.Array, embedder: str
) -> None:
    mask = FULL.at[:, 4:].set(False)
    alone = embed[embedder](stream[:, :4], FULL[:, :4])
    steps = alone.shape[1]
    np.testing.assert_allclose(
        embed[embedder](stream, mask)[:, :steps], alone, rtol=1e-5, atol=1e-6
    )
    assert np.abs(embed[embedder](stream, FULL)[:, :steps] - alone).max() > 1e-3


def test_a_lagged_embedding_is_of_the_future_from_steps_ago(
    embed: dict[str, Callable], stream: jax.Array
) -> None:
    """The last step to see step 3 is the one `lag` = 1 after it; the first two see the same."""
    before, after = (
        np.asarray(embed["lagged"](e, FULL)) for e in (stream, stream.at[:, 3].add(1.0))
    )
    assert (np.abs(before - after).max(-1) > 1e-5).tolist() == [
        [t <= 3 + 1 for t in range(LENGTH)]
    ] * BATCH
    np.testing.assert_array_equal(before[:, 0], before[:, 1])


def test_shared_noise_is_one_draw_an_episode(
    make_metacontroller: Callable, integrate: Callable, stream: jax.Array, assert_close: Callable
) -> None:
    keys = jax.random.split(jax.random.key(7), BATCH)
    posterior, _, _, latent = jax.jit(make_metacontroller(shared_noise=True).infer)(
        stream, FULL, keys
    )
    noise = jnp.stack([jax.random.normal(key, (1, LATENT)) for key in keys])
    assert_close(latent, integrate(stream, posterior.mean + np.exp(posterior.log_std) * noise)[1])


def test_log_std_is_kept_in_a_range(metacontroller: Metacontroller, normal: Callable) -> None:
    huge = 1e4 * normal(BATCH, LENGTH, WIDTH, seed=8)
    log_std = np.asarray(
        metacontroller.encode(huge, jnp.zeros((BATCH, LENGTH, 4)), jnp.zeros((BATCH, 1, 5))).log_std
    )
    assert (log_std.min(), log_std.max()) == (-6, 2)


def test_a_normed_encoder_reads_directions_of_history_and_embedding_only(
    make_metacontroller: Callable, normal: Callable, assert_close: Callable
) -> None:
    x, history, embedding = (
        normal(BATCH, LENGTH, WIDTH),
        normal(BATCH, LENGTH, 4, seed=1),
        normal(BATCH, 1, 5, seed=2),
    )
    for normed in (True, False):
        encode = make_metacontroller(encoder_norm=normed).encode
        plain, scaled = encode(x, history, embedding), encode(x, 0.1 * history, 3.0 * embedding)
        if normed:
            assert_close(
                scaled.mean, plain.mean, 1e-3
            )  # what is added to the mean square shows at a tenth of a unit
        else:
            assert np.abs(scaled.mean - plain.mean).max() > 1e-2


# --- a switch that has to recover (in training) -------------------------------------------------


def opened(
    metacontroller: Any, switch: Any, stream: jax.Array, proposals: jax.Array, recovery: Any
) -> np.ndarray:
    """beta where f_switch would always say `switch`."""
    metacontroller._switch_probability = lambda features, latent: jnp.full(len(features), switch)
    history = metacontroller.past(stream, FULL)
    return np.asarray(metacontroller.integrate(stream, history, proposals, recovery)[0])


def test_an_opened_switch_opens_again_as_far_as_it_has_recovered(
    make_metacontroller: Callable, stream: jax.Array, proposals: jax.Array
) -> None:
    """Always asked to open, it spends what it regains: all, half or a quarter per step."""
    recovery = jnp.resize(jnp.array([1.0, 2.0, 4.0]), BATCH)
    beta = opened(make_metacontroller(), 1.0, stream, proposals, recovery)
    np.testing.assert_allclose(beta[:, 0], 1)
    np.testing.assert_allclose(
        beta[:, 1:], np.repeat(1 / np.asarray(recovery)[:, None], LENGTH - 1, 1), rtol=1e-6
    )


def test_a_half_open_switch_spends_the_budget_too(
    make_metacontroller: Callable, stream: jax.Array, proposals: jax.Array
) -> None:
    """By hand, recovery 4 and f_switch 1/2.

    Budget 1/4, 3/8, 7/16, 15/32, then to 1/2, where it gains what it spends.
    """
    beta = opened(make_metacontroller(), 0.5, stream, proposals, jnp.full(BATCH, 4.0))
    np.testing.assert_allclose(beta[0, :5], [1, 1 / 8, 3 / 16, 7 / 32, 15 / 64], rtol=1e-6)


def test_a_recovery_of_one_step_is_none(
    make_metacontroller: Callable, stream: jax.Array, proposals: jax.Array
) -> None:
    metacontroller = make_metacontroller()
    history = metacontroller.past(stream, FULL)
    free = metacontroller.integrate(stream, history, proposals)
    one = metacontroller.integrate(stream, history, proposals, jnp.ones(BATCH))
    slow = metacontroller.integrate(stream, history, proposals, jnp.full(BATCH, 3.0))
    jax.tree.map(np.testing.assert_array_equal, one, free)
    assert (np.asarray(slow[0])[:, 1:] < np.asarray(free[0])[:, 1:]).all()

    def infer(recovery):
        return metacontroller.infer(
            stream, FULL, jax.random.split(jax.random.key(0), BATCH), recovery=recovery
        )

    assert (np.asarray(infer(jnp.full(BATCH, 3.0)).switch) != np.asarray(infer(None).switch)).any()
