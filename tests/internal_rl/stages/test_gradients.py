"""Gradients that must be zero: of padding, and of a frozen base model."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from internal_rl.config import Config
from internal_rl.data.batches import Batch
from internal_rl.measures.discovery import has_rate
from internal_rl.models.backbone import Backbone, episode_starts
from internal_rl.models.metacontroller import Metacontroller
from internal_rl.models.model import Model
from internal_rl.stages.discover import discovery_loss, handicaps, rows_before
from internal_rl.stages.pretrain import drop_history, pretraining_loss
from internal_rl.training.loop import init_state, make_update

BATCH, LENGTH = 3, 6
REAL_ROWS = 20  # real steps use the first rows of the embedding, padding the others
MASK = np.arange(LENGTH) < np.array([[6], [4], [1]])
KEYS = jax.random.split(jax.random.key(0), BATCH)
MANY = jax.random.split(jax.random.key(1), 4_000)


def make_batch(padding: int, mask: np.ndarray = MASK) -> Batch:
    """The same real steps every time; `padding` seeds what lies in the padding."""
    fill = np.random.default_rng(100 + padding)
    rng = np.random.default_rng(0)
    shape = (BATCH, LENGTH)
    observation = rng.integers(REAL_ROWS, size=(*shape, 3))
    observation[~MASK] = fill.integers(REAL_ROWS, 27, size=(*shape, 3))[~MASK]
    action, target = rng.integers(4, size=shape), rng.integers(9, size=shape)
    action[~MASK], target[~MASK] = (
        fill.integers(4, size=shape)[~MASK],
        fill.integers(9, size=shape)[~MASK],
    )
    return Batch(observation, action, target, mask, np.asarray(episode_starts(*shape)))


@pytest.fixture(scope="module")
def base(make_backbone: Callable) -> Model[Backbone]:
    return Model.of(make_backbone("hawk"))


@pytest.fixture(scope="module")
def metacontroller(make_metacontroller: Callable) -> Model[Metacontroller]:
    return Model.of(make_metacontroller())


@pytest.fixture(scope="module")
def cotrained(config: Config, metacontroller: Model[Metacontroller]) -> Callable:
    """(params, the frozen base, batch) -> gradients by the first two.

    params: of the base model and the metacontroller. Of the frozen base its parameters' gradient.
    """
    settings = replace(config, discover=replace(config.discover, cotrain=True))
    loss_fn = discovery_loss(settings, metacontroller)

    def loss(params: Any, step: Any, frozen: Model[Backbone], batch: Batch) -> jax.Array:
        return loss_fn(params, step, frozen, (batch, KEYS, None))[0]

    gradient = jax.jit(jax.grad(loss, (0, 2)))

    def gradients(params: Any, frozen: Model[Backbone], batch: Batch) -> tuple[Any, Any]:
        of_params, of_frozen = gradient(params, jnp.int32(5), frozen, batch)
        return of_params, of_frozen.params

    return gradients


def check_padding(gradient: Callable[[Batch], Any], table: Callable[[Any], Any]) -> None:
    """`table` picks the gradient of the embedding."""
    one, other = gradient(make_batch(1)), gradient(make_batch(2))
    assert (np.asarray(table(one))[REAL_ROWS:] == 0).all()
    assert (np.asarray(table(one))[:REAL_ROWS] != 0).any()
    jax.tree.map(np.testing.assert_array_equal, one, other)
    unmasked = gradient(make_batch(1, np.ones_like(MASK)))
    assert (np.asarray(table(unmasked))[REAL_ROWS:] != 0).any()


def test_padding_teaches_the_base_model_nothing(base: Model[Backbone]) -> None:
    loss_fn = pretraining_loss(base, 0.1)
    gradient = jax.jit(jax.grad(lambda batch, params: loss_fn(params, 0, None, batch)[0], 1))
    check_padding(
        lambda batch: gradient(batch, base.params),
        lambda gradients: gradients["embedding"]["table"],
    )


def test_padding_teaches_discovery_nothing(
    base: Model[Backbone], metacontroller: Model[Metacontroller], cotrained: Callable
) -> None:
    params = {"metacontroller": metacontroller.params, "base": base.params}

    def gradient(batch):
        return cotrained(params, base, batch)[0]

    check_padding(gradient, lambda gradients: gradients["base"]["embedding"]["table"])


def test_cotraining_moves_its_own_base_model_and_not_the_frozen_one(
    base: Model[Backbone], metacontroller: Model[Metacontroller], cotrained: Callable
) -> None:
    params = {"metacontroller": metacontroller.params, "base": base.params}
    moving, frozen = cotrained(params, base, make_batch(1))
    assert all((np.asarray(leaf) == 0).all() for leaf in jax.tree.leaves(frozen))
    # the action alone is predicted: every weight but the other head's has a gradient
    still = {
        jax.tree_util.keystr(path)
        for path, leaf in jax.tree.leaves_with_path(moving)
        if not np.asarray(leaf).any()
    }
    assert still == {f"['base']['target_head']['linear']['{name}']" for name in ("kernel", "bias")}


def test_discovery_trains_the_metacontroller_around_a_base_model_it_reads(
    config: Config, base: Model[Backbone], metacontroller: Model[Metacontroller]
) -> None:
    optimiser = optax.sgd(0.1)
    update = make_update(discovery_loss(config, metacontroller), optimiser)
    state = init_state({"metacontroller": metacontroller.params}, optimiser)
    after, metrics = update(state, base, (make_batch(1), KEYS, None))
    assert set(after.params) == {"metacontroller"}
    changed = jax.tree.map(
        lambda x, y: bool((np.asarray(x) != np.asarray(y)).any()), state.params, after.params
    )
    assert all(jax.tree.leaves(changed))
    other = jax.tree.map(lambda x: 2 * x, base)
    assert float(update(state, other, (make_batch(1), KEYS, None))[1]["loss"]) != pytest.approx(
        float(metrics["loss"])
    )
    assert float(metrics["loss"]) == pytest.approx(
        float(metrics["nll"]) + float(metrics["alpha"]) * float(metrics["kl"]), rel=1e-5
    )


def test_the_embeddings_lag_rises_to_the_metacontrollers_own(
    config: Config, base: Model[Backbone], make_metacontroller: Callable
) -> None:
    def loss(step: int, lag: int, delay: int, ramp: int) -> float:
        metacontroller = Model.of(make_metacontroller(embedding_lag=lag))
        settings = replace(
            config,
            metacontroller=replace(config.metacontroller, embedding_lag=lag),
            discover=replace(
                config.discover, alpha=0.0, curriculum_delay=delay, curriculum_ramp=ramp
            ),
        )
        loss_fn = discovery_loss(settings, metacontroller)
        trained = {"metacontroller": metacontroller.params}
        return float(loss_fn(trained, jnp.int32(step), base, (make_batch(1), KEYS, None))[0])

    constant = [loss(0, lag, 0, 0) for lag in range(3)]
    assert len(set(constant)) == 3
    risen = [loss(step, 2, 1, 4) for step in (0, 1, 3, 5, 9)]
    assert risen == pytest.approx([constant[lag] for lag in (0, 0, 1, 2, 2)])
    assert [loss(step, 2, 1, 0) for step in (1, 2)] == pytest.approx([constant[0], constant[2]])


def test_each_episodes_recovery_is_drawn_from_what_the_curriculum_has_reached(
    config: Config,
) -> None:
    discover = replace(config.discover, recovery=60, curriculum_delay=10, curriculum_ramp=20)

    def draws(step):
        return handicaps(replace(config, discover=discover), jnp.int32(step), MANY)[1]

    assert (draws(10) == 1).all()  # 1 step: none at all
    for step, most in ((20, 30), (30, 60), (99, 60)):
        drawn = np.asarray(draws(step))
        assert 1 == drawn.min() < drawn.max() <= most
        assert drawn.mean() == pytest.approx(most / 2, rel=0.05)
    assert handicaps(config, jnp.int32(99), KEYS) == (None, None)
    at_once = replace(discover, curriculum_delay=0, curriculum_ramp=0)
    assert handicaps(replace(config, discover=at_once), jnp.int32(0), MANY)[1].max() > 59  # pyright: ignore


def test_a_switch_in_need_of_recovery_changes_the_loss(
    config: Config, base: Model[Backbone], metacontroller: Model[Metacontroller]
) -> None:
    def loss(recovery: int) -> float:
        settings = replace(config, discover=replace(config.discover, recovery=recovery))
        loss_fn = discovery_loss(settings, metacontroller)
        params = {"metacontroller": metacontroller.params}
        return float(loss_fn(params, jnp.int32(9), base, (make_batch(1), KEYS, None))[0])

    assert abs(loss(50) - loss(0)) > 1e-5


def test_dropping_history_starts_episodes_anew_and_depends_on_the_seed_alone() -> None:
    batch = make_batch(1)

    def drop(seed):
        return drop_history(batch, 0.5, np.random.default_rng(seed)).first

    assert drop_history(batch, 0.0, np.random.default_rng(0)) is batch
    first = drop(7)
    assert first[:, 0].all()
    assert 0 < first[:, 1:].mean() < 1
    np.testing.assert_array_equal(first, drop(7))
    assert (first != drop(8)).any()


@pytest.mark.parametrize("micro_batch", [1, 3])
def test_pieces_of_a_batch_add_up_to_the_whole(
    config: Config,
    base: Model[Backbone],
    metacontroller: Model[Metacontroller],
    assert_close: Callable,
    micro_batch: int,
) -> None:
    """Rows of 6, 4, 1 and 6, 4, 1 steps: a mean of the pieces' means would weigh them wrongly."""
    batch = jax.tree.map(lambda x: np.concatenate([x, x[::-1]]), make_batch(1))
    keys = jax.random.split(jax.random.key(2), 2 * BATCH)
    spliced = replace(config, discover=replace(config.discover, splice=0.5))
    optimiser = optax.sgd(0.1)
    losses = {
        "pretrain": (pretraining_loss(base, 0.1), base.params, None, batch),
        "discover": (
            discovery_loss(spliced, metacontroller),
            {"metacontroller": metacontroller.params},
            base,
            (batch, keys, rows_before(batch)),
        ),
    }
    for loss_fn, params, frozen, rows in losses.values():
        state = init_state(params, optimiser)
        whole, expected = make_update(loss_fn, optimiser)(state, frozen, rows)
        pieces, metrics = make_update(loss_fn, optimiser, micro_batch)(state, frozen, rows)
        assert metrics.keys() == expected.keys()
        for name in expected.keys() - {"alpha"}:
            assert float(metrics[name]) == pytest.approx(float(expected[name]), rel=1e-4), name
        moved = jax.tree.map(lambda x, y: np.asarray(x) - np.asarray(y), whole.params, params)
        again = jax.tree.map(lambda x, y: np.asarray(x) - np.asarray(y), pieces.params, params)
        for expected_leaf, leaf in zip(jax.tree.leaves(moved), jax.tree.leaves(again), strict=True):
            if np.abs(expected_leaf).max() > 0:
                assert_close(leaf, expected_leaf, 2e-3)


def test_a_batch_that_cannot_be_cut_is_an_error(base: Model[Backbone]) -> None:
    optimiser = optax.sgd(0.1)
    update = make_update(pretraining_loss(base, 0.1), optimiser, micro_batch=2)
    with pytest.raises(ValueError, match="3 rows cannot be cut into pieces of 2"):
        update(init_state(base.params, optimiser), None, make_batch(1))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, True),
        ({"recovery": 5}, False),
        ({"splice": 0.5}, False),
        ({"shared_noise": True}, False),
    ],
)
def test_the_kl_is_a_rate_only_of_the_plain_model(
    config: Config, changes: dict, expected: bool
) -> None:
    shared = {"shared_noise": True} if "shared_noise" in changes else {}
    others = {name: value for name, value in changes.items() if name != "shared_noise"}
    settings = replace(
        config,
        metacontroller=replace(config.metacontroller, **shared),
        discover=replace(config.discover, **others),
    )
    assert has_rate(settings) is expected
