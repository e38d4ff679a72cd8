"""The paper-size preset runs: every stage at full width for a few steps.

Its figures: tests/internal_rl/test_config.py.
"""

import json

import pytest

from internal_rl.config import Config
from internal_rl.running.compose import compose
from internal_rl.running.pipeline import run_stages
from internal_rl.running.start import open_run


def run_paper_preset(directory, steps: int, batch: int | None) -> tuple[Config, dict]:
    """`steps` of every stage with `batch` episodes a step, None: with the paper's batches."""
    sizes = [
        f"{stage}.batch_size={batch}"
        for stage in ("pretrain", "controllers", "discover", "reinforce")
    ]
    episodes = steps * (batch or compose(["experiment=grid_paper"]).reinforce.batch_size)
    config = compose(
        [
            "experiment=grid_paper",
            "tracker=local",
            f"run_dir={directory}",
            *(f"{stage}.steps={steps}" for stage in ("pretrain", "controllers", "discover")),
            *(sizes if batch else ()),
            *(
                f"{stage}.micro_batch={batch // 2 if batch else 64}"
                for stage in ("pretrain", "discover")
            ),
            f"reinforce.episodes={episodes}",
            "reinforce.test_episodes=8",
            "reinforce.num_seeds=1",
            "collect.valid_episodes=4",
            "controllers.episodes=2",
            "controllers.trials=1",
            "transitions.untrained_episodes=2",
        ]
    )
    run_stages(open_run(config))
    return config, json.loads((directory / "summary.json").read_text())


def test_every_stage_runs_at_full_width(tmp_path):
    check_every_stage(tmp_path, steps=2, batch=2)


@pytest.mark.slow
def test_every_stage_runs_at_full_size(tmp_path):
    check_every_stage(tmp_path, steps=20, batch=None)


def check_every_stage(tmp_path, steps, batch):
    config, summary = run_paper_preset(tmp_path / "run", steps, batch)
    assert summary["base"]["oracle_nll"] < summary["base"]["bayes_nll"] < summary["base"]["nll"]
    assert summary["internal_rl"]["episodes"] == steps * config.reinforce.batch_size
    assert len(summary["internal_rl"]["success"]) == len(summary["raw_rl"]["success"]) == 1
    check_pairs(summary)


def check_pairs(summary: dict) -> None:
    """Controllers, transitions and F1 are those of Table A1's pairs; F1 by colours, too."""
    discovery, controllers = summary["discovery"], summary["controllers"]
    names = ("start>0-1", "0-1>2-3", "2-3>4-5", "4-5>6-7", "6-7>0-1")
    along = [f"{position}: {name}" for position, name in enumerate((*names, "0-1>2-3"))]
    assert list(controllers["by_transition"]) == along
    unseen = discovery["unseen_transitions"]  # without those that untrained controllers never reach
    assert set(unseen) == {"base", "prior", "same_code", "first_code", "start"}
    assert all("start>0-1" in rates and set(rates) <= set(names) for rates in unseen.values())
    assert (
        unseen.keys()
        == discovery["redrawn_transitions"].keys()
        == discovery["transition_trials"].keys()
    )
    assert {"switch_f1", "switch_f1_colours", "random_f1_colours", "nll_hard"} <= set(discovery)
    # The subgoal changes at most half as often as the colour: 2 against 5 times for three pairs.
    assert discovery["true_switch_rate"] < 0.1
