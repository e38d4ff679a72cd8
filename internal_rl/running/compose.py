"""Hydra's side of the configuration: conf/ and overrides become a typed config."""

import itertools
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.utils import JobRuntime
from hydra.errors import HydraException
from hydra.version import VersionBase
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from internal_rl.config import TASK_SETS, Config, ConfigError
from internal_rl.validation import check_size, from_omegaconf, renamed, schema

UNREADABLE = (ValueError, RecursionError)  # what Hydra's parser ends in, beside its own errors
# Where Hydra's and OmegaConf's messages stop being about the user's error.
BOILERPLATE = re.compile(r"Config search path:|full_key:|See https:")
CONF = Path(__file__).resolve().parents[2] / "conf"


def register() -> None:
    """Make the schema known to Hydra; conf/config.yaml builds on it."""
    ConfigStore.instance().store(name="schema", node=schema())


def compose(overrides: list[str], conf: Path = CONF) -> Config:
    """Compose conf/, or another commit's, with `overrides` in Hydra's syntax, as the scripts do.

    It may be called within a program that itself uses Hydra. Raises ConfigError, of one line.
    """
    with _hydra(conf):
        for override in _parsed(overrides):
            if override.is_sweep_override() and override.get_key_element() in TASK_SETS:
                raise ConfigError(
                    f"{override.input_line}: commas list the values of a sweep; separate sequences "
                    "of colours by +, as in 0-1-2+2-1-0"
                )
        with one_line(*UNREADABLE):
            node = hydra_compose("config", overrides)
    return from_omegaconf(node)


def sweep(overrides: list[str], conf: Path = CONF) -> list[list[str]]:
    """The overrides of each job of `--multirun`: every combination of the values they list.

    They are not composed yet: one that cannot be is no reason against the others. Raises
    ConfigError where the overrides cannot be read, or give no job.
    """
    # As Hydra does, the last override of a key holds, at the place of the first.
    choices: dict[str, list[str]] = {}
    with _hydra(conf):
        for override in _parsed(overrides):
            key = override.get_key_element()
            if override.is_discrete_sweep():
                choices[key] = [f"{key}={value}" for value in override.sweep_string_iterator()]
            elif override.is_sweep_override():
                raise ConfigError(f"{override.input_line}: list the values, as in {key}=1,2")
            else:
                choices[key] = [override.input_line or ""]
            if not choices[key]:
                raise ConfigError(f"{override.input_line} gives no value")
    return [list(job) for job in itertools.product(*choices.values())]


def _parsed(overrides: list[str]) -> Iterator[Override]:
    """Each override as Hydra reads it."""
    parser = OverridesParser.create(GlobalHydra.instance().config_loader())
    for override in overrides:
        try:
            with one_line(*UNREADABLE):
                parsed = parser.parse_override(override)
        except ConfigError as error:
            raise ConfigError(f"{override[:80]!r} is not KEY=VALUE: {str(error)[:200]}") from error
        check_size(parsed.get_key_element(), parsed.value())
        yield parsed


@contextmanager
def one_line(*also: type[Exception]) -> Iterator[None]:
    """Errors of Hydra and YAML, of several lines, and others become ConfigErrors, of one."""
    try:
        yield
    except ConfigError:
        raise
    except (HydraException, OmegaConfBaseException, YAMLError, *also) as error:
        cause = error.__cause__
        text = f"{error}: {cause}" if isinstance(cause, OmegaConfBaseException) else str(error)
        said = BOILERPLATE.split(text)[0]
        raise ConfigError(renamed(text) or " ".join(said.split())) from error


@contextmanager
def _hydra(conf: Path) -> Iterator[None]:
    """Hydra reads its configuration from `conf`; at the end it is as it was before."""
    # What a program, or a notebook, that uses Hydra itself has set up.
    outer = GlobalHydra.instance()
    hydra = outer.hydra
    base = VersionBase.instance()
    version = base.version_base
    job = JobRuntime.instance().get("name")
    store = ConfigStore.instance()
    nodes = store.repo

    try:
        outer.clear()
        store.repo = dict(nodes)
        register()
        with initialize_config_dir(str(conf.absolute()), version_base="1.3"):
            yield
    finally:
        GlobalHydra.set_instance(outer)
        outer.hydra = hydra
        base.version_base = version
        JobRuntime.instance().set("name", job)
        store.repo = nodes
