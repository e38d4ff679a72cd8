"""The pictures of a run: of its report, of the README, and what training sends to W&B.

Every function writes one file and raises MissingDataError where the run does not (yet) hold what it
shows. Internal RL is blue and raw-action RL grey everywhere; subgoals have the colours of the grid
world.
"""

from array import array
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, reduce
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float, Int

from internal_rl.measures.switching import subgoal_changes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure
    from matplotlib.text import Text

Curve = tuple[Float[np.ndarray, "N"], Float[np.ndarray, "N"]]  # x, y
Lines = Iterable[Mapping[str, Any]]  # of metrics.jsonl
Curves = Mapping[tuple[str, Any, str], Curve]  # by stage, seed and metric
Summary = Mapping[str, Any]  # summary.json, or a part of it

INTERNAL = "#0072B2"
RAW = "#7F7F7F"
PALE = "#A9CCE3"
INK = "#222222"
ALGORITHMS = {"internal_rl": ("internal RL", INTERNAL), "raw_rl": ("raw-action RL", RAW)}
# Key of the scores under "discovery" -> (label, colour). Blue: a latent that belongs to the
# subgoal.
LATENT_SOURCES = {
    "nll": ("posterior\nz", INTERNAL),
    "nll_hard": ("hard\nswitch", INTERNAL),
    "nll_same_code": ("same\nsubgoal", INTERNAL),
    "nll_first_code": ("first\nsegment", INTERNAL),
    "nll_prior": ("prior\nz", PALE),
    "nll_permuted": ("permuted\nz", PALE),
    "nll_zero": ("zero\nz", PALE),
}
# The base model's line is wide and light: it often lies below the Bayes filter's.
YARDSTICKS = {
    "base_nll": ("base model", {"color": "#E69F00", "linewidth": 3.2}),
    "bayes_nll": ("Bayes-optimal", {"color": INK, "linewidth": 1.3, "linestyle": "--"}),
    "oracle_nll": ("oracle (knows the task)", {"color": INK, "linewidth": 1.3, "linestyle": ":"}),
}
TRANSITION_SOURCES = {
    "base": ("base model alone", "#C4C4C4"),
    "prior": ("z of the prior", PALE),
    "same_code": ("z of that subgoal", INTERNAL),
    "first_code": ("z of that subgoal, first segments", "#56B4E9"),
    "start": ("z that RL starts from", "#F0C6DC"),
    "expert": ("z of that subgoal's expert", "#CC79A7"),
    "supervised": ("supervised controllers", "#E69F00"),
}
STYLE: dict[Any, Any] = {
    "font.size": 10,
    "font.family": "DejaVu Sans",
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#999999",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.8,
    "xtick.color": "#555555",
    "ytick.color": "#555555",
    "legend.frameon": False,
    "legend.fontsize": 9,
}
DPI = 150
GATE_EPISODES = 6
MAX_POINTS = 1_500  # of a scatter plot
COLUMNS = 1_000  # of pixels that a curve may have; a longer one is thinned to them
# What is drawn of metrics.jsonl: its other numbers are not kept.
DRAWN = {
    "pretrain": ("nll", "valid_nll", "bayes_nll", "oracle_nll"),
    "internal_rl": ("success",),
    "raw_rl": ("success",),
}
MIN_TRIALS = 10  # for a share to be drawn
MAX_LABELLED_BARS = 24  # more do not leave room for their values
MAX_LEVEL_LABELS = 14  # more do not leave room for them side by side: they are written upwards


class MissingDataError(ValueError):
    """A picture cannot be drawn; the message says what the run lacks."""


# --- numbers behind the pictures --------------------------------------------------------------


def curve(lines: Lines, axis: str, name: str) -> Curve:
    """Values of one metric by its axis; of an x that a resumed run holds twice, the later one."""
    points = [(line[axis], line[name]) for line in lines if name in line and axis in line]
    return _ordered([x for x, _ in points], [y for _, y in points])


def drawn_curves(lines: Lines) -> Curves:
    """The metrics that are drawn, in one pass over the lines of a run."""
    points: dict[tuple[str, Any, str], tuple[array[float], array[float]]] = defaultdict(
        lambda: (array("d"), array("d"))
    )
    for line in lines:
        stage = line["stage"]
        for name in DRAWN.get(stage, ()):
            if name in line:
                x, y = points[stage, line.get("seed", 0), name]
                x.append(line["step" if stage == "pretrain" else "episodes"])
                y.append(line[name])
    return {key: _ordered(x, y) for key, (x, y) in points.items()}


def by_seed(curves: Curves, stage: str, name: str) -> dict[Any, Curve]:
    """The curves of one metric, by seed."""
    found = {
        seed: points for (of, seed, what), points in curves.items() if (of, what) == (stage, name)
    }
    return {
        seed: found[seed] for seed in sorted(found, key=lambda seed: (isinstance(seed, str), seed))
    }


def success_curves(lines: Lines, stage: str) -> dict[Any, Curve]:
    """Success over episodes of each seed of an RL stage."""
    return by_seed(drawn_curves(lines), stage, "success")


def _ordered(x: Iterable[float], y: Iterable[float]) -> Curve:
    """Points by x; of an x that comes twice, the later one. What is not finite is NaN."""
    at = np.array(x, float)
    values = np.array(y, float)
    if np.any(np.diff(at) <= 0):
        at, last = np.unique(at[::-1], return_index=True)
        values = values[::-1][last]
    return at, np.where(np.isfinite(values), values, np.nan)


def thinned(x: Float[np.ndarray, "N"], *values: Float[np.ndarray, "N"]) -> list[np.ndarray]:
    """x and the values above it, at the points that a picture of COLUMNS pixels can show.

    Those are the first and last of each column, and the lowest and highest of each of the values.
    """
    if len(x) <= 4 * COLUMNS:
        return [x, *values]
    column = ((x - x[0]) / (x[-1] - x[0]) * COLUMNS).astype(int)
    starts = np.flatnonzero(np.diff(column, prepend=-1))
    ends = np.append(starts[1:], len(x)) - 1
    chosen = [starts, ends]
    for value in values:
        for signed in (value, -value):  # NaN is sorted behind all others
            chosen += [np.lexsort((signed, column))[starts]]
    shown = np.unique(np.concatenate(chosen))
    return [x[shown], *(value[shown] for value in values)]


def first_reached(points: Curve, level: float) -> int | None:
    """Episodes after which a batch's success first was at least `level`; None if it never was."""
    episodes, success = points
    reached = np.flatnonzero(success >= level)
    return int(episodes[reached[0]]) if len(reached) else None


def quartiles(
    curves: Mapping[int, Curve],
) -> tuple[Float[np.ndarray, "N"], Float[np.ndarray, "3 N"]]:
    """Lower quartile, median and upper quartile over seeds, at every x that one has reached.

    A seed counts with its last value so far: what has ended early has done so as it had settled.
    """
    reached = reduce(np.union1d, (x for x, _ in curves.values()))
    reached = reached[reached >= max(x[0] for x, _ in curves.values())]
    values = [y[np.searchsorted(x, reached, side="right") - 1] for x, y in curves.values()]
    return reached, np.quantile(values, [0.25, 0.5, 0.75], axis=0)


def between_groups(
    points: Float[np.ndarray, "N Z"], group: Int[np.ndarray, "N"], count: int = 2
) -> tuple[Float[np.ndarray, "N count"], Float[np.ndarray, "count"]]:
    """Coordinates along the principal directions of the groups' means.

    The second array is each direction's share of the variance of those means. Latent dimensions
    that carry nothing are as wide as the prior; principal components of the points would show
    them.
    """
    means = np.array([points[group == k].mean(0) for k in np.unique(group)])
    middle = means.mean(0)
    _, singular, directions = np.linalg.svd(means - middle, full_matrices=False)
    variance = np.square(singular)
    return (points - middle) @ directions[:count].T, variance[:count] / max(variance.sum(), 1e-12)


def transition_shares(discovery: Summary, controllers: Summary) -> dict[str, dict[str, float]]:
    """{source: {"from>to": probability}} of the first leg and the unseen transitions.

    The supervised controllers are one of the sources; where no latents were measured, all
    transitions that they were measured on are kept. They play whole tasks: a share of fewer than
    MIN_TRIALS episodes is left out.
    """
    measured = discovery.get("unseen_transitions") or {}
    shares = {name: dict(measured[name]) for name in TRANSITION_SOURCES if measured.get(name)}
    unseen = set().union(*shares.values())

    # A transition may come twice in a task: its key is "1: 0>1", with the position.
    supervised: dict[str, list[float]] = {}
    trials = controllers.get("trials", {})
    for key, share in (controllers.get("by_transition") or {}).items():
        position, transition = key.split(": ")
        enough = trials.get(key, MIN_TRIALS) >= MIN_TRIALS  # older runs did not count them
        wanted = transition in unseen if unseen else position != "0"
        if share is not None and enough and wanted:
            supervised.setdefault(transition, []).append(share)
    if supervised:
        shares["supervised"] = {name: float(np.mean(values)) for name, values in supervised.items()}
    return shares


def _percent(share: float) -> str:
    """'85%'; '0.2%' or '<0.1%' where a share is small but not zero; 'nan' where it is none."""
    if 0 < share < 0.001:
        return "<0.1%"
    if not np.isfinite(share):
        return str(share)
    return f"{share:.1%}" if 0 < share < 0.01 else f"{share:.0%}"


# --- drawing ----------------------------------------------------------------------------------


@contextmanager
def _canvas(
    path: Path, size: tuple[float, float], rows: int = 1, columns: int = 1, **options: Any
) -> Iterator[tuple["Figure", Any]]:
    """Figure and axes (or an array of axes) of a new picture, written to `path` after the block."""
    import matplotlib
    from matplotlib.figure import Figure  # not pyplot: no display, no global state, PNGs by Agg

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        yield figure, figure.subplots(rows, columns, **options)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=DPI)


@cache
def _palette() -> tuple[tuple[float, float, float], ...]:
    """The grid's colours; ten others where MiniGrid is not installed (machines that only train)."""
    try:
        from envs.minigrid_pinpad import PALETTE
    except ImportError:
        from matplotlib import colormaps

        return tuple(colormaps["tab10"](i)[:3] for i in range(10))
    return tuple((r / 255, g / 255, b / 255) for r, g, b in PALETTE)


def _subgoal_colour(subgoal: int) -> tuple[float, float, float]:
    return _palette()[int(subgoal) % len(_palette())]


def _outline(text: "Text", width: float = 2.5) -> None:
    """White rim, so that a text reads on whatever lies below."""
    from matplotlib.patheffects import withStroke

    text.set_path_effects([withStroke(linewidth=width, foreground="white")])


def _thousands(axis: "Axis") -> None:
    axis.set_major_formatter(
        lambda value, _: f"{value / 1000:g}k" if value >= 1000 else f"{value:g}"
    )


def success_picture(measured: Curves, summary: Summary, path: Path) -> None:
    """Success over episodes of both algorithms, and beside it their final tests.

    Of each: every seed, the median and the band between the quartiles.
    """
    curves = {name: by_seed(measured, name, "success") for name in ALGORITHMS}
    tests = {name: (summary.get(name) or {}).get("success") or [] for name in ALGORITHMS}

    # Internal RL is drawn last, on top.
    drawn = [name for name in reversed(ALGORITHMS) if curves[name] or tests[name]]
    if not drawn:
        raise MissingDataError("neither internal RL nor raw-action RL has been run")
    options = {"sharey": True, "width_ratios": [9, 1.3]}
    with _canvas(path, (5.8, 3.8), 1, 2, **options) as (figure, (training, test)):
        for name in drawn:
            # Training: single seeds faint, their median bold.
            label, colour = ALGORITHMS[name]
            for x, y in curves[name].values():
                training.plot(*thinned(x, y), color=colour, alpha=0.35, linewidth=0.9)
            if curves[name]:
                x, bands = quartiles(curves[name])
                x, low, median, high = thinned(x, *bands)
                training.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
                training.plot(x, median, color=colour, linewidth=2.4, label=label)

            # Final tests: a dot per seed.
            centre = -0.5 if name == "internal_rl" else 0.5
            if tests[name]:
                spread = 0.25 if len(tests[name]) > 1 else 0.0
                at = np.linspace(centre - spread, centre + spread, len(tests[name]))
                dots = {"s": 38, "edgecolor": "white", "linewidth": 0.8, "clip_on": False}
                named = None if curves[name] else label
                test.scatter(at, tests[name], zorder=3, label=named, color=colour, **dots)

        training.set(xlabel="episodes", ylabel="success rate", ylim=(-0.02, 1.02))
        training.set_xlim(left=0)
        training.grid(axis="y")
        _thousands(training.xaxis)
        test.set(xlim=(-1, 1), xticks=[], xlabel="final\ntest")
        test.grid(axis="y")
        test.tick_params(left=False)
        figure.legend(loc="outside upper center", ncols=2, reverse=True)


def base_picture(measured: Curves, summary: Summary, path: Path) -> None:
    """Action NLL of the base model during pretraining against the Bayes filter and the oracle."""
    ours = {name: points for (stage, _, name), points in measured.items() if stage == "pretrain"}
    none = np.array([]), np.array([])
    train = thinned(*ours.get("nll", none))
    valid = thinned(*ours.get("valid_nll", none))
    if not len(train[0]) and not len(valid[0]):
        raise MissingDataError("metrics.jsonl holds no line of stage pretrain")

    # The yardsticks as measured last: in the summary, of an unfinished run in the metrics.
    last = {name: float(values[-1]) for name, (_, values) in ours.items()}
    last |= summary.get("base") or {}

    with _canvas(path, (5.8, 3.8)) as (figure, axes):
        axes.plot(*train, color=INTERNAL, alpha=0.35, linewidth=1, label="training batches")
        dots = {"linewidth": 2, "marker": "o", "markersize": 4}
        axes.plot(*valid, color=INTERNAL, label="held-out episodes", **dots)
        _yardstick_lines(axes, {name: last.get(name) for name in ("bayes_nll", "oracle_nll")})
        axes.set(xlabel="gradient steps", ylabel="action NLL (nats per step)")
        axes.set_xlim(left=0)
        if axes.get_ylim()[0] > 0:  # densities can be above 1, their NLL below 0
            axes.set_ylim(bottom=0)
        axes.grid(axis="y")
        _thousands(axes.xaxis)
        figure.legend(loc="outside upper center", ncols=2)


def expert_picture(lines: Lines, path: Path, points: int = 60) -> None:
    """Training of the ant's expert: velocity along the arrows, and how episodes end.

    points: at most so many means over windows are drawn.
    """
    ours = [line for line in lines if line["stage"] == "expert"]
    if not ours:
        raise MissingDataError("metrics.jsonl holds no line of stage expert")

    def windows(name: str) -> Curve:
        x, y = curve(ours, "control_steps", name)
        parts = np.array_split(np.arange(len(x)), min(points, len(x)))
        millions = np.array([x[part].mean() for part in parts]) / 1e6
        return millions, np.array([y[part].mean() for part in parts])

    # The reward.
    with _canvas(path, (7.4, 3.2), 1, 2) as (figure, (speed, endings)):
        speed.plot(*windows("velocity"), color=INTERNAL, linewidth=2)
        speed.set(title="velocity along the arrows (m/s)", xlabel="million control steps")

        # Shares of the reasons for which episodes end.
        names = {
            "height": "fell or jumped",
            "wall": "wall or border",
            "wrong_colour": "wrong colour",
            "horizon": "T",
        }
        colours = ("#D55E00", "#999999", "#CC79A7", INTERNAL)
        for (name, label), colour in zip(names.items(), colours, strict=True):
            endings.plot(*windows(f"ending_{name}"), label=label, color=colour)
        endings.set(title="how episodes end (share)", xlabel="million control steps")

        for axes in (speed, endings):
            axes.set_xlim(left=0)
            axes.set_ylim(bottom=0)
            axes.grid(axis="y")
        figure.legend(loc="outside lower center", ncols=4)


def _yardstick_lines(axes: "Axes", scores: Summary) -> None:
    for name, (label, style) in YARDSTICKS.items():
        if scores.get(name) is not None and np.isfinite(scores[name]):
            axes.axhline(scores[name], label=label, zorder=2.5, **style)


def gate_picture(
    switch: Float[np.ndarray, "B T"],
    subgoal: Int[np.ndarray, "B T"],
    mask: Bool[np.ndarray, "B T"],
    path: Path,
) -> None:
    """beta over time of the first episodes, over bands of the true subgoal.

    Triangles mark where the subgoal changes.
    """
    count = min(GATE_EPISODES, len(switch))
    changes = subgoal_changes(subgoal, mask)
    size = (7.4, 1.2 + 0.7 * count)
    with _canvas(path, size, count, 1, sharex=True, squeeze=False) as (figure, axes):
        for row, episode in zip(axes[:, 0], range(count), strict=True):
            steps = slice(int(mask[episode].sum()))
            _gate_row(row, switch[episode, steps], subgoal[episode, steps], changes[episode, steps])
        axes[-1, 0].set_xlim(-0.5, mask[:count].sum(1).max() - 0.5)
        axes[-1, 0].set_xlabel("step")
        figure.supylabel("switch \N{GREEK SMALL LETTER BETA}", fontsize=10)


def _gate_row(
    axes: "Axes",
    switch: Float[np.ndarray, "T"],
    subgoal: Int[np.ndarray, "T"],
    changes: Bool[np.ndarray, "T"],
) -> None:
    # A band per subgoal, with its number beside the first step, where the switch opens.
    edges = [0, *np.flatnonzero(changes).tolist(), len(switch)]
    for start, stop in pairwise(edges):
        colour = _subgoal_colour(subgoal[start])
        axes.axvspan(start - 0.5, stop - 0.5, color=colour, alpha=0.32, linewidth=0)
        middle = (start + stop - 1 + (stop > start + 1)) / 2
        style = {"ha": "center", "va": "center", "fontsize": 9, "zorder": 4}
        _outline(axes.text(middle, 0.52, str(subgoal[start]), **style), 1.5)

    # Its changes, then the switch on top.
    for start in edges[1:-1]:
        axes.axvline(start - 0.5, color=INK, linewidth=0.9, linestyle=(0, (3, 2)))
        axes.plot(start, 1.14, "v", color=INK, markersize=5, clip_on=False)
    time = np.arange(len(switch))
    axes.bar(time, switch, width=1, color=INTERNAL, alpha=0.5, linewidth=0)
    axes.stairs(switch, np.arange(len(switch) + 1) - 0.5, color=INTERNAL, linewidth=1.4)
    axes.set(ylim=(0, 1.06), yticks=[0, 1])
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(bottom=False)


def latent_picture(
    latent: Float[np.ndarray, "N Z"],
    subgoal: Int[np.ndarray, "N"],
    ordinal: Int[np.ndarray, "N"],
    path: Path,
) -> None:
    """The codes in the plane that spreads the subgoals' means most.

    Coloured by subgoal on the left, by place in the episode on the right.
    """
    from matplotlib import colormaps

    if len(latent) < 2:
        raise MissingDataError("fewer than two completed segments have a code")
    if len(np.unique(subgoal)) < 3:
        raise MissingDataError("the codes are of fewer than three subgoals, which span no plane")
    if latent.shape[1] < 2:
        raise MissingDataError("a latent of one dimension spans no plane")

    # Some of the points, mixed, so that no subgoal hides another.
    chosen = np.random.default_rng(0).permutation(len(latent))[:MAX_POINTS]
    points, shares = between_groups(latent, subgoal)
    points = points[chosen]
    subgoal = subgoal[chosen]
    ordinal = ordinal[chosen]

    ordinals = np.unique(ordinal)
    shades = colormaps["viridis"](np.linspace(0, 0.9, len(ordinals)))

    with _canvas(path, (7.4, 4.0), 1, 2, sharex=True, sharey=True) as (_, (left, right)):
        # Left: one colour per subgoal, with its number in the middle of its codes.
        colours = {int(k): _subgoal_colour(k) for k in np.unique(subgoal)}
        _scatter(left, points, subgoal, colours, "subgoal pursued")
        for k in colours:
            middle = np.median(points[subgoal == k], axis=0)
            style = {"ha": "center", "va": "center", "fontsize": 12, "weight": "bold"}
            _outline(left.text(*middle, str(k), **style), 3)

        # Right: one shade per place in the episode.
        place = {int(k): tuple(shade) for k, shade in zip(ordinals, shades, strict=True)}
        _scatter(right, points, ordinal, place, "how many subgoals came before")

        for axes in (left, right):
            axes.set_xlabel(f"direction 1 ({shares[0]:.0%} of the means' variance)")
        left.set_ylabel(f"direction 2 ({shares[-1]:.0%})")


def _scatter(
    axes: "Axes",
    points: Float[np.ndarray, "N 2"],
    label: Int[np.ndarray, "N"],
    colours: Mapping[int, tuple[float, ...]],
    title: str,
) -> None:
    axes.scatter(*points.T[:2], s=11, c=[colours[int(k)] for k in label], alpha=0.7, linewidth=0)
    for k, colour in colours.items():
        axes.scatter([], [], s=28, color=[colour], label=str(k))
    axes.legend(
        title=title,
        ncols=min(len(colours), 8),
        loc="lower center",
        bbox_to_anchor=(0.5, 1),
        handletextpad=0,
        columnspacing=0.6,
    )
    axes.set(xticks=[], yticks=[])


def nll_picture(discovery: Summary, path: Path) -> None:
    """Action NLL of the steered base model by source of z, against the yardsticks."""
    names = [name for name in LATENT_SOURCES if discovery.get(name) is not None]
    if not names:
        raise MissingDataError("summary.json holds no NLL of the discovery stage")
    with _canvas(path, (5.8, 3.8)) as (figure, axes):
        labels, colours = zip(*(LATENT_SOURCES[name] for name in names), strict=True)
        scores = [float(discovery[name]) for name in names]
        bars = axes.bar(range(len(names)), _heights(scores), color=colours, width=0.66)
        texts = [f"{score:.2f}" for score in scores]
        for text in axes.bar_label(bars, texts, padding=2, fontsize=9):
            text.set_zorder(4)
            _outline(text)
        _yardstick_lines(axes, discovery)
        axes.set_xticks(range(len(names)), labels)
        axes.set_ylabel("action NLL (nats per step)")
        axes.margins(y=0.1)
        axes.grid(axis="y")
        figure.legend(loc="outside upper center", ncols=3, handlelength=2.6, columnspacing=1.2)


def _heights(values: Iterable[float | None]) -> Float[np.ndarray, "N"]:
    """Of bars: nothing where there is no finite number."""
    numbers = np.array([np.nan if value is None else value for value in values], float)
    return np.where(np.isfinite(numbers), numbers, 0.0)


def transition_picture(discovery: Summary, controllers: Summary, path: Path) -> None:
    """Probability of the first leg and of each unseen transition, by what steers the base model.

    Unseen: it never occurs in pretraining. Bars are for one held latent, dots for latents redrawn
    at every opening of the switch.
    """
    redrawn = discovery.get("redrawn_transitions") or {}
    shares = transition_shares(discovery, controllers)
    if not shares:
        raise MissingDataError("no transition was measured")

    # How wide the bars may be, and whether their values have room above them.
    transitions = list(dict.fromkeys(name for source in shares.values() for name in source))
    width = 0.84 / len(shares)
    count = len(transitions) * len(shares)
    crowded = count > MAX_LABELLED_BARS
    upright = count > MAX_LEVEL_LABELS

    with _canvas(path, (5.8, 3.8)) as (figure, axes):
        # One bar and dot per source beside each other, for every transition.
        for index, (source, values) in enumerate(shares.items()):
            label, colour = TRANSITION_SOURCES[source]
            at = np.arange(len(transitions)) + (index - (len(shares) - 1) / 2) * width
            rates = [values.get(name) for name in transitions]
            bars = axes.bar(at, _heights(rates), width * 0.92, color=colour, label=label)
            texts = ["" if crowded or rate is None else _percent(rate) for rate in rates]
            axes.bar_label(bars, texts, padding=5, fontsize=8, rotation=90 if upright else 0)
            if source != "base":  # which has no latent to draw again
                again = [redrawn.get(source, {}).get(name, np.nan) for name in transitions]
                axes.plot(at, again, "o", color=INK, markersize=3, clip_on=False)

        arrows = [name.replace(">", " \N{RIGHTWARDS ARROW} ") for name in transitions]
        axes.set_xticks(range(len(transitions)), arrows)
        axes.tick_params(axis="x", bottom=False, rotation=60 if len(transitions) > 6 else 0)
        if any(redrawn.values()):
            axes.plot([], [], "o", color=INK, markersize=3, label="the same, z redrawn at openings")
        top = 1.12 if upright else 1.06
        axes.set(ylabel="probability", ylim=(0, top), yticks=np.linspace(0, 1, 6))
        axes.grid(axis="y")
        figure.legend(loc="outside upper center", ncols=2)
