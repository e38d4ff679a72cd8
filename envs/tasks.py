"""Task sets as data: each is a hidden Markov automaton that emits the colours to visit.

The state of the automaton says which colour comes next; the observation never shows it. A list of
tasks (Table A1) and a grammar (ring) are the same thing here, so one sampler and one exact Bayes
filter serve both.
"""

import re
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np

# Table A1, the pretraining tasks of gridworld-pinpad.
TABLE_A1 = (
    "0-1-4-5-0-1+0-1-4-5-2-3+0-1-6-7-2-3+2-3-0-1-4-5+2-3-6-7-2-3+2-3-6-7-4-5+"
    "4-5-0-1-4-5+4-5-0-1-6-7+4-5-2-3-6-7+6-7-2-3-0-1+6-7-2-3-6-7+6-7-4-5-0-1+"
    "0-1-6-7-4-5+2-3-0-1-6-7+4-5-2-3-0-1+6-7-4-5-2-3"
)
# The post-training task of gridworld-pinpad: Table A1 has none of its transitions between pairs.
POST_TRAINING_A1 = "0-1-2-3-4-5-6-7-0-1-2-3"
# Table A2, the pretraining tasks of ant-pinpad: in none of them does 1 follow 0, 2 follow 1,
# 3 follow 2 or 0 follow 3, so that every transition of the post-training task is new.
TABLE_A2 = (
    "0-3-2+1-0-3+2-1-0+3-2-1+0-2-0+0-2-1+0-3-1+1-0-2+"
    "1-3-1+1-3-2+2-0-2+2-0-3+2-1-3+3-1-0+3-1-3+3-2-0"
)
POST_TRAINING_A2 = "0-1-2-3"
NAMED = {
    "table_a1": TABLE_A1,
    "post_training_a1": POST_TRAINING_A1,
    "table_a2": TABLE_A2,
    "post_training_a2": POST_TRAINING_A2,
}
PAIRS = "0-1+2-3+4-5+6-7"  # the abstract subgoals A, B, C, D of gridworld-pinpad (App. A)
# Abstract subgoals of the named sets; in every other set each colour is a subgoal.
SUBGOALS = {"table_a1": PAIRS, "post_training_a1": PAIRS}


SEQUENCE = r"[0-9]{1,9}(-[0-9]{1,9})*"  # of colours, in the order of a visit
MOST_STATES = 4_096  # of the automaton: its matrix of transitions is a square


@dataclass(frozen=True)
class TaskSet:
    """A distribution over colour sequences, and what an abstract subgoal is in them.

    num_colours: O.
    length: colours of the longest sequence.
    colour: int32 [S], the colour each automaton state asks for.
    initial: float64 [S], sums to 1.
    transition: float64 [S, S]; a row sums to 1, or to 0 where the task ends with that state.
    subgoals: the colours of each abstract subgoal, in the order in which they are visited.
    """

    num_colours: int
    length: int
    colour: np.ndarray
    initial: np.ndarray
    transition: np.ndarray
    subgoals: tuple[tuple[int, ...], ...]

    @cached_property
    def subgoal_of(self) -> np.ndarray:
        """int32 [num_colours]: the abstract subgoal that each colour belongs to."""
        owner = np.zeros(self.num_colours, np.int32)
        for subgoal, colours in enumerate(self.subgoals):
            owner[list(colours)] = subgoal
        return owner

    def name(self, subgoal: int) -> str:
        """An abstract subgoal as it is written in a task: "2", or "2-3" for a pair."""
        return "-".join(map(str, self.subgoals[subgoal]))

    def sample(self, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """One task: colours int32 [length] padded with -1, and how many of them count."""
        colour = jnp.asarray(self.colour)
        transition = jnp.log(jnp.asarray(self.transition, jnp.float32))
        keys = jax.random.split(key, self.length)
        first = jax.random.categorical(keys[0], jnp.log(jnp.asarray(self.initial, jnp.float32)))

        # A walk over the automaton's states; `alive` until a state from which nothing follows.
        def advance(
            carry: tuple[jax.Array, jax.Array], key: jax.Array
        ) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
            state, alive = carry
            alive &= jnp.isfinite(transition[state]).any()
            state = jnp.where(alive, jax.random.categorical(key, transition[state]), state)
            return (state, alive), jnp.where(alive, colour[state], -1)

        _, rest = jax.lax.scan(advance, (first, jnp.bool_(True)), keys[1:])
        task = jnp.append(colour[first], rest)
        return task, jnp.sum(task >= 0)

    @cached_property
    def transitions(self) -> np.ndarray:
        """bool [num_colours, num_colours]: which colour may directly follow which."""
        colour = np.eye(self.num_colours)[self.colour]
        return colour.T @ (self.transition > 0) @ colour > 0

    @cached_property
    def subgoal_transitions(self) -> np.ndarray:
        """bool [subgoals, subgoals]: which abstract subgoal may directly follow which."""
        subgoal = np.eye(len(self.subgoals))[self.subgoal_of]
        follows = subgoal.T @ self.transitions @ subgoal > 0
        return follows & ~np.eye(len(self.subgoals), dtype=bool)  # within a subgoal nothing begins

    @cached_property
    def breaks_subgoals(self) -> str | None:
        """Two colours, "1-0", that follow each other against the order of the subgoal they share.

        Where a task leaves that order or starts it anew, nothing could tell one such subgoal from
        two. None if there are no such colours.
        """
        place = {colour: place for group in self.subgoals for place, colour in enumerate(group)}
        for before, after in np.argwhere(self.transitions):
            if (
                self.subgoal_of[before] == self.subgoal_of[after]
                and place[after] != place[before] + 1
            ):
                return f"{before}-{after}"
        return None

    @cached_property
    def first_subgoals(self) -> np.ndarray:
        """int32, the abstract subgoals that a task may begin with, in ascending order."""
        return np.unique(self.subgoal_of[self.colour[self.initial > 0]])


def from_sequences(
    sequences: list[list[int]], num_colours: int, subgoals: tuple[tuple[int, ...], ...]
) -> TaskSet:
    """The uniform distribution over explicit colour sequences."""
    # One state of the automaton per place in a sequence.
    states = [
        (task, position)
        for task, sequence in enumerate(sequences)
        for position in range(len(sequence))
    ]
    index = {state: i for i, state in enumerate(states)}

    # Any sequence begins with the same probability and then runs to its end.
    initial = np.zeros(len(states))
    transition = np.zeros((len(states), len(states)))
    for (task, position), i in index.items():
        if position == 0:
            initial[i] = 1 / len(sequences)
        if (task, position + 1) in index:
            transition[i, index[task, position + 1]] = 1
    colour = np.array([sequences[task][position] for task, position in states], np.int32)
    return TaskSet(num_colours, max(map(len, sequences)), colour, initial, transition, subgoals)


def ring(num_colours: int, length: int, subgoals: tuple[tuple[int, ...], ...]) -> TaskSet:
    """After colour k follows any colour but k and k + 1 (modulo the ring), uniformly.

    Any colour comes first. The transitions k to k + 1 stay unseen, for tasks after pretraining.
    """
    if num_colours < 3:
        raise ValueError(
            f"env.tasks: a ring needs at least 3 colours, got env.num_colours={num_colours}"
        )
    # Which colour may follow which.
    colours = np.arange(num_colours)
    step = (colours[None] - colours[:, None]) % num_colours
    allowed = (step != 0) & (step != 1)
    successors = allowed / allowed.sum(1, keepdims=True)

    # One copy of the colours per place in the sequence: a state leads to the next copy only.
    transition = np.kron(np.eye(length, k=1), successors)
    initial = np.zeros(length * num_colours)
    initial[:num_colours] = 1 / num_colours
    each = np.tile(colours, length).astype(np.int32)
    return TaskSet(num_colours, length, each, initial, transition, subgoals)


def _sequences(text: str) -> list[list[int]] | None:
    """[[0, 1, 2], [2, 1, 0]] of "0-1-2+2-1-0"; None where the text is something else.

    A comma separates as well, as older runs have it; in a sweep it is Hydra's.
    """
    if not re.fullmatch(rf"{SEQUENCE}([+,]{SEQUENCE})*", text):
        return None
    return [[int(colour) for colour in task.split("-")] for task in re.split("[+,]", text)]


def parse_subgoals(spec: str | None, num_colours: int) -> tuple[tuple[int, ...], ...]:
    """Read abstract subgoals, "0-1+2-3".

    A colour that is in none of them is a subgoal of its own; with None every colour is.
    Raises ValueError naming the config key for malformed text, for a colour that does not exist
    and for one that comes twice.
    """
    groups = [] if spec is None else _sequences(spec)
    if groups is None:
        raise ValueError(
            f"env.subgoals={spec!r} is not a list of subgoals; "
            "write the colours of each, as in 0-1+2-3"
        )
    named = [colour for group in groups for colour in group]
    if len(set(named)) < len(named):
        raise ValueError(f"env.subgoals={spec!r}: a colour belongs to one subgoal only")
    if max(named, default=0) >= num_colours:
        raise ValueError(
            f"env.subgoals={spec!r}: colour {max(named)} needs env.num_colours > {max(named)}"
        )
    return (
        *map(tuple, groups),
        *((colour,) for colour in range(num_colours) if colour not in named),
    )


def parse(spec: str, num_colours: int, subgoals: str | None = None) -> TaskSet:
    """Read a task set: a name of NAMED, "ring:LENGTH", or sequences "0-1-2+2-1-0".

    subgoals: as `parse_subgoals` reads them; None: those that SUBGOALS has for a named set.
    Raises ValueError naming the config key for malformed text, for a colour that does not exist
    and for one that follows itself (a visited cell must be left first, so the expert would have no
    shortest path).
    """
    text = NAMED.get(spec, spec)
    groups = parse_subgoals(SUBGOALS.get(spec) if subgoals is None else subgoals, num_colours)

    # A grammar.
    if grammar := re.fullmatch(r"ring:([1-9][0-9]{0,8})", text):
        if int(grammar[1]) * num_colours > MOST_STATES:
            most = MOST_STATES // num_colours
            raise ValueError(f"env.tasks={spec!r}: a ring's tasks have at most {most} colours")
        return ring(num_colours, int(grammar[1]), groups)

    # A list of sequences.
    sequences = _sequences(text)
    if sequences is None:
        raise ValueError(
            f"env.tasks={spec!r} is not a task set; "
            f"use {', '.join(NAMED)}, ring:LENGTH or 0-1-2+2-1-0"
        )
    for sequence in sequences:
        if max(sequence) >= num_colours:
            raise ValueError(
                f"env.tasks={spec!r}: colour {max(sequence)} "
                f"needs env.num_colours > {max(sequence)}"
            )
        if any(a == b for a, b in pairwise(sequence)):
            raise ValueError(f"env.tasks={spec!r}: a colour may not follow itself")
    return from_sequences(sequences, num_colours, groups)
