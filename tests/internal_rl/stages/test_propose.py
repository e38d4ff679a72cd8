"""Fitting the proposal finds subgoals nobody named."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from envs.api import MultiHot
from internal_rl.config import Config, OptimConfig, ProposeConfig
from internal_rl.run import Run
from internal_rl.stages.propose import Fit, Openings, Reader, count_codes, purity
from internal_rl.trained import fresh_proposal
from internal_rl.training.tracking import Tracker


@pytest.mark.parametrize("first_codes", [False, True])
def test_codes_are_read_where_the_switch_opens(first_codes: bool) -> None:
    """Real steps only; of first steps only where the proposal is to be fitted to those."""
    latent = jnp.arange(8.0).reshape(2, 4, 1)
    switch = jnp.array([[1.0, 0.1, 0.9, 0.2], [1.0, 0.2, 0.3, 0.8]])
    reader = object.__new__(Reader)
    reader.seed, reader.first_codes = 0, first_codes
    reader.infer = lambda batch, key: SimpleNamespace(
        switch=switch, latent=latent, posterior=SimpleNamespace(mean=-latent)
    )
    mask = np.array([[True] * 4, [True] * 3 + [False]])
    codes, opened = reader(
        SimpleNamespace(mask=mask, observation=np.asarray(latent) + 10), "propose.codes", 0
    )
    steps = [0, 4] if first_codes else [0, 2, 4]
    assert np.flatnonzero(opened).tolist() == steps
    assert codes.latent[:, 0].tolist() == steps
    assert codes.mean[:, 0].tolist() == [-step for step in steps]
    assert codes.observation[:, 0].tolist() == [step + 10 for step in steps]


def test_purity_by_hand() -> None:
    matches = count_codes(np.array([0, 0, 0, 1, 1, 3]), np.array([2, 2, 0, 1, 0, 0]), (4, 4))
    assert matches.tolist() == [[1, 0, 2, 0], [1, 1, 0, 0], [0, 0, 0, 0], [1, 0, 0, 0]]
    assert purity(matches) == pytest.approx((2 + 1 + 1) / 6)


# --- fitting ------------------------------------------------------------------------------------


def hidden_maps(count: int, seed: int) -> tuple[Openings, np.ndarray]:
    """Codes and their subgoals: three linear maps of the place of 'their' object.

    The observation holds one index for each of three objects on a line of eight cells; the code of
    subgoal k is a function of the cell of object k, and a second latent dimension holds nothing.
    Where object 0 is in cell 0 (think: with the agent) subgoal 1 never follows.
    """
    rng = np.random.default_rng(seed)
    cells, subgoal = rng.integers(8, size=(count, 3)), rng.integers(3, size=count)
    subgoal = np.where((cells[:, 0] == 0) & (subgoal == 1), 2, subgoal)
    mean = code_of(cells, subgoal)
    latent = mean + rng.normal(size=mean.shape) * [0.05, 1.0]
    return Openings(cells + 8 * np.arange(3), latent.astype(np.float32), mean), subgoal


def code_of(cells: np.ndarray, subgoal: np.ndarray) -> np.ndarray:
    place = cells[np.arange(len(cells)), subgoal]
    return np.stack([(place - 3.5) / 2, np.zeros(len(cells))], 1).astype(np.float32)


@pytest.fixture(scope="module")
def world() -> Any:
    return SimpleNamespace(observation_spec=MultiHot(24, 3))


@pytest.fixture(scope="module")
def settings(config: Config) -> Config:
    fast = OptimConfig(5e-2, weight_decay=0.0, clip=None, final_fraction=0.0)
    propose = ProposeConfig(
        components=4, candidates=16, steps=600, keep_steps=100, batch_size=256, optim=fast
    )
    return replace(config, propose=propose, metacontroller=replace(config.metacontroller, latent=2))


def run_in(world: Any, settings: Config, directory: Path) -> Run:
    """A run in a world that is not made from its settings."""
    run = Run(settings, directory)
    run.__dict__["env"] = world  # where the cached property keeps it
    return run


def test_fitting_finds_the_subgoals(settings: Config, world: Any, tmp_path: Path) -> None:
    held_out, subgoal = hidden_maps(2_000, seed=1)
    with Tracker(tmp_path) as tracker:
        fit = Fit(run_in(world, settings, tmp_path), hidden_maps(6_000, seed=0)[0], tracker)
        kept = fit.heaviest(fit.first(0), 0)
    log_prob, component = fit.judge(kept, held_out)
    matches = count_codes(component, subgoal, (4, 3))
    assert purity(matches.sum(0, keepdims=True)) < 0.4
    assert purity(matches) > 0.7  # two objects in one cell cannot be told apart
    # For the whole latent: the second dimension is standard normal there, and held nothing.
    assert fit.active.tolist() == [True, False]
    proposal = fresh_proposal(world, 2, 4).with_params(fit.proposal(kept)).module()
    density = proposal(held_out.observation).log_prob(held_out.latent)
    density -= scipy.stats.norm.logpdf(held_out.latent[:, 1])
    assert float(density.mean()) == pytest.approx(log_prob, rel=1e-4)
    # Subgoal 1 where it was never seen: object 0 in cell 0, object 1 anywhere.
    cells = np.array([[0, place, 5] for place in range(8)])
    proposed = proposal.means(cells + 8 * np.arange(3))[:, matches[:, 1].argmax(), 0]
    np.testing.assert_allclose(proposed, code_of(cells, np.ones(8, int))[:, 0], atol=0.3)


def test_constant_experts_read_nothing_and_find_clusters(
    settings: Config, world: Any, tmp_path: Path
) -> None:
    """Three clusters; the observation tells nothing (or, to linear ones, whatever noise it is)."""
    rng = np.random.default_rng(0)
    centres = np.array([[-2.0, 1.0], [0.0, -1.5], [2.0, 1.0]], np.float32)
    subgoal = rng.integers(3, size=3_000)
    latent = (centres[subgoal] + 0.3 * rng.normal(size=(3_000, 2))).astype(np.float32)
    observation = rng.integers(8, size=(3_000, 3)) + 8 * np.arange(3)
    constant = replace(
        settings, propose=replace(settings.propose, components=5, candidates=5, linear=False)
    )
    with Tracker(tmp_path) as tracker:
        codes = Openings(observation, latent, centres[subgoal])
        fit = Fit(run_in(world, constant, tmp_path), codes, tracker)
        first = fit.first(0)
        kept = fit.heaviest(first, 0)
    # What reads nothing has no features to lose.
    assert not (tmp_path / "propose" / "propose_supported_0").exists()
    for model in (first, kept):
        assert not np.asarray(model.params["table"]).any()
    assert purity(count_codes(fit.judge(kept, fit.codes)[1], subgoal, (5, 3))) > 0.98
    apart = np.linalg.norm(np.asarray(kept.params["bias"])[:, None] - centres, axis=-1)
    assert (apart.min(0) < 0.2).all()  # each cluster has a component
    moved = kept.module().means(jnp.array([[0, 8, 16], [7, 15, 23]]))
    np.testing.assert_array_equal(moved[0], moved[1])


def test_support_by_hand(settings: Config, world: Any, tmp_path: Path) -> None:
    """Two components, told apart by the latent: features 0 and 1 are met by one each, 2 by both."""
    observation = np.array([[0, 2], [1, 2], [1, 2], [1, 2]])
    latent = np.array([[-1.0, 0], [1.0, 0], [1.0, 0], [1.0, 0]], np.float32)
    rng = np.random.default_rng(0)
    codes = Openings(
        observation, latent, latent + 0.01 * rng.normal(size=latent.shape).astype(np.float32)
    )
    with Tracker(tmp_path) as tracker:
        fit = Fit(run_in(world, settings, tmp_path), codes, tracker)
    model = fresh_proposal(world, latent=1, components=2)
    table = jnp.zeros_like(model.params["table"])
    bias = jnp.array([[-1.0], [1.0]])
    support = fit.support(model.with_params({**model.params, "table": table, "bias": bias}))
    np.testing.assert_allclose(support[:3], [[4, 0], [0, 4 / 3], [1, 1]], atol=1e-5)
    assert not support[3:].any()
