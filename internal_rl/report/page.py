"""The report of a run: one HTML file that needs no network, and its pictures under figures/."""

import base64
import logging
from collections.abc import Callable, Iterator
from html import escape
from pathlib import Path

from internal_rl.report import animation, figures, findings, tables
from internal_rl.report.figures import MissingDataError
from internal_rl.report.findings import NO_VALUE, RunRecord
from internal_rl.report.text import readable
from internal_rl.training import files
from internal_rl.training.files import FileError

_log = logging.getLogger(__name__)

STYLE = Path(__file__).with_name("style.css").read_text(encoding="utf-8")
# What to look for in a picture, by its file.
CAPTIONS = {
    "success.png": (
        "Look for the blue curve rising while the grey one stays at zero (the paper's Fig. 8). "
        "Bold: median over seeds; band: quartiles; faint: single seeds (one that ends early counts "
        "on with its last value); dots: fresh episodes after the last update."
    ),
    "base.png": (
        "The held-out curve should come down to the Bayes-optimal line: the model then infers the "
        "hidden task as well as can be, which is what the paper's pretraining (Section 2, Fig. 3) "
        "rests on. It cannot reach the oracle, which is told the task."
    ),
    "gates.png": (
        "The switch should open (to 1) where the coloured band, the subgoal the expert pursues, "
        "changes (triangles), and stay shut otherwise, though it was never told of subgoals (the "
        "paper's Fig. 6). First held-out episodes; at the first step the switch is open by "
        "definition."
    ),
    "latents.png": (
        "One point per completed segment, in the plane that spreads the subgoals' means most. "
        "Left, clusters of one colour mean that z says which subgoal to pursue; right, mixed "
        "shades mean that it does not depend on when (the abstract actions of the paper's Fig. 6). "
        "Clusters may overlap here and be apart in all dimensions of z, which the accuracies use."
    ),
    "latent_sources.png": (
        "Blue bars should lie near the oracle: z tells the base model the subgoal, and a z from "
        "another episode with the same subgoal does as well. Permuted z should be clearly worse "
        "than the base model, else z is not used; a posterior far below the oracle means that z "
        "spells out actions (controls to Fig. 6)."
    ),
    "transitions.png": (
        "From one subgoal on (or from the start), the share of trials that reach the next. Bars: "
        "with one latent that is held, as long as the switch asks for no other; dots: with another "
        "one from the same source at every opening, as the policy plays. Latents must raise them "
        "well above the base model alone for RL to find a first success (the paper's Fig. A4: 10% "
        "to 24%). Supervised controllers, one a subgoal, are measured along the whole task (Fig. "
        "4); no bar where none got that far. They may fail where codes succeed: each learns alone, "
        "while all codes share what the hypernetwork has learned."
    ),
}


def write_report(run_dir: Path, out: Path | None = None) -> Path:
    """Write report.html and the pictures in figures/; returns the page's path.

    Parts that the run does not (yet) hold, or of which the files are damaged, are left out: the
    page and a warning say so.

    out: where to write, by default the run's directory.

    Raises:
        NotARunError: the directory has no config.json.
        FileError: config.json is damaged, or the report cannot be written.
    """
    record = findings.read_run(run_dir)
    page = (out or run_dir) / "report.html"
    try:
        files.write_text(page, readable(_page(record, page.parent / "figures")))
    except OSError as error:
        raise FileError(
            f"{error.filename or page} cannot be written ({error.strerror or error}); free space, "
            f"or name another directory: scripts/report.py {run_dir} --out DIR"
        ) from error
    if record.notes:
        _log.warning("%s: %s", page, " ".join(record.notes))
    return page


def _page(record: RunRecord, pictures: Path) -> str:
    summary = record.summary
    experiment = summary.get("experiment") or record.config.get("experiment_name")
    seed = summary.get("seed", record.config.get("seed", NO_VALUE))
    name = f"{experiment or record.directory.name}, seed {seed}"

    # The headline: one sentence, and the numbers that the run holds.
    notes = "".join(f'<p class="missing">{escape(note)}</p>' for note in record.notes)
    no_cards = '<p class="missing">Left out: summary.json holds no headline number.</p>'
    verdict = _part(record, "the verdict", lambda: escape(findings.verdict(record)))
    cards = _part(record, "the headline numbers", lambda: "".join(_cards(record)) or no_cards)
    legs = _part(record, "the legs of the task", lambda: tables.legs(record))
    times = _part(record, "the times", lambda: tables.times(record))

    # The page may load nothing: pictures and style are inlined.
    viewport = '<meta name="viewport" content="width=device-width, initial-scale=1">'
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    commit = escape(str(summary.get("commit") or "not recorded"))
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">{viewport}
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{escape(name)}: internal RL</title><style>
{STYLE}</style></head><body><main>
<h1>Internal reinforcement learning: {escape(name)}</h1>
<p class="verdict">{verdict}</p>{notes}
<div class="cards">{cards}</div>
<div class="figures">{"".join(_figures(record, pictures))}</div>
<h2>Legs of the task</h2>{legs}
<h2>Time</h2>{times}
<h2>How it was made</h2>{"".join(_details(record))}
<p class="note">Commit {commit}. Figure numbers of the paper: arXiv 2512.20605.</p>
</main></body></html>
"""


def _part(record: RunRecord, what: str, make: Callable[[], str]) -> str:
    """A part of the page; where its numbers are no numbers, a line that says so."""
    try:
        return make()
    except Exception as error:  # noqa: BLE001  a file that was altered can hold anything
        note = f"Left out: {what} ({type(error).__name__}: {error})."
        record.notes.append(note)
        return f'<span class="missing">{escape(note)}</span>'


def _cards(record: RunRecord) -> Iterator[str]:
    for value, label, yardstick in findings.cards(record):
        yield (
            f'<div class="card"><b>{escape(value)}</b><span>{escape(label)}</span>'
            f"<small>{escape(yardstick)}</small></div>"
        )


def _figures(record: RunRecord, pictures: Path) -> Iterator[str]:
    """The numbered figures and the animation, in the page's order."""
    found = record.part("discovery")
    supervised = record.part("controllers")

    # What draws each picture; raises MissingDataError where the run lacks the data.
    def success(path: Path) -> None:
        figures.success_picture(record.curves, record.summary, path)

    def base(path: Path) -> None:
        figures.base_picture(record.curves, record.summary, path)

    def gates(path: Path) -> None:
        arrays = record.arrays("discover/diagnostics.npz")
        figures.gate_picture(arrays["switch"], arrays["subgoal"], arrays["mask"], path)

    def codes(path: Path) -> None:
        arrays = record.arrays("discover/diagnostics.npz")
        latent, subgoal, ordinal = (
            arrays[f"code_{name}"] for name in ("latent", "subgoal", "ordinal")
        )
        figures.latent_picture(latent, subgoal, ordinal, path)

    def sources(path: Path) -> None:
        figures.nll_picture(found, path)

    def transitions(path: Path) -> None:
        figures.transition_picture(found, supervised, path)

    def rollout(path: Path) -> None:
        env = record.part("config").get("env") or record.config.get("env")
        if not env:
            raise MissingDataError("config.json holds no settings of the environment")
        animation.rollout_animation(record.arrays("rollout.npz"), env, path)

    def figure(
        name: str,
        title: str,
        draw: Callable[[Path], None],
        measured: Callable[[], str] = str,
        kind: str = "",
    ) -> str:
        """measured: gives sentences with numbers of this run, behind the caption."""
        caption = _part(record, f"the numbers below {name}", lambda: escape(measured()))
        caption = escape(CAPTIONS.get(name, "")) + caption
        return _figure(record, pictures / name, title, draw, caption, kind)

    # The result first, then the stages that lead to it.
    def before() -> str:
        return findings.before(record)

    def accuracies() -> str:
        return findings.accuracies(record)

    def untrained() -> str:
        return findings.untrained(record)

    def episode() -> str:
        return findings.recorded_episode(record)

    yield figure("success.png", "1. Internal RL against raw-action RL", success, before)
    yield figure("base.png", "2. Pretraining of the base model", base)
    yield figure("gates.png", "3. The switch against the true subgoals", gates, kind="wide")
    yield figure("latents.png", "4. Codes of the subgoals", codes, accuracies, "wide")
    yield figure("latent_sources.png", "5. What the latent is worth", sources)
    title = "6. Transitions never seen in pretraining"
    yield figure("transitions.png", title, transitions, untrained)
    yield figure("rollout.gif", "An episode of internal RL", rollout, episode, "wide rollout")


def _figure(
    record: RunRecord,
    path: Path,
    title: str,
    draw: Callable[[Path], None],
    caption: str,
    kind: str,
) -> str:
    """Draw the picture and inline it; where the run lacks the data, a line that says so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)  # no picture of an earlier state of the run
    head = f'<figure class="{kind}"><h3>{escape(title)}</h3>'
    try:
        draw(path)
    except Exception as error:
        path.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the picture cannot be written; anything else a file that was altered can cause
        why = (
            str(error)
            if isinstance(error, MissingDataError)
            else f"its data are damaged: {error!r}"
        )
        record.notes.append(f"Left out: {path.name} ({why}).")
        return f'{head}<p class="missing">Left out: {escape(why)}.</p></figure>'
    content = base64.b64encode(path.read_bytes()).decode()
    image = f'<img alt="{escape(title)}" src="data:image/{path.suffix[1:]};base64,{content}">'
    frame = f'<div class="frame">{image}</div>'
    return f"{head}{frame}<figcaption>{caption}</figcaption></figure>"


def _details(record: RunRecord) -> Iterator[str]:
    """Configuration, versions and device, folded."""
    titles = {"config": "Configuration", "versions": "Versions", "device": "Device"}
    for name, title in titles.items():
        content = record.part(name)
        text = "<p>Not recorded.</p>"
        if content:
            text = f"<pre>{escape(files.to_json(content, indent=2))}</pre>"
        yield f"<details><summary>{title}</summary>{text}</details>"
