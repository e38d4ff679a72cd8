"""`matmul_precision` holds for the models of whatever a script starts."""

import runpy
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.lax import Precision

from envs.gridworld import GridWorld
from internal_rl.config import Config
from internal_rl.models.backbone import Backbone, episode_starts
from internal_rl.run import Run
from internal_rl.run import save_config as save
from internal_rl.running import cli, worker
from internal_rl.stages import reinforce
from tests.precision import product_precisions

HIGH = (Precision.HIGH, Precision.HIGH)  # of either factor
SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


@pytest.fixture(autouse=True)
def former_setting() -> Iterator[None]:
    """The setting of the tests' own process comes back."""
    former = jax.config.jax_default_matmul_precision
    yield
    jax.config.update("jax_default_matmul_precision", former)


@pytest.fixture
def precision(env: GridWorld, make_backbone: Callable[[str], Backbone]) -> Callable[[], set[Any]]:
    """() -> precision of the products in a base model's unroll, under the process's setting."""
    backbone = make_backbone("hawk")
    observation = jnp.zeros((1, 3, env.observation_spec.active), jnp.int32)
    return lambda: set(product_precisions(backbone.unroll, observation, episode_starts(1, 3)))


@pytest.mark.parametrize("setting", ["default", "high", "highest"])
def test_a_script_computes_as_the_config_says(
    setting: str, precision: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["work", "experiment=smoke", f"matmul_precision={setting}"])
    found = []
    cli.hydra_main(lambda _: found.append(precision()))
    assert found == [{(Precision(setting), Precision(setting))}]


def test_a_worker_computes_as_its_run_says(
    config: Config, tmp_path: Path, precision: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(replace(config, matmul_precision="high"), tmp_path / "config.json")
    found = []

    def run_seed(*_: Any) -> dict[str, Any]:
        found.append(precision())
        return {}

    monkeypatch.setattr(reinforce, "run_seed", run_seed)
    worker.main(str(tmp_path), "raw_rl", "0")
    assert found == [{HIGH}]


def test_an_evaluation_computes_as_its_run_says(
    config: Config, tmp_path: Path, precision: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(replace(config, matmul_precision="high"), tmp_path)
    save(run.config, tmp_path / "config.json")
    run.finish("internal_rl_0", {})
    start(monkeypatch, "evaluate", str(tmp_path))  # which then misses the models
    assert precision() == {HIGH}


def test_a_benchmark_computes_as_the_config_says(
    precision: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(monkeypatch, "benchmark", "experiment=ant_small", "matmul_precision=high")  # not the ant
    assert precision() == {HIGH}


def start(monkeypatch: pytest.MonkeyPatch, script: str, *arguments: str) -> None:
    """Run a script that ends with an error."""
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    with pytest.raises(SystemExit, match=r"error|^2$"):
        runpy.run_path(str(SCRIPTS / f"{script}.py"), run_name="__main__")
