"""Hydra's side of the configuration: conf/ and overrides become a typed config."""

from pathlib import Path

from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException

from internal_rl.config import Config, ConfigError
from internal_rl.validation import from_omegaconf, renamed, schema

CONF = Path(__file__).resolve().parents[2] / "conf"


def register() -> None:
    """Make the schema known to Hydra; conf/config.yaml builds on it."""
    ConfigStore.instance().store(name="schema", node=schema())


def compose(overrides: list[str], conf: Path = CONF) -> Config:
    """Compose conf/, or another commit's, with `overrides` in Hydra's syntax, as the scripts do."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir

    register()
    with initialize_config_dir(str(conf), version_base="1.3"):
        try:
            node = hydra_compose("config", overrides)
        except HydraException as error:
            text = f"{error}: {error.__cause__}" if error.__cause__ else str(error)
            raise ConfigError(renamed(text) or text) from error
    return from_omegaconf(node)
