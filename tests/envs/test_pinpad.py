import jax.numpy as jnp
import pytest

from envs import pinpad


def run(task, entries):
    """Enter colours one after the other; the flags (wrong, success) and the index after each."""
    padded = jnp.array([*task, -1, -1])
    progress, log = pinpad.start(padded, jnp.int32(len(task))), []
    for colour in entries:
        progress, wrong, success = pinpad.visit(progress, jnp.int32(colour))
        log.append((bool(wrong), bool(success), int(progress.index)))
    return progress, log


def test_the_order_is_followed_to_success():
    progress, log = run([2, 0, 2], [2, 0, 2])
    assert log == [(False, False, 1), (False, False, 2), (False, True, 3)]
    assert int(progress.colour) == 2  # the last colour, not the padding


def test_no_colour_changes_nothing():
    _, log = run([1, 0], [-1, 1, -1, -1, 0])
    assert log == [
        (False, False, 0),
        (False, False, 1),
        (False, False, 1),
        (False, False, 1),
        (False, True, 2),
    ]


@pytest.mark.parametrize("wrong", [0, 2])
def test_any_other_colour_is_wrong(wrong):
    _, log = run([1, 0], [wrong])
    assert log == [(True, False, 0)]


def test_the_colour_just_visited_is_wrong_when_entered_again():
    _, log = run([1, 0], [1, 1])
    assert log == [(False, False, 1), (True, False, 1)]


def test_nothing_succeeds_twice():
    _, log = run([1], [1, 1])
    assert log == [(False, True, 1), (True, False, 1)]


def test_subgoal_is_the_next_colour():
    progress, _ = run([3, 1, 2], [3])
    assert int(progress.colour) == 1
