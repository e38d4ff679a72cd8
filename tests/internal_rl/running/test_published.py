"""Each published result has a command on its page that gives its settings; commands compose."""

import itertools
import json
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from internal_rl.config import ConfigError, settings, to_dict
from internal_rl.running.compose import compose
from internal_rl.running.published import command, history, overrides, resolved, unclean, vanished

ROOT = Path(__file__).resolve().parents[3]
RESULTS = ROOT / "docs" / "results"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
COMMAND = re.compile(r"(?m)(?:^|`)(?:\S*python )?(scripts/pipeline\.py|make [\w-]+)([^`\n]*)")
EXAMPLE = "env=my_world"  # of docs/extending.md, to be written by its reader
OLDER = "older preset"
SEEDS = "reinforce.num_seeds"  # fewer or more of the same: each comes out alike
UNCLEAN = {"one_map-201", "one_map-202"}  # published before such runs were refused; never one more


@dataclass(frozen=True)
class Result:
    """A published run: its name, its summary, and the page beside it."""

    name: str
    summary: dict[str, Any]
    page: Path


def published() -> list[Result]:
    """Every summary under docs/results, alone in its file or one of several."""
    found = []
    for path in sorted(RESULTS.rglob("*.json")):
        content = json.loads(path.read_text())
        name = f"{path.parent.name}/{path.stem}"
        summaries = {name: content} if "config" in content else content
        page = path.parent / "README.md"
        found += [Result(name, summary, page) for name, summary in summaries.items()]
    return found


RESULTS_FOUND = published()


def paragraphs(text: str) -> list[str]:
    """Blocks between blank lines; headings, items of lists and rows of tables are their own."""
    return re.split(r"\n\s*\n|\n(?=- |\||#)", text)


def target_runs(target: str) -> list[list[str]]:
    """The arguments of scripts/pipeline.py in a target of the Makefile, without $(ARGS)."""
    makefile = (ROOT / "Makefile").read_text()
    recipe = re.search(rf"^{target}:.*\n((?:\t.*\n)+)", makefile, re.MULTILINE)
    runs = []
    for line in recipe[1].splitlines() if recipe else []:
        if direct := re.search(r"scripts/pipeline\.py (.*?) \$\(ARGS\)", line):
            runs.append(shlex.split(direct[1]))
        if seeds := re.search(r"\$\(call runs,(\w+),([\d ]+),", line):
            runs += [[f"experiment={seeds[1]}", f"seed={seed}"] for seed in seeds[2].split()]
    return runs


def printed(paragraph: str) -> Iterator[list[str]]:
    """The arguments of scripts/pipeline.py of every run that the paragraph's commands start."""
    for program, rest in COMMAND.findall(paragraph):
        target = program.removeprefix("make ")
        runs = [[]] if target == program else target_runs(target)
        if not runs:
            continue
        words = shlex.split(rest, comments=True)
        if target != program:
            words = [word for each in words for word in shlex.split(each.removeprefix("ARGS="))]
        sweep = "--multirun" in words
        options = [
            [f"{key}={value}" for value in (values.split(",") if sweep else [values])]
            for key, equals, values in (word.partition("=") for word in words)
            if equals
        ]
        for run in runs:
            for chosen in itertools.product(*options):
                if EXAMPLE not in chosen:
                    yield [*run, *chosen]


@cache
def preset(arguments: tuple[str, ...]) -> dict[str, Any]:
    return to_dict(compose([*arguments]))


def composed(arguments: list[str]) -> dict[str, Any]:
    """What the arguments compose to. Seeds share a composition, which takes half a second."""
    seed = 0
    rest = []
    for argument in arguments:
        if argument.startswith("seed="):
            seed = int(argument.removeprefix("seed="))
        else:
            rest.append(argument)
    return resolved(preset(tuple(rest)) | {"seed": seed})


def gives(arguments: list[str], result: Result, but: str = "") -> bool:
    """Whether the arguments compose to the published settings, as far as these still exist.

    but: a key that may differ.
    """
    wanted, found = resolved(result.summary["config"]), composed(arguments)
    return all(found[key] == value for key, value in wanted.items() if key in found and key != but)


def same_run(arguments: list[str], result: Result) -> bool:
    """Whether they name the result's experiment and seed; without an experiment they illustrate."""
    found = composed(arguments)
    named = any(argument.startswith("experiment=") for argument in arguments)
    config = result.summary["config"]
    return named and all(found[key] == config[key] for key in ("experiment_name", "seed"))


@pytest.mark.parametrize("result", RESULTS_FOUND, ids=lambda result: result.name)
def test_every_published_result_has_a_command_that_gives_its_settings(result):
    blocks = paragraphs(result.page.read_text())
    matching = [each for each in blocks if any(gives(run, result) for run in printed(each))]
    wanted = overrides(result.summary["config"])
    assert matching, f"{result.page} has no `{command(wanted)}` (made with an {OLDER}?)"
    commits = result.summary["commit"].split(", ")
    named = [block for block in matching if all(commit in block for commit in commits)]
    assert named, f"{result.page} does not name {commits} beside the command"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_printed_commands_compose_and_give_what_was_published(page):
    older = []
    for block in paragraphs(page.read_text()):
        for arguments in printed(block):
            results = [result for result in RESULTS_FOUND if same_run(arguments, result)]
            if not results or any(gives(arguments, result, SEEDS) for result in results):
                continue
            if OLDER not in block:
                older.append(command(arguments))
    assert not older, f"the text beside it does not say {OLDER!r}: {older}"


@pytest.mark.parametrize("result", RESULTS_FOUND, ids=lambda result: result.name)
def test_no_further_result_comes_from_a_changed_tree(result):
    assert (unclean({result.name: result.summary}) is not None) == (result.name in UNCLEAN)
    if result.name in UNCLEAN:
        assert "tree with uncommitted changes" in result.page.read_text()


@pytest.mark.parametrize(
    "arguments",
    [
        ["experiment=ant_small", "seed=7", "reinforce.optim.clip=null", "env.map_seed=3"],
        ["experiment=one_map", "seed=2", "env.tasks='0-1-2,2-1-0'", "model.mixer=transformer"],
        ["experiment_name=mine", "seed=1", "env=ring6", "model.scale=1e-7", "discover.cotrain=on"],
    ],
)
def test_overrides_give_the_settings_back(arguments):
    config = to_dict(compose(arguments))
    words = shlex.split(command(overrides(config)))
    assert words[:2] == ["python", "scripts/pipeline.py"]
    assert settings(to_dict(compose(words[2:]))) == settings(config)


def test_overrides_leave_out_what_does_not_differ():
    arguments = ["experiment=ant_small", "seed=407", "discover.recovery=240"]
    free = ["run_dir=elsewhere", "until=discover", "time_limit=5", "tracker.wandb=disabled"]
    same = ["env.map_seed=407"]  # as from the seed
    assert overrides(to_dict(compose(arguments + free + same))) == arguments


def test_overrides_are_written_as_hydra_reads_them():
    config = to_dict(compose(["experiment=smoke"]))
    strings = ["null", "true", "ring:6", "0-1", "0-1,1-0", 'a "b"', ""]
    values = [None, False, *strings, 1e-05, 3, [1, "x y"]]
    config["metacontroller"] |= dict(zip(config["metacontroller"], values, strict=False))
    found = [OverridesParser.create().parse_override(each) for each in overrides(config)[2:]]
    assert not any(each.is_sweep_override() for each in found)
    assert [each.value() for each in found] == values
    assert [type(each.value()) for each in found[:-1]] == [type(value) for value in values[:-1]]


def test_settings_that_came_and_went():
    config = to_dict(compose(["experiment=ant_small", "seed=1"]))
    del config["reinforce"]["num_seeds"]  # has its default in the preset
    del config["discover"]["recovery"]  # has another value there than its default
    config["propose"]["colours"] = 5
    config["tracker"]["colours"] = 5
    assert overrides(config) == ["experiment=ant_small", "seed=1", "discover.recovery=0"]
    assert vanished(config) == ["propose.colours=5"]
    assert history(config, "no-such-commit") == "No longer a setting: `propose.colours=5`."


def test_settings_of_older_names_are_those_of_today():
    arguments = ["experiment=random", "seed=300", "propose.components=7"]
    today = to_dict(compose(arguments))
    older = json.loads(json.dumps(today))
    older["propose"]["experts"] = older["propose"].pop("components")
    older["policy"]["train_experts"] = older["policy"].pop("train_components")
    assert resolved(older) == resolved(today)
    assert overrides(older) == arguments
    assert vanished(older) == []


def test_a_run_of_an_older_preset_says_so():
    try:
        command = ["git", "cat-file", "-e", "0e8ee0a^{commit}"]
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs the history of the repository")
    config = to_dict(
        compose(
            ["experiment=ant_small", "seed=404", "discover.recovery=60", "controllers.trials=512"]
        )
    )
    assert history(config, "0e8ee0a") == (
        "Made with an older preset: at that commit "
        "`python scripts/pipeline.py experiment=ant_small seed=404` gave these settings."
    )
    then = history(
        config, "6233d6b"
    )  # the preset of this commit has recovery 120, as today, but 512 trials
    assert "seed=404 discover.recovery=60` gave these settings" in then


@pytest.mark.parametrize("commit", ["c2ff501+changes", "c2ff501, 0e8ee0a+changes", "unknown"])
def test_what_nobody_can_make_again_is_not_published(commit):
    assert unclean({"clean": {"commit": "c2ff501, 0e8ee0a"}}) is None
    reason = unclean({"clean": {"commit": "c2ff501"}, "dirty": {"commit": commit}})
    assert reason is not None
    assert reason.startswith(f"dirty was made at commit {commit};")


def test_aggregate_refuses_before_it_writes(tmp_path, monkeypatch):
    (result,) = [result for result in RESULTS_FOUND if result.name == "random-300"]
    run, page = tmp_path / "runs" / "mine", tmp_path / "page"
    run.mkdir(parents=True)
    monkeypatch.setattr(sys, "argv", ["aggregate.py", str(tmp_path / "runs"), "--page", str(page)])
    main = runpy.run_path(str(ROOT / "scripts" / "aggregate.py"))["main"]
    (run / "summary.json").write_text(json.dumps({**result.summary, "commit": "c2ff501+changes"}))
    with pytest.raises(SystemExit, match=r"error: mine was made at commit c2ff501\+changes;"):
        main()
    assert not page.exists()
    (run / "summary.json").write_text(json.dumps({**result.summary, "commit": "c2ff501"}))
    main()
    expected = "`python scripts/pipeline.py experiment=random seed=300`, commit c2ff501,"
    assert expected in (page / "README.md").read_text()


def test_a_printed_command_that_does_not_compose_is_an_error():
    (arguments,) = printed("`.venv/bin/python scripts/pipeline.py experiment=smoke sed=1  # words`")
    assert arguments == ["experiment=smoke", "sed=1"]
    with pytest.raises(ConfigError):
        composed(arguments)


def test_commands_are_found_as_pages_print_them():
    assert [*printed('from `make ant ARGS="seed=3 until=pretrain"` to')] == [
        ["experiment=ant_small", "seed=3", "until=pretrain"]
    ]
    assert len([*printed("make held-out   # five maps\nmake test")]) == 5
    assert [*printed("x.py; scripts/pipeline.py --multirun seed=0,1 discover.alpha=0.1")] == []
    sweep = "scripts/pipeline.py --multirun seed=0,1 discover.alpha=0.1,0.2"
    assert len([*printed(sweep)]) == 4
