"""PPO: the gradient it takes, what it leaves alone, and that it learns on a world of nine cells."""

import os
import signal
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx, struct

from envs.gridworld import GridWorld
from internal_rl import streams
from internal_rl.config import Config, OptimConfig
from internal_rl.models.backbone import Backbone
from internal_rl.models.model import Model, Params
from internal_rl.models.policy import LatentInput, LatentPolicy, RawPolicy
from internal_rl.rollout import Actor, Decisions, Rollout
from internal_rl.run import Run
from internal_rl.stages import reinforce
from internal_rl.stages.reinforce import (
    Learner,
    LearnerState,
    half_reached,
    last_update,
    train_seeds,
)
from internal_rl.trained import TrainedModels, fresh_policy, seed_key
from internal_rl.training import checkpoint
from internal_rl.training.loop import DivergedError
from internal_rl.training.stopping import Interrupted
from internal_rl.training.tracking import Tracker, read_metrics

BATCH, SLOTS = 8, 4


@pytest.fixture(scope="module")
def task(config: Config) -> Config:
    """0-1 on one map; decay, so that a step with a zero gradient would show."""
    optim = OptimConfig(learning_rate=1e-2, weight_decay=0.01)
    rl = replace(
        config.reinforce,
        episodes=128 * 12,
        batch_size=128,
        max_decisions=8,
        test_episodes=128,
        optim=optim,
    )
    return replace(config, env=replace(config.env, horizon=8), reinforce=rl)


@pytest.fixture(scope="module")
def world() -> GridWorld:
    return GridWorld(size=3, num_colours=2, num_walls=0, horizon=8, tasks="0-1", num_maps=1)


@pytest.fixture(scope="module")
def base(task: Config, world: GridWorld, make_rngs: Callable) -> Model[Backbone]:
    return Model.of(Backbone(world, replace(task.model, scale_last=0.1), make_rngs()))


# --- one update, on decisions made by hand ------------------------------------------------------


@pytest.fixture(scope="module")
def policy(task: Config, make_rngs: Callable) -> Model[LatentPolicy]:
    width, latent = task.model.width, task.metacontroller.latent
    return Model.of(LatentPolicy(width, latent, task.policy, make_rngs(2)))


@pytest.fixture(scope="module")
def episodes(
    task: Config, policy: Model[LatentPolicy], normal: Callable
) -> tuple[Decisions, jax.Array]:
    """Decisions with the log-probabilities of the policy itself, and the episodes' advantages."""
    stream, actions = normal(BATCH, SLOTS, task.model.width), normal(BATCH, SLOTS, 3, seed=1)
    inputs = LatentInput(stream, jnp.zeros((BATCH, SLOTS, 1), jnp.int32))
    log_prob = jax.jit(lambda x: policy.module().unroll(x).log_prob(actions))(inputs)
    mask = jnp.arange(SLOTS) < jnp.array([1, 2, 3, 4, 1, 4, 2, 2])[:, None]
    time = jnp.broadcast_to(jnp.arange(SLOTS), (BATCH, SLOTS))
    return Decisions(inputs, actions, jnp.where(mask, log_prob, 0), mask, time), normal(
        BATCH, seed=2
    )


def learner_with(
    task: Config,
    world: GridWorld,
    policy: Model[LatentPolicy],
    epochs: int,
    rate: float,
    minibatches: int = 1,
) -> Learner:
    """One that descends by plain gradient steps."""
    config = replace(
        task, reinforce=replace(task.reinforce, epochs=epochs, minibatches=minibatches)
    )
    learner = Learner(config, world, "internal_rl", Actor(policy), Rollout(world, SLOTS))
    learner.optimiser = optax.sgd(rate)
    return learner


def test_the_first_step_is_the_policy_gradient(
    task: Config,
    world: GridWorld,
    policy: Model[LatentPolicy],
    episodes: tuple,
    assert_close: Callable,
) -> None:
    """At the policy that decided, the gradient is that of -log p(action) A, a mean over all."""
    decisions, advantage = episodes
    learner, params = learner_with(task, world, policy, epochs=1, rate=1.0), policy.params
    learn = jax.jit(learner._learn)
    after, _, surrogate, norm = learn(params, learner.optimiser.init(params), decisions, advantage)

    @jax.jit
    @jax.grad
    def expected(params: Any) -> jax.Array:
        module = policy.with_params(params).module()
        log_prob = module.unroll(decisions.input).log_prob(decisions.action)
        return -(log_prob * advantage[:, None] * decisions.mask).sum() / 19

    gradient = expected(params)
    jax.tree.map(lambda x, y, g: assert_close(x - y, g, 1e-4), params, after, gradient)
    assert float(norm) == pytest.approx(float(optax.global_norm(gradient)), rel=1e-4)
    assert float(surrogate.approx_kl) == pytest.approx(0, abs=1e-6)


def test_small_batches_add_up_to_the_whole(
    task: Config,
    world: GridWorld,
    policy: Model[LatentPolicy],
    episodes: tuple,
    assert_close: Callable,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Even over several steps with clipping, and though their numbers of decisions differ."""
    learner, params = learner_with(task, world, policy, epochs=3, rate=0.3), policy.params
    results = []
    for size in (BATCH, 2):
        monkeypatch.setattr(reinforce, "MICRO_BATCH", size)
        results.append(jax.jit(learner._learn)(params, learner.optimiser.init(params), *episodes))
    jax.tree.map(partial(assert_close, tolerance=1e-4), *results)
    assert float(results[0][2].clip_fraction) > 0


def test_a_pass_over_minibatches_is_a_step_on_each(
    task: Config,
    world: GridWorld,
    policy: Model[LatentPolicy],
    episodes: tuple,
    assert_close: Callable,
) -> None:
    """With 2 minibatches the first half of the episodes makes a step, the second half the next."""
    learner, params = learner_with(task, world, policy, epochs=1, rate=0.3), policy.params
    halves = learner_with(task, world, policy, epochs=1, rate=0.3, minibatches=2)
    start = learner.optimiser.init(params)
    together, *_ = jax.jit(halves._learn)(params, start, *episodes)
    one_half = jax.jit(learner._learn)
    first, second = (
        jax.tree.map(lambda x, rows=rows: x[rows], episodes) for rows in (np.s_[:4], np.s_[4:])
    )
    after_first, optimiser, *_ = one_half(params, start, *first)
    after_second, *_ = one_half(after_first, optimiser, *second)
    jax.tree.map(partial(assert_close, tolerance=1e-4), together, after_second)
    assert any(
        np.abs(np.asarray(x) - np.asarray(y)).max() > 1e-3
        for x, y in zip(*map(jax.tree.leaves, (after_first, after_second)), strict=True)
    )


def test_head_only_trains_nothing_but_the_action_head(
    task: Config, world: GridWorld, base: Model[Backbone]
) -> None:
    config = replace(task, reinforce=replace(task.reinforce, head_only=True, epochs=2))
    learner = Learner(config, world, "raw_rl", Actor(base), Rollout(world, world.horizon))
    rng = np.random.default_rng(0)
    decisions = Decisions(
        input=rng.integers(27, size=(BATCH, SLOTS, 3)),
        action=rng.integers(4, size=(BATCH, SLOTS)),
        log_prob=np.full((BATCH, SLOTS), -np.log(4), np.float32),
        mask=np.ones((BATCH, SLOTS), bool),
        time=np.zeros((BATCH, SLOTS), np.int32),
    )
    state = learner.init(base.params)
    after, *_ = jax.jit(learner._learn)(
        state.params, state.optimiser, decisions, rng.normal(size=BATCH)
    )
    changed = {
        jax.tree_util.keystr(path[:1])
        for (path, x), y in zip(
            jax.tree.leaves_with_path(base.params), jax.tree.leaves(after), strict=True
        )
        if (np.asarray(x) != np.asarray(y)).any()
    }
    assert changed == {"['action_head']"}


def test_every_seed_of_every_algorithm_has_its_own_key(task: Config) -> None:
    keys = [
        jax.random.key_data(seed_key(replace(task, seed=seed), algorithm, rl_seed)).tobytes()
        for seed in range(2)
        for algorithm in ("internal_rl", "raw_rl")
        for rl_seed in range(3)
    ]
    assert len(set(keys)) == 12


# --- over latents -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def internal(
    task: Config,
    world: GridWorld,
    make_rngs: Callable,
    make_metacontroller: Callable,
    policy: Model[LatentPolicy],
) -> tuple[Learner, Callable]:
    """A base model and a metacontroller with random weights large enough for latents to matter."""
    model = Backbone(world, task.model, make_rngs())
    model.action_head.linear.kernel[...] = model.action_head.linear.kernel[...] * 3
    metacontroller = make_metacontroller(rank=4, hypernetwork_width=16, force_switch=True)
    kernel = metacontroller.hypernetwork.layers[-1].kernel
    kernel[...] = kernel[...] * 15
    actor = Actor(policy, Model.of(model), Model.of(metacontroller))
    play = Rollout(world, task.reinforce.max_decisions)
    learner = Learner(task, world, "internal_rl", actor, play)
    return learner, jax.jit(learner.update)


@pytest.fixture(scope="module")
def fresh(task: Config) -> Params:
    """Parameters of a policy before its first update."""
    rngs = nnx.Rngs(jax.random.key(3))
    return Model.of(fresh_policy(task, None, rngs)).params


def test_ppo_over_latents_learns(internal: tuple[Learner, Callable], fresh: Params) -> None:
    learner, update = internal
    state, success = learner.init(fresh), []
    for index in range(30):
        key = jax.random.fold_in(jax.random.key(5), index)
        state, metrics = update(state, learner.actor, key)
        success.append(float(metrics["success"]))
    assert state.update == 30
    assert float(metrics["policy_std"]) > 0
    assert np.mean(success[-5:]) > np.mean(success[:5]) + 0.15, success


def test_unusable_episodes_change_nothing(
    internal: tuple[Learner, Callable], fresh: Params
) -> None:
    """Whatever such an episode holds; and a batch of nothing else is not learned from."""
    learner, _ = internal
    state = learner.init(fresh)
    episodes = learner.rollout(learner.actor.with_policy(fresh), jax.random.key(1), 128)
    assert 1 < episodes.success.sum() < 127
    learn, broken = jax.jit(learner.learn), jnp.arange(128) == 5
    action, mask = episodes.decisions.action.at[5].add(3.0), episodes.decisions.mask.at[5].set(True)
    assert mask.sum() > episodes.decisions.mask.sum()
    decisions = replace(episodes.decisions, action=action, mask=mask)
    other = replace(episodes, returns=episodes.returns.at[5].set(50.0), decisions=decisions)
    whole, *cut = (
        learn(state, replace(each, usable=usable))[0].params
        for each, usable in ((episodes, ~broken | True), (episodes, ~broken), (other, ~broken))
    )
    jax.tree.map(np.testing.assert_array_equal, *cut)
    assert any(
        (np.asarray(x) != np.asarray(y)).any()
        for x, y in zip(*map(jax.tree.leaves, (whole, cut[0])), strict=True)
    )
    after, metrics = learn(state, replace(episodes, usable=broken & False))
    assert metrics["updated"] == 0
    jax.tree.map(np.testing.assert_array_equal, after.params, state.params)


def test_equal_returns_leave_everything_exactly_as_it_was(
    internal: tuple[Learner, Callable], fresh: Params
) -> None:
    learner, update = internal
    base = learner.actor.base
    assert base is not None
    # Always up, which is no way from one colour to the next.
    bias = np.array([1e6, 0, 0, 0], np.float32)
    head = base.params["action_head"]
    stuck = {**base.params, "action_head": {"linear": {**head["linear"], "bias": bias}}}
    state = learner.init(fresh)
    actor = replace(learner.actor, base=base.with_params(stuck))
    after, metrics = update(state, actor, jax.random.key(0))
    assert (metrics["success"], metrics["updated"], metrics["grad_norm"]) == (0, 0, 0)
    assert after.update == 1
    jax.tree.map(np.testing.assert_array_equal, after.replace(update=0), state.replace(update=0))


def test_the_first_batch_of_which_half_succeed_is_remembered(
    task: Config, internal: tuple[Learner, Callable], fresh: Params
) -> None:
    """And decides the last update: so many after it, but not more than all episodes hold."""
    plain, _ = internal
    rl = replace(task.reinforce, settle=3 * 128)
    learner = Learner(
        replace(task, reinforce=rl), plain.env, "internal_rl", plain.actor, plain.rollout
    )
    episodes = plain.rollout(plain.actor.with_policy(fresh), jax.random.key(1), 128)
    learn = jax.jit(learner.learn)
    state, halves = learner.init(fresh), []
    for count in (0, 63, 64, 128, 0):
        success = jnp.arange(128) < count
        state, _ = learn(state, replace(episodes, success=success))
        halves.append(int(state.half))
    assert halves == [0, 0, 3, 3, 3]
    assert [int(last_update(jnp.int32(half), rl)) for half in (0, 3, 9, 10)] == [12, 6, 12, 12]
    assert int(last_update(jnp.int32(3), task.reinforce)) == 12


def test_a_kept_success_is_learned_from_in_a_batch_without_any(
    task: Config, internal: tuple[Learner, Callable], fresh: Params
) -> None:
    """And makes what was decided then more likely; without it such a batch teaches nothing."""
    plain, _ = internal
    config = replace(task, reinforce=replace(task.reinforce, replay=8))
    learner = Learner(config, plain.env, "internal_rl", plain.actor, plain.rollout)
    episodes = plain.rollout(plain.actor.with_policy(fresh), jax.random.key(1), 128)
    won = jnp.flatnonzero(episodes.success)[0]

    def only(success: jax.Array) -> Any:
        return replace(episodes, success=success, returns=success.astype(jnp.float32))

    lone, none = only(jnp.arange(128) == won), only(jnp.zeros(128, bool))
    learn = jax.jit(learner.learn)
    state, _ = learn(learner.init(fresh), none)
    jax.tree.map(np.testing.assert_array_equal, state.params, fresh)
    first, _ = learn(state, lone)
    second, metrics = learn(first, none)
    assert (int(second.kept.count), float(metrics["success"])) == (1, 0.0)

    def log_prob(params: Params) -> float:
        decisions = jax.tree.map(lambda x: x[won][None], episodes.decisions)
        policy = learner.actor.with_policy(params).decider()
        values = policy.unroll(decisions.input).log_prob(decisions.action)
        return float(jnp.sum(jnp.where(decisions.mask, values, 0)))

    rates = [log_prob(each) for each in (fresh, first.params, second.params)]
    assert rates[0] < rates[1] < rates[2]
    after, metrics = jax.jit(plain.learn)(replace(first, kept=None), none)
    assert not metrics["updated"]
    jax.tree.map(np.testing.assert_array_equal, after.params, first.params)


# --- over raw actions ---------------------------------------------------------------------------


def test_ppo_over_raw_actions_learns_with_all_weights(
    task: Config, world: GridWorld, base: Model[Backbone], tmp_path: Path
) -> None:
    actor, play = Actor(base), Rollout(world, world.horizon)
    learner = Learner(task, world, "raw_rl", actor, play)
    initial = TrainedModels(task, world, tmp_path).policy_initialiser(actor)
    state, success = learner.init(initial(jax.random.key(3))), []
    assert isinstance(actor.with_policy(state.params).decider(), RawPolicy)
    jax.tree.map(np.testing.assert_array_equal, state.params, base.params)
    update = jax.jit(learner.update)
    for index in range(12):
        state, metrics = update(state, actor, jax.random.fold_in(jax.random.key(5), index))
        success.append(float(metrics["success"]))
    assert success[0] < 0.4, success
    assert success[-1] > 0.8, success
    assert metrics["num_switches"] == metrics["episode_length"]
    for name in base.params.keys() - {"target_head"}:  # the one part that a policy does not use
        before, after = (jax.tree.leaves(each[name]) for each in (base.params, state.params))
        leaves = zip(before, after, strict=True)
        assert any((np.asarray(x) != np.asarray(y)).any() for x, y in leaves), name


# --- the training of seeds ----------------------------------------------------------------------


def noise(key: jax.Array) -> jax.Array:
    """Two numbers in [0, 1) that the key alone decides, and that compile at once."""
    return (jax.random.key_data(key) % 97).astype(jnp.float32) / 97


@dataclass(frozen=True)
class StubActor:
    """Nothing but the parameters of its policy."""

    params: Any = None

    def with_policy(self, params: Any) -> "StubActor":
        return StubActor(params)


@struct.dataclass
class StubEpisodes:
    """What the stubs play."""

    success: jax.Array
    noise: jax.Array


class StubRollout:
    """Plays nothing: success is what parameters and key say."""

    def pure(self, actor: StubActor, key: jax.Array, episodes: int) -> StubEpisodes:
        threshold = actor.params["w"].mean() + noise(key)[0]
        return StubEpisodes(jnp.linspace(0, 10, episodes) < threshold, noise(key))

    __call__ = pure

    def successes(self, actor: StubActor, key: jax.Array, episodes: int) -> jax.Array:
        return self.pure(actor, key, episodes).success


class StubLearner:
    """Learns nothing, but every number it gives depends on its key and on all updates so far."""

    algorithm, env = "raw_rl", SimpleNamespace(on_host=False)
    actor, rollout = StubActor(), StubRollout()

    def __init__(self, config: Config) -> None:
        self.config = config

    def init(self, params: Params) -> LearnerState:
        none = jnp.zeros((), jnp.int32)
        half = None if self.config.reinforce.settle is None else none
        return LearnerState(params, {"m": jnp.zeros(2)}, none, half=half)

    def update(
        self, state: LearnerState, actor: StubActor, key: jax.Array
    ) -> tuple[LearnerState, dict]:
        size = self.config.reinforce.batch_size
        return self.learn(state, self.rollout.pure(actor.with_policy(state.params), key, size))

    def learn(self, state: LearnerState, episodes: StubEpisodes) -> tuple[LearnerState, dict]:
        momentum = 0.5 * state.optimiser["m"] + episodes.noise
        params = {"w": state.params["w"] + momentum}
        success = params["w"].mean()
        done = state.update + 1
        half = half_reached(state.half, done, success)
        metrics = {"success": success, "last": last_update(half, self.config.reinforce)}
        return LearnerState(params, {"m": momentum}, done, half=half), metrics


class StoppingTracker(Tracker):
    """Asks the process to stop as soon as it has logged the third update."""

    def log(self, stage: str, x: int, metrics: Any) -> None:
        super().log(stage, x, metrics)
        if x == 3 * 128:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture
def stub(task: Config, monkeypatch: pytest.MonkeyPatch) -> StubLearner:
    learner = StubLearner(replace(task, reinforce=replace(task.reinforce, episodes=5 * 128)))
    monkeypatch.setattr(reinforce, "make_learner", lambda *_: learner)
    return learner


def outcome(run_dir: Path, result: dict[str, Any], seed: int) -> tuple[Any, ...]:
    """Everything a seed leaves behind but the time it took."""
    path = run_dir / "raw_rl" / f"seed_{seed}" / "policy"
    policy = checkpoint.restore(path, {"w": jnp.zeros(2)})
    lines = [(x["episodes"], x["success"]) for x in read_metrics(run_dir / f"log_{seed}")]
    return np.asarray(policy["w"]).tolist(), lines, result["before"], result["success"]


class StubRun(Run):
    @property
    def post_models(self) -> Any:
        return SimpleNamespace(policy_initialiser=lambda actor: lambda key: {"w": noise(key)})


def train_stub(
    stub: StubLearner, run_dir: Path, *seeds: int, kind: type[Tracker] = Tracker
) -> dict[int, tuple]:
    run = StubRun(stub.config, run_dir)
    with ExitStack() as stack:
        trackers = {k: stack.enter_context(kind(run_dir / f"log_{k}")) for k in seeds}
        results = train_seeds(run, trackers, "raw_rl")  # type: ignore[arg-type]
    return {k: outcome(run_dir, results[k], k) for k in seeds}


def test_an_interrupted_seed_goes_on_bit_for_bit(stub: StubLearner, tmp_path: Path) -> None:
    whole = train_stub(stub, tmp_path / "whole", 4)
    assert [x for x, _ in whole[4][1]] == [128, 256, 384, 512, 640]
    assert whole[4][2] != whole[4][3]

    # The third update is logged once the fourth has been sent.
    with pytest.raises(Interrupted, match="seed 4 stopped after step 4 and saved"):
        train_stub(stub, tmp_path / "cut", 4, kind=StoppingTracker)
    assert checkpoint.metadata(tmp_path / "cut" / "raw_rl" / "seed_4" / "running")["step"] == 4
    assert train_stub(stub, tmp_path / "cut", 4) == whole


def test_seeds_trained_as_one_program_are_those_trained_alone(
    stub: StubLearner, tmp_path: Path
) -> None:
    together = train_stub(stub, tmp_path / "together", 4, 7)
    assert together[4] != together[7]
    for seed in (4, 7):
        alone = train_stub(stub, tmp_path / "alone", seed)[seed]
        np.testing.assert_allclose(together[seed][0], alone[0], rtol=1e-6)
        np.testing.assert_allclose(together[seed][1], alone[1], rtol=1e-5)
        assert together[seed][2:] == alone[2:]


@pytest.mark.parametrize("stopped", [False, True])
def test_a_seed_that_settles_ends_early(
    stub: StubLearner,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture,
    stopped: bool,
) -> None:
    """Two updates after its first batch of some success; stopped or not, alone or not."""
    curves = {k: v[1] for k, v in train_stub(stub, tmp_path / "whole", 4, 7).items()}
    monkeypatch.setattr(reinforce, "HALF", max(y[0][1] for y in curves.values()) - 1e-6)
    rl = replace(stub.config.reinforce, settle=2 * 128)
    stub.config = replace(stub.config, reinforce=rl)

    # Where each must end, by its whole curve.
    ends = {}
    for seed, points in curves.items():
        half = next((x for x, success in points if success >= reinforce.HALF), 10**9)
        ends[seed] = min(half + 2 * 128, 5 * 128)
    assert len({*ends.values()}) == 2
    assert min(ends.values()) < 5 * 128

    together = train_stub(stub, tmp_path / "together", 4, 7)
    for seed in (4, 7):
        if stopped:
            with suppress(Interrupted):
                train_stub(stub, tmp_path / "alone", seed, kind=StoppingTracker)
        alone = train_stub(stub, tmp_path / "alone", seed)[seed]
        assert [x for x, _ in alone[1]] == [x for x, _ in curves[seed] if x <= ends[seed]]
        np.testing.assert_allclose(together[seed][0], alone[0], rtol=1e-6)
        np.testing.assert_allclose(together[seed][1], alone[1], rtol=1e-5)
        np.testing.assert_allclose(alone[1], curves[seed][: len(alone[1])], rtol=1e-5)
        path = tmp_path / "alone" / "raw_rl" / f"seed_{seed}"
        assert checkpoint.metadata(path / "policy")["episodes"] == ends[seed]
        done = ends[seed] // 128
        assert checkpoint.metadata(path / "running")["step"] == done
        assert f"raw_rl seed {seed}: 100% {done}/{done}" in capfd.readouterr().err


def test_a_seed_whose_numbers_are_not_finite_stops_no_other(
    stub: StubLearner, tmp_path: Path
) -> None:
    """Of several in one program; alone it stops."""
    seeds = jnp.stack([reinforce.seed_key(stub.config, "raw_rl", seed) for seed in (4, 7)])

    def init(params: Params) -> LearnerState:
        left_out = optax.ApplyIfFiniteState(jnp.int32(0), jnp.bool_(True), jnp.int32(0), None)
        return LearnerState(params, (left_out, {"m": jnp.zeros(2)}), jnp.zeros((), jnp.int32))

    def learn(state: LearnerState, episodes: StubEpisodes) -> Any:
        left_out, rest = state.optimiser
        inner, metrics = plain(LearnerState(state.params, rest, state.update), episodes)
        first = jnp.abs(state.params["w"] - noise(streams.fold(seeds[0], "weights.policy"))).sum()
        bad = (state.update == 0) & (first == 0)
        count = left_out._replace(total_notfinite=left_out.total_notfinite + bad)
        return replace(inner, optimiser=(count, inner.optimiser)), metrics

    plain, stub.init, stub.learn = stub.learn, init, learn  # type: ignore[method-assign]
    run = StubRun(stub.config, tmp_path)
    with pytest.raises(DivergedError, match="raw_rl: a loss or gradient of seed 4 was not finite"):
        reinforce._run_together(run, "raw_rl", [4, 7])
    assert run.result("raw_rl_4") is None
    assert run.result("raw_rl_7") is not None
    with pytest.raises(DivergedError, match=r"raw_rl seed 4: .* not finite after step 0 and by"):
        train_stub(stub, tmp_path / "alone", 4)


def test_raw_action_rl_can_run_as_soon_as_there_is_a_base_model(
    task: Config, tmp_path: Path
) -> None:
    """What has finished is left out; seeds that make one program stay together."""
    rl = replace(task.reinforce, num_seeds=3)
    run = Run(replace(task, reinforce=rl), tmp_path)
    assert reinforce.ahead(run) == []
    run.finish("pretrain", {"nll": 1.0})
    run.finish("raw_rl_1", {"success": 0.0})
    assert [job.name for job in reinforce.ahead(run)] == ["raw_rl seed 0", "raw_rl seed 2"]
    together = replace(task, reinforce=replace(rl, vmap_seeds=True))
    assert reinforce.ahead(Run(together, tmp_path)) == []


# --- what can be expected ---------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.5, 1e-3])
def test_a_run_says_and_logs_how_many_first_successes_it_can_expect(
    tmp_path: Path, task: Config, capsys: pytest.CaptureFixture, rate: float
) -> None:
    """Once, however often it is resumed; with advice where they are too few."""
    run = Run(task, tmp_path)
    legs = {"start": {"start>0": rate, "0>1": 0.5}}
    result = {"redrawn": legs, "trials": {"start": {"start>0": 10, "0>1": 10}}, "held": legs}
    result |= {"chance": {"start": rate / 2}, "untrained": {"episodes": 100, "successes": 1}}
    with run.tracker() as tracker:
        reinforce.foretell(run, tracker)
        assert capsys.readouterr().out == ""  # not measured
        run.finish("transitions", {**result, "chance": {}})
        reinforce.foretell(run, tracker)
        assert "the supervised controllers do not reach" in capsys.readouterr().out
        run.finish("transitions", result)
        for _ in range(2):
            reinforce.foretell(run, tracker)
    said = capsys.readouterr().out
    expected = 1536 * rate / 2
    assert f"1,536 episodes hold {expected:.3g} successes on average" in said
    assert ("weakest leg is start>0" in said) == (rate < 0.5)
    assert "docs/troubleshooting.md" in said or rate == 0.5
    (line,) = read_metrics(tmp_path, "transitions")
    assert (line["episodes"], line["played_successes"]) == (1536, 15.36)
    assert line["expected_successes"] == pytest.approx(expected)
