"""Stage 3b (ours, optional): fit the proposal that internal RL starts from to the codes of training episodes.

No labels: pairs of (observation, latent) at the steps where the switch opens. A large mixture is fitted by gradient
descent while its noise is lowered to about the posterior's; its heaviest experts are kept and fitted again, at last
without the features that they hardly ever meet. Labels are used once, to say how well experts and subgoals agree.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from envs.api import Dense, Environment
from internal_rl import checkpoint, streams
from internal_rl.config import Config, OptimConfig
from internal_rl.models.distributions import Mixture
from internal_rl.models.metacontroller import SWITCH_THRESHOLD
from internal_rl.models.proposal import Proposal, add_dimensions, keep_heaviest
from internal_rl.stages.collect import training_batches
from internal_rl.stages.discover import load_metacontroller
from internal_rl.tracking import Tracker
from internal_rl.train_loop import init_state, make_optimiser, make_update
from internal_rl.train_loop import run as run_loop
from internal_rl.trajectories import in_chunks, load, whole

ANNEALED = 0.6  # share of the steps over which the noise falls to its end
HELD_OUT = 2_048  # episodes
CHUNK = 512  # episodes
ACTIVE = 0.01  # variance of the posterior's mean above which a dimension carries something (Burda et al. 2016)


class Openings(NamedTuple):
    """What the posterior says where the switch opens. observation: [N, ...]; latent, mean: [N, Z]."""

    observation: np.ndarray
    latent: Float[np.ndarray, "N Z"]
    mean: Float[np.ndarray, "N Z"]


def build(env: Environment, latent: int, experts: int, key: jax.Array | None = None) -> tuple[Any, Any]:
    """(graphdef, params) of a fresh proposal; key: None where only their shapes matter."""
    rngs = nnx.Rngs(jax.random.key(0) if key is None else key)
    graphdef, params = nnx.split(Proposal(env.observation_spec, latent, experts, rngs), nnx.Param)
    return graphdef, nnx.to_pure_dict(params)


class Reader:
    """Codes of batches of episodes."""

    def __init__(self, config: Config, env: Environment, run_dir: Path):
        base_graph, base_params, graphdef, params = load_metacontroller(config, env, run_dir)
        self.seed, self.first_codes = config.seed, config.propose.first_codes

        @jax.jit
        def infer(batch: Any, keys: jax.Array):
            base, metacontroller = nnx.merge(base_graph, base_params), nnx.merge(graphdef, params)
            return metacontroller.infer(base.unroll_lower(batch.observation, batch.first), batch.mask, keys)

        self.infer = infer

    def __call__(self, batch: Any, stream: str, number: int) -> tuple[Openings, np.ndarray]:
        """(codes, where they are [B, T]) of one batch; `stream` and `number` draw the sample of the posterior."""
        keys = streams.row_keys(streams.key(self.seed, stream, number), len(batch.mask))
        inference = jax.device_get(self.infer(batch, keys))
        opened = (inference.switch >= SWITCH_THRESHOLD) & np.asarray(batch.mask)
        if self.first_codes:
            opened = opened & (np.arange(opened.shape[1]) == 0)
        observation = np.asarray(batch.observation)[opened]
        return Openings(observation, inference.latent[opened], inference.posterior.mean[opened]), opened


def training_codes(config: Config, env: Environment, run_dir: Path, read: Reader) -> Openings:
    """Codes of random training episodes, `propose.codes` of them."""
    batches, parts, count = training_batches(config, env, run_dir, "discover"), [], 0
    while count < config.propose.codes:
        codes, _ = read(batches(len(parts)), "propose.codes", len(parts))
        parts.append(codes)
        count += len(codes.latent)
    return Openings(*(np.concatenate(part)[: config.propose.codes] for part in zip(*parts, strict=True)))


def held_out_codes(run_dir: Path, read: Reader) -> tuple[Openings, Int[np.ndarray, "N"]]:
    """Codes of held-out episodes and their true subgoals."""
    batch, labels = whole(load(run_dir / "data" / "valid", labels=True), HELD_OUT)

    def of_chunk(batch: Any, subgoal: np.ndarray, row: np.ndarray) -> tuple[Openings, np.ndarray]:
        codes, opened = read(batch, "propose.held_out", int(row[0]))
        return codes, subgoal[opened]

    return in_chunks(of_chunk, CHUNK, batch, labels["subgoal"], np.arange(len(batch.mask)))


def count_codes(
    expert: Int[np.ndarray, "N"], subgoal: Int[np.ndarray, "N"], shape: tuple[int, int]
) -> Int[np.ndarray, "K S"]:
    """How many codes fall to each expert, by subgoal. shape: (experts, subgoals)."""
    table = np.zeros(shape, int)
    np.add.at(table, (expert, subgoal), 1)
    return table


def purity(matches: Int[np.ndarray, "K S"]) -> float:
    """Share of codes whose subgoal is the most frequent one of their expert."""
    return float(matches.max(1).sum() / matches.sum())


class Fit:
    """The likelihood of proposals for given codes, and its maximisation: in the latent's active dimensions only."""

    def __init__(self, config: Config, env: Environment, codes: Openings, tracker: Tracker, run_dir: Path):
        self.config, self.env, self.tracker, self.run_dir = config, env, tracker, run_dir
        variance = codes.mean.var(0)
        self.active = variance >= min(ACTIVE, variance.max())  # at least one
        self.codes = self._in_active_dimensions(codes)
        self.noise = config.propose.noise * (self.codes.latent - self.codes.mean).std(0)

    def _in_active_dimensions(self, codes: Openings) -> Openings:
        return Openings(codes.observation, codes.latent[:, self.active], codes.mean[:, self.active])

    def _build(self, experts: int, key: jax.Array | None = None) -> tuple[Any, Any]:
        return build(self.env, int(self.active.sum()), experts, key)

    def first(self, seed: int) -> Any:
        """Parameters of `propose.candidates` experts, from a random start."""
        settings = self.config.propose
        graphdef, params = self._build(settings.candidates, streams.key(self.config.seed, "weights.proposal", seed))
        if not settings.linear:  # constants are told apart by where they start: at random codes
            rng = streams.generator(self.config.seed, "weights.proposal", seed)
            rows = rng.integers(len(self.codes.latent), size=len(params["bias"]))
            params = {**params, "bias": jnp.asarray(self.codes.latent[rows])}
        fall = lambda step: settings.initial_noise * (1 - step / (ANNEALED * settings.steps))
        return self._maximise(graphdef, params, "propose", seed, settings.steps, settings.optim, fall)

    def heaviest(self, params: Any, seed: int) -> Any:
        """The `propose.experts` heaviest experts of a first fit, fitted again; linear ones then once more, without
        unsupported features."""
        settings = self.config.propose
        graphdef, _ = self._build(settings.experts)
        rest = seed, settings.keep_steps, settings.keep_optim, lambda step: 0.0
        params = self._maximise(graphdef, keep_heaviest(params, settings.experts), "propose_kept", *rest)
        if not settings.linear:
            return params
        supported = self.support(params) >= settings.least_support
        return self._maximise(graphdef, params, "propose_supported", *rest, supported)

    def support(self, params: Any) -> Float[np.ndarray, "I K"]:
        """How often each of K experts meets each of I features of a multi-hot observation, relative to all experts.

        A subgoal that never follows another never meets what the observation shows there. Its expert's coefficient
        of such a feature is free to explain the codes of others, and wrong exactly on unseen transitions.
        """
        observation, spec = self.codes.observation, self.env.observation_spec
        if isinstance(spec, Dense):
            return np.ones((spec.size, len(params["log_weight"])))
        share = np.asarray(jax.nn.softmax(self._joint(params, self.codes), axis=1))
        met, count = np.zeros((spec.size, share.shape[1])), np.zeros((spec.size, 1))
        for feature in observation.reshape(len(observation), -1).T:
            np.add.at(met, feature, share)
            np.add.at(count, feature, 1)
        return met / np.maximum(count * share.mean(0), 1e-9)

    def _maximise(
        self,
        graphdef: Any,
        params: Any,
        stage: str,
        seed: int,
        steps: int,
        optim: OptimConfig,
        least_noise: Callable[[Any], Any],
        supported: Bool[np.ndarray, "I K"] | None = None,
    ) -> Any:
        codes, config = self.codes, self.config
        mask = np.full_like(params["table"], config.propose.linear)  # what the experts read
        if supported is not None:
            mask *= np.repeat(supported, self.active.sum(), axis=1)
        restrict = lambda params: {**params, "table": params["table"] * mask}

        def loss_fn(params: Any, step: jax.Array, frozen: None, rows: tuple[jax.Array, jax.Array]):
            observation, latent = rows
            std = jnp.maximum(self.noise, least_noise(step))
            mixture = self._distribution(graphdef, restrict(params), observation, std)
            log_prob = mixture.log_prob(latent).mean()
            metrics = {"log_prob": log_prob, "noise": std.mean(), "start": jnp.float32(seed)}
            return -log_prob, (metrics, len(latent))

        def batch(step: int) -> tuple[None, tuple[np.ndarray, np.ndarray]]:
            rng = streams.generator(config.seed, f"batches.{stage}", seed, step)
            rows = rng.integers(len(codes.latent), size=config.propose.batch_size)
            return None, (codes.observation[rows], codes.latent[rows])

        optimiser = make_optimiser(optim, steps)
        state, _ = run_loop(
            make_update(loss_fn, optimiser),
            init_state(params, optimiser),
            batch,
            stage=stage,
            steps=steps,
            tracker=self.tracker,
            directory=self.run_dir / "propose" / f"{stage}_{seed}",
            log_every=10 * config.tracker.log_every,  # steps of a millisecond or so
            checkpoint_every=config.checkpoint_every,
        )
        return restrict(state.params)

    def _distribution(self, graphdef: Any, params: Any, observation: Any, std: Any) -> Mixture:
        return nnx.merge(graphdef, {**params, "log_std": jnp.log(std)})(observation)

    def judge(self, params: Any, codes: Openings) -> tuple[float, Int[np.ndarray, "N"]]:
        """(mean log-likelihood of the codes in nats, the likeliest expert of each)."""
        scores = np.asarray(self._joint(params, self._in_active_dimensions(codes)))
        return float(np.logaddexp.reduce(scores, 1).mean()), scores.argmax(1)

    def _joint(self, params: Any, codes: Openings) -> Float[Array, "N K"]:
        graphdef, _ = self._build(len(params["log_weight"]))
        return self._distribution(graphdef, params, codes.observation, self.noise).joint_log_prob(
            jnp.asarray(codes.latent)
        )

    def proposal(self, params: Any) -> Any:
        """Parameters for the whole latent."""
        return add_dimensions({**params, "log_std": jnp.log(self.noise)}, self.active)


def run(config: Config, env: Environment, run_dir: Path, tracker: Tracker) -> dict[str, Any]:
    """Fit the proposal and save it to proposal/. Of several starts the likeliest on held-out codes is kept.

    Returns log_prob (held-out, nats a code), purity (share of held-out codes whose subgoal is the most frequent one
    of their likeliest expert), its chance level, the weights of the experts, and the first two for each start.
    """
    read = Reader(config, env, run_dir)
    fit = Fit(config, env, training_codes(config, env, run_dir, read), tracker, run_dir)
    held_out, subgoal = held_out_codes(run_dir, read)

    def judge(params: Any) -> tuple[float, Int[np.ndarray, "K S"]]:
        log_prob, expert = fit.judge(params, held_out)
        return log_prob, count_codes(expert, subgoal, (len(params["log_weight"]), len(env.tasks.subgoals)))

    starts = []
    for seed in range(config.propose.restarts):
        params = fit.first(seed)
        starts.append((*judge(params), params))
    best = max(range(len(starts)), key=lambda seed: starts[seed][0])
    params = fit.heaviest(starts[best][2], best)
    log_prob, matches = judge(params)
    (run_dir / "propose").mkdir(exist_ok=True)
    np.savez(run_dir / "propose" / "matches.npz", matches=matches)
    checkpoint.save(run_dir / "proposal", fit.proposal(params), {"stage": "propose", "start": best})
    return {
        "log_prob": log_prob,
        "purity": purity(matches),
        "chance": purity(matches.sum(0, keepdims=True)),
        "weights": np.asarray(jax.nn.softmax(params["log_weight"])).tolist(),
        "starts": [{"log_prob": log_prob, "purity": purity(matches)} for log_prob, matches, _ in starts],
    }


def load_proposal(config: Config, env: Environment, run_dir: Path) -> tuple[Any, Any]:
    """(graphdef, params) of a run's proposal; raises CheckpointError where there is none."""
    graphdef, params = build(env, config.metacontroller.latent, config.propose.experts)
    return graphdef, checkpoint.restore(run_dir / "proposal", params)


def load_matches(run_dir: Path) -> Int[np.ndarray, "K S"]:
    """Held-out codes of each subgoal by expert."""
    with np.load(run_dir / "propose" / "matches.npz", allow_pickle=False) as file:
        return file["matches"]
