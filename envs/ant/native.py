"""The ant's physics in native MuJoCo, on all cores: for CPU, driven from the host."""

import os

import jax
import numpy as np
from jaxtyping import Array, Float

from envs.ant import model
from envs.ant.world import AntState, AntWorld
from envs.api import TimeStep


class NativePhysics:
    """Steps many ants at once; float64 inside, float32 outside.

    As in `envs.ant.mjx`, `advance` is a pure function of what it is given: the solver starts from
    nothing at every call.

    threads: 0 means one per core that this process may use.
    """

    def __init__(self, num_ants: int, frame_skip: int, threads: int = 0):
        import mujoco  # lazily: grid runs do without it
        from mujoco import batch

        if threads == 0 and hasattr(os, "sched_getaffinity"):
            threads = len(os.sched_getaffinity(0))
        self.batch = batch.Batch(model.load(), num_ants, threads)
        self.frame_skip = frame_skip

        # The warnings after which MuJoCo resets an ant.
        kinds = mujoco.mjtWarning  # pyright: ignore[reportAttributeAccessIssue]
        fatal = (
            kinds.mjWARN_BADQPOS,
            kinds.mjWARN_BADQVEL,
            kinds.mjWARN_BADQACC,
            kinds.mjWARN_BADCTRL,
        )
        self.fatal = [int(kind) for kind in fatal]

    def advance(
        self,
        qpos: Float[np.ndarray, "N 15"],
        qvel: Float[np.ndarray, "N 14"],
        torques: Float[np.ndarray, "N 8"],
        live: np.ndarray | None = None,
    ) -> tuple[Float[np.ndarray, "N 15"], Float[np.ndarray, "N 14"]]:
        """Positions and velocities after `frame_skip` physics steps.

        live: [N]; ants that are not live stay as they are. None: all are live.

        An ant that MuJoCo cannot step (its warning counters rise and it resets) comes back as NaN.
        """
        # Everything that the solver reads is set anew, what earlier calls left behind included.
        batch = self.batch
        batch.qpos[:] = qpos
        batch.qvel[:] = qvel
        batch.ctrl[:] = torques
        batch.qacc_warmstart[:] = 0
        batch.warning[:] = 0
        batch.step(None if live is None else np.flatnonzero(live), self.frame_skip)

        # batch.warning: [N, kind of warning, (last, count)].
        broken = batch.warning[:, self.fatal, 1].any(1)
        after = batch.qpos.astype(np.float32), batch.qvel.astype(np.float32)
        for array in after:
            array[broken] = np.nan
        return after


class NativeAnts:
    """A batch of episodes of an `AntWorld` with native physics, for host loops.

    `reset` and `step` are those of the world under `vmap`, except for the physics.
    """

    def __init__(self, world: AntWorld, num_episodes: int, threads: int = 0):
        self.world = world
        self.physics = NativePhysics(num_episodes, world.frame_skip, threads)
        self._reset = jax.jit(jax.vmap(world.reset))
        self._after = jax.jit(jax.vmap(world.after))
        self._torques = jax.jit(jax.vmap(world.torques))

    def reset(self, keys: Array) -> tuple[AntState, TimeStep]:
        """Start a batch of episodes, one per key."""
        return self._reset(keys)

    def step(self, state: AntState, action: Float[np.ndarray, "N 8"]) -> tuple[AntState, TimeStep]:
        """One control step; finished episodes are not simulated."""
        qpos = np.asarray(state.qpos)
        qvel = np.asarray(state.qvel)
        done = np.asarray(state.done)
        torques = np.asarray(self._torques(state, action))
        return self._after(state, *self.physics.advance(qpos, qvel, torques, ~done))
