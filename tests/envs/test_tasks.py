import itertools
from collections import Counter

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.tasks import parse
from tests.envs import reference

NUM_COLOURS = 5


def language(tasks):
    """All colour sequences that the automaton can emit, with their probabilities."""
    found = Counter()
    stack = [((int(tasks.colour[s]),), s, tasks.initial[s]) for s in np.flatnonzero(tasks.initial)]
    while stack:
        colours, state, chance = stack.pop()
        successors = np.flatnonzero(tasks.transition[state])
        if not len(successors):
            found[colours] += chance
        stack += [
            ((*colours, int(tasks.colour[s])), s, chance * tasks.transition[state, s])
            for s in successors
        ]
    return found


def samples(tasks, number):
    task, length = jax.jit(jax.vmap(tasks.sample))(jax.random.split(jax.random.key(0), number))
    assert ((np.asarray(task) >= 0).sum(1) == np.asarray(length)).all()
    return [
        tuple(colours[:n].tolist())
        for colours, n in zip(np.asarray(task), np.asarray(length), strict=True)
    ]


def test_pretraining_tasks_of_the_paper():
    tasks = parse("table_a1", 8)
    assert tasks.length == 6
    assert len(language(tasks)) == 16
    # The pairs A = 0-1, B = 2-3, C = 4-5, D = 6-7: within a pair always, A>B, B>C, C>D, D>A never.
    allowed = {(a, b) for a, b in zip(*np.nonzero(tasks.transitions), strict=True)}
    within = {(0, 1), (2, 3), (4, 5), (6, 7)}
    between = {(1, 4), (1, 6), (3, 0), (3, 6), (5, 0), (5, 2), (7, 2), (7, 4)}
    assert allowed == within | between


def test_post_training_needs_exactly_the_unseen_transitions():
    allowed = {
        (int(a), int(b))
        for a, b in zip(*np.nonzero(parse("post_training_a1", 8).transitions), strict=True)
    }
    assert allowed - {(0, 1), (2, 3), (4, 5), (6, 7)} == {(1, 2), (3, 4), (5, 6), (7, 0)}
    assert samples(parse("post_training_a1", 8), 2) == [(0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3)] * 2


def test_ring_forbids_itself_and_the_next_around_the_circle():
    # By hand, for four colours: 0 -> 2, 3; 1 -> 3, 0; 2 -> 0, 1; 3 -> 1, 2.
    by_hand = np.array([[0, 0, 1, 1], [1, 0, 0, 1], [1, 1, 0, 0], [0, 1, 1, 0]], bool)
    assert (parse("ring:3", 4).transitions == by_hand).all()


@pytest.mark.parametrize("spec", ["ring:3", "0-1-4-2,3,3-0,3-0-1"])
def test_samples_follow_the_set(spec):
    expected = dict(reference.all_tasks(spec, NUM_COLOURS))
    number = 4000
    drawn = Counter(samples(parse(spec, NUM_COLOURS), number))
    assert set(drawn) == set(expected)
    for task, chance in expected.items():
        assert abs(drawn[task] - number * chance) < 5 * np.sqrt(number * chance)


@st.composite
def sequences(draw):
    """Task sets in which no colour follows itself, as lists of colours; duplicates may occur."""
    task = st.lists(st.integers(0, NUM_COLOURS - 1), min_size=1, max_size=5)
    return draw(
        st.lists(task.filter(lambda t: all(a != b for a, b in itertools.pairwise(t))), min_size=1)
    )


@given(sequences())
def test_automaton_emits_exactly_the_listed_tasks(listed):
    spec = ",".join("-".join(map(str, task)) for task in listed)
    tasks = parse(spec, NUM_COLOURS)
    expected = Counter(tuple(task) for task in listed)
    found = language(tasks)
    assert found.keys() == expected.keys()
    assert all(np.isclose(found[task], expected[task] / len(listed)) for task in found)
    assert tasks.length == max(map(len, listed))


@given(st.integers(3, 7), st.integers(1, 3))
@settings(max_examples=15)
def test_ring_emits_exactly_the_tasks_of_the_rule(num_colours, length):
    found = language(parse(f"ring:{length}", num_colours))
    expected = dict(reference.all_tasks(f"ring:{length}", num_colours))
    assert found.keys() == expected.keys()
    assert all(np.isclose(found[task], expected[task]) for task in found)


@pytest.mark.parametrize(
    "spec",
    [
        "",
        "table_a3",
        "0-1,",
        "0-1+",
        "+0-1",
        "0-1++1-0",
        "0--1",
        "ring:",
        "ring:0",
        "ring4",
        "-1",
        "a-b",
        "0-1;2",
    ],
)
def test_an_unknown_set_is_refused(spec):
    with pytest.raises(ValueError, match=r"env\.tasks=.*not a task set"):
        parse(spec, 8)


@pytest.mark.parametrize("parts", [["0-1-2", "2-1-0"], ["3"], ["0-2", "1", "2-0-2"]])
def test_older_runs_separate_tasks_by_commas(parts):
    today, older = (parse(sep.join(parts), 4, sep.join(["0-1", "2-3"])) for sep in "+,")
    assert language(today) == language(older)
    assert today.subgoals == older.subgoals == ((0, 1), (2, 3))


@pytest.mark.parametrize(
    "spec", ["ring:1000000", "ring:" + "9" * 5000, "9" * 5000, "0-1+" + "1" * 5000]
)
def test_a_set_that_no_memory_holds_is_refused(spec):
    with pytest.raises(ValueError, match=r"env\.tasks="):
        parse(spec, 8)


def test_errors_name_the_key():
    with pytest.raises(ValueError, match=r"colour 7 needs env\.num_colours > 7"):
        parse("table_a1", 7)
    with pytest.raises(
        ValueError, match=r"env\.tasks: a ring needs at least 3 colours, got env\.num_colours=2"
    ):
        parse("ring:2", 2)
    with pytest.raises(ValueError, match=r"env\.tasks='0-1-1': a colour may not follow itself"):
        parse("0-1-1", 3)


# --- abstract subgoals --------------------------------------------------------------------------


def test_the_papers_subgoals_are_pairs_and_its_post_training_task_needs_their_unseen_transitions():
    tasks, post = parse("table_a1", 8), parse("post_training_a1", 8)
    assert tasks.subgoals == post.subgoals == ((0, 1), (2, 3), (4, 5), (6, 7))
    assert tasks.subgoal_of.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    seen = {(int(a), int(b)) for a, b in zip(*np.nonzero(tasks.subgoal_transitions), strict=True)}
    asked = {(int(a), int(b)) for a, b in zip(*np.nonzero(post.subgoal_transitions), strict=True)}
    assert asked == {(0, 1), (1, 2), (2, 3), (3, 0)}  # A>B, B>C, C>D, D>A
    assert not asked & seen
    assert len(seen) == 8
    assert (tasks.first_subgoals.tolist(), post.first_subgoals.tolist()) == ([0, 1, 2, 3], [0])


def test_elsewhere_each_colour_is_a_subgoal():
    for spec in ("ring:3", "table_a2", "0-1-2+2-1-0"):
        tasks = parse(spec, 4)
        assert tasks.subgoals == ((0,), (1,), (2,), (3,))
        assert (tasks.subgoal_transitions == tasks.transitions).all()


def test_colours_that_no_subgoal_names_are_their_own():
    tasks = parse("3-1-0-2+4-3-1", 5, "3-1")
    assert tasks.subgoals == ((3, 1), (0,), (2,), (4,))
    assert tasks.subgoal_of.tolist() == [1, 0, 2, 0, 3]
    assert [tasks.name(k) for k in range(4)] == ["3-1", "0", "2", "4"]


@pytest.mark.parametrize(
    ("spec", "subgoals", "message"),
    [
        ("0-1-2", "0-1+1-2", r"env\.subgoals='0-1\+1-2': a colour belongs to one subgoal"),
        ("0-1-2", "0-9", r"colour 9 needs env\.num_colours > 9"),
        ("0-1-2", "pairs", r"env\.subgoals='pairs' is not a list of subgoals"),
    ],
)
def test_subgoals_that_make_no_sense_are_refused(spec, subgoals, message):
    with pytest.raises(ValueError, match=message):
        parse(spec, 4, subgoals)


@pytest.mark.parametrize(
    ("spec", "subgoals", "pair"),
    [
        ("0-1-0-1", "0-1", "1-0"),
        ("ring:3", "0-1", "1-0"),
        ("0-2-0-1", "0-1-2", "0-2"),
        ("0-1-2-3", "0-1+2-3", None),
        ("1-2-3", "0-1+2-3", None),
        ("ring:3", None, None),
    ],
)
def test_tasks_that_break_or_repeat_a_subgoal_are_told(spec, subgoals, pair):
    assert parse(spec, 4, subgoals).breaks_subgoals == pair
