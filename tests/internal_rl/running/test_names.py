"""What runs are called: one name per setting, however it was given, and safe on any disk."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from internal_rl.config import Config, ConfigError, settings, to_dict
from internal_rl.run import Run
from internal_rl.running import names
from internal_rl.running.compose import compose
from internal_rl.running.start import default_directory, open_run

SAFE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.~+:,=%@-]*")
FIFTEEN = [
    *(
        "env.size=5",
        "env.num_colours=5",
        "env.horizon=17",
        "env.tasks=ring:4",
        "env.post_tasks=0-2",
    ),
    *("collect.episodes=513", "collect.valid_episodes=65", "collect.max_steps=11"),
    *("model.depth=3", "model.width=32", "model.mlp_width=16", "pretrain.steps=21"),
    *("pretrain.row_length=25", "discover.steps=21", "discover.alpha=0.125"),
]


def smoke(*overrides: str) -> Config:
    return compose(["experiment=smoke", *overrides])


def all_names(config: Config) -> tuple[str, str]:
    return names.folder(config), names.run_name(config)


def test_only_what_differs_from_the_experiment_is_in_a_name():
    assert all_names(smoke("seed=3")) == ("seed_3", "smoke-seed_3")
    config = smoke("seed=3", "discover.alpha=0.25", "env.tasks=0-1-2+2-1-0")
    differing = "env.tasks=0-1-2+2-1-0,discover.alpha=0.25"
    assert all_names(config) == (
        f"seed_3,{differing}",
        f"smoke-seed_3,{differing}",
    )


def test_how_settings_were_given_does_not_matter():
    ways = [
        ["discover.alpha=0.25", "model.width=32"],
        ["model.width=32", "discover.alpha=.25"],
        ["++discover.alpha=2.5e-1", "env.size=4", "discover.steps=20", "model.width=32"],
        ["discover.alpha=7", "model.width=32", "discover.alpha=0.25", "env.tasks='ring:3'"],
    ]
    assert len({all_names(smoke("seed=1", *way)) for way in ways}) == 1


@pytest.mark.parametrize(
    "free",
    [
        "until=collect",
        "time_limit=5",
        "tracker=local",
        "checkpoint_every=7",
        "reuse=x",
        "run_dir=y",
    ],
)
def test_what_changes_no_result_is_in_no_name(free):
    with_alpha = smoke("discover.alpha=0.25")
    assert all_names(smoke("discover.alpha=0.25", free)) == all_names(with_alpha)


def test_a_map_that_is_given_is_another_setting_than_that_of_the_seed():
    """The run directory takes one for the other, so must the name."""
    assert names.folder(smoke()) != names.folder(smoke("env.map_seed=0"))


def test_a_long_name_is_cut_and_still_its_own():
    long = [smoke(*FIFTEEN), smoke(*FIFTEEN, "policy.width=9"), smoke(*FIFTEEN, "policy.width=8")]
    for name in all_names(long[0]):
        assert len(name) == names.LIMIT
        assert SAFE.fullmatch(name)
    assert len({names.folder(config) for config in long}) == 3


def test_an_experiment_without_a_preset_has_names_too():
    assert names.folder(smoke("experiment_name=mine")).startswith("seed_0,")
    assert names.folder(smoke()) != names.folder(smoke("experiment_name=mine"))
    assert names.run_name(smoke("experiment_name='my own, new=1'")).startswith(
        "my%20own%2C%20new%3D1"
    )


TEXTS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=60) | st.sampled_from(
    ["..", ".", "/", "a/b", "", "null", "true", "1", ",x=1", "%2C", "+", "'", '"', "\\", "ü" * 50]
)


@st.composite
def configs(draw: st.DrawFn) -> Config:
    """Those of `smoke`, with a few settings of any value."""
    config = BASE
    tasks = draw(st.just(BASE.env.tasks) | TEXTS)
    name = draw(st.sampled_from(["gridworld", "ant", "a,b"]) | TEXTS)
    subgoals = draw(st.none() | TEXTS)
    env = replace(config.env, tasks=tasks, name=name, subgoals=subgoals)
    alpha = draw(st.just(BASE.discover.alpha) | st.floats(0, 1))
    steps = draw(st.just(BASE.discover.steps) | st.integers(1, 2**31 - 1))
    discover = replace(config.discover, alpha=alpha, steps=steps, cotrain=draw(st.booleans()))
    seed = draw(st.integers(0, 3) | st.integers(0, 2**32 - 1))
    return replace(config, seed=seed, env=env, discover=discover)


BASE = smoke()


@given(configs(), configs())
def test_different_settings_never_share_a_name(first, second):
    same = settings(to_dict(first)) == settings(to_dict(second))
    assert (names.folder(first) == names.folder(second)) == same
    assert (names.run_name(first) == names.run_name(second)) == same


@given(configs())
def test_names_are_short_and_safe_on_any_disk(config):
    for name in all_names(config):
        assert len(name) <= names.LIMIT
        assert SAFE.fullmatch(name)
        assert name not in (".", "..")


@given(TEXTS, TEXTS)
def test_a_value_is_never_read_as_another_setting(first, second):
    """Not even where the name of a key, or a hash, stands in it."""
    a, b = (replace(BASE, env=replace(BASE.env, tasks=text)) for text in (first, second))
    assert (names.folder(a) == names.folder(b)) == (first == second)


# --- names at W&B -------------------------------------------------------------------------------


def test_a_name_that_is_given_wins(monkeypatch):
    for variable in ("WANDB_NAME", "WANDB_RUN_GROUP"):
        monkeypatch.delenv(variable, raising=False)
    config = smoke("seed=2", "tracker.wandb=offline")
    tracker = names.named(config).tracker
    assert (tracker.name, tracker.group, tracker.project) == ("smoke-seed_2", "smoke-seed_2", None)
    given = replace(config, tracker=replace(config.tracker, name="mine", group="ours"))
    assert names.named(given) == given


def test_a_name_in_the_environment_is_left_to_wandb(monkeypatch):
    monkeypatch.setenv("WANDB_NAME", "mine")
    monkeypatch.setenv("WANDB_RUN_GROUP", "ours")
    config = smoke("tracker.wandb=offline")
    assert names.named(config) == config


def test_the_mirror_is_given_the_names(monkeypatch, tmp_path):
    options: dict[str, Any] = {}
    monkeypatch.setattr("internal_rl.run.Mirror", lambda _, **given: options.update(given))
    mine = ["tracker.name=mine", "tracker.group=ours", "tracker.project=here"]
    Run(smoke("tracker.wandb=offline", *mine), tmp_path).mirror()
    assert [options[key] for key in ("name", "group", "project")] == ["mine", "ours", "here"]
    Run(names.named(smoke("tracker.wandb=offline", "seed=1")), tmp_path).mirror()
    assert [options[key] for key in ("name", "group", "project")] == [
        "smoke-seed_1",
        "smoke-seed_1",
        None,
    ]


# --- directories --------------------------------------------------------------------------------


def test_home_is_where_the_user_lives(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("INTERNAL_RL_RUNS", "~/runs")
    assert default_directory(BASE) == tmp_path / "runs" / "smoke" / "seed_0"
    monkeypatch.setenv("INTERNAL_RL_RUNS", "")
    assert default_directory(BASE) == Path("runs/smoke/seed_0")
    monkeypatch.chdir(tmp_path)
    run = open_run(replace(BASE, run_dir="~/mine"))
    assert run.directory == tmp_path / "mine"
    assert not (tmp_path / "~").exists()
    with pytest.raises(ConfigError, match=r"no config\.json|config\.json is missing"):
        open_run(replace(BASE, run_dir="~/other", reuse="~"))


@pytest.mark.parametrize("key", ["run_dir", "reuse", "INTERNAL_RL_RUNS"])
@pytest.mark.parametrize(
    "path", ["file", "file/below", "link", "n" * 300, "~nobody-of-this-name/x"]
)
def test_what_can_be_no_directory_is_refused(key, path, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    Path("link").symlink_to("file")
    config: dict[str, Any] = {}
    if key == "INTERNAL_RL_RUNS":
        monkeypatch.setenv(key, path)
    else:
        config = {key: path}
    with pytest.raises(ConfigError, match=rf"^{key}={path}: ") as caught:
        open_run(replace(BASE, **config))
    assert "\n" not in str(caught.value)
