"""Stage 3b (ours, optional): fit the proposal that internal RL starts from, a skill prior.

It is fitted to pairs of observation and latent at the steps where the switch opens in training
episodes, without labels. A large mixture is fitted by gradient descent while its noise is lowered
to about the posterior's; its heaviest components are kept and fitted again, at last without the
features that they hardly ever meet. Labels are used once, to say how well components and subgoals
agree.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from envs.api import Dense
from internal_rl import streams
from internal_rl.config import OptimConfig
from internal_rl.data.batches import Batch, training_batches, whole
from internal_rl.data.dataset import load
from internal_rl.driver import in_chunks
from internal_rl.models.distributions import Mixture
from internal_rl.models.metacontroller import SWITCH_THRESHOLD, Inference
from internal_rl.models.model import Model, Params
from internal_rl.models.proposal import Proposal, add_dimensions, keep_heaviest
from internal_rl.run import Result, Run, Stage
from internal_rl.trained import fresh_proposal
from internal_rl.training import files
from internal_rl.training.loop import Metrics, init_state, make_update
from internal_rl.training.loop import run as run_loop
from internal_rl.training.optimiser import make_optimiser
from internal_rl.training.tracking import Tracker

ANNEALED = 0.6  # share of the gradient steps over which the noise falls to its end
HELD_OUT = 2_048  # episodes
CHUNK = 512  # episodes per call of the metacontroller
# Variance of the posterior's mean above which a dimension of the latent carries something (Burda et
# al. 2016).
ACTIVE = 0.01


class Openings(NamedTuple):
    """What the posterior says at the N steps where the switch opens.

    observation: [N, ...], o_t.
    latent: [N, Z], z_t, the code.
    mean: [N, Z], the posterior's mu_t.
    """

    observation: np.ndarray
    latent: Float[np.ndarray, "N Z"]
    mean: Float[np.ndarray, "N Z"]


class Reader:
    """Codes of batches of episodes, read by the trained metacontroller."""

    def __init__(self, run: Run):
        base = run.models.steered_base()
        metacontroller = run.models.metacontroller()
        self.seed = run.config.seed
        self.first_codes = run.config.propose.first_codes

        @jax.jit
        def infer(batch: Batch, keys: jax.Array) -> Inference:
            e = base.module().unroll_lower(batch.observation, batch.first)
            return metacontroller.module().infer(e, batch.mask, keys)

        self.infer = infer

    def __call__(self, batch: Batch, stream: str, number: int) -> tuple[Openings, np.ndarray]:
        """(codes, where they are, bool [B, T]) of one batch.

        stream, number: fix the draws from the posterior.
        """
        keys = streams.row_keys(streams.key(self.seed, stream, number), len(batch.mask))
        inference = jax.device_get(self.infer(batch, keys))
        opened = (inference.switch >= SWITCH_THRESHOLD) & np.asarray(batch.mask)
        if self.first_codes:
            opened = opened & (np.arange(opened.shape[1]) == 0)
        codes = Openings(
            observation=np.asarray(batch.observation)[opened],
            latent=inference.latent[opened],
            mean=inference.posterior.mean[opened],
        )
        return codes, opened


def training_codes(run: Run, read: Reader) -> Openings:
    """Codes of random training episodes, `propose.codes` of them."""
    wanted = run.config.propose.codes
    batches = training_batches(run.config, run.env, run.directory, "discover")
    parts: list[Openings] = []
    count = 0
    while count < wanted:
        codes, _ = read(batches(len(parts)), "propose.codes", len(parts))
        parts.append(codes)
        count += len(codes.latent)
    return Openings(*(np.concatenate(part)[:wanted] for part in zip(*parts, strict=True)))


def held_out_codes(run: Run, read: Reader) -> tuple[Openings, Int[np.ndarray, "N"]]:
    """Codes of held-out episodes and their true subgoals."""
    batch, labels = whole(load(run.directory / "data" / "valid", labels=True), HELD_OUT)

    def of_chunk(batch: Batch, subgoal: np.ndarray, row: np.ndarray) -> tuple[Openings, np.ndarray]:
        codes, opened = read(batch, "propose.held_out", int(row[0]))
        return codes, subgoal[opened]

    return in_chunks(of_chunk, CHUNK, batch, labels["subgoal"], np.arange(len(batch.mask)))


def count_codes(
    component: Int[np.ndarray, "N"], subgoal: Int[np.ndarray, "N"], shape: tuple[int, int]
) -> Int[np.ndarray, "K S"]:
    """How many codes fall to each component, by subgoal. shape: (components, subgoals)."""
    table = np.zeros(shape, int)
    np.add.at(table, (component, subgoal), 1)
    return table


def purity(matches: Int[np.ndarray, "K S"]) -> float:
    """Share of codes whose subgoal is the most frequent one of their component."""
    return float(matches.max(1).sum() / matches.sum())


class Fit:
    """The likelihood of proposals for given codes, and its maximisation.

    Both are in the latent's active dimensions only.
    """

    def __init__(self, run: Run, codes: Openings, tracker: Tracker):
        self.run = run
        self.config = run.config
        self.env = run.env
        self.tracker = tracker

        # The dimensions that carry something (at least one), and the std that fits end with.
        variance = codes.mean.var(0)
        self.active = variance >= min(ACTIVE, variance.max())
        self.codes = self._in_active_dimensions(codes)
        self.noise = self.config.propose.noise * (self.codes.latent - self.codes.mean).std(0)

    def _in_active_dimensions(self, codes: Openings) -> Openings:
        return Openings(codes.observation, codes.latent[:, self.active], codes.mean[:, self.active])

    def _fresh(self, components: int, key: jax.Array | None = None) -> Model[Proposal]:
        return fresh_proposal(self.env, int(self.active.sum()), components, key)

    def first(self, seed: int) -> Model[Proposal]:
        """A fit of `propose.candidates` components from a random start."""
        settings = self.config.propose
        key = streams.key(self.config.seed, "weights.proposal", seed)
        model = self._fresh(settings.candidates, key)

        # Constants are told apart by where they start: at random codes.
        if not settings.linear:
            rng = streams.generator(self.config.seed, "weights.proposal", seed)
            rows = rng.integers(len(self.codes.latent), size=settings.candidates)
            bias = jnp.asarray(self.codes.latent[rows])
            model = model.with_params({**model.params, "bias": bias})

        def falling(step: jax.Array) -> jax.Array:
            return settings.initial_noise * (1 - step / (ANNEALED * settings.steps))

        return self._maximise(model, "propose", seed, settings.steps, settings.optim, falling)

    def heaviest(self, model: Model[Proposal], seed: int) -> Model[Proposal]:
        """The `propose.components` heaviest components of a first fit, fitted again.

        Linear ones are then fitted once more, without unsupported features.
        """
        settings = self.config.propose
        kept = self._fresh(settings.components)
        kept = kept.with_params(keep_heaviest(model.params, settings.components))

        # From here on only the posterior's noise is left.
        def no_noise(step: jax.Array) -> float:
            return 0.0

        rest = seed, settings.keep_steps, settings.keep_optim, no_noise
        kept = self._maximise(kept, "propose_kept", *rest)
        if not settings.linear:
            return kept

        # What a component hardly ever meets must not shape its latent.
        supported = self.support(kept) >= settings.least_support
        return self._maximise(kept, "propose_supported", *rest, supported)

    def support(self, model: Model[Proposal]) -> Float[np.ndarray, "I K"]:
        """How often each of K components meets each of I features, relative to all components.

        Features are those of a multi-hot observation. A subgoal that never follows another never
        meets what the observation shows there. Its component's coefficient of such a feature is
        free to explain the codes of others, and wrong exactly on unseen transitions.
        """
        observation = self.codes.observation
        spec = self.env.observation_spec
        if isinstance(spec, Dense):
            return np.ones((spec.size, len(model.params["log_weight"])))

        # Codes belong to components by their posterior share.
        share = np.asarray(jax.nn.softmax(self._joint(model, self.codes), axis=1))
        met = np.zeros((spec.size, share.shape[1]))
        count = np.zeros((spec.size, 1))
        for feature in observation.reshape(len(observation), -1).T:
            np.add.at(met, feature, share)
            np.add.at(count, feature, 1)
        return met / np.maximum(count * share.mean(0), 1e-9)

    def _maximise(
        self,
        model: Model[Proposal],
        stage: str,
        seed: int,
        steps: int,
        optim: OptimConfig,
        least_noise: Callable[[jax.Array], jax.Array | float],
        supported: Bool[np.ndarray, "I K"] | None = None,
    ) -> Model[Proposal]:
        """Gradient steps on the likelihood of the codes.

        stage: names the metrics and the checkpoint, with the seed of the start.
        least_noise: the mixture's std at a step, where it exceeds the final one.
        supported: which features each component may read; None: all.
        """
        codes = self.codes
        config = self.config

        # What components read of the observation: nothing where they are constants.
        mask = np.full_like(model.params["table"], config.propose.linear)
        if supported is not None:
            mask *= np.repeat(supported, self.active.sum(), axis=1)

        def restrict(params: Params) -> Params:
            return {**params, "table": params["table"] * mask}

        # The mean negative log-likelihood of the codes, with the std given from outside.
        def loss_fn(
            params: Params, step: jax.Array, frozen: None, rows: tuple[jax.Array, jax.Array]
        ) -> tuple[jax.Array, tuple[Metrics, Any]]:
            observation, latent = rows
            std = jnp.maximum(self.noise, least_noise(step))
            mixture = self._distribution(model.with_params(restrict(params)), observation, std)
            log_prob = mixture.log_prob(latent).mean()
            return -log_prob, ({"log_prob": log_prob, "noise": std.mean()}, len(latent))

        def batch(step: int) -> tuple[None, tuple[np.ndarray, np.ndarray]]:
            rng = streams.generator(config.seed, f"batches.{stage}", seed, step)
            rows = rng.integers(len(codes.latent), size=config.propose.batch_size)
            return None, (codes.observation[rows], codes.latent[rows])

        optimiser = make_optimiser(optim, steps)
        state, _ = run_loop(
            make_update(loss_fn, optimiser),
            init_state(model.params, optimiser),
            batch,
            stage=stage,
            steps=steps,
            tracker=self.tracker,
            directory=self.run.directory / "propose" / f"{stage}_{seed}",
            log_every=10 * config.tracker.log_every,  # a step takes a millisecond or so
            keeping=self.run.keeping,
            tags={"start": float(seed)},
        )
        return model.with_params(restrict(state.params))

    def _distribution(
        self,
        model: Model[Proposal],
        observation: Any,
        std: jax.Array | np.ndarray,
    ) -> Mixture:
        params = {**model.params, "log_std": jnp.log(std)}
        return model.with_params(params).module()(observation)

    def judge(self, model: Model[Proposal], codes: Openings) -> tuple[float, Int[np.ndarray, "N"]]:
        """(mean log-likelihood in nats per code, the likeliest component of each code)."""
        scores = np.asarray(self._joint(model, self._in_active_dimensions(codes)))
        return float(np.logaddexp.reduce(scores, 1).mean()), scores.argmax(1)

    def _joint(self, model: Model[Proposal], codes: Openings) -> Float[Array, "N K"]:
        mixture = self._distribution(model, codes.observation, self.noise)
        return mixture.joint_log_prob(jnp.asarray(codes.latent))

    def proposal(self, model: Model[Proposal]) -> Params:
        """Parameters for the whole latent."""
        return add_dimensions({**model.params, "log_std": jnp.log(self.noise)}, self.active)


def run(run: Run, tracker: Tracker) -> Result:
    """Fit the proposal and save it to proposal/.

    Of several starts the one that is likeliest on held-out codes is kept. Returns log_prob
    (held-out, nats per code), purity (share of held-out codes whose subgoal is the most frequent
    one of their likeliest component), its chance level, the weights of the components, and the
    first two for each start.
    """
    # Codes of training episodes to fit, and held-out ones, with their subgoals, to judge by.
    config = run.config
    env = run.env
    read = Reader(run)
    fit = Fit(run, training_codes(run, read), tracker)
    held_out, subgoal = held_out_codes(run, read)

    def judge(model: Model[Proposal]) -> tuple[float, Int[np.ndarray, "K S"]]:
        log_prob, component = fit.judge(model, held_out)
        shape = len(model.params["log_weight"]), len(env.tasks.subgoals)
        return log_prob, count_codes(component, subgoal, shape)

    # Many components from several starts, then the heaviest of the likeliest start.
    starts = []
    for seed in range(config.propose.restarts):
        model = fit.first(seed)
        starts.append((*judge(model), model))
    best = max(range(len(starts)), key=lambda seed: starts[seed][0])
    model = fit.heaviest(starts[best][2], best)
    log_prob, matches = judge(model)

    # Which component stands for which subgoal is for analysis only: RL does not read it.
    files.write_arrays(run.directory / "propose" / "matches.npz", {"matches": matches})
    run.save(run.directory / "proposal", fit.proposal(model), stage="propose", start=best)
    return {
        "log_prob": log_prob,
        "purity": purity(matches),
        "chance": purity(matches.sum(0, keepdims=True)),
        "weights": np.asarray(jax.nn.softmax(model.params["log_weight"])).tolist(),
        "starts": [
            {"log_prob": log_prob, "purity": purity(matches)} for log_prob, matches, _ in starts
        ],
    }


STAGE = Stage(
    name="propose",
    run=run,
    needs=("discover",),
    reads=("propose",),
    writes=("proposal", "propose/matches.npz"),
    enabled=lambda config: config.propose.components > 0,
)
