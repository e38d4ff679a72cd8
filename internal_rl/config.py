"""The typed configuration: every key is declared once, here, with its default and meaning.

Hydra composes conf/*.yaml onto this schema, so an unknown key or a wrong type is refused before any work, with
the path of the key. `validation.validate` refuses values that fit the type but make no sense.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from internal_rl.validation import STAGES as STAGES
from internal_rl.validation import ConfigError as ConfigError
from internal_rl.validation import validate as validate

CONF = Path(__file__).resolve().parent.parent / "conf"
# Settings that never change what a run computes.
FREE = ("run_dir", "reuse", "until", "dry_run", "time_limit", "checkpoint_every", "tracker.")


@dataclass(frozen=True)
class EnvConfig:
    name: str = "gridworld"
    size: int = 7  # side G of the grid
    num_colours: int = 8  # O
    num_walls: int = 4  # W
    horizon: int = 100  # T, steps
    tasks: str = "table_a1"  # pretraining tasks: table_a1, ring:LENGTH, or sequences 0-1-2,2-1-0
    post_tasks: str = "post_training_a1"  # what internal RL and raw-action RL are trained on
    subgoals: str | None = (
        None  # colours of each abstract subgoal, 0-1,2-3; null: pairs for table_a1, else each its own
    )
    observation: str = "allocentric"  # allocentric (the paper's), egocentric, egocentric_hidden
    num_maps: int = 0  # 0: a new random layout each episode; n: a pool of n maps
    map_seed: int | None = None  # which pool; null: the run's seed
    first_map: int = 0  # offset into the pool's sequence of maps, for disjoint pools
    cell_size: float = 2.0  # m; of the ant's floor
    frame_skip: int = 5  # physics steps of 10 ms in one control step of the ant
    physics: str = "auto"  # of the ant: native (host), mjx (compiled), auto (native on a CPU, else mjx)


@dataclass(frozen=True)
class CollectConfig:
    episodes: int = 131_072  # of the behaviour dataset D
    valid_episodes: int = 4_096  # held out, with the two yardsticks
    expert_episodes: int = 2_048  # to measure an imperfect expert's success, which results are normalised by
    max_steps: int | None = None  # episodes are cut here; null: env.horizon
    noise: float = 0.0  # probability of a noisy step; the ant: deviation of the torques added
    noise_kind: str = "none"  # none, epsilon (label = executed action), injection (label = expert's action)
    detours: float = 0.0  # share of the time for which the ant is led a random way; the label stays the expert's
    on_the_fly: bool = False  # generate training episodes on the device instead of storing them
    shard_episodes: int = 32_768  # episodes a file
    successful_only: bool = False  # keep only episodes in which the expert completed its task


@dataclass(frozen=True)
class ModelConfig:
    mixer: str = "hawk"  # hawk, transformer
    depth: int = 4  # residual blocks
    width: int = 64  # n_e
    mlp_width: int = 256
    num_heads: int = 1  # attention heads; blocks of Hawk's gates
    head_width: int = 64  # attention only
    control_layer: int = 1  # blocks below the cut, where the metacontroller reads and writes
    scale: float = 1.0  # variance scale of inner layers
    scale_last: float = 0.1  # of the last map of a residual branch, and of the heads
    embedding_variance: float | None = 0.05  # of an entry of the multi-hot embedding; null: scale / inputs
    action_std: str = "constant"  # of continuous actions: constant (learned, the same everywhere), state


@dataclass(frozen=True)
class OptimConfig:
    learning_rate: float = 3e-3
    embedding_learning_rate: float | None = None  # observation embedding, undecayed; null: like the rest
    muon_learning_rate: float | None = None  # Muon for the blocks' matrices, decayed as AdamW would; null: AdamW
    weight_decay: float = 0.03  # AdamW, on matrices only
    b1: float = 0.9
    b2: float = 0.999
    clip: float | None = 1.0  # global gradient norm; null: none
    warmup_steps: int = 0
    final_fraction: float = 1.0  # cosine decay to this share of the rate; 1: constant


@dataclass(frozen=True)
class PretrainConfig:
    steps: int = 4_000
    batch_size: int = 64  # episodes a step
    micro_batch: int | None = None  # rows a backward pass, gradients being summed; null: the whole batch at once
    row_length: int = 72  # episodes are packed into rows of this many steps; 0: one episode a row
    next_observation_weight: float = 0.1  # lambda
    history_dropout: float = 0.0  # probability a step that training wipes the model's memory
    valid_every: int = 500  # steps
    optim: OptimConfig = field(default_factory=OptimConfig)


@dataclass(frozen=True)
class ControllersConfig:
    """Supervised controllers, one a subgoal (Fig. 4): a diagnostic of the base model."""

    steps: int = 800
    batch_size: int = 64
    rank: int = 16
    episodes: int = 1_024  # to measure success
    trials: int = 2_048  # of each unseen transition
    optim: OptimConfig = field(default_factory=OptimConfig)


@dataclass(frozen=True)
class MetacontrollerConfig:
    history_width: int = 32  # n_h
    embedder: str = "gru"  # gru (backwards), hawk (the paper's SSM)
    embedding_width: int = 32  # n_s
    embedder_memory: float = 2.0  # steps: the longest memory of a GRU embedder's units at the start
    embedding_lag: int | None = None  # steps ago that the encoder's view of the future begins; null: at the first step
    encoder_norm: bool = False  # the encoder reads history and embedding RMS-normalised
    latent: int = 8  # n_z
    encoder_width: int = 64
    switch_width: int = 32
    hypernetwork_width: int = 32
    hypernetwork_bias: bool = False
    hypernetwork_scale: float = 0.1  # variance scale of its last layer
    rank: int = 16  # of U; 0: full linear
    shared_noise: bool = False  # the posterior's noise is one draw an episode, else one a step
    force_switch: bool = False  # ablation: beta = 1 at every step, in discovery and in RL


@dataclass(frozen=True)
class DiscoverConfig:
    steps: int = 3_000
    batch_size: int = 64  # episodes a step
    micro_batch: int | None = None  # episodes a backward pass, gradients being summed; null: the whole batch at once
    num_buckets: int = 4  # of episode length, so that padding is not paid for
    alpha: float = 0.2  # weight of the KL, a step
    alpha_delay: int = 200  # steps at 0
    alpha_ramp: int = 1_500  # steps of linear rise after the delay
    recovery: int = 0  # steps that the switch needs to recover from opening, at most (ours); 0: none
    curriculum_delay: int = 0  # steps without lag of the embedding and without recovery of the switch
    curriculum_ramp: int = 0  # steps of linear rise to metacontroller.embedding_lag and recovery; 0: a jump
    splice: float = 0.0  # share of episodes whose first steps the controlled base sees another episode instead (ours)
    cotrain: bool = False  # ablation: the base model is trained too
    noise: float | None = None  # noise of D*; null: D* is D
    mean_actions: bool = False  # D* holds the expert's mean actions, not draws (continuous actions, noise 0)
    tolerance: int = 1  # steps by which a switch may miss a change of subgoal and still count in F1
    valid_every: int = 500
    optim: OptimConfig = field(default_factory=OptimConfig)


@dataclass(frozen=True)
class ProposeConfig:
    """The proposal that the latent policy starts from; without it, it starts as N(0, initial_std^2) as in the paper."""

    experts: int = 0  # kept, more than subgoals can be expected; 0: no proposal
    linear: bool = True  # each expert's latent is a linear function of the observation; else a constant
    first_codes: bool = False  # fit the codes of first steps only; later ones lean on what was done before
    candidates: int = 64  # experts of the first fit: many more than subgoals
    codes: int = 131_072  # pairs of observation and latent to fit
    restarts: int = 1  # first fits, of which the likeliest is kept
    steps: int = 16_000
    keep_steps: int = 6_000
    batch_size: int = 1_024
    noise: float = 1.5  # std of an expert at the end, in posterior stds
    least_support: float = 0.7  # features that an expert meets less often than that, relative to all, it ignores
    initial_noise: float = 1.2  # std of an expert at the start, in latents (their prior has 1)
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(5e-2, weight_decay=0.0, clip=None, final_fraction=0.0)
    )
    keep_optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(1e-2, weight_decay=0.0, clip=None, final_fraction=0.0)
    )


@dataclass(frozen=True)
class TransitionsConfig:
    """How often what RL starts from makes each leg of the task; `controllers.trials` says of how many."""

    untrained_episodes: int | None = (
        None  # of the policy before RL, on the task; null: 65,536 (of a host's world 4,096)
    )


@dataclass(frozen=True)
class PolicyConfig:
    mixer: str = "gru"  # gru, hawk (the paper has an SSM block)
    width: int = 64
    mlp_width: int = 64
    num_heads: int = 1
    initial_std: float = 1.0  # of the latents; of each expert's where the policy starts from a proposal
    gain: float = 1.0  # on the proposal's latents: larger codes steer harder
    train_experts: bool = False  # PPO also moves the proposal's linear maps, not only their weights and offsets


@dataclass(frozen=True)
class ReinforceConfig:
    episodes: int = 331_776  # for internal and raw-action RL alike
    batch_size: int = 4_096  # episodes an update
    epochs: int = 4  # passes over the batch an update
    minibatches: int = 1  # gradient steps a pass, each on its share of the episodes
    clip: float = 0.2  # PPO epsilon
    max_decisions: int = 12  # switches of an episode that are learned from
    num_seeds: int = 3
    test_episodes: int = 2_048
    vmap_seeds: bool = False  # all seeds in one program (GPU, compiled environments); else one process a core
    head_only: bool = False  # raw-action RL: train the action head only
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(learning_rate=1e-3, weight_decay=0.0))


@dataclass(frozen=True)
class ExpertConfig:
    """PPO with a GAE critic for the ant's expert, which comes trained with the repository."""

    steps: int = 30_000_000  # control steps of all ants
    num_ants: int = 256
    unroll: int = 64  # control steps an update
    width: int = 128  # of two hidden layers, actor and critic alike
    initial_std: float = 0.5  # of the torques
    reward_scale: float = 0.1  # on m/s
    failure_penalty: float = 5.0  # of ending an episode by a fall, a wall or a wrong colour
    control_cost: float = 0.01  # on the sum of the squared torques
    noise: float = 0.2  # deviation of what is added to the torques that are executed, so that the gait becomes robust
    gamma: float = 0.99
    gae_lambda: float = 0.95
    epochs: int = 4
    minibatches: int = 8
    clip: float = 0.2
    entropy: float = 3e-4
    value_weight: float = 0.5
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(learning_rate=6e-4, weight_decay=0.0, final_fraction=0.05)
    )


@dataclass(frozen=True)
class TrackerConfig:
    wandb: str = "auto"  # auto (online with a key, else offline), online, offline, disabled
    project: str = "internal-rl"
    log_every: int = 50  # gradient steps between log lines


@dataclass(frozen=True)
class Config:
    seed: int = 0  # fixes map, data, base model and discovery; RL seeds derive from it
    run_dir: str | None = None  # null: $INTERNAL_RL_RUNS (default runs/) / experiment-seed
    reuse: str | None = None  # another run's directory: its finished stages are taken over where settings agree
    until: str = "report"  # the last stage to run before the report
    experiment_name: str = "default"
    dry_run: bool = False  # print parameters, FLOPs, memory and projected time, then stop
    time_limit: float | None = None  # seconds, after which the program saves and ends; run it again to continue
    checkpoint_every: int = 1_000  # gradient steps between checkpoints of a running stage
    # Of the models' float32 matrix products: default, high or highest, which is float32 everywhere.
    # On GPUs with TF32 the other two read ten bits of mantissa and have eight times the peak rate
    # (A100). On TPUs default is one bfloat16 pass, high three, highest six. CPUs know float32 only.
    # The exact yardsticks, the ant's physics and what its expert does are always at the highest.
    matmul_precision: str = "highest"
    env: EnvConfig = field(default_factory=EnvConfig)
    collect: CollectConfig = field(default_factory=CollectConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    controllers: ControllersConfig = field(default_factory=ControllersConfig)
    metacontroller: MetacontrollerConfig = field(default_factory=MetacontrollerConfig)
    discover: DiscoverConfig = field(default_factory=DiscoverConfig)
    propose: ProposeConfig = field(default_factory=ProposeConfig)
    transitions: TransitionsConfig = field(default_factory=TransitionsConfig)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    reinforce: ReinforceConfig = field(default_factory=ReinforceConfig)
    expert: ExpertConfig = field(default_factory=ExpertConfig)
    tracker: TrackerConfig = field(default_factory=TrackerConfig)


def _schema() -> DictConfig:
    """Config as a schema that can be merged into (OmegaConf makes frozen dataclasses read-only)."""

    def writable(node: DictConfig) -> DictConfig:
        OmegaConf.set_readonly(node, None)
        for key in node:
            if OmegaConf.is_config(child := node._get_node(key)):
                writable(child)  # type: ignore[arg-type]
        return node

    return writable(OmegaConf.structured(Config))


def register() -> None:
    """Make the schema known to Hydra; conf/config.yaml builds on it."""
    ConfigStore.instance().store(name="schema", node=_schema())


def from_omegaconf(node: Any) -> Config:
    """Typed, validated config from a composed Hydra config or a plain (nested) dict.

    Raises ConfigError for unknown keys and wrong types, with the key's path.
    """
    try:
        config = OmegaConf.to_object(OmegaConf.merge(_schema(), node))
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key or 'config'}: {error.msg or error}".splitlines()[0]) from error
    assert isinstance(config, Config)
    return validate(config)


def compose(overrides: list[str], conf: Path = CONF) -> Config:
    """Compose conf/, or another commit's, with `overrides` in Hydra's syntax, as the scripts do."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir

    register()
    with initialize_config_dir(str(conf), version_base="1.3"):
        try:
            node = hydra_compose("config", overrides)
        except HydraException as error:
            raise ConfigError(f"{error}: {error.__cause__}" if error.__cause__ else str(error)) from error
    return from_omegaconf(node)


def to_dict(config: Any) -> dict[str, Any]:
    """Plain nested dict of any of the config dataclasses."""
    return asdict(config)


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


def save(config: Config, path: Path) -> None:
    """Write the resolved config as JSON."""
    path.write_text(json.dumps(to_dict(config), indent=2) + "\n")


def load(path: Path) -> Config:
    """Read a config written by `save`, checked against the schema; raises ConfigError naming the file."""
    try:
        return from_omegaconf(json.loads(path.read_text()))
    except (OSError, json.JSONDecodeError) as error:
        raise ConfigError(f"{path}: not a saved config ({error})") from error
    except ConfigError as error:
        raise ConfigError(f"{path}: {error} (a run of another version of this code?)") from error
