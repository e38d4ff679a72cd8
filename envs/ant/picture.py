"""A top-down picture of the ant's world, drawn without OpenGL, which needs a display."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image, ImageDraw

from envs.ant import model
from envs.ant.world import AntWorld
from envs.minigrid_pinpad import PALETTE

FLOOR = (38, 38, 42)
LINE = (70, 70, 76)
WALL = (120, 120, 120)
BODY = (226, 205, 170)
OUTLINE = (20, 20, 20)
OVERSAMPLING = 2  # the picture is drawn larger and shrunk, for smooth edges


def frame(world: AntWorld, qpos: ArrayLike, objects: ArrayLike, pixels: int = 480) -> np.ndarray:
    """The floor seen from above, +y up: numbered coloured cells, grey walls, the ant's body on top.

    world: only its size, num_colours and cell_size are read.
    qpos: [15].
    objects: [O + W], cells of the colours, then of the walls.

    Returns uint8 [pixels, pixels, 3].
    """
    import mujoco  # lazily: grid runs do without it

    # The floor: colours, walls, lines between the cells.
    side = pixels * OVERSAMPLING
    scale = side / (world.size * world.cell_size)
    image = Image.new("RGB", (side, side), FLOOR)
    draw = ImageDraw.Draw(image)
    cell = side / world.size
    for number, place in enumerate(np.asarray(objects).tolist()):
        row, column = divmod(place, world.size)
        is_colour = number < world.num_colours
        fill = PALETTE[number % len(PALETTE)] if is_colour else WALL
        draw.rectangle((column * cell, row * cell, (column + 1) * cell, (row + 1) * cell), fill)
        if is_colour:
            corner = ((column + 0.07) * cell, (row + 0.04) * cell)
            draw.text(corner, str(number), OUTLINE, font_size=cell / 5)
    for line in range(world.size + 1):
        draw.line((line * cell, 0, line * cell, side), LINE, OVERSAMPLING)
        draw.line((0, line * cell, side, line * cell), LINE, OVERSAMPLING)

    # Where the parts of the body are in this pose.
    physics: Any = model.load()
    data = mujoco.MjData(physics)  # pyright: ignore[reportAttributeAccessIssue]
    data.qpos[:] = qpos
    mujoco.mj_kinematics(physics, data)  # pyright: ignore[reportAttributeAccessIssue]

    def at(point: np.ndarray) -> tuple[float, float]:
        """The pixel of a point of the world."""
        return point[0] * scale + side / 2, side / 2 - point[1] * scale

    # Each part is a capsule: a thick line with round ends. The outline of all parts comes first.
    for width, colour in ((6 * OVERSAMPLING, OUTLINE), (0, BODY)):
        for geom in range(1, physics.ngeom):  # 0 is the floor
            centre = data.geom_xpos[geom]
            axis = data.geom_xmat[geom].reshape(3, 3)[:, 2]
            radius, half = physics.geom_size[geom, :2]
            ends = [at(centre - half * axis), at(centre + half * axis)]
            thick = 2 * radius * scale + width
            draw.line((*ends[0], *ends[1]), colour, round(thick))
            for x, y in ends:
                draw.ellipse((x - thick / 2, y - thick / 2, x + thick / 2, y + thick / 2), colour)
    return np.array(image.resize((pixels, pixels), Image.Resampling.BOX))
