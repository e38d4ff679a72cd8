"""What `dry_run` counts, beside numbers worked out by hand."""

from dataclasses import replace

import pytest

from internal_rl.config import (
    Config,
    ControllersConfig,
    DiscoverConfig,
    EnvConfig,
    MetacontrollerConfig,
    ModelConfig,
    PolicyConfig,
    PretrainConfig,
    ProposeConfig,
    ReinforceConfig,
    TransitionsConfig,
)
from internal_rl.running.dry_run import count_rows, describe

# Forward FLOPs of a time step, two a multiply-add:
# base model: 2 blocks of 5 * 2^2 (Hawk) + 2 * 2 * 3 (MLP) = 32, so 128, half of it below the cut.
BASE = 128
# metacontroller: history 3 * 1 * 3, embedder 3 * 1 * 3, encoder 1 * (4 + 2), switch 1 * (3 + 1),
# hypernetwork 1 * (1 + 4) + 4 for U = B^T A of rank 1: 37.
META = 74
# controllers: A and B of 2 subgoals, rank 1, width 2: 8.
GOAL = 16
# policy: GRU 3 * 1 * (2 + 1), MLP 1 * 1 + 1 * 1: 11.
DECISION = 22
# a latent of one expert for an observation of 2 colours and the agent's cell: 3.
EXPERT = 6
HORIZON = 10


@pytest.fixture(scope="module")
def config() -> Config:
    """Two colours on nine cells; 0-1-0 takes the transition 1>0, which pretraining never shows."""
    env = EnvConfig(size=3, num_colours=2, num_walls=0, horizon=HORIZON, num_maps=1)
    return Config(
        env=replace(env, tasks="0-1", post_tasks="0-1-0"),
        model=ModelConfig(depth=2, width=2, mlp_width=3, control_layer=1),
        pretrain=PretrainConfig(steps=5, batch_size=2),
        controllers=ControllersConfig(steps=3, batch_size=4, rank=1, episodes=7, trials=11),
        metacontroller=MetacontrollerConfig(
            history_width=1,
            embedding_width=1,
            latent=1,
            encoder_width=1,
            switch_width=1,
            hypernetwork_width=1,
            rank=1,
        ),
        discover=DiscoverConfig(steps=6, batch_size=3),
        propose=ProposeConfig(
            components=2, candidates=5, codes=13, restarts=2, steps=4, keep_steps=3, batch_size=8
        ),
        policy=PolicyConfig(width=1, mlp_width=1),
        transitions=TransitionsConfig(untrained_episodes=5),
        reinforce=ReinforceConfig(
            episodes=48,
            batch_size=24,
            epochs=4,
            minibatches=2,
            max_decisions=3,
            test_episodes=9,
        ),
    )


def without_proposal(config: Config) -> Config:
    return replace(config, propose=replace(config.propose, components=0))


def counted(config: Config) -> dict[str, tuple[int, float]]:
    return {row.stage: (row.steps, row.flops) for row in count_rows(config)}


def test_work_of_every_stage_by_hand(config: Config) -> None:
    two_experts = 2 * EXPERT
    assert counted(config) == {
        "pretrain": (5, 3 * BASE * 5 * 2 * HORIZON),
        # learns through a frozen base model, then plays
        "controllers": (3, (2 * BASE + 3 * GOAL) * 3 * 4 * HORIZON + (BASE + GOAL) * 7 * HORIZON),
        "discover": (6, (2 * BASE + 3 * META) * 6 * 3 * HORIZON),
        # 13 episodes read; 2 fits of 5 candidates, 4 steps each; 2 of 2 experts, 3 steps each
        "propose": (
            2 * 4 + 2 * 3,
            (BASE / 2 + META) * 13 * HORIZON + 3 * EXPERT * 8 * (2 * 4 * 5 + 2 * 3 * 2),
        ),
        # two legs, start>0 and 1>0, from six sources; 5 episodes of the untrained policy
        "transitions": (
            6,
            ((BASE + GOAL + META + two_experts) * 6 * 2 * 11 + (BASE + META + 24 + two_experts) * 5)
            * HORIZON,
        ),
        # a test of 9 episodes before and after; 2 updates of 4 epochs of 2 minibatches
        "internal_rl, playing": (2, (BASE + META + 24 + two_experts) * (48 + 2 * 9) * HORIZON),
        "internal_rl, learning": (16, 3 * (24 + two_experts) * 48 * 4 * 3),
        "raw_rl, playing": (2, BASE * (48 + 2 * 9) * HORIZON),
        "raw_rl, learning": (16, 3 * BASE * 48 * 4 * HORIZON),
    }  # 24: the policy has an output more than without a proposal, one for each expert


def test_without_a_proposal_there_is_a_source_less(config: Config) -> None:
    rows = counted(without_proposal(config))
    assert "propose" not in rows
    played = (BASE + GOAL + META) * 5 * 2 * 11 + (BASE + META + DECISION) * 5
    assert rows["transitions"] == (5, played * HORIZON)
    assert rows["internal_rl, learning"] == (16, 3 * DECISION * 48 * 4 * 3)


@pytest.mark.parametrize("never", ["forced switch", "all seen"])
def test_only_the_untrained_policy_is_played_where_there_are_no_legs(
    config: Config, never: str
) -> None:
    if never == "forced switch":
        forced = replace(config.metacontroller, force_switch=True)
        config = replace(config, metacontroller=forced)
    else:
        config = replace(config, env=replace(config.env, post_tasks="0-1"))
    two_experts = 2 * EXPERT
    assert counted(config)["transitions"] == (6, (BASE + META + 24 + two_experts) * 5 * HORIZON)


def test_pieces_of_a_batch_need_less_memory(config: Config) -> None:
    def memory(config: Config) -> dict[str, float]:
        return {row.stage: row.floats for row in count_rows(config)}

    pieces = replace(config, pretrain=replace(config.pretrain, micro_batch=1))
    activations = 2 * 16 * 2  # blocks, numbers a channel, channels
    assert memory(config)["pretrain"] - memory(pieces)["pretrain"] == HORIZON * activations


@pytest.mark.parametrize(
    ("mixer", "kept"),
    [
        ("hawk", 2 * 4 * 2),  # blocks, numbers a channel, channels
        ("transformer", 2 * 2 * HORIZON * 5),  # blocks, key and value, steps, one head of width 5
    ],
)
def test_memory_of_a_played_episode_by_hand(config: Config, mixer: str, kept: int) -> None:
    model = replace(config.model, mixer=mixer, head_width=5)
    floats = {row.stage: row.floats for row in count_rows(replace(config, model=model))}
    activations = 2 * HORIZON * 2 * 16 * 2  # of two episodes of pretraining
    parameters = (floats["pretrain"] - activations) / 4
    recorded = HORIZON * 3  # indices that the observations are passed around as
    assert floats["raw_rl, playing"] == parameters + 24 * (kept + recorded)


def test_the_table_names_every_stage_and_what_is_assumed(config: Config) -> None:
    text = describe(without_proposal(config))
    for stage in counted(without_proposal(config)):
        assert f"\n{stage} " in text
    assert "raw RL learns only from those with a success" in text
    assert "controllers.trials episodes per leg and source" in text
