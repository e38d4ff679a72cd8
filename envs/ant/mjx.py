"""The ant's physics in JAX (MJX): jit and vmap, for GPU and TPU."""

from collections.abc import Callable
from contextlib import redirect_stdout
from functools import cache
from io import StringIO

import jax
import jax.numpy as jnp

from envs.ant import model

Advance = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]


@cache
def make_advance(frame_skip: int) -> Advance:
    """(qpos [15], qvel [14], torques [8]) -> the same after `frame_skip` physics steps.

    A pure function of what it is given: the solver starts from nothing at every call, as in
    `envs.ant.native`. Its products are float32 ones on every device: less precise ones move the
    ant.
    """
    # The import prints that MJX's Warp backend is not installed.
    with redirect_stdout(StringIO()):
        from mujoco import mjx  # lazily: grid runs do without it

    # Constants, even where the caller is being traced.
    with jax.ensure_compile_time_eval():
        physics = mjx.put_model(model.load(), impl="jax")
        blank = mjx.make_data(model.load(), impl="jax")

    @jax.default_matmul_precision("highest")
    def advance(
        qpos: jax.Array, qvel: jax.Array, torques: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        data = blank.replace(qpos=qpos, qvel=qvel, ctrl=torques)

        # Only what the next step reads is carried: a whole Data would be copied at every step.
        def step(carry: tuple[jax.Array, ...], _: None) -> tuple[tuple[jax.Array, ...], None]:
            qpos, qvel, warmstart = carry
            after = mjx.step(physics, data.replace(qpos=qpos, qvel=qvel, qacc_warmstart=warmstart))
            return (after.qpos, after.qvel, after.qacc_warmstart), None

        (qpos, qvel, _), _ = jax.lax.scan(
            step, (qpos, qvel, jnp.zeros_like(qvel)), None, frame_skip
        )
        return qpos, qvel

    return advance
