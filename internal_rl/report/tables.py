"""The tables of a report, as HTML: legs of the task, and seconds per stage."""

from html import escape

import numpy as np

from internal_rl.report.figures import TRANSITION_SOURCES
from internal_rl.report.findings import NO_VALUE, RunRecord, expectation, number, untrained


def legs(record: RunRecord) -> str:
    """The rates of each leg of the task, of the whole, and how many trials are behind each."""
    found = record.part("discovery")
    held = found.get("unseen_transitions") or {}
    redrawn = found.get("redrawn_transitions") or {}
    trials = found.get("transition_trials") or {}
    chance = found.get("task_chance") or {}
    measured = list(dict.fromkeys(leg for rates in held.values() for leg in rates))
    if not measured:
        return '<p class="missing">Left out: no leg of the task was measured.</p>'

    # One row per source of latents: with the latent held, with latents redrawn, trials.
    rows = []
    for source, rates in held.items():
        again = redrawn.get(source) or {}
        count = trials.get(source) or {}
        cells = [
            f"{number(rates.get(leg))} / {number(again.get(leg))} ({count.get(leg, NO_VALUE)})"
            for leg in measured
        ]
        whole = f"{chance[source]:.2g}" if source in chance else NO_VALUE
        cells = [TRANSITION_SOURCES[source][0], *cells, whole]
        rows.append(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>")

    head = "".join(f"<th>{escape(text)}</th>" for text in ("latents", *measured, "whole task"))
    note = (
        "Share of trials with one held latent / with latents redrawn at openings (trials). Of the "
        "whole task: its chance with redrawn latents if its legs did not depend on each other."
    )
    table = f"<table><tr>{head}</tr>{''.join(rows)}</table>"
    expected = escape(expectation(record))
    return f"{table}<p>{note}{escape(untrained(record))}</p><p>{expected}</p>"


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
