"""The one rollout: compaction, bookkeeping, and agreement with what the networks say offline."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from envs.gridworld import GridWorld
from internal_rl import driver
from internal_rl.config import Config
from internal_rl.internal_env import DecisionEnv, InternalEnv, RawEnv
from internal_rl.models.backbone import Backbone, episode_starts
from internal_rl.models.policy import LatentInput, LatentPolicy, Policy, RawPolicy
from internal_rl.models.proposal import Proposal
from internal_rl.rollout import Episodes, advance, rollout, start

BATCH, SLOTS = 12, 4


@dataclass
class Looped:
    """Episodes played by a loop over `advance`; carries: before each step, and after the last."""

    env: DecisionEnv
    policy: Policy
    keys: jax.Array
    carries: list[Any]

    @property
    def episodes(self) -> Episodes:
        return self.carries[-1].episodes


@pytest.fixture(scope="module")
def internal_env(
    env: GridWorld, make_backbone: Callable, make_metacontroller: Callable
) -> InternalEnv:
    return InternalEnv(env, make_backbone("transformer"), make_metacontroller())


@pytest.fixture(scope="module")
def make_looped(
    config: Config,
    env: GridWorld,
    make_backbone: Callable,
    internal_env: InternalEnv,
    make_rngs: Callable,
) -> Callable[[str], Looped]:
    @cache
    def make(kind: str) -> Looped:
        decision_env, policy = RawEnv(env), RawPolicy(make_backbone("hawk"))
        if kind != "raw":
            latent = config.metacontroller.latent
            proposal = (
                Proposal(env.observation_spec, latent, 4, make_rngs(3))
                if kind == "proposal"
                else None
            )
            settings = replace(config.policy, mixer="gru" if proposal else kind)
            decision_env = internal_env
            policy = LatentPolicy(config.model.width, latent, settings, make_rngs(2), proposal)
        keys = jax.random.split(jax.random.key(1), BATCH)
        carries = [jax.jit(lambda keys: start(decision_env, policy, keys, env.horizon))(keys)]
        step = jax.jit(partial(advance, decision_env, policy))
        for t in range(env.horizon):
            carries.append(step(carries[-1], jnp.int32(t)))
        carries = jax.device_get([carry.replace(keys=None) for carry in carries])
        return Looped(decision_env, policy, keys, carries)

    return make


@pytest.fixture(scope="module", params=["raw", "hawk", "proposal"])
def looped(request: pytest.FixtureRequest, make_looped: Callable) -> Looped:
    return make_looped(request.param)


@pytest.mark.parametrize("kind", ["raw", "hawk"])
def test_compiled_rollout_plays_the_episodes_of_the_loop_with_and_without_compaction(
    make_looped: Callable, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """With fewer slots than decisions: the ones that do not fit are taken, and not recorded."""
    looped = make_looped(kind)
    monkeypatch.setattr(driver, "BLOCK", 4)

    def play(compact: bool) -> Episodes:
        play = jax.jit(lambda keys: rollout(looped.env, looped.policy, keys, SLOTS, compact))
        return jax.device_get(play(looped.keys))

    compact = play(True)
    if kind == "raw":  # elsewhere the loop, itself without compaction, has to do
        jax.tree.map(partial(np.testing.assert_allclose, atol=1e-5), compact, play(False))
    live = [
        (compact.length > t).sum() for t in range(4, looped.env.horizon, 4)
    ]  # when compaction may happen
    assert any(0 < count <= len(looped.keys) - 4 for count in live), live  # fewer blocks
    assert any(count % 4 > 0 for count in live), live  # and one that is part live, part finished

    decisions = jax.tree.map(lambda x: x[:, :SLOTS], looped.episodes.decisions)
    expected = looped.episodes.replace(decisions=decisions)
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-5), compact, expected)
    assert (compact.num_decisions > SLOTS).any()


def test_records_agree_with_the_steps(looped: Looped) -> None:
    """Every decision, in order, and nothing else."""
    episodes, before, after = looped.episodes, looped.carries[:-1], looped.carries[1:]
    for b in range(BATCH):
        times = [t for t, carry in enumerate(before) if carry.step.decide[b]]
        n = len(times)
        assert episodes.num_decisions[b] == n
        assert episodes.decisions.mask[b].tolist() == [True] * n + [False] * (len(before) - n)
        assert episodes.decisions.time[b, :n].tolist() == times
        for slot, t in enumerate(times):

            def at(tree, *index):
                return jax.tree.map(lambda x: x[index], tree)

            jax.tree.map(
                np.testing.assert_array_equal,
                at(episodes.decisions.input, b, slot),
                at(before[t].step.input, b),
            )
            np.testing.assert_array_equal(episodes.decisions.action[b, slot], after[t].action[b])
        alive = [t for t, carry in enumerate(before) if not carry.step.timestep.done[b]]
        assert episodes.length[b] == len(alive)
        assert episodes.returns[b] == sum(after[t].step.timestep.reward[b] for t in alive)
        assert episodes.success[b] == any(after[t].step.timestep.success[b] for t in alive)


def test_the_first_step_decides_and_none_after_the_end(looped: Looped) -> None:
    assert looped.carries[0].step.decide.all()
    ended = [carry.step.timestep.done for carry in looped.carries]
    assert not any(
        (carry.step.decide & done).any() for carry, done in zip(looped.carries, ended, strict=True)
    )
    assert ended[5].any()
    assert ended[-1].all()


def test_decisions_and_memory_change_only_where_decided(looped: Looped) -> None:
    for before, after in itertools.pairwise(looped.carries):
        decide = before.step.decide
        if looped.env.always_decides:
            assert (decide == ~before.step.timestep.done).all()
            continue
        kept = jax.tree.map(
            lambda x, keep=~decide: x[keep],
            ((before.action, before.memory), (after.action, after.memory)),
        )
        jax.tree.map(np.testing.assert_array_equal, *kept)
        assert (before.action[decide] != after.action[decide]).all()
    shares = looped.episodes.num_decisions.sum() / looped.episodes.length.sum()
    assert shares == 1 if looped.env.always_decides else 0.1 < shares < 0.9


def test_recorded_log_prob_is_what_the_policy_learns_from(looped: Looped) -> None:
    decisions = looped.episodes.decisions
    learn = jax.jit(lambda x, action: looped.policy.unroll(x).log_prob(action))
    log_prob = np.asarray(learn(decisions.input, decisions.action))[decisions.mask]
    assert np.unique(log_prob.round(3)).size > 5
    np.testing.assert_allclose(log_prob, decisions.log_prob[decisions.mask], atol=1e-4)


@pytest.mark.parametrize("mixer", ["gru", "hawk"])
def test_latent_policy_steps_equal_its_unroll(
    config: Config, make_rngs: Callable, stream: jax.Array, assert_close: Callable, mixer: str
) -> None:
    settings = replace(config.policy, mixer=mixer, initial_std=0.5)
    policy = LatentPolicy(config.model.width, config.metacontroller.latent, settings, make_rngs())
    observation = jnp.zeros((3, 6, 1), jnp.int32)
    unrolled, step = jax.jit(policy.unroll)(LatentInput(stream, observation)), jax.jit(policy.step)
    memory = policy.init_memory(3, 6)
    for t in range(6):
        distribution, memory = step(
            LatentInput(stream[:, t], observation[:, t]), memory, jnp.int32(0)
        )
        assert_close(distribution.mean, unrolled.mean[:, t])
        np.testing.assert_allclose(np.exp(distribution.log_std), 0.5, rtol=1e-6)


def test_returns_are_successes_on_the_grid(looped: Looped) -> None:
    np.testing.assert_array_equal(
        looped.episodes.returns, looped.episodes.success.astype(np.float32)
    )
    assert looped.episodes.success.any()
    assert not looped.episodes.success.all()
    assert (looped.episodes.length <= looped.env.horizon).all()


# --- the frozen model as an environment ---------------------------------------------------------


class Spy:
    """A base model that remembers its last prediction."""

    def __init__(self, backbone: Backbone) -> None:
        self.backbone = backbone
        self.prediction: Any = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.backbone, name)

    def step_upper(self, *inputs: Any) -> Any:
        self.prediction, memory = self.backbone.step_upper(*inputs)
        return self.prediction, memory


def test_stepping_reproduces_the_offline_computation_of_discovery(
    env: GridWorld,
    internal_env: InternalEnv,
    normal: Callable,
    assert_close: Callable,
) -> None:
    """Under given latents a step has the sequence's logits and switch, and acts on them."""
    backbone, metacontroller = internal_env.controlled.model.base, internal_env.metacontroller
    latents = normal(BATCH, env.horizon, 3, seed=9)
    keys = jax.random.split(jax.random.key(4), (env.horizon + 1, BATCH))

    @jax.jit
    def step(keys: jax.Array, before: Any, latent: jax.Array, t: jax.Array) -> tuple[Any, ...]:
        spy = Spy(backbone)
        spied = InternalEnv(env, spy, metacontroller)  # type: ignore[arg-type]
        acted, primitive_action = spied.act(keys, before, latent, t)
        after, seen = spied.observe(
            acted, *jax.vmap(env.step)(spied.primitive(acted), primitive_action), action=latent, t=t
        )
        action = jax.vmap(jax.random.categorical)(keys, spy.prediction.action.logits)
        moved, _ = jax.vmap(env.step)(before.controlled.env, action)
        return after, seen, spy.prediction.action.logits, moved.agent

    state, seen = jax.jit(internal_env.reset)(keys[0])
    observation, logits, decide, alive = [], [], [], []
    for t in range(env.horizon):
        observation.append(seen.timestep.observation)
        alive.append(~seen.timestep.done)
        decide.append(seen.decide)
        state, seen, here, agent = step(keys[t + 1], state, latents[:, t], jnp.int32(t))
        np.testing.assert_array_equal(state.controlled.env.agent, agent)
        logits.append(here)
    observation.append(seen.timestep.observation)

    def stack(parts):
        return np.stack(jax.device_get(parts), 1)

    observation, logits, decide, alive = map(stack, (observation, logits, decide, alive))

    @jax.jit
    def offline(observation: jax.Array) -> tuple[jax.Array, jax.Array]:
        first = episode_starts(BATCH, env.horizon)
        e = backbone.unroll_lower(observation, first)
        past = metacontroller.past(e, jnp.ones((BATCH, env.horizon), bool))
        before = jnp.pad(latents, ((0, 0), (1, 0), (0, 0)))[:, :-1]
        beta = jax.vmap(metacontroller.switch, 1, 1)(e, past, before).at[:, 0].set(1.0)
        return backbone.unroll_upper(metacontroller.control(e, latents), first).action.logits, beta

    expected, beta = jax.device_get(offline(observation[:, :-1]))
    after = jax.jit(backbone.unroll_lower)(observation, episode_starts(BATCH, env.horizon + 1))[
        :, -1
    ]
    assert_close(state.controlled.e, after)  # what is read after the last step, too
    assert_close(logits[alive], expected[alive])
    assert (
        np.abs(beta - 0.5) > 1e-4
    ).all()  # none so near the threshold that rounding could decide
    np.testing.assert_array_equal(decide, (beta >= 0.5) & alive)
    assert 0.1 < decide[alive].mean() < 0.9
    assert alive.sum(1).max() > 4
