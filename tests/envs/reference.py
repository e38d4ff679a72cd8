"""The grid world's rules in plain Python, from the paper's text, to check the JAX code against.

Nothing is shared with `envs/`: breadth-first search instead of value iteration, a sum over whole
tasks instead of a filter over automaton states.
"""

from collections import deque
from itertools import pairwise, product

import numpy as np


def move(size, walls, cell, action):
    """Where `action` (up, right, down, left) leads."""
    row, column = divmod(cell, size)
    row, column = [(row - 1, column), (row, column + 1), (row + 1, column), (row, column - 1)][
        action
    ]
    target = row * size + column
    return target if 0 <= row < size and 0 <= column < size and target not in walls else cell


def bfs(size, objects, num_colours, goal):
    """{cell: steps to the colour `goal`} entering no other colour, without unreachable cells."""
    walls = set(objects[num_colours:])
    distance, queue = {objects[goal]: 0}, deque([objects[goal]])
    while queue:
        cell = queue.popleft()
        if cell != objects[goal] and cell in objects:
            continue  # one can leave a colour, but no path leads through it
        for action in range(4):  # moves are reversible
            neighbour = move(size, walls, cell, action)
            if neighbour not in distance:
                distance[neighbour] = distance[cell] + 1
                queue.append(neighbour)
    return distance


def solvable(size, objects, num_colours, agent):
    """Every colour within reach of the start and of every other colour."""
    starts = [agent, *objects[:num_colours]]
    return all(
        start in bfs(size, objects, num_colours, goal)
        for goal in range(num_colours)
        for start in starts
    )


class Expert:
    """Probabilities [goal, cell, action] on one layout: `clean`, `executed`, of the `labels`."""

    def __init__(self, size, objects, num_colours, noise, kind):
        self.size, self.colours, self.walls = (
            size,
            objects[:num_colours],
            set(objects[num_colours:]),
        )
        self.objects, self.noise = objects, 0.0 if kind == "none" else noise
        self.distance = [bfs(size, objects, num_colours, goal) for goal in range(num_colours)]
        everywhere = [[(goal, cell) for cell in range(size * size)] for goal in range(num_colours)]
        self.executed = np.array([[self._executed(*place) for place in row] for row in everywhere])
        self.clean = np.array([[self._clean(*place) for place in row] for row in everywhere])
        self.labels = self.executed if kind == "epsilon" else self.clean

    def _clean(self, goal, cell):
        """Uniform over the first steps of shortest paths."""
        best = np.zeros(4)
        for action in range(4):
            target = move(self.size, self.walls, cell, action)
            allowed = target == self.colours[goal] or target not in self.objects
            if (
                target != cell
                and allowed
                and self.distance[goal].get(target) == self.distance[goal].get(cell, -9) - 1
            ):
                best[action] = 1
        return best / max(best.sum(), 1)

    def _executed(self, goal, cell):
        """After noise: uniform over what enters no colour and keeps every colour within reach."""
        random = np.zeros(4)
        for action in range(4):
            target = move(self.size, self.walls, cell, action)
            enters = target != cell and target in self.colours
            random[action] = not enters and all(target in distance for distance in self.distance)
        if not random.any():
            return self._clean(goal, cell)
        return (1 - self.noise) * self._clean(goal, cell) + self.noise * random / random.sum()


def all_tasks(spec, num_colours):
    """Every task of the set with its probability, as [(colours, probability)]."""
    if not spec.startswith("ring:"):
        tasks = [tuple(map(int, task.split("-"))) for task in spec.split(",")]
        return [(task, 1 / len(tasks)) for task in tasks]
    fits = [
        task
        for task in product(range(num_colours), repeat=int(spec[5:]))
        if all((b - a) % num_colours not in (0, 1) for a, b in pairwise(task))
    ]
    return [(task, 1 / len(fits)) for task in fits]  # each colour has equally many successors


def bayes_log_prob(expert, tasks, cells, labels):
    """log p(label_t | cells_0..t) by definition: a sum over whole tasks, by their likelihood."""
    answers = []
    for t, label in enumerate(labels):
        weighted = [
            (weight, expert.labels[task[visited], cells[t], label])
            for task, prior in tasks
            for weight, visited in [likelihood(expert, task, cells[: t + 1])]
            for weight in [weight * prior]
            if weight > 0
        ]
        total = sum(weight for weight, _ in weighted)
        answers.append(np.log(sum(weight * chance for weight, chance in weighted) / total))
    return np.array(answers)


def likelihood(expert, task, cells):
    """Probability of the positions given `task` and no end so far, and the colours visited."""
    weight, visited = 1.0, 0
    for before, after in pairwise(cells):
        chances = expert.executed[task[visited], before]
        weight *= sum(
            chances[a] for a in range(4) if move(expert.size, expert.walls, before, a) == after
        )
        if before != after and after in expert.colours:
            visited += 1
            if visited == len(task) or expert.colours[task[visited - 1]] != after:
                return 0.0, visited  # the episode would have ended
    return weight, visited
