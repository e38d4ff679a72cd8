"""The ant's paper-size preset runs: every stage at full width for two steps, of short episodes."""

import json

import jax
import pytest

from internal_rl.running.compose import compose
from internal_rl.running.pipeline import run_stages
from internal_rl.running.start import open_run


def test_every_stage_runs_at_full_width(tmp_path):
    summary, lines = check_every_stage(tmp_path, steps=2, batch=2, horizon=24)
    assert summary["expert"]["success_posttraining"] == 0  # it cannot be done by then
    endings = [line["ending_horizon"] for line in lines if line["stage"] == "internal_rl"]
    assert len(endings) == 2
    assert max(endings) > 0


@pytest.mark.slow
def test_every_stage_runs_at_full_length(tmp_path):
    summary, _ = check_every_stage(tmp_path, steps=20, batch=8, horizon=500)
    assert summary["expert"]["success_posttraining"] > 0


@pytest.mark.slow
def test_every_stage_runs_with_compiled_physics_and_seeds_side_by_side(tmp_path):
    """What a GPU does: MJX inside the rollout, RL seeds in one program."""
    settings = ["env.physics=mjx", "reinforce.vmap_seeds=true"]
    _, lines = check_every_stage(tmp_path, steps=2, batch=2, horizon=4, seeds=2, settings=settings)
    assert sum(line["stage"] == "internal_rl" for line in lines) == 4


def check_every_stage(tmp_path, steps, batch, horizon, seeds=1, settings=()):
    config = compose(
        [
            "experiment=ant_paper",
            "tracker=local",
            f"run_dir={tmp_path / 'run'}",
            f"env.horizon={horizon}",
            f"collect.successful_only={horizon >= 500}",
            *(
                f"collect.{name}={2 * batch}"
                for name in ("episodes", "valid_episodes", "expert_episodes")
            ),
            *(f"{stage}.steps={steps}" for stage in ("pretrain", "controllers", "discover")),
            *(
                f"{stage}.batch_size={batch}"
                for stage in ("pretrain", "controllers", "discover", "reinforce")
            ),
            f"reinforce.episodes={steps * batch}",
            "reinforce.test_episodes=8",
            f"reinforce.num_seeds={seeds}",
            "controllers.episodes=2",
            "controllers.trials=1",
            "transitions.untrained_episodes=2",
            *settings,
        ]
    )
    run = open_run(config)
    assert run.env.on_host == (jax.default_backend() == "cpu" and not settings)
    run_stages(run)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert "bayes_nll" not in summary["base"]
    assert summary["base"]["oracle_nll"] < summary["base"]["nll"]
    assert len(summary["internal_rl"]["success"]) == len(summary["raw_rl"]["success"]) == seeds
    assert (tmp_path / "run" / "data" / "star").exists()
    lines = [
        json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    return summary, lines
