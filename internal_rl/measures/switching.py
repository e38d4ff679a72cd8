"""How well switches match the changes of the hidden subgoal (Fig. 6); plain NumPy."""

import numpy as np
from jaxtyping import Bool, Float, Int

from internal_rl.models.metacontroller import SWITCH_THRESHOLD

MIDDLE = (0.1, 0.9)  # beta in here is neither a clear no nor a clear yes


def subgoal_changes(
    subgoal: Int[np.ndarray, "B T"], mask: Bool[np.ndarray, "B T"]
) -> Bool[np.ndarray, "B T"]:
    """Steps at which another subgoal holds than at the step before; never the first step."""
    changes = np.zeros_like(mask)
    changes[:, 1:] = (subgoal[:, 1:] != subgoal[:, :-1]) & mask[:, 1:]
    return changes


def count_matches(
    found: Bool[np.ndarray, "T"], true: Bool[np.ndarray, "T"], tolerance: int = 1
) -> int:
    """Size of the largest one-to-one matching of events at most `tolerance` steps apart."""
    matches = 0
    candidates = list(np.flatnonzero(found))
    for time in np.flatnonzero(true):
        while candidates and candidates[0] < time - tolerance:
            candidates.pop(0)
        if candidates and candidates[0] <= time + tolerance:
            candidates.pop(0)
            matches += 1
    return matches


def f1(found: Bool[np.ndarray, "B T"], true: Bool[np.ndarray, "B T"], tolerance: int = 1) -> float:
    """Harmonic mean of precision and recall over all episodes (0 where nothing matches)."""
    matches = sum(count_matches(f, t, tolerance) for f, t in zip(found, true, strict=True))
    return 2 * matches / max(int(found.sum() + true.sum()), 1)


def switching_scores(
    switch: Float[np.ndarray, "B T"],
    subgoal: Int[np.ndarray, "B T"],
    mask: Bool[np.ndarray, "B T"],
    tolerance: int = 1,
) -> dict[str, float]:
    """Scores of beta [B, T] without the first step, where it is 1 by definition.

    switch_f1: a switch may miss a change of the subgoal by `tolerance` steps.
    switch_f1_within_1: by one step.
    random_f1, random_f1_within_1: the same of switches drawn at random at the same rate, which is
    what chance gives.
    switch_rate, true_switch_rate: share of steps with an open switch, with a change of the subgoal.
    mid_share: share of steps at which beta is neither a clear no nor a clear yes.
    """
    counted = mask.copy()
    counted[:, 0] = False
    found = (switch >= SWITCH_THRESHOLD) & counted
    true = subgoal_changes(subgoal, mask)
    rate = float(found[counted].mean())
    random = (np.random.default_rng(0).random(switch.shape) < rate) & counted
    middle = (switch > MIDDLE[0]) & (switch < MIDDLE[1])
    return {
        "switch_f1": f1(found, true, tolerance),
        "random_f1": f1(random, true, tolerance),
        "switch_f1_within_1": f1(found, true, 1),
        "random_f1_within_1": f1(random, true, 1),
        "switch_rate": rate,
        "true_switch_rate": float(true[counted].mean()),
        "mid_share": float(middle[counted].mean()),
    }
