"""Rates of the legs of the post-training task: held latents, redrawn latents, first legs."""

from collections.abc import Callable

import jax
import numpy as np
import pytest

from envs.gridworld import GridWorld
from internal_rl.models.metacontroller import Metacontroller
from internal_rl.models.model import Model
from internal_rl.models.steered import GoalControllers
from internal_rl.rollout import split_keys
from internal_rl.stages import transitions
from internal_rl.stages.transitions import REDRAWS, Latents

TRIALS = 64
WIDTH, LATENT = 8, 3
BEFORE = np.random.default_rng(2).normal(size=(TRIALS, LATENT)).astype(np.float32) * 10


@pytest.fixture(scope="module")
def world() -> GridWorld:
    """Half of the episodes ask for 0 alone, half for 1 after 0."""
    return GridWorld(size=3, num_colours=2, num_walls=0, horizon=10, tasks="0,0-1", num_maps=1)


@pytest.fixture(scope="module")
def play(world: GridWorld, make_backbone: Callable, make_metacontroller: Callable) -> Callable:
    """(bias of the switch, codes) -> the trials that are first legs, reached, made, held."""
    base = Model.of(make_backbone("hawk"))
    rng = np.random.default_rng(0)
    a, b = (rng.normal(size=(2, 1, WIDTH)).astype(np.float32) for _ in range(2))
    goals = GoalControllers(a, b)
    keys = jax.random.split(jax.random.key(0), TRIALS)
    starts = jax.vmap(world.reset)(split_keys(keys)[0])[0]
    prefix = (np.asarray(starts.pinpad.length) - 1).astype(np.int32)

    def run(
        bias: float,
        codes: np.ndarray,
        steering: transitions.Steering = "codes",
        chunk: int = TRIALS,
        before: np.ndarray = BEFORE,
    ) -> tuple[np.ndarray, ...]:
        metacontroller: Metacontroller = make_metacontroller()
        metacontroller.switch_output.bias[...] = np.array([bias], np.float32)
        models = transitions.Models(base, Model.of(metacontroller), None, goals)
        latents = Latents(codes, np.zeros(codes.shape[:2], int), before)
        player = transitions.make_player(world, steering, chunk)
        return prefix == 0, *player(models, latents, prefix, keys)

    return run


@pytest.fixture(scope="module")
def codes() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(TRIALS, REDRAWS, LATENT)).astype(np.float32) * 10


def test_a_shut_switch_holds_the_first_latent(play: Callable, codes: np.ndarray) -> None:
    first_leg, reached, made, held = play(-100, codes)
    assert reached[first_leg].all()  # the start needs no reaching
    assert 0 < reached[~first_leg].sum() < (~first_leg).sum()
    np.testing.assert_array_equal(made, held)
    assert not made[~reached].any()
    assert 0 < made.sum() < TRIALS
    other = codes.copy()
    other[:, 1:] = 0  # never drawn
    np.testing.assert_array_equal(play(-100, other)[2], made)
    other[:, 0] = -codes[:, 0]
    assert (play(-100, other)[2] != made).any()


def test_without_an_opening_the_code_before_the_leg_stays_in_force(
    play: Callable, codes: np.ndarray
) -> None:
    """As in internal RL: there, too, the next latent is drawn only once the switch has opened."""
    first_leg, reached, made, _ = play(-100, codes)
    other = play(-100, -codes)[2]
    np.testing.assert_array_equal(other[~first_leg], made[~first_leg])
    assert (other[first_leg] != made[first_leg]).any()
    turned = play(-100, codes, before=-BEFORE)[2]
    np.testing.assert_array_equal(turned[first_leg], made[first_leg])
    assert (turned[~first_leg] != made[~first_leg]).any()

    # An open switch draws at once: the code before the leg never steers.
    made = play(100, codes)[2]
    np.testing.assert_array_equal(play(100, codes, before=-BEFORE)[2], made)
    assert (play(100, -codes)[2] != made)[~first_leg & reached].any()


def test_an_open_switch_voids_held_trials_and_redraws(play: Callable, codes: np.ndarray) -> None:
    _, _, made, held = play(100, codes)
    assert not held[~made].any()
    assert held.sum() < made.sum()  # only legs of one step end before the switch opens again
    other = codes.copy()
    other[:, 1:] = -codes[:, 1:]
    assert (play(100, other)[2] != made).any()


def test_the_base_model_alone_has_no_latent_to_hold(play: Callable, codes: np.ndarray) -> None:
    _, _, made, held = play(100, codes, "nothing")
    np.testing.assert_array_equal(made, held)
    np.testing.assert_array_equal(play(-100, -codes, "nothing")[2], made)


def test_trials_do_not_depend_on_how_many_are_played_at_a_time(
    play: Callable, codes: np.ndarray
) -> None:
    for whole, pieces in zip(play(0, codes), play(0, codes, chunk=48), strict=True):
        np.testing.assert_array_equal(whole, pieces)
