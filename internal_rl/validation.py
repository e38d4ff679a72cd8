"""From a configuration as it comes from outside to a typed one, which can be run.

What cannot be run is refused here, before any work.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from typing import Any, get_args

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from internal_rl.config import ANY, RENAMED, TASK_SETS, Config, ConfigError, Limit, modern

OPTIMISERS = (
    "pretrain.optim",
    "controllers.optim",
    "discover.optim",
    "propose.optim",
    "propose.keep_optim",
    "reinforce.optim",
    "expert.optim",
)

UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")  # and what is no UTF-8
FLOAT32 = (2 - 2**-23) * 2.0**127  # the largest


def schema() -> DictConfig:
    """Config as a schema that can be merged into (OmegaConf makes frozen dataclasses read-only)."""

    def writable(node: DictConfig) -> DictConfig:
        OmegaConf.set_readonly(node, None)
        for key in node:
            if OmegaConf.is_config(child := node._get_node(key)):
                writable(child)  # type: ignore[arg-type]
        return node

    return writable(OmegaConf.structured(Config))


def from_omegaconf(node: Any) -> Config:
    """Typed, validated config from a composed Hydra config or a plain (nested) dict.

    Raises ConfigError for unknown keys and wrong types, with the key's path; for a renamed key,
    with its new name.
    """
    try:
        plain = OmegaConf.to_container(node) if OmegaConf.is_config(node) else node
        check_size("", plain)
        config = OmegaConf.to_object(OmegaConf.merge(schema(), plain))
    except ConfigError:
        raise
    except (OmegaConfBaseException, ValueError, TypeError, RecursionError) as error:
        key = getattr(error, "full_key", None) or "config"
        said = getattr(error, "msg", None) or str(error)
        raise ConfigError(renamed(key) or f"{key}: {said}".splitlines()[0]) from error
    assert isinstance(config, Config)
    return validate(config)


def check_size(path: str, value: Any) -> None:
    """Raises ConfigError for an integer that no float holds: OmegaConf ends in one."""
    if isinstance(value, dict):
        for key, each in value.items():
            check_size(f"{path}.{key}" if path else str(key), each)
    elif isinstance(value, int) and value.bit_length() > 1_000:
        raise ConfigError(f"{path}={_shown(value)} is too large")


def renamed(text: str) -> str | None:
    """What to say of a key that has another name today if `text` is about one, else None."""
    for old, new in RENAMED.items():
        if old in text:
            return f"{old} is called {new} now; rename it"
    return None


def validate(config: Config) -> Config:
    """Return `config` if it can be run, else raise ConfigError naming the key and the remedy.

    What an older version wrote in another way is rewritten.
    """
    for path, value, limit, nullable in _leaves(config):
        if value is not None and (reason := _refused(value, limit)):
            raise ConfigError(f"{path}={_shown(value)} {reason}{', or null' if nullable else ''}")
    config = _modern(config)
    for holds, message in _rules(config):
        if not holds:
            raise ConfigError(message)
    return config


def _leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any, Limit, bool]]:
    """Every setting: (path, value, its limit, whether it may be null)."""
    for each in fields(node):
        value = getattr(node, each.name)
        if is_dataclass(value):
            yield from _leaves(value, f"{prefix}{each.name}.")
        else:
            nullable = type(None) in get_args(each.type)
            yield f"{prefix}{each.name}", value, each.metadata.get("limit", ANY), nullable


def _refused(value: Any, limit: Limit) -> str | None:
    """Why a value cannot be a setting; None if it can."""
    if isinstance(value, float) and not math.isfinite(value):
        return "is not a finite number"
    if isinstance(value, str) and UNPRINTABLE.search(value):
        return "holds characters that are no text"
    if not limit.holds(value):
        return limit.says
    if isinstance(value, int) and value.bit_length() > limit.bits:
        return f"must be smaller than 2**{limit.bits}"
    if isinstance(value, float) and abs(value) > FLOAT32:
        return "is larger than a float32 can be"
    return None


def _shown(value: Any) -> str:
    """A value in a message."""
    if isinstance(value, int) and value.bit_length() > 128:
        return f"(a number of {value.bit_length()} bits)"
    return repr(value) if isinstance(value, str) else str(value)


def _modern(config: Config) -> Config:
    """The same settings as they are written today."""
    changes = {}
    for path in TASK_SETS:
        name = path.removeprefix("env.")
        value = getattr(config.env, name)
        if (today := modern(path, value)) != value:
            changes[name] = today
    return replace(config, env=replace(config.env, **changes)) if changes else config


def _rules(config: Config) -> Iterator[tuple[bool, str]]:
    """Every rule that spans keys: (whether it holds, what to say if not)."""
    yield from _model_rules(config)
    yield from _data_rules(config)
    yield from _discovery_rules(config)
    yield from _reinforce_rules(config)
    yield from _expert_rules(config)


def _model_rules(config: Config) -> Iterator[tuple[bool, str]]:
    # The cut through the base model, and the heads of each network.
    model = config.model
    yield (
        0 < model.control_layer < model.depth,
        f"model.control_layer={model.control_layer} must leave blocks on both sides: "
        f"1 to {model.depth - 1}",
    )
    for name, part in (("model", model), ("policy", config.policy)):
        yield (
            part.mixer != "hawk" or part.width % part.num_heads == 0,
            f"{name}.num_heads={part.num_heads} must divide {name}.width={part.width}",
        )

    # Rates of their own exist for the base model's embedding and blocks alone.
    for path in OPTIMISERS:
        stage, _, name = path.partition(".")
        optim = getattr(getattr(config, stage), name)
        trains_base = stage in ("pretrain", "reinforce") or (
            stage == "discover" and config.discover.cotrain
        )
        for key in ("embedding_learning_rate", "muon_learning_rate"):
            rate = getattr(optim, key)
            yield (
                rate is None or trains_base,
                f"{path}.{key}={rate} is for the base model only; leave it null",
            )


def _data_rules(config: Config) -> Iterator[tuple[bool, str]]:
    # Maps of the pool have numbers of 31 bits.
    env = config.env
    yield (
        env.first_map + env.num_maps <= 2**31,
        f"env.first_map={env.first_map} and env.num_maps={env.num_maps} must be at most 2**31 "
        "together",
    )

    # What the expert executes and what is recorded of it.
    collect = config.collect
    yield (
        (collect.noise > 0) == (collect.noise_kind != "none"),
        f"collect.noise={collect.noise} and collect.noise_kind={collect.noise_kind} disagree; "
        "set noise_kind to epsilon or injection together with noise > 0",
    )
    yield (
        collect.detours == 0 or collect.noise_kind == "injection",
        f"collect.detours={collect.detours} needs collect.noise_kind=injection: "
        "the label is not what is executed",
    )

    # Lengths of episodes, and how batches are cut.
    pretrain = config.pretrain
    steps = collect.max_steps or config.env.horizon
    yield (
        steps <= config.env.horizon,
        f"collect.max_steps={steps} exceeds env.horizon={config.env.horizon}",
    )
    yield (
        pretrain.row_length == 0 or pretrain.row_length >= steps,
        f"pretrain.row_length={pretrain.row_length} is shorter than an episode ({steps} steps); "
        "raise it or set 0 for one episode per row",
    )
    for stage, part in (("pretrain", pretrain), ("discover", config.discover)):
        size = part.batch_size
        piece = part.micro_batch
        yield (
            piece is None or not collect.on_the_fly or size % piece == 0,
            f"{stage}.micro_batch={piece} must divide {stage}.batch_size={size} "
            "with collect.on_the_fly",
        )


def _discovery_rules(config: Config) -> Iterator[tuple[bool, str]]:
    # D*, the data of discovery.
    discover = config.discover
    noise = discover.noise
    yield (
        noise in (None, 0) or config.collect.noise_kind != "none",
        f"discover.noise={noise} needs collect.noise_kind to say which kind of noise it is",
    )
    yield (
        not discover.mean_actions or discover.noise == 0,
        f"discover.mean_actions needs discover.noise=0 (it is {discover.noise}): "
        "D* is then a dataset of its own",
    )

    # What the sequence embedder remembers and sees.
    metacontroller = config.metacontroller
    memory = metacontroller.embedder_memory
    lag = metacontroller.embedding_lag
    yield (
        memory >= 2,
        f"metacontroller.embedder_memory={memory} is less than 2, what a unit remembers "
        "unless told",
    )
    yield (
        metacontroller.embedder == "gru" or (memory == 2 and lag is None),
        "metacontroller.embedder_memory and metacontroller.embedding_lag need "
        "metacontroller.embedder=gru",
    )

    # What makes codes last: recovery of the switch, a lag, and the curriculum that leads to them.
    yield (
        discover.recovery == 0 or not metacontroller.force_switch,
        f"discover.recovery={discover.recovery} does nothing to a forced switch; set it to 0",
    )
    curriculum = discover.curriculum_delay + discover.curriculum_ramp
    yield (
        curriculum == 0 or lag is not None or discover.recovery > 0,
        f"discover.curriculum_delay={discover.curriculum_delay} and curriculum_ramp="
        f"{discover.curriculum_ramp} lead to nothing: set metacontroller.embedding_lag or "
        "discover.recovery",
    )


def _reinforce_rules(config: Config) -> Iterator[tuple[bool, str]]:
    # Batches of episodes, and their decisions.
    reinforce = config.reinforce
    size = reinforce.batch_size
    yield (
        reinforce.episodes % size == 0,
        f"reinforce.episodes={reinforce.episodes} must be a multiple of "
        f"reinforce.batch_size={size}",
    )
    yield (
        size % reinforce.minibatches == 0,
        f"reinforce.minibatches={reinforce.minibatches} must divide reinforce.batch_size={size}",
    )
    yield (
        reinforce.settle is None or reinforce.settle % size == 0,
        f"reinforce.settle={reinforce.settle} must be a multiple of reinforce.batch_size={size}",
    )
    yield (
        reinforce.replay <= size,
        f"reinforce.replay={reinforce.replay}: a batch has room for reinforce.batch_size={size}",
    )
    yield (
        not config.metacontroller.force_switch or reinforce.max_decisions >= config.env.horizon,
        f"reinforce.max_decisions={reinforce.max_decisions}: with metacontroller.force_switch "
        "every step is a decision, and later ones would not be learned from; set it to "
        f"env.horizon={config.env.horizon}",
    )

    # The proposal that the latent policy may start from.
    propose = config.propose
    policy = config.policy
    yield (
        0 <= propose.components <= propose.candidates,
        f"propose.components={propose.components} must be 0 (no proposal) to "
        f"propose.candidates={propose.candidates}",
    )
    yield (
        propose.components > 0 or (policy.gain == 1 and not policy.train_components),
        f"policy.gain={policy.gain} and policy.train_components={policy.train_components} need a "
        "proposal; set propose.components, or leave them at 1 and false",
    )
    decay = reinforce.optim.weight_decay
    yield (
        propose.components == 0 or policy.train_components or decay == 0,
        f"reinforce.optim.weight_decay={decay} would shrink the proposal's components; set it to 0",
    )


def _expert_rules(config: Config) -> Iterator[tuple[bool, str]]:
    expert = config.expert
    played = expert.num_ants * expert.unroll
    product = f"expert.num_ants * expert.unroll = {played}"
    yield (
        expert.steps >= played,
        f"expert.steps={expert.steps} is less than one update, {product}",
    )
    yield (
        played % expert.minibatches == 0,
        f"expert.minibatches={expert.minibatches} must divide {product}",
    )
