"""Physics of the ant in native MuJoCo, on all cores: for CPU, driven from the host."""

import numpy as np
from jaxtyping import Float

from envs.ant import model


class NativePhysics:
    """Steps many ants at once; float64 inside, float32 outside. threads 0: one a core.

    As `envs.ant.mjx`, a pure function of what it is given: the solver starts from nothing at every call.
    """

    def __init__(self, num_ants: int, frame_skip: int, threads: int = 0):
        import mujoco  # lazily: grid runs do without it
        from mujoco import batch

        self.batch, self.frame_skip = batch.Batch(model.load(), num_ants, threads), frame_skip
        kinds = mujoco.mjtWarning  # pyright: ignore[reportAttributeAccessIssue]
        self.fatal = [int(kind) for kind in (kinds.mjWARN_BADQPOS, kinds.mjWARN_BADQVEL, kinds.mjWARN_BADQACC)]

    def advance(
        self,
        qpos: Float[np.ndarray, "N 15"],
        qvel: Float[np.ndarray, "N 14"],
        torques: Float[np.ndarray, "N 8"],
        live: np.ndarray | None = None,
    ) -> tuple[Float[np.ndarray, "N 15"], Float[np.ndarray, "N 14"]]:
        """Positions and velocities after `frame_skip` physics steps; ants that are not `live` [N] stay as they are.

        An ant that MuJoCo cannot step (its warning counters rise and it resets) comes back as NaN.
        """
        batch = self.batch
        batch.qpos[:], batch.qvel[:], batch.ctrl[:], batch.qacc_warmstart[:] = qpos, qvel, torques, 0
        batch.warning[:] = 0
        batch.step(None if live is None else np.flatnonzero(live), self.frame_skip)
        broken = batch.warning[:, self.fatal, 1].any(1)  # [N, kind of warning, (last, count)]
        after = batch.qpos.astype(np.float32), batch.qvel.astype(np.float32)
        for array in after:
            array[broken] = np.nan
        return after
