"""Record one episode of the trained latent policy for the animation."""

import jax
import numpy as np

from internal_rl import streams
from internal_rl.run import Run
from internal_rl.trained import seed_key
from internal_rl.training import files

POSES = ("agent", "qpos")  # where the agent is: the grid world's cell, the ant's positions
CANDIDATES = 64  # episodes played to find a successful one


def record_episode(run: Run) -> dict[str, np.ndarray]:
    """Play the first seed's policy and keep its first success, else its first episode.

    Writes rollout.npz and returns its content.
    """
    agent = run.agent("internal_rl")
    key = streams.fold(seed_key(run.config, "internal_rl", 0), "rl.record")
    carries = list(agent.rollout.steps(agent.actor, jax.random.split(key, CANDIDATES)))

    # One of the episodes, and the states of its environment.
    final = carries[-1].episodes
    chosen = int(np.argmax(np.asarray(final.success)))
    length = int(final.length[chosen])
    played = carries[: length + 1]
    state = [
        jax.tree.map(lambda x: np.asarray(x)[chosen], carry.env.controlled.env) for carry in played
    ]
    poses = [name for name in POSES if hasattr(state[0], name)]

    # What the animation needs: world and task once, then per step the pose, the colours visited
    # and whether the policy chooses a new latent.
    episode = {
        "objects": state[0].objects,
        **{name: np.array([getattr(s, name) for s in state]) for name in poses},
        "index": np.array([s.pinpad.index for s in state]),
        "switch": np.array([bool(carry.step.decide[chosen]) for carry in played]),
        "task": state[0].pinpad.task,
        "success": np.asarray(final.success)[chosen],
    }
    files.write_arrays(run.directory / "rollout.npz", episode)
    return episode
