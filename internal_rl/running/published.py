"""What a published result was made with: the command that gives its settings, and its commit."""

import json
import re
import shlex
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hydra.core.override_parser.types import Quote, QuotedString

from internal_rl.config import RENAMED, Config, ConfigError, modern, to_dict
from internal_rl.config import settings as settings_of
from internal_rl.running.compose import CONF, compose

Json = dict[str, Any]  # a saved config or summary, or its settings by dotted path

# What Hydra reads as a string without quotes: words, and sets of tasks.
PLAIN = re.compile(r"[A-Za-z_][\w.:/-]*|\d+([-+]\d+)*[-+]\d+", re.ASCII)
WORDS = ("null", "true", "false", "nan", "inf")  # but for these


def settings(config: Json) -> Json:
    """The settings of a saved config that change results, under the names they have today."""
    named = {RENAMED.get(key, key): value for key, value in settings_of(config).items()}
    return {key: modern(key, value) for key, value in named.items()}


def resolved(config: Json) -> Json:
    """The settings of a saved config, by dotted path; keys added since have their defaults."""
    found = settings(to_dict(Config())) | settings(config)
    if found["env.map_seed"] is None:  # the map of the run's seed
        found["env.map_seed"] = found["seed"]
    return found


def chosen(config: Json, conf: Path = CONF) -> list[str]:
    """The experiment of `config`, if `conf` has a preset of this name, and its seed."""
    name = config["experiment_name"]
    known = bool(name) and (conf / "experiment" / f"{name}.yaml").exists()
    return [*([f"experiment={hydra(name)}"] if known else []), f"seed={config['seed']}"]


def overrides(config: Json, conf: Path = CONF) -> list[str]:
    """What scripts/pipeline.py has to be given for the settings of `config`, in Hydra's syntax.

    Experiment and seed, then every setting in which `config` differs from the preset in `conf`.
    """
    preset = chosen(config, conf)
    published = resolved(config)
    composed = resolved(to_dict(compose(preset, conf)))
    differing = [key for key in composed if published[key] != composed[key]]
    return preset + [f"{key}={hydra(published[key])}" for key in differing]


def hydra(value: object) -> str:
    """A value in Hydra's syntax."""
    if isinstance(value, str):
        if PLAIN.fullmatch(value) and value.lower() not in WORDS:
            return value
        return QuotedString(value, Quote.double).with_quotes()
    return json.dumps(value, ensure_ascii=False)


def vanished(config: Json) -> list[str]:
    """Settings of `config` that no longer exist, with their values."""
    known = settings(to_dict(Config()))
    return [f"{key}={hydra(value)}" for key, value in settings(config).items() if key not in known]


def command(arguments: list[str]) -> str:
    """The call of scripts/pipeline.py, for a shell."""
    return shlex.join(["python", "scripts/pipeline.py", *arguments])


def overrides_then(config: Json, commit: str) -> list[str] | None:
    """As `overrides`, from the presets of `commit`.

    None where that is not known: this commit is missing, or today's schema refuses its presets.
    """
    git = ["git", "archive", commit, CONF.name]
    archive = subprocess.run(git, cwd=CONF.parent, capture_output=True)
    if archive.returncode != 0:
        return None
    with TemporaryDirectory() as folder:
        subprocess.run(["tar", "-x", "-C", folder], input=archive.stdout, check=True)
        _rename_keys(Path(folder))
        try:
            return overrides(config, Path(folder) / CONF.name)
        except ConfigError:
            return None


def _rename_keys(folder: Path) -> None:
    """Give the keys of the presets in a folder the names that they have today."""
    for path in folder.rglob("*.yaml"):
        text = path.read_text(encoding="utf-8")
        for old, new in RENAMED.items():
            name = old.rpartition(".")[2]
            text = re.sub(rf"\b{name}:", f"{new.rpartition('.')[2]}:", text)
        path.write_text(text, encoding="utf-8")


def history(config: Json, commits: str) -> str:
    """Sentences on what has changed since the run: presets, and settings that are gone."""
    now = overrides(config)
    then = overrides_then(config, commits.split(", ")[0])
    sentences = []
    if then is not None and then != now:
        gave = f"at that commit `{command(then)}` gave these settings"
        sentences.append(f"Made with an older preset: {gave}.")
    if gone := vanished(config):
        sentences.append(f"No longer a setting: {', '.join(f'`{each}`' for each in gone)}.")
    return " ".join(sentences)


def unclean(summaries: dict[str, Json]) -> str | None:
    """Why these runs cannot be published, None if they can.

    Nobody else can get the code of a tree with changes.
    """
    for name, summary in summaries.items():
        commit = summary["commit"]
        if "+changes" in commit or "unknown" in commit:
            return f"{name} was made at commit {commit}; make it again from a clean commit"
    return None
