"""Record one episode of the trained latent policy for the animation."""

import jax
import numpy as np

from internal_rl import streams
from internal_rl.run import Run
from internal_rl.trained import seed_key
from internal_rl.training import files

POSES = ("agent", "qpos")  # where the agent is: the grid world's cell, the ant's positions
HOST_CANDIDATES = 64  # episodes played to find a successful one; elsewhere a batch of RL's


def record_episode(run: Run) -> dict[str, np.ndarray]:
    """Play the first seed's policy and keep its first success, else its first episode.

    Writes rollout.npz and returns its content.
    """
    agent = run.agent("internal_rl")
    key = streams.fold(seed_key(run.config, "internal_rl", 0), "rl.record")
    candidates = HOST_CANDIDATES if run.env.on_host else run.config.reinforce.batch_size

    # Of every step only what is drawn: the models' memory is much larger.
    steps = [
        jax.device_get(
            (
                carry.env.controlled.env,
                carry.step.decide,
                carry.episodes.success,
                carry.episodes.length,
            )
        )
        for carry in agent.rollout.steps(agent.actor, jax.random.split(key, candidates))
    ]

    # One of the episodes, and the states of its environment.
    _, _, success, length = steps[-1]
    chosen = int(np.argmax(success))
    played = jax.tree.map(lambda x: x[chosen], steps[: int(length[chosen]) + 1])
    state = [env_state for env_state, *_ in played]
    poses = [name for name in POSES if hasattr(state[0], name)]

    # What the animation needs: world and task once, then per step the pose, the colours visited
    # and whether the policy chooses a new latent.
    episode = {
        "objects": state[0].objects,
        **{name: np.array([getattr(s, name) for s in state]) for name in poses},
        "index": np.array([s.pinpad.index for s in state]),
        "switch": np.array([bool(decide) for _, decide, *_ in played]),
        "task": state[0].pinpad.task,
        "success": success[chosen],
    }
    files.write_arrays(run.directory / "rollout.npz", episode)
    return episode
