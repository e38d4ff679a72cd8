"""What a stage's result warns of, in words: the first signs of docs/troubleshooting.md."""

from collections.abc import Iterator, Mapping
from typing import Any

BASE_GAP = 0.01  # nats per step between a base model and the Bayes filter
CLEARLY_WORSE = 0.1  # nats per step that permuted latents cost at least where they are used
FEW_OPENINGS = 0.1  # of those that the subgoals change at
BETTER_THAN_RANDOM = 0.2  # in F1, of switches
MANY_HALF_OPEN = 0.3  # share of steps


def alarms(stage: str, result: Mapping[str, Any]) -> list[str]:
    """One sentence per diagnostic of a stage that looks bad; [] for other stages.

    A diagnostic that the result does not hold, for want of labels say, raises none.
    """
    known = {"pretrain": _of_base, "discover": _of_discovery}
    numbers = {name: value for name, value in result.items() if isinstance(value, int | float)}
    return list(known[stage](numbers)) if stage in known else []


def _of_base(found: Mapping[str, float]) -> Iterator[str]:
    gap = found.get("nll", 0.0) - found.get("bayes_nll", float("inf"))
    if gap > BASE_GAP:
        yield (
            f"the base model's NLL is {gap:.3f} nats per step above Bayes-optimal: it does not "
            "infer the task as well as can be; train longer (pretrain.steps)"
        )


def _of_discovery(found: Mapping[str, float]) -> Iterator[str]:
    # The latent: taking another episode's must cost.
    permuted, base = found.get("nll_permuted"), found.get("base_nll")
    if permuted is not None and base is not None and permuted < base + CLEARLY_WORSE:
        yield (
            f"z is not used: with another episode's z the NLL is {permuted:.3f}, the base model's "
            f"alone {base:.3f}; lower discover.alpha or train longer (discover.steps)"
        )

    # The switch: whether it opens at all, where it should, and fully.
    rate, true_rate = found.get("switch_rate"), found.get("true_switch_rate")
    if rate is not None and true_rate is not None and rate < FEW_OPENINGS * true_rate:
        yield (
            f"the switch is dead: z is replaced at {rate:.2%} of the steps, the subgoal changes at "
            f"{true_rate:.2%}; lower discover.alpha"
        )
        return
    f1, random_f1 = found.get("switch_f1"), found.get("random_f1")
    if f1 is not None and random_f1 is not None and f1 < random_f1 + BETTER_THAN_RANDOM:
        yield (
            f"the switch does not open where subgoals change: F1 {f1:.3f}, random switches "
            f"{random_f1:.3f}; train longer (discover.steps), or change discover.alpha"
        )
    if found.get("mid_share", 0.0) > MANY_HALF_OPEN:
        yield (
            f"the switch is half open at {found['mid_share']:.0%} of the steps: codes are mixed as "
            "internal RL cannot mix them; train longer (discover.steps)"
        )
