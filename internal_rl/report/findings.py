"""What the files of a run say, as numbers and sentences."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from internal_rl.config import RunError
from internal_rl.measures.alarms import CLEARLY_WORSE
from internal_rl.measures.legs import ENOUGH, Outlook, outlook
from internal_rl.report.figures import (
    ALGORITHMS,
    Curves,
    MissingDataError,
    Summary,
    drawn_curves,
)
from internal_rl.training import files
from internal_rl.training.files import FileError
from internal_rl.training.tracking import Lines

# Median success relative to the expert's: from the first a task counts as solved, below the second
# as unsolved.
SOLVED = 0.6
UNSOLVED = 0.1
NO_VALUE = "\N{EN DASH}"


class NotARunError(RunError, ValueError):
    """The directory does not hold a run."""


@dataclass(frozen=True)
class RunRecord:
    """What the files of a run directory say.

    summary: {} where there is none yet.
    curves: what is drawn of metrics.jsonl.
    config: the settings of the run.
    notes: what the report lacks and why, in sentences.
    """

    directory: Path
    summary: Summary = field(default_factory=dict)
    curves: Curves = field(default_factory=dict)
    config: Summary = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def part(self, name: str) -> Summary:
        """A dict of the summary, {} where it is absent."""
        part = self.summary.get(name)
        return part if isinstance(part, dict) else {}

    def arrays(self, name: str) -> dict[str, np.ndarray]:
        """Content of an .npz file; raises MissingDataError where it is absent or damaged."""
        path = self.directory / name
        if not path.exists():
            raise MissingDataError(f"no {name}")
        try:
            return files.read_arrays(path, "")
        except (FileError, OSError) as error:
            why = _what_is_wrong(error, self.directory).removeprefix(f"{name} ")
            why = why.removeprefix("is damaged: ")
            raise MissingDataError(f"{name} cannot be read: {why}") from error


def read_run(run_dir: Path) -> RunRecord:
    """Read what the files of a run, finished or not, say; what is damaged is left out.

    Raises NotARunError where there is no config.json, and FileError where it is damaged.
    """
    config = _config(run_dir)
    summary, notes = _summary(run_dir)

    # What is drawn of the metrics.
    curves: Curves = {}
    lines = Lines(run_dir)
    try:
        curves = drawn_curves(lines)
    except FileError as error:
        notes.append(f"{_what_is_wrong(error, run_dir)}.")
    if lines.damaged:
        count = "1 damaged line" if lines.damaged == 1 else f"{lines.damaged} damaged lines"
        notes.append(f"Left out: {count} of metrics.jsonl.")
    return RunRecord(run_dir, summary, curves, config, notes)


def _config(run_dir: Path) -> Summary:
    """The settings of the run: without them a directory is none."""
    path = run_dir / "config.json"
    remedy = "restore it from a copy"
    if not path.exists():
        raise NotARunError(f"{run_dir} is not a run directory: no config.json in it")
    config = files.read_json(path, remedy)
    if not isinstance(config.get("env"), dict):
        raise FileError(f"{path} is damaged: it holds no settings; {remedy}")
    return config


def _summary(run_dir: Path) -> tuple[Summary, list[str]]:
    """summary.json, or what can be known without it; and what is wrong with its files."""
    path = run_dir / "summary.json"
    results = sorted((run_dir / "results").glob("*.json"))
    damaged = [wrong for each in results if (wrong := _damage(each, run_dir))]

    # The summary holds the numbers of results that have been damaged since.
    wrong = _damage(path, run_dir) if path.exists() else "No summary.json: the run has not finished"
    if wrong is None:
        notes = [f"{each}; the numbers here are from summary.json." for each in damaged]
        return files.read_json(path, ""), notes
    notes = [f"{wrong}."]
    if not results:
        return {}, notes

    # The stages, which know what their results mean, are imported for nothing else here.
    from internal_rl.report.summary import summarise
    from internal_rl.run import Run, load_config

    notes += [f"{each}; its numbers are left out." for each in damaged]
    try:
        return summarise(Run(load_config(run_dir / "config.json"), run_dir)), notes
    except Exception as error:  # noqa: BLE001  results that were altered, or are of other versions
        return {}, [*notes, f"Left out: the results of the stages ({error})."]


def _damage(path: Path, run_dir: Path) -> str | None:
    """What is wrong with a JSON file of the run, None if nothing."""
    try:
        files.read_json(path, "")
    except FileError as error:
        return _what_is_wrong(error, run_dir)
    return None


def _what_is_wrong(error: Exception, run_dir: Path) -> str:
    """A message without its remedy, which is not the reader's, and without the folder."""
    return str(error).replace(f"{run_dir}/", "").split("; ")[0]


def number(value: float | None, digits: int = 3) -> str:
    """A value with so many decimals; a dash where there is none."""
    return NO_VALUE if value is None else f"{value:.{digits}f}"


def _outcome(record: RunRecord, stage: str) -> str | None:
    """'0.926 (median of 3 seeds, quartiles 0.90 to 0.95)', None before the first test."""
    success = record.part(stage).get("success") or []
    if not success:
        return None
    rates = np.where(np.isfinite(success), success, np.nan)
    low, median, high = np.quantile(rates, [0.25, 0.5, 0.75])
    if len(success) == 1:
        return f"{median:.3f} (1 seed)"
    return f"{median:.3f} (median of {len(success)} seeds, quartiles {low:.3f} to {high:.3f})"


def verdict(record: RunRecord) -> str:
    """The run in one sentence."""
    internal = _outcome(record, "internal_rl")
    raw = _outcome(record, "raw_rl")
    if internal is None and raw is None:
        return "This run holds no reinforcement learning result yet."

    # The two rates, and after how many episodes.
    known = record.part("internal_rl") or record.part("raw_rl")
    episodes = known.get("episodes")
    trained = [n for name in ALGORITHMS for n in record.part(name).get("episodes_trained", [])]
    task = known.get("task", "of the run")
    most = "at most " if any(n < episodes for n in trained) else ""
    budget = f" after {most}{episodes:,} episodes per seed" if episodes else ""
    numbers = (
        f"on task {task} internal RL succeeds at a rate of {internal or 'nothing yet (not run)'}, "
        f"raw-action RL at {raw or 'nothing yet (not run)'}{budget}."
    )
    if internal is None or raw is None:
        return numbers[0].upper() + numbers[1:]

    # What they come to, relative to an expert that may not be perfect.
    ours = float(np.median(record.part("internal_rl")["success"]))
    theirs = float(np.median(record.part("raw_rl")["success"]))
    best = record.part("expert").get("success_posttraining", 1.0)
    if not np.isfinite([ours, theirs, best]).all():
        return numbers[0].upper() + numbers[1:]
    if ours >= SOLVED * best and theirs < UNSOLVED * best:
        return f"Internal RL solves a sparse task that raw-action RL does not: {numbers}"
    if ours > theirs:
        return f"Internal RL does better than raw-action RL, short of a clear separation: {numbers}"
    return f"Internal RL does not beat raw-action RL here: {numbers}"


def cards(record: RunRecord) -> Iterator[tuple[str, str, str]]:
    """(value, what it is, its yardstick) of the headline numbers that the run holds."""
    base = record.part("base")
    found = record.part("discovery")
    supervised = record.part("controllers")

    # The base model: how well it infers the hidden task.
    if base.get("nll") is not None:
        bayes = number(base.get("bayes_nll"))
        oracle = number(base.get("oracle_nll"))
        yield (
            number(base["nll"]),
            "base model's action NLL",
            f"Bayes-optimal {bayes}, oracle {oracle}",
        )

    # The switch: whether it opens where the expert's subgoal changes, and is open or shut.
    if found.get("switch_f1") is not None:
        rate = number(found.get("switch_rate"))
        true_rate = number(found.get("true_switch_rate"))
        chance = f"random switches of the same rate {number(found.get('random_f1'))}"
        yield (
            number(found["switch_f1"]),
            "F1 of switches",
            f"{chance}; switch rate {rate}, true {true_rate}",
        )
    if found.get("nll_hard") is not None:
        soft = f"beta as it is {number(found.get('nll'))}; a wide gap means that codes are mixed"
        yield number(found["nll_hard"]), "NLL with a hard switch, as RL has it", soft
    if found.get("mid_share") is not None:
        share = f"{found['mid_share']:.1%}"
        yield share, "of \N{GREEK SMALL LETTER BETA} in the middle", "0 if quasi-binary"

    # The latent: whether the steered base model uses it.
    if found.get("nll_permuted") is not None and found.get("base_nll") is not None:
        alone = number(found["base_nll"])
        bar = number(found["base_nll"] + CLEARLY_WORSE)
        yardstick = f"base {alone}; z is in use if clearly worse, above {bar}"
        yield number(found["nll_permuted"]), "NLL under permuted z", yardstick

    # RL: how many successes there are to learn from before anything is learned.
    if (expected := _outlook(record)) is not None:
        yardstick = f"below {ENOUGH:.0f} an RL seed may never start"
        yield f"{expected.expected:.3g}", "successes expected before RL learns", yardstick

    # Supervised controllers: whether the residual stream can be steered at all.
    if supervised.get("success") is not None:
        success = number(supervised["success"])
        yield success, "success of supervised controllers", "0.5 to 0.7 in the paper"


def accuracies(record: RunRecord) -> str:
    """What the nearest neighbour says about the codes, as sentences."""
    measured = record.part("discovery").get("code_accuracy") or {}
    if measured.get("place") == measured.get("subgoal"):  # on a single map they are the same
        measured = {"subgoal": measured.get("subgoal") or {}}

    sentences = []
    for label, scores in measured.items():
        if scores.get("all") is None:
            continue
        ordinals = sorted(filter(str.isdigit, scores), key=int)
        by_order = ", ".join(number(scores[ordinal], 2) for ordinal in ordinals)
        detail = f" ({by_order} for the first, second, ... of an episode)" if by_order else ""
        sentences.append(
            f" Nearest neighbour finds the {label} with accuracy {number(scores['all'], 2)}"
            f"{detail}; chance {number(scores.get('chance'), 2)}."
        )
    return "".join(sentences)


def before(record: RunRecord) -> str:
    """Success before training, as a sentence."""
    parts = []
    for stage, (label, _) in ALGORITHMS.items():
        success = record.part(stage).get("before")
        if success is not None and np.size(success):
            parts.append(f"{label} {np.median(success):.4f}")
    return f" Before training: {', '.join(parts)}." if parts else ""


def untrained(record: RunRecord) -> str:
    """How often the policy succeeds before RL, as a sentence."""
    found = record.part("discovery").get("untrained")
    if not found:
        return ""
    successes = f"{found['successes']:,}"
    episodes = f"{found['episodes']:,}"
    return f" Before RL the policy succeeded in {successes} of {episodes} episodes of the task."


def _outlook(record: RunRecord) -> Outlook | None:
    """What RL could expect before it started."""
    found = record.part("discovery")
    measured = {
        "redrawn": found.get("redrawn_transitions") or {},
        "trials": found.get("transition_trials") or {},
        "chance": found.get("task_chance") or {},
        "untrained": found.get("untrained"),
    }
    episodes = record.part("internal_rl").get("episodes")
    return outlook(measured, episodes) if episodes else None


def expectation(record: RunRecord) -> str:
    """How many first successes the budget of RL held and, where too few, why; as sentences."""
    expected = _outlook(record)
    return "" if expected is None else f"{expected.sentence()} {expected.advice()}".strip()


def recorded_episode(record: RunRecord) -> str:
    """What the animation shows; empty where no episode has been recorded."""
    try:
        rollout = record.arrays("rollout.npz")
    except MissingDataError:
        return ""
    succeeded = bool(rollout["success"])
    choice = "the first success" if succeeded else "an episode without success, as all were,"
    return (
        f"A yellow border and a yellow mark on the timeline say that the switch opened and the "
        f"policy chose a new latent: {int(rollout['switch'].sum())} decisions for "
        f"{len(rollout['index']) - 1} steps (the temporally abstract control of Fig. 8). The strip "
        f"is the task, which the agent does not see. Shown is {choice} among fresh episodes of the "
        f"first seed's policy."
    )
