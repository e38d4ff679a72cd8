"""The ant's MuJoCo model: one file for both physics backends."""

from functools import cache
from pathlib import Path
from typing import Any

NUM_POSITIONS = 15
NUM_VELOCITIES = 14
NUM_TORQUES = 8
TIMESTEP = 0.01  # s, of the physics


@cache
def load() -> Any:
    """The compiled `mujoco.MjModel`."""
    import mujoco  # lazily: grid runs do without it

    path = Path(__file__).with_name("model.xml")
    return mujoco.MjModel.from_xml_path(str(path))  # pyright: ignore[reportAttributeAccessIssue]
