"""The configuration: everything in conf/ composes, and bad input is refused with the key's path."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hydra import initialize
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobRuntime
from hydra.version import getbase
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from internal_rl.config import RENAMED, Config, ConfigError, PretrainConfig, to_dict
from internal_rl.run import Run
from internal_rl.run import load_config as load
from internal_rl.run import save_config as save
from internal_rl.running.compose import CONF, compose, sweep
from internal_rl.running.start import check_worlds
from internal_rl.validation import from_omegaconf, validate

EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
OPTIONS = sorted(
    (path.parent.name, path.stem)
    for path in CONF.glob("*/*.yaml")
    if path.parent.name
    not in ("experiment", "optim", "ablation", "search")  # the last two are not Hydra's
)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_composes(name):
    assert compose([f"experiment={name}"]).experiment_name == name


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_composes(group, option):
    assert isinstance(
        compose([f"{group}={option}", "collect.max_steps=36", "env.horizon=100"]), Config
    )


@pytest.mark.parametrize("stage", ["pretrain", "reinforce"])
@pytest.mark.parametrize("option", sorted(path.stem for path in (CONF / "optim").glob("*.yaml")))
def test_every_optimiser_composes(stage, option):
    assert isinstance(compose([f"optim@{stage}.optim={option}"]), Config)


def test_rates_of_the_base_model_need_a_base_model():
    with pytest.raises(
        ConfigError,
        match=r"discover\.optim\.embedding_learning_rate=0\.01 is for the base model only",
    ):
        compose(["optim@discover.optim=base_small"])
    assert compose(["optim@discover.optim=base_small", "discover.cotrain=true"])


def test_unknown_key_is_refused_with_its_path():
    with pytest.raises(ConfigError, match="widht"):
        compose(["model.widht=3"])
    with pytest.raises(ConfigError, match=r"model\.widht"):
        from_omegaconf({"model": {"widht": 3}})


def test_wrong_type_is_refused_with_its_path():
    with pytest.raises(ConfigError, match=r"model\.width"):
        compose(["model.width=wide"])
    with pytest.raises(ConfigError, match=r"pretrain\.optim\.learning_rate"):
        from_omegaconf({"pretrain": {"optim": {"learning_rate": "fast"}}})


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.mixer=lstm"], r"model\.mixer='lstm' is not one of hawk, transformer"),
        (["matmul_precision=low"], r"matmul_precision='low' is not one of default, high, highest"),
        (
            ["model.control_layer=4"],
            r"model\.control_layer=4 must leave blocks on both sides: 1 to 3",
        ),
        (["collect.noise=0"], r"collect\.noise=0\.0 and collect\.noise_kind=injection disagree"),
        (["collect.max_steps=41"], r"collect\.max_steps=41 exceeds env\.horizon=40"),
        (
            ["pretrain.row_length=20"],
            r"pretrain\.row_length=20 is shorter than an episode \(36 steps\)",
        ),
        (
            ["reinforce.episodes=5000", "reinforce.batch_size=2048"],
            r"must be a multiple of reinforce\.batch_size=2048",
        ),
        (
            ["reinforce.minibatches=3", "reinforce.batch_size=1024"],
            r"must divide reinforce\.batch_size=1024",
        ),
        (
            ["reinforce.settle=1000", "reinforce.batch_size=1024"],
            r"reinforce\.settle=1000 must be a multiple of reinforce\.batch_size=1024",
        ),
        (
            ["reinforce.replay=2048", "reinforce.batch_size=1024"],
            r"reinforce\.replay=2048: a batch has room for reinforce\.batch_size=1024",
        ),
        (["discover.steps=0"], r"discover\.steps=0 must be positive"),
        (["discover.splice=2"], r"discover\.splice=2\.0 is a share"),
        (
            ["metacontroller.embedder_memory=1"],
            r"metacontroller\.embedder_memory=1\.0 is less than 2",
        ),
        (
            ["metacontroller.embedding_lag=-1"],
            r"metacontroller\.embedding_lag=-1 must not be negative",
        ),
        (
            ["metacontroller.embedding_lag=1", "metacontroller.embedder=hawk"],
            r"need metacontroller\.embedder=gru",
        ),
        (
            ["discover.curriculum_ramp=9"],
            r"curriculum_ramp=9 lead to nothing: set .*discover\.recovery",
        ),
        (["discover.recovery=-1"], r"discover\.recovery=-1 must not be negative"),
        (
            [
                "discover.recovery=9",
                "metacontroller.force_switch=true",
                "reinforce.max_decisions=40",
            ],
            r"discover\.recovery=9 does nothing to a forced",
        ),
        (["collect.detours=1"], r"collect\.detours=1\.0 must lie in \[0, 1\)"),
        (
            ["collect.detours=.2", "collect.noise_kind=epsilon"],
            r"collect\.detours=0\.2 needs .*noise_kind=injection",
        ),
        (
            ["policy.mixer=hawk", "policy.num_heads=3"],
            r"policy\.num_heads=3 must divide policy\.width=64",
        ),
        (["metacontroller.history_width=0"], r"metacontroller\.history_width=0 must be positive"),
        (["metacontroller.rank=-1"], r"metacontroller\.rank=-1 must not be negative"),
        (["seed=-1"], r"seed=-1 must not be negative"),
        (["collect.max_steps=0"], r"collect\.max_steps=0 must be positive, or null"),
        (
            ["pretrain.optim.muon_learning_rate=0"],
            r"pretrain\.optim\.muon_learning_rate=0\.0 must be positive, or null",
        ),
        (
            ["propose.keep_optim.learning_rate=0"],
            r"propose\.keep_optim\.learning_rate=0\.0 must be positive",
        ),
        (["discover.noise=-1"], r"discover\.noise=-1\.0 must not be negative"),
        (["env.num_maps=-1"], r"env\.num_maps=-1 must not be negative"),
        (["pretrain.optim.clip=0"], r"pretrain\.optim\.clip=0\.0 must be positive, or null"),
        (["reinforce.clip=0"], r"reinforce\.clip=0\.0 must be positive"),
        (["discover.alpha=-1"], r"discover\.alpha=-1\.0 must not be negative"),
        (["pretrain.history_dropout=2"], r"pretrain\.history_dropout=2\.0 is a share in \[0, 1\]"),
        (["reinforce.optim.b1=1"], r"reinforce\.optim\.b1=1\.0 must lie in \[0, 1\)"),
        (
            ["model.embedding_variance=0"],
            r"model\.embedding_variance=0\.0 must be positive, or null",
        ),
        (
            ["metacontroller.force_switch=true"],
            r"every step is a decision, .* set it to env\.horizon=40",
        ),
        (["expert.steps=16383"], r"expert\.steps=16383 is less than one update, .* = 16384"),
        (
            ["propose.components=65"],
            r"propose\.components=65 must be 0 \(no proposal\) to propose\.candidates=64",
        ),
        (["policy.gain=1.5"], r"policy\.gain=1\.5 .* need a proposal; set propose\.components"),
        (
            ["propose.components=8", "reinforce.optim.weight_decay=.1"],
            r"would shrink the proposal's components",
        ),
    ],
)
def test_senseless_values_are_refused_with_a_remedy(overrides, message):
    with pytest.raises(ConfigError, match=message):
        compose(overrides)


def test_saved_config_loads_equal_and_is_checked(tmp_path):
    config = compose(["seed=3", "experiment=quickstart"])
    save(config, tmp_path / "config.json")
    assert load(tmp_path / "config.json") == config
    (tmp_path / "config.json").write_text('{"seed": 1, "sede": 2}')
    with pytest.raises(ConfigError, match=r"config\.json: .*sede"):
        load(tmp_path / "config.json")
    with pytest.raises(ConfigError, match=r"missing\.json"):
        load(tmp_path / "missing.json")


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_a_renamed_key_is_refused_with_its_new_name(old, new, tmp_path):
    """From the command line, and in a saved config."""
    remedy = f"{old} is called {new} now; rename it"
    with pytest.raises(ConfigError, match=re.escape(remedy)):
        compose([f"{old}=1"])
    saved = to_dict(compose(["experiment=quickstart"]))
    (part, name), (_, today) = old.split("."), new.split(".")
    saved[part][name] = saved[part].pop(today)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(saved))
    with pytest.raises(ConfigError, match=re.escape(f"config.json: {remedy}")):
        load(path)


def test_what_was_called_an_expert_is_called_a_component():
    """Expert is the demonstrator alone."""
    assert {"propose.experts", "policy.train_experts"} == RENAMED.keys()
    for key in ("propose.components=8", "policy.gain=1.5", "policy.train_components=true"):
        assert isinstance(compose(["propose.components=8", key]), Config)


def test_validate_returns_the_config_it_was_given():
    config = replace(Config(), pretrain=PretrainConfig(row_length=0))
    assert validate(config) is config


def test_quickstart_is_the_recipe():
    config = compose(["experiment=quickstart"])
    env, collect, model = config.env, config.collect, config.model
    assert (env.size, env.num_colours, env.num_walls, env.horizon) == (6, 8, 0, 40)
    assert (env.tasks, env.post_tasks, env.observation, env.num_maps) == (
        "ring:4",
        "0-1-2-3",
        "egocentric",
        1,
    )
    assert (collect.episodes, collect.noise, collect.noise_kind) == (131_072, 0.3, "injection")
    assert (model.mixer, model.depth, model.width, model.control_layer) == ("hawk", 4, 64, 1)
    assert config.reinforce.num_seeds == 3


def test_grid_paper_has_every_figure_of_the_paper():
    config = compose(["experiment=grid_paper"])
    env, model, meta, policy = config.env, config.model, config.metacontroller, config.policy
    # Section 2 and Table A1
    assert (env.size, env.num_colours, env.num_walls, env.horizon) == (7, 8, 4, 100)
    assert (env.tasks, env.post_tasks, env.observation) == (
        "table_a1",
        "post_training_a1",
        "allocentric",
    )
    assert env.num_maps == 0
    assert config.collect.noise == 0
    # Table A4
    assert (model.mixer, model.depth, model.width, model.mlp_width) == ("transformer", 6, 256, 512)
    assert (model.num_heads, model.head_width, model.control_layer) == (4, 64, 3)
    assert (model.scale, model.scale_last, model.embedding_variance) == (0.1, 0.1, None)
    assert (config.pretrain.steps, config.pretrain.batch_size) == (256_000, 1_024)
    assert config.pretrain.next_observation_weight in (0, 0.01)
    # Table A9
    assert (meta.history_width, meta.embedding_width, meta.encoder_width) == (32, 32, 64)
    assert (meta.latent, meta.hypernetwork_width, meta.rank) == (8, 32, 16)
    assert (config.discover.steps, config.discover.batch_size) == (64_000, 512)
    assert config.discover.alpha in (0, 0.05, 0.1, 0.17, 0.3, 0.5, 1)
    for optim, rate in ((config.pretrain.optim, 3e-4), (config.discover.optim, 1e-3)):
        assert (optim.learning_rate, optim.weight_decay, optim.b1, optim.b2) == (
            rate,
            0.03,
            0.9,
            0.999,
        )
        assert (optim.warmup_steps, optim.final_fraction, optim.embedding_learning_rate) == (
            0,
            1.0,
            None,
        )
    # Tables A13 and A16
    assert (policy.mixer, policy.width) == ("hawk", 256)
    assert (config.reinforce.batch_size, config.reinforce.optim.learning_rate) == (1_024, 3e-5)
    assert config.reinforce.optim.weight_decay == 0


def test_ant_paper_has_every_figure_of_the_paper():
    """But for the expert's network and training (Table A3): ours is a smaller one.

    Of Table A15 method.md restates nothing.
    """
    config = compose(["experiment=ant_paper"])
    env, model, meta, policy = config.env, config.model, config.metacontroller, config.policy
    # Section 2 and Table A2
    assert (env.name, env.size, env.num_colours, env.num_walls, env.horizon) == (
        "ant",
        4,
        4,
        1,
        500,
    )
    assert (env.tasks, env.post_tasks, env.observation) == (
        "table_a2",
        "post_training_a2",
        "allocentric",
    )
    assert env.num_maps == 0
    assert (config.collect.noise, config.collect.noise_kind, config.collect.successful_only) == (
        0,
        "none",
        True,
    )
    # Table A5
    assert (model.mixer, model.depth, model.width, model.mlp_width, model.num_heads) == (
        "hawk",
        8,
        256,
        512,
        8,
    )
    assert (model.control_layer, model.scale, model.scale_last, model.embedding_variance) == (
        4,
        0.1,
        0.1,
        None,
    )
    assert (config.pretrain.steps, config.pretrain.batch_size) == (204_800, 512)
    assert (config.pretrain.next_observation_weight, model.action_std) == (10, "constant")
    # Table A10
    assert (meta.history_width, meta.embedding_width, meta.encoder_width) == (32, 32, 64)
    assert (meta.latent, meta.hypernetwork_width, meta.rank) == (8, 32, 0)
    assert (config.discover.steps, config.discover.batch_size) == (32_000, 128)
    assert config.discover.alpha in (0, 0.05, 0.1, 0.17, 0.3, 0.5, 1)
    assert (meta.embedder, meta.force_switch, meta.shared_noise, meta.embedding_lag) == (
        "hawk",
        False,
        False,
        None,
    )
    assert (config.discover.recovery, config.discover.curriculum_ramp, config.discover.splice) == (
        0,
        0,
        0,
    )
    assert (config.discover.noise, config.discover.mean_actions, config.discover.tolerance) == (
        0,
        True,
        5,
    )
    for optim in (config.pretrain.optim, config.discover.optim):
        assert (optim.learning_rate, optim.weight_decay, optim.b1, optim.b2) == (
            3e-4,
            0.03,
            0.9,
            0.999,
        )
        assert (optim.warmup_steps, optim.final_fraction) == (0, 1.0)
        assert (optim.embedding_learning_rate, optim.muon_learning_rate, optim.clip) == (
            None,
            None,
            None,
        )
    # Table A14, and A3 as far as it is about PPO
    assert (policy.mixer, policy.width) == ("hawk", 256)
    assert (config.reinforce.batch_size, config.reinforce.optim.learning_rate) == (256, 3e-5)
    assert config.reinforce.optim.weight_decay == 0
    assert config.expert.entropy == 3e-4


PAPER = ("grid_paper", "ant_paper")


@pytest.mark.parametrize("name", PAPER)
def test_what_the_paper_does_not_say_is_ours(name):
    config = compose([f"experiment={name}"])
    controllers, discover, reinforce = config.controllers, config.discover, config.reinforce
    assert config.matmul_precision == "highest"
    # Section 3
    assert (
        config.pretrain.row_length,
        config.pretrain.history_dropout,
        config.pretrain.optim.clip,
    ) == (0, 0, None)
    # Figure 4
    assert (controllers.steps, controllers.batch_size, controllers.rank) == (800, 64, 16)
    assert (controllers.episodes, controllers.trials) == (1_024, 2_048)
    assert (controllers.optim.learning_rate, controllers.optim.weight_decay) == (3e-3, 0.03)
    assert (controllers.optim.b1, controllers.optim.b2, controllers.optim.clip) == (0.9, 0.98, 1.0)
    assert (controllers.optim.warmup_steps, controllers.optim.final_fraction) == (0, 1.0)
    # Section 4
    meta = config.metacontroller
    assert (discover.alpha_delay, discover.alpha_ramp, discover.optim.clip) == (200, 1_500, None)
    assert (
        discover.recovery,
        discover.curriculum_delay,
        discover.curriculum_ramp,
        discover.splice,
    ) == (0, 0, 0, 0)
    assert (meta.switch_width, meta.hypernetwork_scale) == (32, 0.1)
    assert (meta.encoder_norm, meta.shared_noise, config.propose.components) == (False, False, 0)
    # Section 5
    assert (config.policy.initial_std, config.policy.mlp_width, config.policy.num_heads) == (
        1.0,
        512,
        8,
    )
    assert (reinforce.epochs, reinforce.minibatches, reinforce.clip) == (4, 1, 0.2)
    assert (reinforce.max_decisions, reinforce.num_seeds, reinforce.test_episodes) == (24, 3, 2_048)
    assert (reinforce.optim.b1, reinforce.optim.b2, reinforce.optim.clip) == (0.9, 0.999, 1.0)
    assert (reinforce.optim.warmup_steps, reinforce.optim.final_fraction) == (0, 1.0)


# Keys on which no number of a preset depends, and those that keep their defaults there.
NOT_NAMED = {
    *("seed", "run_dir", "reuse", "until", "dry_run", "time_limit", "checkpoint_every"),
    *("non_finite", "env.module"),
    *("env.map_seed", "env.first_map", "env.physics"),  # no pool of maps; both physics are the same
    *("policy.gain", "policy.train_components"),  # of a proposal
    *("metacontroller.embedder_memory", "metacontroller.embedding_lag"),  # of a GRU
    *(
        "controllers.optim.embedding_learning_rate",
        "controllers.optim.muon_learning_rate",
    ),  # of a base model
}
NOT_NAMED_OF = {
    "grid_paper": {
        *("env.cell_size", "env.frame_skip", "model.action_std"),  # of the ant
        *("collect.episodes", "collect.shard_episodes"),  # none are stored
        "collect.expert_episodes",  # the expert is perfect
    },
    "ant_paper": {"model.head_width"},  # of attention
}


@pytest.mark.parametrize("name", PAPER)
def test_a_new_default_changes_no_number_of_a_paper_preset(name):
    every = set(flat(to_dict(compose([f"experiment={name}"]))))
    elsewhere = {key for key in every if key.startswith(("propose.", "expert.", "tracker."))} - {
        "propose.components"
    }
    named = set(named_keys(CONF / "experiment" / f"{name}.yaml"))
    assert every - named == elsewhere | NOT_NAMED | NOT_NAMED_OF[name]


def flat(node: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Keys with their paths."""
    for key, value in node.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def named_keys(file: Path, prefix: str = "") -> Iterator[str]:
    """Keys that a file of conf/ sets, itself or by the options that it chooses."""
    node: Any = OmegaConf.to_container(OmegaConf.load(file))
    for default in node.pop("defaults", []):
        if isinstance(default, dict):  # {"override /GROUP@PLACE": OPTION}
            ((target, option),) = default.items()
            group, _, place = target.removeprefix("override /").partition("@")
            yield from named_keys(CONF / group / f"{option}.yaml", f"{place or group}.")
        elif default != "_self_":
            yield from named_keys(file.with_stem(default), prefix)
    yield from flat(node, prefix)


def test_mean_actions_need_a_dataset_of_their_own():
    with pytest.raises(
        ConfigError, match=r"discover\.mean_actions needs discover\.noise=0 \(it is None\)"
    ):
        compose(["experiment=ant_small", "discover.mean_actions=true"])


def test_minibatches_of_the_expert_divide_its_steps():
    with pytest.raises(ConfigError, match=r"expert\.minibatches=7 must divide .* = 16384"):
        compose(["experiment=ant_small", "expert.minibatches=7"])


@pytest.mark.parametrize("key", ["seed", "env.map_seed"])
def test_a_seed_of_more_than_32_bits_is_refused(key):
    """JAX would take 2**32 for 0."""
    with pytest.raises(
        ConfigError, match=rf"{key}=4294967296 must not be negative and must be below 2\*\*32"
    ):
        compose([f"{key}={2**32}"])
    compose([f"{key}={2**32 - 1}"])


def test_micro_batches_divide_generated_batches():
    compose(["experiment=grid_paper", "pretrain.micro_batch=64", "discover.micro_batch=64"])
    with pytest.raises(
        ConfigError, match=r"discover\.micro_batch=100 must divide discover\.batch_size=512"
    ):
        compose(["experiment=grid_paper", "discover.micro_batch=100"])
    compose(["discover.micro_batch=100"])  # stored data: batches are rounded to it


def test_pretraining_tasks_that_break_a_subgoal_are_refused_before_work(tmp_path):
    run = Run(compose(["experiment=smoke", "env.tasks=0-1-2+1-0-2", "env.subgoals=0-1"]), tmp_path)
    with pytest.raises(
        ConfigError, match=r"env\.tasks='0-1-2\+1-0-2': 1-0 leaves the order of a subgoal"
    ):
        check_worlds(run)


# --- sets of tasks ------------------------------------------------------------------------------


def test_sets_of_tasks_need_no_quotes_in_a_sweep():
    assert sweep(["env.tasks=0-1-2+2-1-0", "seed=0,1"]) == [
        ["env.tasks=0-1-2+2-1-0", "seed=0"],
        ["env.tasks=0-1-2+2-1-0", "seed=1"],
    ]
    env = compose(["env.tasks=0-1-2+2-1-0", "env.subgoals=0-1+2-3", "env.post_tasks=0+1"]).env
    assert (env.tasks, env.subgoals, env.post_tasks) == ("0-1-2+2-1-0", "0-1+2-3", "0+1")


def test_a_comma_in_a_set_of_tasks_is_told_apart_from_a_sweep():
    with pytest.raises(ConfigError, match=r"by \+, as in 0-1-2\+2-1-0"):
        compose(["env.tasks=0-1-2,2-1-0"])


def test_what_older_runs_separate_by_commas_is_the_same_setting(tmp_path):
    today = compose(["env.tasks=0-1-2+2-1-0", "env.subgoals=0-1+2-3", "env.post_tasks=0+1"])
    commas = {key: getattr(today.env, key).replace("+", ",") for key in ("tasks", "subgoals")}
    older = replace(today, env=replace(today.env, **commas))
    assert validate(older) == today
    (tmp_path / "config.json").write_text(json.dumps(to_dict(older)))
    assert load(tmp_path / "config.json") == today
    named = replace(today, env=replace(today.env, tasks="mine,yours"))
    assert validate(named).env.tasks == "mine,yours"  # another world's


# --- numbers, texts and paths -------------------------------------------------------------------

LEAVES = [*flat(to_dict(Config()))]
FULL = compose(["experiment=smoke", "propose.components=2", "time_limit=9"])
NOT_FINITE = ["nan", "inf", "-inf", "1e400", "-1e400", "1e39"]
HUGE = [10**400, 10**30, 2**63, -(2**63), 2**32]


def value_at(config: Any, path: str) -> Any:
    for name in path.split("."):
        config = getattr(config, name)
    return config


def changed(config: Any, path: str, value: Any) -> Any:
    name, _, rest = path.partition(".")
    return replace(config, **{name: changed(getattr(config, name), rest, value) if rest else value})


NUMBERS = [key for key in LEAVES if type(value_at(FULL, key)) in (int, float)]


@pytest.mark.parametrize("key", NUMBERS)
def test_numbers_that_no_array_holds_are_refused(key):
    whole = isinstance(value_at(FULL, key), int)
    for value in HUGE if whole else map(float, NOT_FINITE):
        with pytest.raises(ConfigError, match=rf"^{re.escape(key)}="):
            validate(changed(FULL, key, value))


@pytest.mark.parametrize("key", ["seed", "env.size", "discover.alpha"])
@pytest.mark.parametrize("text", ["nan", "-1e400", "1" + 400 * "0", "9" * 5_000])
def test_they_are_refused_on_the_command_line_too(key, text):
    with pytest.raises(ConfigError, match=rf"{re.escape(key)}=") as caught:
        compose([f"{key}={text}"])
    assert one_line(caught.value)


def one_line(error: Exception) -> bool:
    return "\n" not in str(error)


@pytest.mark.parametrize(
    "override",
    [
        *("env.size=65536", "env.num_colours=2147483647", "model.width=2147483647"),
        *("model.depth=2147483647", "metacontroller.rank=2147483647", "env.num_maps=2147483647"),
        *("propose.restarts=2147483647", "time_limit=1e30"),
    ],
)
def test_sizes_that_no_machine_holds_are_refused(override):
    """Some end the process itself, from within XLA."""
    key = override.partition("=")[0]
    with pytest.raises(ConfigError, match=rf"{re.escape(key)}=\S+ .*must .*at most"):
        compose(["experiment=smoke", "env.first_map=5", override])


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(10**400), 10**400)
    | st.floats()
    | st.text(st.characters())
    | st.sampled_from(["???", "${seed}", "${x", "${run_dir}", "1e400", "inf", "~", "~nobody/x"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=3,
)


@settings(max_examples=50)
@given(st.dictionaries(st.sampled_from(LEAVES), ANYTHING, min_size=1, max_size=3), st.data())
def test_any_value_gives_a_config_or_one_line(changes, data):
    plain = to_dict(FULL)
    for key, value in changes.items():
        *groups, name = key.split(".")
        node = plain
        for group in groups:
            node = node[group]
        node[data.draw(st.sampled_from([name, name, name, "unknown"]))] = value
    try:
        config = from_omegaconf(plain)
    except ConfigError as error:
        assert one_line(error)  # noqa: PT017
    else:
        assert validate(config) == config


@settings(max_examples=25)
@given(st.sampled_from([*LEAVES, "env", "experiment", "+x", "~seed", "hydra.x", ""]), st.text())
def test_any_override_gives_a_config_or_one_line(key, text):
    for read in (compose, sweep):
        try:
            read([f"{key}={text}"])
        except ConfigError as error:
            assert one_line(error)  # noqa: PT017


def test_keys_that_are_added_are_refused():
    for override in ("+x=1", "+env.x=1", "++model.y=2"):
        with pytest.raises(ConfigError, match=r"Key '[xy]' not in"):
            compose([override])


@pytest.mark.parametrize("name", ["", "..", "../x", "a/b", "/etc", "a\\b", ".x", "x" * 101, "a\nb"])
def test_an_experiment_is_named_like_a_folder(name):
    with pytest.raises(ConfigError, match=r"^experiment_name="):
        from_omegaconf({"experiment_name": name})


@pytest.mark.parametrize("key", ["run_dir", "reuse"])
@pytest.mark.parametrize("path", ["", " ", "a\0b", "\ud800"])
def test_a_directory_has_a_name(key, path):
    with pytest.raises(ConfigError, match=rf"^{key}="):
        from_omegaconf(to_dict(FULL) | {key: path})


# --- within other programs that use Hydra -------------------------------------------------------

APP = """
import sys
import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from internal_rl.config import ConfigError
from internal_rl.running.compose import compose

@hydra.main(version_base="1.2", config_path=None, config_name=None)
def app(own: DictConfig) -> None:
    outer, hydras = GlobalHydra.instance(), GlobalHydra.instance().hydra
    assert compose(["experiment=smoke"]).experiment_name == "smoke"
    try:
        compose(["nothing=1"])
    except ConfigError as error:
        print(error)
    assert GlobalHydra.instance() is outer and outer.hydra is hydras
    print("job", HydraConfig.get().job.name, own.x)

app()
"""


def test_configs_compose_within_another_hydra_program(tmp_path):
    (tmp_path / "mine.py").write_text(APP)
    command = [sys.executable, "mine.py", "--multirun", "+x=1,2", "hydra.sweep.dir=."]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "job mine 1\n" in done.stdout
    assert "job mine 2\n" in done.stdout
    assert "Key 'nothing' not in 'Config'" in done.stdout


@pytest.mark.parametrize("override", ["seed=3", "nothing=1", "["])
def test_hydra_is_left_as_it_was_found(override):
    """In a notebook, say."""
    node = {"theirs": 1}
    with initialize(None, job_name="theirs", version_base="1.2"):
        ConfigStore.instance().store(name="schema", node=node)
        outer, hydras = GlobalHydra.instance(), GlobalHydra.instance().hydra
        try:
            assert compose([override]).seed == 3
        except ConfigError:
            assert override != "seed=3"
        assert GlobalHydra.instance() is outer
        assert outer.hydra is hydras
        assert ConfigStore.instance().load("schema.yaml").node == node
        assert JobRuntime.instance().get("name") == "theirs"
        assert str(getbase()) == "1.2"
    assert not HydraConfig.initialized()
