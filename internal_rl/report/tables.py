"""The tables of a report, as HTML: legs of the task, and seconds per stage."""

from html import escape
from itertools import pairwise

import numpy as np

from internal_rl.report.figures import TRANSITION_SOURCES
from internal_rl.report.findings import NO_VALUE, RunRecord, number, untrained


def legs(record: RunRecord) -> str:
    """The rates of each leg of the task, their products, and how many trials are behind each."""
    found = record.part("discovery")
    held = found.get("unseen_transitions") or {}
    redrawn = found.get("redrawn_transitions") or {}
    trials = found.get("transition_trials") or {}
    measured = list(dict.fromkeys(leg for rates in held.values() for leg in rates))
    if not measured:
        return '<p class="missing">Left out: no leg of the task was measured.</p>'

    # A product stands for the task only where the task is these legs, each once.
    task = str(record.part("internal_rl").get("task", "")).split("-")
    along = [f"start>{task[0]}", *(f"{before}>{after}" for before, after in pairwise(task))]
    is_task = sorted(along) == sorted(measured)

    def product(rates: dict[str, float]) -> str:
        if not is_task or not set(measured) <= set(rates):
            return NO_VALUE
        return f"{np.prod([rates[leg] for leg in measured]):.1e}"

    # One row per source of latents: with the latent held, with latents redrawn, trials.
    rows = []
    for source, rates in held.items():
        again = redrawn.get(source) or {}
        count = trials.get(source) or {}
        cells = [
            f"{number(rates.get(leg))} / {number(again.get(leg))} ({count.get(leg, NO_VALUE)})"
            for leg in measured
        ]
        cells = [TRANSITION_SOURCES[source][0], *cells, f"{product(rates)} / {product(again)}"]
        rows.append(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>")

    head = "".join(f"<th>{escape(text)}</th>" for text in ("latents", *measured, "product"))
    note = (
        "Share of trials with one held latent / with latents redrawn at openings (trials). The "
        "product is the chance of the task if its legs did not depend on each other; it is given "
        "where each leg occurs once in the task."
    )
    table = f"<table><tr>{head}</tr>{''.join(rows)}</table>"
    return f"{table}<p>{note}{escape(untrained(record))}</p>"


def times(record: RunRecord) -> str:
    """How long each stage took, and all of them."""
    seconds = record.part("seconds")
    if not seconds:
        return '<p class="missing">Left out: summary.json holds no times.</p>'
    rows = [*seconds.items(), ("total", sum(seconds.values()))]
    cells = (
        f"<tr><td>{escape(stage)}</td><td>{_duration(value)}</td></tr>" for stage, value in rows
    )
    return f"<table>{''.join(cells)}</table>"


def _duration(seconds: float) -> str:
    if not np.isfinite(seconds):
        return NO_VALUE
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
