"""The typed configuration: every key is declared once, here, with its default and meaning.

The comment behind or above a key gives its unit and its meaning. "A4: 6" is the value in that table
of the paper (arXiv 2512.20605); "(ours)" marks what the paper does not have. What a value must
satisfy alone stands beside it (`setting`); rules that span several keys are in `validation.py`.
"""

import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple, TypeVar

# Settings that never change what a run computes.
FREE = (
    "run_dir",
    "reuse",
    "until",
    "dry_run",
    "time_limit",
    "checkpoint_every",
    "non_finite",  # a run that meets no such number computes the same
    "tracker.",
)
# Keys that have been renamed: the old name is refused with the new one.
RENAMED = {
    "propose.experts": "propose.components",
    "policy.train_experts": "policy.train_components",
}

# Settings that list sequences of colours.
TASK_SETS = ("env.tasks", "env.post_tasks", "env.subgoals")

Value = TypeVar("Value")


class RunError(Exception):
    """What whoever runs the program can mend: the message is one line that says how.

    status: the exit status of the program.
    """

    status = 2


class ConfigError(RunError, ValueError):
    """A configuration that cannot be run; the message names the key and the remedy."""


class Limit(NamedTuple):
    """What one value must satisfy, and how a message says so. A null is never tested.

    bits: how many an integer may have; most end in int32 arithmetic.
    """

    holds: Callable[[Any], bool]
    says: str
    bits: int = 31


POSITIVE = Limit(lambda value: value > 0, "must be positive")
NOT_NEGATIVE = Limit(lambda value: value >= 0, "must not be negative")
SHARE = Limit(lambda value: 0 <= value <= 1, "is a share in [0, 1]")
BELOW_ONE = Limit(lambda value: 0 <= value < 1, "must lie in [0, 1)")
# Of layers and worlds: matrices of this many rows and columns can still be addressed.
SIZE = Limit(lambda value: 0 < value <= 2**16, "must be positive and at most 2**16")
SIZE_OR_NONE = Limit(
    lambda value: 0 <= value <= 2**16, "must not be negative and must be at most 2**16"
)
SIDE = Limit(lambda value: 0 < value <= 1_000, "must be positive and at most 1000")
# A key of the random streams holds 32 bits of a seed: 2**32 would be 0 again.
SEED = Limit(
    lambda value: 0 <= value < 2**32, "must not be negative and must be below 2**32", bits=32
)
# A timer of the operating system holds no more.
SECONDS = Limit(lambda value: 0 < value <= 1e9, "must be positive and at most 1e9")
PATH = Limit(lambda value: value.strip() != "", "is empty; name a directory")
# A folder bears it.
NAME = Limit(
    lambda value: bool(re.fullmatch(r"[^./\\][^/\\]*", value)) and len(value.encode()) <= 100,
    "must name a folder: at most 100 bytes, without slashes, not beginning with a dot",
)
ANY = Limit(lambda value: True, "")


def one_of(*choices: str) -> Limit:
    """The limit of a setting that has a few possible values."""
    return Limit(lambda value: value in choices, f"is not one of {', '.join(choices)}")


def setting(default: Value, limit: Limit) -> Value:
    """A field of a config with the limit of its values."""
    return field(default=default, metadata={"limit": limit})


@dataclass(frozen=True)
class EnvConfig:
    """The world: its layout, its tasks and what is observed of it (App. A)."""

    name: str = "gridworld"  # gridworld, ant, or another registered world (envs/registry.py)
    size: int = setting(7, SIDE)  # G, cells per side of the grid (A1: 7, A2: 4)
    num_colours: int = setting(8, SIZE)  # O, coloured cells (A1: 8, A2: 4)
    num_walls: int = setting(4, NOT_NEGATIVE)  # W, wall cells (A1: 4, A2: 1)
    horizon: int = setting(100, POSITIVE)  # T, steps per episode at most (A1: 100, A2: 500)
    # pretraining tasks: table_a1, table_a2, ring:LENGTH (after colour k any but k and k + 1), or
    # sequences of colours such as 0-1-2+2-1-0
    tasks: str = "table_a1"
    # tasks that internal RL and raw-action RL are trained on: as tasks, or post_training_a1, _a2
    post_tasks: str = "post_training_a1"
    # colours of each abstract subgoal, such as 0-1+2-3; null: the pairs of App. A for table_a1,
    # else each colour is a subgoal
    subgoals: str | None = None
    # allocentric (the paper's), egocentric, egocentric_hidden, egocentric_axes (ours)
    observation: str = "allocentric"
    # layouts: 0 draws a new one for each episode, n draws from a pool of n maps
    num_maps: int = setting(0, NOT_NEGATIVE)
    map_seed: int | None = setting(None, SEED)  # seed of the pool of maps; null: the run's seed
    # position in the pool's sequence of maps where this pool begins, for disjoint pools
    first_map: int = setting(0, NOT_NEGATIVE)
    cell_size: float = setting(2.0, POSITIVE)  # m, side of a cell of the ant's floor
    frame_skip: int = setting(5, POSITIVE)  # physics steps of 10 ms per control step of the ant
    # of the ant: native (on the host), mjx (compiled), auto (native on a CPU, else mjx)
    physics: str = "auto"
    # module to import that registers the world (envs.registry.register); null: it is one of ours
    module: str | None = None


@dataclass(frozen=True)
class CollectConfig:
    """The behaviour data D: how much of it, and how the expert that makes it is perturbed."""

    episodes: int = setting(131_072, POSITIVE)  # training episodes of D
    # held-out episodes, with the exact yardsticks (the Bayes filter's and the oracle's NLL)
    valid_episodes: int = setting(4_096, POSITIVE)
    # episodes that measure an imperfect expert's success, by which results are normalised (Fig. 8)
    expert_episodes: int = setting(2_048, POSITIVE)
    # steps after which an episode of the data is cut; null: env.horizon
    max_steps: int | None = setting(None, POSITIVE)
    # grid: probability per step of a random action; ant: std of what is added to the torques
    noise: float = setting(0.0, NOT_NEGATIVE)
    # none, epsilon (label: the executed action), injection (label: the expert's own action)
    noise_kind: str = setting("none", one_of("none", "epsilon", "injection"))
    # share of the time in which the ant is led a random way; the label stays the expert's (ours)
    detours: float = setting(0.0, BELOW_ONE)
    on_the_fly: bool = False  # generate training episodes on the device instead of storing them
    shard_episodes: int = setting(32_768, POSITIVE)  # episodes per file
    successful_only: bool = False  # keep only episodes in which the expert completes its task


@dataclass(frozen=True)
class ModelConfig:
    """The base model: residual blocks, cut in two where the metacontroller acts (App. D.1)."""

    # sequence mixing: hawk (RG-LRU, A5), transformer (A4)
    mixer: str = setting("hawk", one_of("hawk", "transformer"))
    depth: int = setting(4, SIZE)  # L, residual blocks (A4: 6, A5: 8)
    width: int = setting(64, SIZE)  # n_e, of the residual stream (A4, A5: 256)
    mlp_width: int = setting(256, SIZE)  # hidden units of each block's MLP (A4, A5: 512)
    # attention heads (A4: 4), or diagonal blocks of Hawk's gates (A5: 8)
    num_heads: int = setting(1, SIZE)
    head_width: int = setting(64, SIZE)  # of an attention head; transformer only (A4: 64)
    # l, blocks below the cut, where the metacontroller reads and writes (paper: L/2)
    control_layer: int = 1
    scale: float = setting(1.0, POSITIVE)  # initial variance, times fan-in, of inner maps (A4: 0.1)
    # the same of the last map of each residual branch, and of the heads (A4: 0.1)
    scale_last: float = setting(0.1, NOT_NEGATIVE)
    # initial variance of an entry of the observation embedding; null: scale / inputs
    embedding_variance: float | None = setting(0.05, POSITIVE)
    # std of continuous actions: constant (learned, the same everywhere), state (ours: a function
    # of the residual stream)
    action_std: str = setting("constant", one_of("constant", "state"))


@dataclass(frozen=True)
class OptimConfig:
    """An optimiser: AdamW with warm-up and decay; rates of their own for parts of the base."""

    # peak rate (A4, A5, A9: base 3e-4, metacontroller of the grid 1e-3; A13: RL 3e-5)
    learning_rate: float = setting(3e-3, POSITIVE)
    # rate of the observation embedding, without decay (ours); null: as the rest
    embedding_learning_rate: float | None = setting(None, POSITIVE)
    # rate of Muon for the blocks' matrices, decayed as AdamW would (ours); null: AdamW
    muon_learning_rate: float | None = setting(None, POSITIVE)
    weight_decay: float = setting(0.03, NOT_NEGATIVE)  # of matrices only (A4: 0.03, A13: 0)
    b1: float = setting(0.9, BELOW_ONE)  # AdamW's decay of the mean gradient (A4: 0.9)
    b2: float = setting(0.999, BELOW_ONE)  # AdamW's decay of the squared gradient (A4: 0.999)
    clip: float | None = setting(1.0, POSITIVE)  # largest global norm of a gradient; null: any
    warmup_steps: int = setting(0, NOT_NEGATIVE)  # gradient steps of linear rise to the peak rate
    # share of the peak rate that a cosine decay ends at; 1: a constant rate (the paper's)
    final_fraction: float = setting(1.0, NOT_NEGATIVE)


@dataclass(frozen=True)
class PretrainConfig:
    """Training of the base model on D: next actions and next observations (App. C.1)."""

    steps: int = setting(4_000, POSITIVE)  # gradient steps (A4: 256,000; A5: 204,800)
    batch_size: int = setting(64, POSITIVE)  # episodes per gradient step (A4: 1,024; A5: 512)
    # rows per backward pass, whose gradients are summed; null: the whole batch at once
    micro_batch: int | None = setting(None, POSITIVE)
    # steps per row, into which episodes are packed end to end; 0: one episode per row
    row_length: int = setting(72, NOT_NEGATIVE)
    # lambda, weight of the next-observation loss (A4: 0 and 0.01, A5: 10)
    next_observation_weight: float = setting(0.1, NOT_NEGATIVE)
    # probability per step that the model's memory is wiped in training (ours)
    history_dropout: float = setting(0.0, SHARE)
    valid_every: int = setting(500, POSITIVE)  # gradient steps between evaluations
    optim: OptimConfig = field(default_factory=OptimConfig)  # of the base model (A4, A5)


@dataclass(frozen=True)
class ControllersConfig:
    """Supervised controllers, one per abstract subgoal (Fig. 4): a diagnostic of the base model."""

    steps: int = setting(800, POSITIVE)  # gradient steps
    batch_size: int = setting(64, POSITIVE)  # episodes per gradient step
    rank: int = setting(16, SIZE)  # of each controller's linear map
    episodes: int = setting(1_024, POSITIVE)  # episodes that measure their success
    trials: int = setting(2_048, POSITIVE)  # episodes per leg in the stage transitions
    optim: OptimConfig = field(default_factory=OptimConfig)  # of the controllers


@dataclass(frozen=True)
class MetacontrollerConfig:
    """The metacontroller: history, embedder, encoder, switch and hypernetwork (App. D.2)."""

    history_width: int = setting(32, SIZE)  # n_h, of the GRU over e_1 to e_t (A9: 32)
    # f_emb, over the whole sequence: gru (read backwards; ours), hawk (the paper's SSM)
    embedder: str = setting("gru", one_of("gru", "hawk"))
    embedding_width: int = setting(32, SIZE)  # n_s, of the sequence embedding (A9: 32)
    # steps that the most persistent unit of a GRU embedder remembers at the start (ours)
    embedder_memory: float = 2.0
    # steps by which the encoder's view of the future lags behind (ours); null: one view for the
    # whole sequence, from its first step
    embedding_lag: int | None = setting(None, NOT_NEGATIVE)
    encoder_norm: bool = False  # RMS-normalise the history and embedding that the encoder reads
    latent: int = setting(8, SIZE)  # n_z, of the latent z (A9: 8)
    encoder_width: int = setting(64, SIZE)  # hidden units of f_enc (A9: 64)
    switch_width: int = setting(32, SIZE)  # hidden units of f_switch
    hypernetwork_width: int = setting(32, SIZE)  # hidden units of f_hyp (A9: 32)
    hypernetwork_bias: bool = False  # biases in f_hyp (the paper has none)
    # initial variance, times fan-in, of f_hyp's last map
    hypernetwork_scale: float = setting(0.1, NOT_NEGATIVE)
    rank: int = setting(16, SIZE_OR_NONE)  # of U(z) (A9: 16); 0: a full linear map (A10)
    # draw the posterior's noise once per episode (ours), else once per step
    shared_noise: bool = False
    force_switch: bool = False  # ablation: beta = 1 at every step, in discovery and in RL (Fig. 8)


@dataclass(frozen=True)
class DiscoverConfig:
    """Training of the metacontroller around the frozen base model (App. C.4)."""

    steps: int = setting(3_000, POSITIVE)  # gradient steps (A9: 64,000; A10: 32,000)
    batch_size: int = setting(64, POSITIVE)  # episodes per gradient step (A9: 512, A10: 128)
    # episodes per backward pass, whose gradients are summed; null: the whole batch at once
    micro_batch: int | None = setting(None, POSITIVE)
    # groups of similar episode length, each with a width of its own, to save padding
    num_buckets: int = setting(4, POSITIVE)
    # weight of the KL per step (A9, A10: 0, 0.05, 0.1, 0.17, 0.3, 0.5, 1)
    alpha: float = setting(0.2, NOT_NEGATIVE)
    alpha_delay: int = setting(200, NOT_NEGATIVE)  # gradient steps with alpha at 0
    alpha_ramp: int = setting(1_500, NOT_NEGATIVE)  # gradient steps of linear rise to alpha
    # steps that a switch takes at most to recover from opening, in training (ours); 0: none
    recovery: int = setting(0, NOT_NEGATIVE)
    # gradient steps without lag of the embedding and without recovery of the switch (ours)
    curriculum_delay: int = setting(0, NOT_NEGATIVE)
    # gradient steps of linear rise to metacontroller.embedding_lag and recovery (ours); 0: a jump
    curriculum_ramp: int = setting(0, NOT_NEGATIVE)
    # share of episodes in whose first steps the controlled base sees another episode (ours)
    splice: float = setting(0.0, SHARE)
    cotrain: bool = False  # ablation: train the base model, too (Figs. 7, 8)
    # noise of the expert in D*, as collect.noise (the paper's D*: 0); null: D* is D
    noise: float | None = setting(None, NOT_NEGATIVE)
    # D* holds the expert's mean actions, not draws (the paper's ant); needs noise 0
    mean_actions: bool = False
    # steps by which a switch may miss a change of subgoal and still count in F1
    tolerance: int = setting(1, NOT_NEGATIVE)
    valid_every: int = setting(500, POSITIVE)  # gradient steps between evaluations
    optim: OptimConfig = field(default_factory=OptimConfig)  # of the metacontroller (A9, A10)


@dataclass(frozen=True)
class ProposeConfig:
    """The skill prior that the latent policy starts from (ours): a mixture fitted to codes.

    Without it the policy starts as N(0, initial_std^2), as in the paper.
    """

    # components of the mixture, more than the subgoals that can be expected; 0: no proposal
    components: int = 0
    # each component's latent is a linear function of the observation, else a constant
    linear: bool = True
    # fit only the codes of first steps; later ones depend on what came before
    first_codes: bool = False
    # components of the first fit, many more than subgoals; the heaviest are kept
    candidates: int = setting(64, SIZE)
    codes: int = setting(131_072, POSITIVE)  # pairs of observation and latent to fit
    restarts: int = setting(1, SIZE)  # first fits, of which the likeliest is kept
    steps: int = setting(16_000, POSITIVE)  # gradient steps of each first fit
    keep_steps: int = setting(6_000, POSITIVE)  # gradient steps of each fit of what is kept
    batch_size: int = setting(1_024, POSITIVE)  # pairs per gradient step
    noise: float = setting(1.5, POSITIVE)  # std of a component at the end, in posterior stds
    # a component ignores the features that it meets less often than this, relative to all
    least_support: float = setting(0.7, SHARE)
    # std of a component at the start, in units of the latent (its prior has 1)
    initial_noise: float = setting(1.2, POSITIVE)
    # of the first fit
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(5e-2, weight_decay=0.0, clip=None, final_fraction=0.0)
    )
    # of the fits of what is kept
    keep_optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(1e-2, weight_decay=0.0, clip=None, final_fraction=0.0)
    )


@dataclass(frozen=True)
class TransitionsConfig:
    """How often what RL starts from makes each leg of the task (ours), of `controllers.trials`."""

    # episodes of the whole task with the policy before RL; null: 32,768 (4,096 in a host's world)
    untrained_episodes: int | None = setting(None, POSITIVE)


@dataclass(frozen=True)
class PolicyConfig:
    """The latent policy pi(z | e at switch times) (App. C.5)."""

    mixer: str = setting("gru", one_of("gru", "hawk"))  # gru (ours), hawk (the paper's SSM block)
    width: int = setting(64, SIZE)  # of the recurrent block (App. C.5: 256)
    mlp_width: int = setting(64, SIZE)  # hidden units of the MLP after it
    num_heads: int = setting(1, SIZE)  # diagonal blocks of Hawk's gates; hawk only
    # std of the latents before RL; with a proposal, of each component's
    initial_std: float = setting(1.0, POSITIVE)
    # factor on the proposal's latents: larger ones steer harder (ours)
    gain: float = setting(1.0, POSITIVE)
    # factor on the learning rate of the latents' log std (ours)
    std_rate: float = setting(1.0, POSITIVE)
    # PPO moves the proposal's linear maps, too, not only weights and offsets (ours)
    train_components: bool = False


@dataclass(frozen=True)
class ReinforceConfig:
    """PPO with the batch-relative advantage, over latents and over raw actions (Algorithm 3)."""

    # training episodes per seed, for internal and raw-action RL alike (Fig. 8: a million)
    episodes: int = setting(331_776, POSITIVE)
    batch_size: int = setting(4_096, POSITIVE)  # episodes per update (A13: 1,024; A14: 256)
    epochs: int = setting(4, POSITIVE)  # passes over the batch per update
    # gradient steps per pass, each on its share of the episodes
    minibatches: int = setting(1, POSITIVE)
    clip: float = setting(0.2, POSITIVE)  # epsilon, by which PPO clips the probability ratio
    # successes that are kept, and learned from again in batches with few of their own (ours)
    replay: int = setting(0, NOT_NEGATIVE)
    # episodes after which a seed ends, from its first batch with a success of one half; null: all
    # seeds take all `episodes` (ours)
    settle: int | None = setting(None, POSITIVE)
    max_decisions: int = setting(12, POSITIVE)  # switches per episode that are learned from
    num_seeds: int = setting(3, POSITIVE)  # RL seeds per run (Fig. 8: 30 over all base models)
    test_episodes: int = setting(2_048, POSITIVE)  # episodes that measure success
    # all seeds in one program (GPU, compiled worlds), else one process per core
    vmap_seeds: bool = False
    head_only: bool = False  # raw-action RL trains the action head only
    # of the policy (A13, A14)
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(learning_rate=1e-3, weight_decay=0.0)
    )


@dataclass(frozen=True)
class ExpertConfig:
    """PPO with a GAE critic for the ant's expert, which comes trained with the repository.

    The paper's expert (Table A3) is an SSM of depth 6 and width 256.
    """

    steps: int = setting(30_000_000, POSITIVE)  # control steps of all ants together
    num_ants: int = setting(256, POSITIVE)  # ants that play side by side
    unroll: int = setting(64, POSITIVE)  # control steps per ant and update
    width: int = setting(128, SIZE)  # of both hidden layers, of actor and critic alike
    initial_std: float = setting(0.5, POSITIVE)  # of the torques, which lie in [-1, 1]
    reward_scale: float = 0.1  # factor on the velocity along the arrow, per m/s
    # cost of an episode's end by a fall, a wall or a wrong colour
    failure_penalty: float = setting(5.0, NOT_NEGATIVE)
    control_cost: float = setting(0.01, NOT_NEGATIVE)  # per unit of the squared torques' sum
    # std of what is added to the torques that are executed, so that the gait becomes robust
    noise: float = setting(0.2, NOT_NEGATIVE)
    gamma: float = setting(0.99, SHARE)  # discount per control step
    gae_lambda: float = setting(0.95, SHARE)  # decay of generalised advantage estimation
    epochs: int = setting(4, POSITIVE)  # passes over the transitions per update
    minibatches: int = setting(8, POSITIVE)  # gradient steps per pass
    clip: float = setting(0.2, POSITIVE)  # epsilon, by which PPO clips the probability ratio
    entropy: float = setting(3e-4, NOT_NEGATIVE)  # weight of the entropy bonus (A3: 3e-4)
    value_weight: float = setting(0.5, NOT_NEGATIVE)  # weight of the critic's loss
    # of actor and critic (A3: AdamW 3e-4, weight decay 0.03)
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(
            learning_rate=6e-4, weight_decay=0.0, final_fraction=0.05
        )
    )


@dataclass(frozen=True)
class TrackerConfig:
    """Metrics: Weights & Biases, beside the JSON lines that every run writes."""

    # auto (online with a key, else offline), online, offline, disabled
    wandb: str = setting("auto", one_of("auto", "online", "offline", "disabled"))
    # names at Weights & Biases: of the project (null: WANDB_PROJECT, else internal-rl),
    project: str | None = None
    # of the run, followed by the stage (null: experiment, seed and the settings that differ from
    # the experiment's),
    name: str | None = None
    # and of what the stages and RL seeds of the run have in common (null: the same)
    group: str | None = None
    log_every: int = setting(50, POSITIVE)  # gradient steps between log lines


@dataclass(frozen=True)
class Config:
    """A whole run: what it is, what it may take, and one group of settings per part."""

    # fixes maps, data, base model and discovery; the RL seeds derive from it
    seed: int = setting(0, SEED)
    # the run's directory; null: experiment_name/seed_N in $INTERNAL_RL_RUNS (default runs/), in a
    # sweep followed by the settings that differ from the experiment's, as in seed_0,model.width=32
    run_dir: str | None = setting(None, PATH)
    # another run's directory, whose finished stages are taken over where the settings agree
    reuse: str | None = setting(None, PATH)
    until: str = "report"  # the last stage to run before the report
    experiment_name: str = setting("default", NAME)  # names the run's directory and its W&B run
    dry_run: bool = False  # print parameters, FLOPs, memory and projected time, then stop
    # seconds after which the program saves and ends; the same command continues it; null: none
    time_limit: float | None = setting(None, SECONDS)
    # gradient steps between checkpoints of a running stage
    checkpoint_every: int = setting(1_000, POSITIVE)
    # at a loss or gradient that is not finite: stop (with a diagnosis), or skip the step and go on
    non_finite: str = setting("stop", one_of("stop", "skip"))
    # Of the models' float32 matrix products: default, high or highest, which is float32 everywhere.
    # On GPUs with TF32 the other two read ten bits of mantissa and have eight times the peak rate
    # (A100). On TPUs default is one bfloat16 pass, high three, highest six. CPUs know float32 only.
    # The exact yardsticks, the ant's physics and what its expert does are always at the highest.
    matmul_precision: str = setting("highest", one_of("default", "high", "highest"))
    env: EnvConfig = field(default_factory=EnvConfig)  # the world
    collect: CollectConfig = field(default_factory=CollectConfig)  # the behaviour data
    model: ModelConfig = field(default_factory=ModelConfig)  # the base model
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)  # its training
    controllers: ControllersConfig = field(default_factory=ControllersConfig)  # supervised ones
    # what reads and writes the residual stream
    metacontroller: MetacontrollerConfig = field(default_factory=MetacontrollerConfig)
    discover: DiscoverConfig = field(default_factory=DiscoverConfig)  # its training
    propose: ProposeConfig = field(default_factory=ProposeConfig)  # the skill prior
    transitions: TransitionsConfig = field(default_factory=TransitionsConfig)  # before RL
    policy: PolicyConfig = field(default_factory=PolicyConfig)  # the latent policy
    reinforce: ReinforceConfig = field(default_factory=ReinforceConfig)  # internal and raw RL
    expert: ExpertConfig = field(default_factory=ExpertConfig)  # training of the ant's expert
    tracker: TrackerConfig = field(default_factory=TrackerConfig)  # where metrics go

    @property
    def map_seed(self) -> int:
        """The seed of the pool of maps."""
        return self.seed if self.env.map_seed is None else self.env.map_seed


def to_dict(config: Any) -> dict[str, Any]:
    """Plain nested dict of any of the config dataclasses."""
    return asdict(config)


def modern(key: str, value: Any) -> Any:
    """A setting as it is written today: older runs separate sequences of colours by commas."""
    if key in TASK_SETS and isinstance(value, str) and re.fullmatch(r"[0-9,+-]+", value):
        return value.replace(",", "+")
    return value


def settings(node: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The settings of a config (`to_dict`) that change what a run computes, by dotted path."""
    leaves: dict[str, Any] = {}
    for key, value in node.items():
        path = prefix + key
        if isinstance(value, dict):
            leaves |= settings(value, f"{path}.")
        elif not path.startswith(FREE):
            leaves[path] = value
    return leaves
