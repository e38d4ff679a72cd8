"""Two drivers, one per-step function: a world stepped from the host gives the episodes of the compiled one."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from envs.gridworld import GridWorld
from internal_rl import driver
from internal_rl.analysis import record
from internal_rl.config import Config
from internal_rl.driver import Driver
from internal_rl.internal_env import InternalEnv
from internal_rl.rollout import rollout
from internal_rl.stages import collect, controllers, pretrain, reinforce

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


@pytest.fixture
def host(config: Config) -> HostGrid:
    return HostGrid(size=3, num_colours=2, num_walls=0, horizon=10, tasks=config.env.tasks, num_maps=1)


def assert_same(actual: Any, expected: Any) -> None:
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-5), jax.device_get(actual), jax.device_get(expected))


def test_collection(config: Config, env: GridWorld, host: HostGrid) -> None:
    keys = jax.random.split(jax.random.key(3), BATCH)
    make = lambda env: collect.make_generator(env, collect.make_expert(env, config), env.horizon, yardsticks=True)
    expected, actual = jax.device_get(make(env)(keys)), jax.device_get(make(host)(keys))
    longest = int(expected["mask"].sum(1).max())
    assert host.steps == longest < env.horizon  # it stops where the last episode ends
    assert expected.keys() == actual.keys()
    mask = expected["mask"]
    np.testing.assert_array_equal(actual["success"], expected["success"])
    for name in expected.keys() - {"success", "usable"}:
        assert_same(actual[name][mask], expected[name][mask])


def test_controllers(config: Config, env: GridWorld, host: HostGrid) -> None:
    graphdef, params = pretrain.build(config, env)
    goal = controllers.init_controllers(config, env)
    play = lambda env: controllers.measure(env, graphdef, params, goal, jax.random.key(1), 32)
    assert play(host) == play(env)
    assert 0 < host.steps <= env.horizon


@pytest.fixture
def make_learner(
    config: Config, make_backbone: Callable, make_metacontroller: Callable
) -> Callable[..., tuple[reinforce.Learner, reinforce.Frozen]]:
    from flax import nnx

    split = lambda module: (lambda g, s: (g, nnx.to_pure_dict(s)))(*nnx.split(module, nnx.Param))

    def make(env: GridWorld, algorithm: reinforce.Algorithm):
        base_graph, base = split(make_backbone("hawk"))
        graph, params = split(make_metacontroller())
        policy = nnx.graphdef(reinforce.build_policy(config, None, nnx.Rngs(0)))
        graphs = {"base": base_graph, "metacontroller": graph, "policy": policy}
        return reinforce.Learner(config, env, algorithm, graphs), reinforce.Frozen(base, params)

    return make


@pytest.mark.parametrize("algorithm", ["internal_rl", "raw_rl"])
def test_rollouts(
    env: GridWorld,
    host: HostGrid,
    make_learner: Callable,
    algorithm: reinforce.Algorithm,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compiled, frozen = make_learner(env, algorithm)
    params = compiled.init(jax.random.key(0), frozen).params
    expected = compiled.player()(params, frozen, jax.random.key(5), BATCH)
    looped, _ = make_learner(host, algorithm)
    assert_same(looped.player()(params, frozen, jax.random.key(5), BATCH), expected)
    monkeypatch.setattr(driver, "SMALLEST", 2)  # from now on in ever smaller batches; and nothing was used up
    assert_same(looped.player()(params, frozen, jax.random.key(5), BATCH), expected)
    longest = int(expected.length.max())
    assert host.sizes[:longest] == [BATCH] * longest
    live = [int((expected.length > t).sum()) for t in range(longest)]
    compacted = host.sizes[longest:]
    assert len(compacted) == longest
    assert set(compacted) >= {BATCH, BATCH // 2} | ({BATCH // 4} if algorithm == "raw_rl" else set())
    assert all(rows >= count for rows, count in zip(compacted, live, strict=True))


def test_recorded_steps(env: GridWorld, host: HostGrid, make_learner: Callable) -> None:
    learner, frozen = make_learner(host, "internal_rl")
    params = learner.init(jax.random.key(0), frozen).params
    keys = jax.random.split(jax.random.key(5), BATCH)
    acted = learner.decision_env(frozen), learner.policy(params), keys, learner.num_slots
    carries = list(record.host_loop(*acted))
    compiled = InternalEnv(env, acted[0].controlled.backbone, acted[0].metacontroller)
    assert_same(carries[-1].episodes, rollout(compiled, *acted[1:]))
    assert len(carries) == host.steps + 1
    assert not carries[0].step.timestep.done.any()


def test_the_driver_stops_early_only_when_all_have_ended(env: GridWorld, host: HostGrid) -> None:
    """Every episode walks up for ever: the horizon is reached."""
    act = lambda _, carry, t: (carry, carry[0], jnp.zeros(2, jnp.int32))
    observe = lambda _, carry, state, timestep, t: (state, carry[1] + ~timestep.done)
    start = lambda env: (jax.vmap(env.reset)(jax.random.split(jax.random.key(0), 2))[0], jnp.zeros(2, jnp.int32))
    expected = Driver(env, act, observe, env.horizon)(None, start(env))
    assert_same(Driver(host, act, observe, env.horizon)(None, start(host)), expected)
    assert_same(Driver(host, act, observe, 3)(None, start(host))[1], np.full(2, 3))


def test_a_learning_seed_on_the_host(
    config: Config, env: GridWorld, host: HostGrid, make_learner: Callable, tmp_path: Any, monkeypatch: Any
) -> None:
    """The whole training loop: equal results from both."""
    from internal_rl.tracking import Tracker

    results = []
    for name, world in (("compiled", env), ("host", host)):
        monkeypatch.setattr(reinforce, "make_learner", lambda *_, world=world: make_learner(world, "internal_rl"))
        directory = tmp_path / name
        with Tracker(directory, wandb_mode="disabled", project="", name="", config={}) as tracker:
            results.append(reinforce.run_seed(config, world, directory, tracker, "internal_rl", 0))
    compiled, looped = ({**result, "seconds": 0} for result in results)
    assert looped == compiled
    assert compiled["success"] > 0
