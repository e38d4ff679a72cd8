"""The report of a run: one HTML file that opens without a network, and its pictures under figures/."""

import base64
import json
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from internal_rl.analysis import animation, figures
from internal_rl.analysis.figures import MissingDataError
from internal_rl.tracking import read_metrics

SOLVED, UNSOLVED = 0.6, 0.1  # median success, by the expert's, from which a task counts as solved, and unsolved below
CLEARLY_WORSE = 0.1  # nats: the permuted z must cost this much more than the base model
NO_VALUE = "\N{EN DASH}"

STYLE = """
:root { color-scheme: light dark; --ink: #1c1f23; --soft: #5b626b; --line: #dfe2e6; --page: #fafafa;
  --card: #fff; --accent: #0072b2; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e6e9; --soft: #9ba3ad; --line: #33383f;
  --page: #16181b; --card: #1e2125; --accent: #5ab0e4; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 28px 18px 60px; }
h1 { font-size: 1rem; font-weight: 600; color: var(--soft); margin: 0 0 6px; }
h2 { font-size: 1.1rem; margin: 40px 0 10px; }
.verdict { font-size: 1.4rem; line-height: 1.35; margin: 0 0 22px; text-wrap: pretty; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(165px, 1fr)); gap: 10px; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 12px 14px; }
.card b { display: block; font-size: 1.55rem; font-weight: 600; font-variant-numeric: tabular-nums; }
.card span { display: block; font-size: .86rem; }
.card small, figcaption, .missing, .note { color: var(--soft); font-size: .86rem; line-height: 1.45; }
.card small { display: block; margin-top: 4px; }
.figures { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 18px; margin-top: 26px; }
.wide { grid-column: 1 / -1; }
figure { margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 12px; }
figure h3 { font-size: .98rem; margin: 0 2px 8px; }
.frame { overflow-x: auto; background: #fff; border-radius: 5px; }
.frame img { display: block; width: 100%; height: auto; margin: 0 auto; }
.wide .frame img { max-width: 900px; }
figure.rollout .frame { background: none; }
figure.rollout img { width: auto; max-width: 100%; border-radius: 5px; }
figcaption { margin: 9px 2px 2px; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
td, th { padding: 4px 28px 4px 0; border-bottom: 1px solid var(--line); text-align: left; font-weight: 400; }
td:last-child { text-align: right; padding-right: 0; }
details { border-top: 1px solid var(--line); padding: 10px 0; }
summary { cursor: pointer; }
pre { overflow-x: auto; font-size: .82rem; line-height: 1.4; }
@media (max-width: 720px) { .figures { grid-template-columns: minmax(0, 1fr); } .verdict { font-size: 1.2rem; }
  .wide:not(.rollout) .frame img { min-width: 560px; } }
"""


class NotARunError(ValueError):
    """The directory does not hold a run."""


@dataclass(frozen=True)
class RunRecord:
    """What the files of a run directory say. summary is {} until the pipeline has written it."""

    directory: Path
    summary: Mapping[str, Any] = field(default_factory=dict)
    lines: list[dict[str, Any]] = field(default_factory=list)

    def part(self, name: str) -> Mapping[str, Any]:
        """A dict of the summary, {} where it is absent."""
        return self.summary.get(name) or {}

    def arrays(self, name: str) -> dict[str, np.ndarray]:
        """Content of an .npz file; raises MissingDataError where it is absent or cut off."""
        try:
            with np.load(self.directory / name, allow_pickle=False) as file:
                return dict(file)
        except FileNotFoundError:
            raise MissingDataError(f"no {name}") from None
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise MissingDataError(f"{name} cannot be read ({error})") from error


def write_report(run_dir: Path) -> Path:
    """Write `run_dir/report.html` and its pictures under `run_dir/figures`; returns the page's path.

    Parts that the run does not (yet) hold are left out, with a line that says so.

    Raises:
        NotARunError: the directory has neither a summary.json nor a metrics.jsonl.
    """
    record = read_run(run_dir)
    page = run_dir / "report.html"
    page.write_text(_page(record), encoding="utf-8")
    return page


def read_run(run_dir: Path) -> RunRecord:
    """Read summary.json and metrics.jsonl of a run, finished or not."""
    summary = run_dir / "summary.json"
    if not summary.exists() and not (run_dir / "metrics.jsonl").exists():
        raise NotARunError(f"{run_dir} is not a run directory: no summary.json and no metrics.jsonl in it")
    try:
        content = json.loads(summary.read_text()) if summary.exists() else {}
    except json.JSONDecodeError as error:
        raise NotARunError(f"{summary} is not JSON ({error}); run the report stage again") from error
    return RunRecord(run_dir, content, read_metrics(run_dir))


# --- numbers and sentences --------------------------------------------------------------------------------


def _number(value: Any, digits: int = 3) -> str:
    return NO_VALUE if value is None else f"{value:.{digits}f}"


def _outcome(record: RunRecord, stage: str) -> str | None:
    """'0.926 (median of 3 seeds, quartiles 0.90 to 0.95)', None before the first test."""
    success = record.part(stage).get("success") or []
    if not success:
        return None
    low, median, high = np.quantile(success, [0.25, 0.5, 0.75])
    if len(success) == 1:
        return f"{median:.3f} (1 seed)"
    return f"{median:.3f} (median of {len(success)} seeds, quartiles {low:.3f} to {high:.3f})"


def verdict(record: RunRecord) -> str:
    """The run in one sentence."""
    internal, raw = _outcome(record, "internal_rl"), _outcome(record, "raw_rl")
    if internal is None and raw is None:
        return "This run holds no reinforcement learning result yet."
    known = record.part("internal_rl") or record.part("raw_rl")
    episodes, task = known.get("episodes"), known.get("task", "of the run")
    budget = f" after {episodes:,} episodes a seed" if episodes else ""
    numbers = (
        f"on task {task} internal RL succeeds at a rate of {internal or 'nothing yet (not run)'}, "
        f"raw-action RL at {raw or 'nothing yet (not run)'}{budget}."
    )
    if internal is None or raw is None:
        return numbers[0].upper() + numbers[1:]
    ours, theirs = (float(np.median(record.part(stage)["success"])) for stage in ("internal_rl", "raw_rl"))
    best = record.part("expert").get("success_posttraining", 1.0)
    if ours >= SOLVED * best and theirs < UNSOLVED * best:
        return f"Internal RL solves a sparse task that raw-action RL does not: {numbers}"
    if ours > theirs:
        return f"Internal RL does better than raw-action RL, short of a clear separation: {numbers}"
    return f"Internal RL does not beat raw-action RL here: {numbers}"


def _cards(record: RunRecord) -> Iterator[tuple[str, str, str]]:
    """(value, what it is, its yardstick) of the headline numbers that the run holds."""
    base, found, supervised = record.part("base"), record.part("discovery"), record.part("controllers")
    if base.get("nll") is not None:
        yardstick = f"Bayes-optimal {_number(base.get('bayes_nll'))}, oracle {_number(base.get('oracle_nll'))}"
        yield _number(base["nll"]), "base model's action NLL", yardstick
    if found.get("switch_f1") is not None:
        rates = f"switch rate {_number(found.get('switch_rate'))}, true {_number(found.get('true_switch_rate'))}"
        chance = f"random switches of the same rate {_number(found.get('random_f1'))}; {rates}"
        yield _number(found["switch_f1"]), "F1 of switches", chance
    if found.get("nll_hard") is not None:
        soft = f"beta as it is {_number(found.get('nll'))}; a wide gap means that codes are mixed"
        yield _number(found["nll_hard"]), "NLL with a hard switch, as RL has it", soft
    if found.get("mid_share") is not None:
        yield f"{found['mid_share']:.1%}", "of \N{GREEK SMALL LETTER BETA} in the middle", "0 if quasi-binary"
    if found.get("nll_permuted") is not None and found.get("base_nll") is not None:
        bar = found["base_nll"] + CLEARLY_WORSE
        yardstick = f"base {_number(found['base_nll'])}; z is in use if clearly worse, above {_number(bar)}"
        yield _number(found["nll_permuted"]), "NLL under permuted z", yardstick
    if supervised.get("success") is not None:
        yield _number(supervised["success"]), "success of supervised controllers", "0.5 to 0.7 in the paper"


def _accuracies(record: RunRecord) -> str:
    """What the nearest neighbour says about the codes, as sentences."""
    sentences = []
    accuracies = record.part("discovery").get("code_accuracy") or {}
    if accuracies.get("place") == accuracies.get("subgoal"):  # on a single map they are the same
        accuracies = {"subgoal": accuracies.get("subgoal") or {}}
    for label, scores in accuracies.items():
        if scores.get("all") is not None:
            by_order = [_number(scores[key], 2) for key in sorted(filter(str.isdigit, scores), key=int)]
            detail = f" ({', '.join(by_order)} for the first, second, ... of an episode)" if by_order else ""
            chance = f"; chance {_number(scores.get('chance'), 2)}"
            sentences.append(
                f" Nearest neighbour finds the {label} with accuracy {_number(scores['all'], 2)}{detail}{chance}."
            )
    return "".join(sentences)


def _before(record: RunRecord) -> str:
    """Success before training, as a sentence."""
    parts = []
    for stage, (label, _) in figures.ALGORITHMS.items():
        before = record.part(stage).get("before")
        if before is not None and np.size(before):
            parts.append(f"{label} {np.median(before):.4f}")
    return f" Before training: {', '.join(parts)}." if parts else ""


# --- the page ---------------------------------------------------------------------------------------------


def _figures(record: RunRecord) -> Iterator[str]:
    """The numbered figures and the animation, in the page's order."""
    found, supervised = record.part("discovery"), record.part("controllers")

    def gates(path: Path) -> None:
        arrays = record.arrays("discover/diagnostics.npz")
        figures.gate_picture(arrays["switch"], arrays["subgoal"], arrays["mask"], path)

    def codes(path: Path) -> None:
        arrays = record.arrays("discover/diagnostics.npz")
        latent, subgoal, ordinal = (arrays[f"code_{name}"] for name in ("latent", "subgoal", "ordinal"))
        figures.latent_picture(latent, subgoal, ordinal, path)

    def rollout(path: Path) -> None:
        env = record.part("config").get("env")
        if not env:
            raise MissingDataError("summary.json holds no settings of the environment")
        animation.rollout_animation(record.arrays("rollout.npz"), env, path)

    def draw(name: str, title: str, picture: Callable[[Path], None], caption: str, kind: str = "") -> str:
        return _figure(record.directory / "figures" / name, title, picture, caption, kind)

    yield draw(
        "success.png",
        "1. Internal RL against raw-action RL",
        lambda path: figures.success_picture(record.lines, record.summary, path),
        "Look for the blue curve rising while the grey one stays at zero (the paper's Fig. 8). Bold: median over "
        "seeds; band: quartiles; faint: single seeds; dots: fresh episodes after the last update." + _before(record),
    )
    yield draw(
        "base.png",
        "2. Pretraining of the base model",
        lambda path: figures.base_picture(record.lines, record.summary, path),
        "The held-out curve should come down to the Bayes-optimal line: the model then infers the hidden task as "
        "well as can be, which is what the paper's pretraining (Section 2, Fig. 3) rests on. It cannot reach the "
        "oracle, which is told the task.",
    )
    yield draw(
        "gates.png",
        "3. The switch against the true subgoals",
        gates,
        "The switch should open (to 1) where the coloured band, the subgoal the expert pursues, changes (triangles), "
        "and stay shut otherwise, though it was never told of subgoals (the paper's Fig. 6). "
        "First held-out episodes; at the first step the switch is open by definition.",
        "wide",
    )
    yield draw(
        "latents.png",
        "4. Codes of the subgoals",
        codes,
        "One point a completed segment, in the plane that spreads the subgoals' means most. Left, clusters of one "
        "colour mean that z says which subgoal to pursue; right, mixed shades mean that it does not depend on when "
        "(the abstract actions of the paper's Fig. 6). Clusters may overlap here and be apart in all dimensions of z, "
        "which the accuracies use." + _accuracies(record),
        "wide",
    )
    yield draw(
        "latent_sources.png",
        "5. What the latent is worth",
        lambda path: figures.nll_picture(found, path),
        "Blue bars should lie near the oracle: z tells the base model the subgoal, and a z from another episode "
        "with the same subgoal does as well. Permuted z should be clearly worse than the base model, else z is not "
        "used; a posterior far below the oracle means that z spells out actions (controls to Fig. 6).",
    )
    yield draw(
        "transitions.png",
        "6. Transitions never seen in pretraining",
        lambda path: figures.transition_picture(found, supervised, path),
        "From one subgoal on (or from the start), the share of trials that reach the next. Bars: with one latent that "
        "is held, as long as the switch asks for no other; dots: with another one from the same source at every "
        "opening, as the policy plays. Latents must raise them well above the base model alone for RL to find a first "
        "success (the paper's Fig. A4: 10% to 24%). Supervised controllers, one a subgoal, are measured along the "
        "whole task (Fig. 4); no bar where none got that far. They may fail where codes succeed: each learns alone, "
        "while all codes share what the hypernetwork has learned." + _untrained(record),
    )
    yield draw("rollout.gif", "An episode of internal RL", rollout, _rollout_caption(record), "wide rollout")


def _rollout_caption(record: RunRecord) -> str:
    try:
        rollout = record.arrays("rollout.npz")
    except MissingDataError:
        return ""
    succeeded = bool(rollout["success"])
    choice = "the first success" if succeeded else "an episode without success, as all were,"
    return (
        f"A yellow border and a yellow mark on the timeline say that the switch opened and the policy chose a new "
        f"latent: {int(rollout['switch'].sum())} decisions for {len(rollout['index']) - 1} steps (the temporally "
        f"abstract control of Fig. 8). The strip is the task, which the agent does not see. Shown is {choice} among "
        f"fresh episodes of the first seed's policy."
    )


def _untrained(record: RunRecord) -> str:
    """How often the policy succeeds before RL, as a sentence."""
    found = record.part("discovery").get("untrained")
    if not found:
        return ""
    return f" Before RL the policy succeeded in {found['successes']:,} of {found['episodes']:,} episodes of the task."


def _legs(record: RunRecord) -> str:
    """Table of the rates of each leg of the task, their products, and how many trials are behind each."""
    found = record.part("discovery")
    held, redrawn, trials = (
        found.get(key) or {} for key in ("unseen_transitions", "redrawn_transitions", "transition_trials")
    )
    legs = list(dict.fromkeys(leg for rates in held.values() for leg in rates))
    if not legs:
        return '<p class="missing">Left out: no leg of the task was measured.</p>'
    head = "".join(f"<th>{escape(text)}</th>" for text in ("latents", *legs, "product"))
    # A product stands for the task only where the task is these legs, each once.
    task = str(record.part("internal_rl").get("task", "")).split("-")
    along = [f"start>{task[0]}", *(f"{before}>{after}" for before, after in pairwise(task))]
    is_task = sorted(along) == sorted(legs)
    rows = []
    for source, rates in held.items():
        again, count = redrawn.get(source) or {}, trials.get(source) or {}
        cells = [f"{_number(rates.get(leg))} / {_number(again.get(leg))} ({count.get(leg, NO_VALUE)})" for leg in legs]
        whole = [
            f"{np.prod([each[leg] for leg in legs]):.1e}" if is_task and set(legs) <= set(each) else NO_VALUE
            for each in (rates, again)
        ]
        label = figures.TRANSITION_SOURCES[source][0]
        cells = [label, *cells, " / ".join(whole)]
        rows.append(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>")
    note = (
        "Share of trials with one held latent / with latents redrawn at openings (trials). The product is the chance "
        "of the task if its legs did not depend on each other; it is given where each leg occurs once in the task."
    )
    return f"<table><tr>{head}</tr>{''.join(rows)}</table><p>{note}{escape(_untrained(record))}</p>"


def _figure(path: Path, title: str, draw: Callable[[Path], None], caption: str, kind: str) -> str:
    """Draw the picture and inline it; where the run lacks the data, a line that says so."""
    path.unlink(missing_ok=True)  # no picture of an earlier state of the run
    head = f'<figure class="{kind}"><h3>{escape(title)}</h3>'
    try:
        draw(path)
    except MissingDataError as error:
        return f'{head}<p class="missing">Left out: {escape(str(error))}.</p></figure>'
    content = base64.b64encode(path.read_bytes()).decode()
    image = f'<img alt="{escape(title)}" src="data:image/{path.suffix[1:]};base64,{content}">'
    return f'{head}<div class="frame">{image}</div><figcaption>{escape(caption)}</figcaption></figure>'


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def _times(record: RunRecord) -> str:
    seconds = record.part("seconds")
    if not seconds:
        return '<p class="missing">Left out: summary.json holds no times.</p>'
    rows = [*seconds.items(), ("total", sum(seconds.values()))]
    cells = (f"<tr><td>{escape(stage)}</td><td>{_duration(value)}</td></tr>" for stage, value in rows)
    return f"<table>{''.join(cells)}</table>"


def _details(record: RunRecord) -> Iterator[str]:
    for name, title in (("config", "Configuration"), ("versions", "Versions"), ("device", "Device")):
        content = record.part(name)
        text = f"<pre>{escape(json.dumps(content, indent=2))}</pre>" if content else "<p>Not recorded.</p>"
        yield f"<details><summary>{title}</summary>{text}</details>"


def _page(record: RunRecord) -> str:
    summary = record.summary
    name = f"{summary.get('experiment', record.directory.name)}, seed {summary.get('seed', NO_VALUE)}"
    cards = "".join(
        f'<div class="card"><b>{escape(value)}</b><span>{escape(label)}</span><small>{escape(yardstick)}</small></div>'
        for value, label, yardstick in _cards(record)
    )
    absent = "" if summary else '<p class="missing">No summary.json: the run has not finished.</p>'
    no_cards = '<p class="missing">Left out: summary.json holds no headline number.</p>'
    commit = escape(str(summary.get("commit") or "not recorded"))
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{escape(name)}: internal RL</title><style>{STYLE}</style></head><body><main>
<h1>Internal reinforcement learning: {escape(name)}</h1>
<p class="verdict">{escape(verdict(record))}</p>{absent}
<div class="cards">{cards or no_cards}</div>
<div class="figures">{"".join(_figures(record))}</div>
<h2>Legs of the task</h2>{_legs(record)}
<h2>Time</h2>{_times(record)}
<h2>How it was made</h2>{"".join(_details(record))}
<p class="note">Commit {commit}. Figure numbers of the paper: arXiv 2512.20605.</p>
</main></body></html>
"""
