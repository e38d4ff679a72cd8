"""What a configuration must satisfy beyond its types, checked before any work."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from internal_rl.config import Config


class ConfigError(ValueError):
    """A configuration that cannot be run; the message names the key and the remedy."""


STAGES = ("collect", "pretrain", "controllers", "discover", "propose", "transitions", "reinforce", "report")
CHOICES = {
    "until": STAGES,
    "matmul_precision": ("default", "high", "highest"),
    "collect.noise_kind": ("none", "epsilon", "injection"),
    "model.mixer": ("hawk", "transformer"),
    "model.action_std": ("constant", "state"),
    "metacontroller.embedder": ("gru", "hawk"),
    "policy.mixer": ("gru", "hawk"),
    "tracker.wandb": ("auto", "online", "offline", "disabled"),
}
OPTIMISERS = (
    "pretrain.optim", "controllers.optim", "discover.optim", "propose.optim", "propose.keep_optim", "reinforce.optim",
    "expert.optim",
)  # fmt: skip
METACONTROLLER_WIDTHS = ("history", "embedding", "encoder", "switch", "hypernetwork")
POSITIVE = {
    "env": ("size", "num_colours", "horizon", "cell_size", "frame_skip"),
    "collect": ("episodes", "valid_episodes", "expert_episodes", "shard_episodes"),
    "expert": ("steps", "num_ants", "unroll", "width", "epochs", "minibatches", "clip", "initial_std"),
    "model": ("depth", "width", "mlp_width", "num_heads", "head_width", "scale"),
    "pretrain": ("steps", "batch_size", "valid_every"),
    "controllers": ("steps", "rank", "batch_size", "episodes", "trials"),
    "metacontroller": ("latent", *(f"{of}_width" for of in METACONTROLLER_WIDTHS)),
    "discover": ("steps", "batch_size", "num_buckets", "valid_every"),
    "reinforce": (
        "episodes", "batch_size", "epochs", "minibatches", "clip", "max_decisions", "num_seeds", "test_episodes"
    ),
    "propose": ("candidates", "codes", "restarts", "steps", "keep_steps", "batch_size", "noise", "initial_noise"),
    "policy": ("width", "mlp_width", "num_heads", "initial_std", "gain"),
    "tracker": ("log_every",),
    **dict.fromkeys(OPTIMISERS, ("learning_rate",)),
}  # fmt: skip
POSITIVE_OR_NULL = {
    "collect": ("max_steps",),
    "pretrain": ("micro_batch",),
    "discover": ("micro_batch",),
    "transitions": ("untrained_episodes",),
    "model": ("embedding_variance",),
    **dict.fromkeys(OPTIMISERS, ("clip", "embedding_learning_rate", "muon_learning_rate")),
}
NOT_NEGATIVE = {
    "env": ("num_walls", "num_maps", "first_map"),
    "collect": ("noise",),
    "pretrain": ("row_length", "next_observation_weight"),
    "model": ("scale_last",),
    "metacontroller": ("rank", "hypernetwork_scale"),
    "discover": ("alpha", "alpha_delay", "alpha_ramp", "recovery", "curriculum_delay", "curriculum_ramp", "tolerance"),
    "expert": ("failure_penalty", "control_cost", "noise", "entropy", "value_weight"),
    **dict.fromkeys(OPTIMISERS, ("weight_decay", "warmup_steps", "final_fraction")),
}
SHARES = {  # 0 to 1, both included
    "pretrain": ("history_dropout",),
    "discover": ("splice",),
    "propose": ("least_support",),
    "expert": ("gamma", "gae_lambda"),
}
BELOW_ONE = {"collect": ("detours",), **dict.fromkeys(OPTIMISERS, ("b1", "b2"))}  # from 0 on


def validate(config: "Config") -> "Config":
    """Return `config` if it can be run; raise ConfigError naming the key and the remedy otherwise."""

    def value(path: str) -> Any:
        node: Any = config
        for part in path.split("."):
            node = getattr(node, part)
        return node

    def require(condition: bool, message: str) -> None:
        if not condition:
            raise ConfigError(message)

    def paths(keys: Mapping[str, tuple[str, ...]]) -> Iterator[str]:
        return (f"{part}.{key}" for part in keys for key in keys[part])

    for path, choices in CHOICES.items():
        require(value(path) in choices, f"{path}={value(path)!r} is not one of {', '.join(choices)}")
    for path in ("checkpoint_every", *paths(POSITIVE)):
        require(value(path) > 0, f"{path}={value(path)} must be positive")
    for path in ("time_limit", *paths(POSITIVE_OR_NULL)):
        require(value(path) is None or value(path) > 0, f"{path}={value(path)} must be positive, or null")
    for path in ("seed", *paths(NOT_NEGATIVE)):
        require(value(path) >= 0, f"{path}={value(path)} must not be negative")
    for path in paths(SHARES):
        require(0 <= value(path) <= 1, f"{path}={value(path)} is a share in [0, 1]")
    for path in paths(BELOW_ONE):
        require(0 <= value(path) < 1, f"{path}={value(path)} must lie in [0, 1)")
    for path in ("seed", "env.map_seed"):  # a key holds 32 bits of a seed: 2**32 would be 0 again
        require((value(path) or 0) < 2**32, f"{path}={value(path)} must be below 2**32")
    for stage in ("pretrain", "discover"):
        size, piece = value(f"{stage}.batch_size"), value(f"{stage}.micro_batch")
        require(
            piece is None or not config.collect.on_the_fly or size % piece == 0,
            f"{stage}.micro_batch={piece} must divide {stage}.batch_size={size} with collect.on_the_fly",
        )
    model, collect, discover, reinforce = config.model, config.collect, config.discover, config.reinforce
    for path in OPTIMISERS:
        trains_base = path in ("pretrain.optim", "reinforce.optim") or (path == "discover.optim" and discover.cotrain)
        for key in (f"{path}.embedding_learning_rate", f"{path}.muon_learning_rate"):
            require(value(key) is None or trains_base, f"{key}={value(key)} is for the base model only; leave it null")
    require(
        0 < model.control_layer < model.depth,
        f"model.control_layer={model.control_layer} must leave blocks on both sides: 1 to {model.depth - 1}",
    )
    for name, part in (("model", model), ("policy", config.policy)):
        require(
            part.mixer != "hawk" or part.width % part.num_heads == 0,
            f"{name}.num_heads={part.num_heads} must divide {name}.width={part.width}",
        )
    require(
        (collect.noise > 0) == (collect.noise_kind != "none"),
        f"collect.noise={collect.noise} and collect.noise_kind={collect.noise_kind} disagree; "
        "set noise_kind to epsilon or injection together with noise > 0",
    )
    require(
        collect.detours == 0 or collect.noise_kind == "injection",
        f"collect.detours={collect.detours} needs collect.noise_kind=injection: the label is not what is executed",
    )
    steps = collect.max_steps or config.env.horizon
    require(steps <= config.env.horizon, f"collect.max_steps={steps} exceeds env.horizon={config.env.horizon}")
    require(
        config.pretrain.row_length == 0 or config.pretrain.row_length >= steps,
        f"pretrain.row_length={config.pretrain.row_length} is shorter than an episode ({steps} steps); "
        "raise it or set 0 for one episode a row",
    )
    require(
        reinforce.episodes % reinforce.batch_size == 0,
        f"reinforce.episodes={reinforce.episodes} must be a multiple of reinforce.batch_size={reinforce.batch_size}",
    )
    require(
        reinforce.batch_size % reinforce.minibatches == 0,
        f"reinforce.minibatches={reinforce.minibatches} must divide reinforce.batch_size={reinforce.batch_size}",
    )
    propose = config.propose
    require(
        0 <= propose.experts <= propose.candidates,
        f"propose.experts={propose.experts} must be 0 (no proposal) to propose.candidates={propose.candidates}",
    )
    policy = config.policy
    require(
        propose.experts > 0 or (policy.gain == 1 and not policy.train_experts),
        f"policy.gain={policy.gain} and policy.train_experts={policy.train_experts} need a proposal; "
        "set propose.experts, or leave them at 1 and false",
    )
    require(
        propose.experts == 0 or policy.train_experts or reinforce.optim.weight_decay == 0,
        f"reinforce.optim.weight_decay={reinforce.optim.weight_decay} would shrink the proposal's experts; set it to 0",
    )
    noise = discover.noise
    require(noise is None or noise >= 0, f"discover.noise={noise} must not be negative, or null")
    require(
        noise in (None, 0) or collect.noise_kind != "none",
        f"discover.noise={noise} needs collect.noise_kind to say which kind of noise it is",
    )
    require(
        not discover.mean_actions or discover.noise == 0,
        f"discover.mean_actions needs discover.noise=0 (it is {discover.noise}): D* is then a dataset of its own",
    )
    memory, lag = config.metacontroller.embedder_memory, config.metacontroller.embedding_lag
    require(memory >= 2, f"metacontroller.embedder_memory={memory} is less than 2, what a unit remembers unless told")
    require(lag is None or lag >= 0, f"metacontroller.embedding_lag={lag} must not be negative")
    require(
        config.metacontroller.embedder == "gru" or (memory == 2 and lag is None),
        "metacontroller.embedder_memory and metacontroller.embedding_lag need metacontroller.embedder=gru",
    )
    require(
        not config.metacontroller.force_switch or reinforce.max_decisions >= config.env.horizon,
        f"reinforce.max_decisions={reinforce.max_decisions}: with metacontroller.force_switch every step is a "
        f"decision, and later ones would not be learned from; set it to env.horizon={config.env.horizon}",
    )
    require(
        discover.recovery == 0 or not config.metacontroller.force_switch,
        f"discover.recovery={discover.recovery} does nothing to a forced switch; set it to 0",
    )
    require(
        discover.curriculum_delay + discover.curriculum_ramp == 0 or lag is not None or discover.recovery > 0,
        f"discover.curriculum_delay={discover.curriculum_delay} and curriculum_ramp={discover.curriculum_ramp} lead to "
        "nothing: set metacontroller.embedding_lag or discover.recovery",
    )
    expert = config.expert
    require(
        expert.steps >= expert.num_ants * expert.unroll,
        f"expert.steps={expert.steps} is less than one update, expert.num_ants * expert.unroll = "
        f"{expert.num_ants * expert.unroll}",
    )
    require(
        expert.num_ants * expert.unroll % expert.minibatches == 0,
        f"expert.minibatches={expert.minibatches} must divide expert.num_ants * expert.unroll = "
        f"{expert.num_ants * expert.unroll}",
    )
    return config
