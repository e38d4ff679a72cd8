"""Two drivers, one per-step function.

A world stepped from the host gives the episodes of the compiled one.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from envs import registry
from envs.gridworld import GridWorld
from envs.gridworld_expert import GridExpert
from internal_rl import driver
from internal_rl.config import Config
from internal_rl.data.expert_episodes import make_expert, make_generator
from internal_rl.driver import Driver, in_chunks
from internal_rl.models.model import Model
from internal_rl.rollout import Actor, Rollout, rollout
from internal_rl.run import Run
from internal_rl.stages import controllers, reinforce
from internal_rl.trained import Algorithm, fresh_base, fresh_controllers, fresh_policy

BATCH = 16


class HostGrid(GridWorld):
    """The grid world, stepped from the host. sizes: of the batches it was asked to step."""

    on_host = True

    def __init__(self, **settings: Any):
        super().__init__(**settings)
        self.sizes: list[int] = []

    @property
    def steps(self) -> int:
        """How often it was stepped."""
        return len(self.sizes)

    def make_host(self, num_episodes: int) -> Any:
        """Counts its steps."""
        step = jax.jit(jax.vmap(self.step))

        class Host:
            def step(_, state: Any, action: np.ndarray) -> tuple[Any, Any]:
                assert isinstance(action, np.ndarray)
                assert len(action) == num_episodes
                self.sizes.append(num_episodes)
                return step(state, action)

        return Host()


registry.register("host_grid", HostGrid, GridExpert, HostGrid.make_host)


@pytest.fixture
def host(config: Config) -> HostGrid:
    return HostGrid(
        size=3, num_colours=2, num_walls=0, horizon=10, tasks=config.env.tasks, num_maps=1
    )


def assert_same(actual: Any, expected: Any) -> None:
    jax.tree.map(
        partial(np.testing.assert_allclose, atol=1e-5),
        jax.device_get(actual),
        jax.device_get(expected),
    )


def test_chunks_are_joined_and_no_larger_than_asked() -> None:
    sizes = []

    def add(batch: dict[str, np.ndarray], row: np.ndarray) -> dict[str, np.ndarray]:
        sizes.append(len(row))
        return {"sum": batch["x"] + row[:, None]}

    x = np.arange(14.0).reshape(7, 2)
    joined = in_chunks(add, 3, {"x": x}, np.arange(7))
    assert sizes == [3, 3, 1]
    np.testing.assert_array_equal(joined["sum"], x + np.arange(7)[:, None])


@pytest.mark.parametrize(
    ("num_steps", "compact", "expected"),
    [
        # Rows 1, 3 and 6 live on after four steps, and 0 fills a block; 1 and 3 after eight.
        (10, True, [8, 10, 4, 10, 4, 4, 8, 4]),
        (10, False, [10] * 8),
        (20, False, [12] * 8),  # the longest row ends
        (3, True, [3] * 8),
    ],
)
def test_ended_rows_are_put_aside(
    num_steps: int, compact: bool, expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """How often each row is stepped, blocks of two."""
    monkeypatch.setattr(driver, "BLOCK", 2)
    length = jnp.array([1, 9, 2, 12, 3, 1, 5, 1])
    last = driver.play_out(
        lambda carry, t: (carry[0], carry[1] + 1),
        (length, jnp.zeros(8, jnp.int32)),
        lambda carry: carry[1] >= carry[0],
        (0, num_steps),
        compact,
    )
    assert last[1].tolist() == expected


def test_collection(
    config: Config, env: GridWorld, host: HostGrid, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "BLOCK", 4)  # the compiled loop puts rows aside, too
    keys = jax.random.split(jax.random.key(3), BATCH)

    def make(env):
        return make_generator(env, make_expert(env, config), env.horizon, yardsticks=True)

    expected, actual = jax.device_get(make(env)(keys)), jax.device_get(make(host)(keys))
    longest = int(expected["mask"].sum(1).max())
    assert host.steps == longest < env.horizon  # it stops where the last episode ends
    assert expected.keys() == actual.keys()
    mask = expected["mask"]
    np.testing.assert_array_equal(actual["success"], expected["success"])
    for name in expected.keys() - {"success", "usable"}:
        assert_same(actual[name][mask], expected[name][mask])


def test_controllers(config: Config, env: GridWorld, host: HostGrid) -> None:
    base, goals = fresh_base(config, env), fresh_controllers(config, env)

    def play(env):
        return controllers.measure(env, base, goals, jax.random.key(1), 32)

    assert play(host) == play(env)
    assert 0 < host.steps <= env.horizon


@pytest.fixture
def make_actor(
    config: Config, make_backbone: Callable, make_metacontroller: Callable
) -> Callable[[Algorithm], Actor]:
    base, metacontroller = Model.of(make_backbone("hawk")), Model.of(make_metacontroller())

    def make(algorithm: Algorithm) -> Actor:
        if algorithm == "raw_rl":
            return Actor(base)
        policy = Model.of(fresh_policy(config, None, nnx.Rngs(0)))
        return Actor(policy, base, metacontroller)

    return make


@pytest.fixture
def make_rollout(config: Config) -> Callable[[GridWorld, Algorithm], Rollout]:
    def make(env: GridWorld, algorithm: Algorithm) -> Rollout:
        slots = config.reinforce.max_decisions if algorithm == "internal_rl" else env.horizon
        return Rollout(env, slots)

    return make


@pytest.mark.parametrize("algorithm", ["internal_rl", "raw_rl"])
def test_rollouts(
    env: GridWorld,
    host: HostGrid,
    make_actor: Callable,
    make_rollout: Callable,
    algorithm: Algorithm,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    actor, key = make_actor(algorithm), jax.random.key(5)
    expected = make_rollout(env, algorithm)(actor, key, BATCH)
    assert_same(make_rollout(host, algorithm)(actor, key, BATCH), expected)
    # From now on in ever smaller batches; and nothing was used up.
    monkeypatch.setattr(driver, "SMALLEST", 2)
    assert_same(make_rollout(host, algorithm)(actor, key, BATCH), expected)
    longest = int(expected.length.max())
    assert host.sizes[:longest] == [BATCH] * longest
    live = [int((expected.length > t).sum()) for t in range(longest)]
    compacted = host.sizes[longest:]
    assert len(compacted) == longest
    assert set(compacted) >= {BATCH, BATCH // 2} | (
        {BATCH // 4} if algorithm == "raw_rl" else set()
    )
    assert all(rows >= count for rows, count in zip(compacted, live, strict=True))


@pytest.mark.parametrize("by_steps", [True, False])
def test_episodes_played_otherwise_are_the_same(
    env: GridWorld, make_actor: Callable, make_rollout: Callable, by_steps: bool
) -> None:
    """Step by step, which needs no other program, and some at a time."""
    actor, key = make_actor("internal_rl"), jax.random.key(5)
    play = make_rollout(env, "internal_rl")
    expected = play(actor, key, BATCH)
    if by_steps:
        *_, last = play.steps(actor, jax.random.split(key, BATCH))
        assert_same(last.episodes, expected)
        assert play._driver._loop._cache_size() == 1
    else:
        play.batch = BATCH // 2 + 1  # the last piece is smaller
        assert_same(play(actor, key, BATCH), expected)


def test_recorded_steps(
    env: GridWorld, host: HostGrid, make_actor: Callable, make_rollout: Callable
) -> None:
    actor = make_actor("internal_rl")
    keys = jax.random.split(jax.random.key(5), BATCH)
    play = make_rollout(host, "internal_rl")
    carries = list(play.steps(actor, keys))
    expected = rollout(actor.environment(env), actor.decider(), keys, play.num_slots)
    assert_same(carries[-1].episodes, expected)
    assert len(carries) == host.steps + 1
    assert not carries[0].step.timestep.done.any()


def test_the_driver_stops_early_only_when_all_have_ended(env: GridWorld, host: HostGrid) -> None:
    """Every episode walks up for ever: the horizon is reached."""

    def act(_, carry, t):
        return (carry, carry[0], jnp.zeros(2, jnp.int32))

    def observe(_, carry, state, timestep, t):
        return (state, carry[1] + ~timestep.done)

    def start(env):
        return (
            jax.vmap(env.reset)(jax.random.split(jax.random.key(0), 2))[0],
            jnp.zeros(2, jnp.int32),
        )

    expected = Driver(env, act, observe, env.horizon)(None, start(env))
    assert_same(Driver(host, act, observe, env.horizon)(None, start(host)), expected)
    assert_same(Driver(host, act, observe, 3)(None, start(host))[1], np.full(2, 3))


def test_a_learning_seed_on_the_host(
    config: Config,
    env: GridWorld,
    host: HostGrid,
    make_actor: Callable,
    make_rollout: Callable,
    tmp_path: Any,
    monkeypatch: Any,
) -> None:
    """The whole training loop: equal results from both."""
    from internal_rl.training.tracking import Tracker

    actor = make_actor("internal_rl")

    def learner_in(world: GridWorld) -> Callable[..., reinforce.Learner]:
        def make(run: Run, algorithm: Algorithm) -> reinforce.Learner:
            play = make_rollout(world, algorithm)
            return reinforce.Learner(config, world, algorithm, actor, play)

        return make

    results = []
    for name, world in (("compiled", env), ("host", host)):
        monkeypatch.setattr(reinforce, "make_learner", learner_in(world))
        run = Run(config, tmp_path / name)
        with Tracker(run.directory) as tracker:
            results.append(reinforce.run_seed(run, tracker, "internal_rl", 0))
    compiled, looped = ({**result, "seconds": 0} for result in results)
    assert looped == compiled
    assert compiled["success"] > 0
