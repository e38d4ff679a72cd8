"""The ant's body looks the same after a quarter turn: the frame, joints and torques seen turned.

So whatever works for walking one way works for all four, once it is turned.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

# Of legs 1 to 4: the sign of the ankle angle that lifts the foot.
ANKLE_SIGNS = np.array([1.0, -1.0, -1.0, 1.0], np.float32)
QUARTER = np.pi / 2


def yaw(qpos: Float[Array, "15"]) -> Float[Array, ""]:
    """The torso's turn around the vertical, rad.

    Of all definitions of a heading it is the one that a turn of the body changes by just that turn.
    """
    return 2 * jnp.arctan2(qpos[6], qpos[3])


def up(qpos: Float[Array, "15"]) -> Float[Array, "3"]:
    """The world's vertical in the body's frame."""
    w, x, y, z = qpos[3:7]
    return jnp.stack([2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)])


def rotation(angle: Float[Array, ""]) -> Float[Array, "2 2"]:
    """The matrix that turns horizontal vectors of the world into a frame turned by `angle`."""
    cosine = jnp.cos(angle)
    sine = jnp.sin(angle)
    return jnp.stack([jnp.stack([cosine, sine]), jnp.stack([-sine, cosine])])


def turn_legs(joints: Float[Array, "8"], turns: Int[Array, ""]) -> Float[Array, "8"]:
    """Joints or torques as seen `turns` quarter turns further on.

    joints: hip and ankle of legs 1 to 4. In the result a positive ankle lifts the foot of any leg.
    """
    legs = joints.reshape(4, 2) * jnp.stack([jnp.ones(4), jnp.asarray(ANKLE_SIGNS)], 1)
    return jnp.roll(legs, -turns, 0).reshape(8)


def turn_legs_back(joints: Float[Array, "8"], turns: Int[Array, ""]) -> Float[Array, "8"]:
    """The inverse of `turn_legs`."""
    legs = jnp.roll(joints.reshape(4, 2), turns, 0)
    return (legs * jnp.stack([jnp.ones(4), jnp.asarray(ANKLE_SIGNS)], 1)).reshape(8)


def turn_body(
    qpos: Float[Array, "15"], qvel: Float[Array, "14"], turns: Int[Array, ""]
) -> tuple[Float[Array, "3"], Float[Array, "8"], Float[Array, "14"]]:
    """(the vertical, the joints, the velocities) seen `turns` quarter turns from the heading."""
    frame = rotation(turns * QUARTER)
    vertical = up(qpos)
    horizontal = rotation(yaw(qpos) + turns * QUARTER) @ qvel[:2]
    velocities = [horizontal, qvel[2:3], frame @ qvel[3:5], qvel[5:6], turn_legs(qvel[6:], turns)]
    vertical = jnp.concatenate([frame @ vertical[:2], vertical[2:]])
    return vertical, turn_legs(qpos[7:], turns), jnp.concatenate(velocities)
