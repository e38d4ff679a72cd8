"""A top-down picture of the ant's world, drawn without OpenGL: machines without a display have none."""

from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from envs.ant import model
from envs.ant.world import AntWorld
from envs.minigrid_pinpad import PALETTE

FLOOR, LINE, WALL, BODY, OUTLINE = (38, 38, 42), (70, 70, 76), (120, 120, 120), (226, 205, 170), (20, 20, 20)
OVERSAMPLING = 2  # lines are drawn larger and shrunk: smooth edges


def frame(world: AntWorld, qpos: Any, objects: Any, pixels: int = 480) -> np.ndarray:
    """The floor seen from above, +y up: coloured cells with their numbers, walls grey, the ant's body on top.

    qpos: [15]; objects: [O + W], cells of colours and walls. Of the world, size, num_colours and cell_size are read.
    Returns uint8 [pixels, pixels, 3].
    """
    import mujoco  # lazily: grid runs do without it

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
            draw.text(((column + 0.07) * cell, (row + 0.04) * cell), str(number), OUTLINE, font_size=cell / 5)
    for line in range(world.size + 1):
        draw.line((line * cell, 0, line * cell, side), LINE, OVERSAMPLING)
        draw.line((0, line * cell, side, line * cell), LINE, OVERSAMPLING)

    physics: Any = model.load()
    data = mujoco.MjData(physics)  # pyright: ignore[reportAttributeAccessIssue]
    data.qpos[:] = qpos
    mujoco.mj_kinematics(physics, data)  # pyright: ignore[reportAttributeAccessIssue]
    at = lambda point: ((point[0] * scale + side / 2), (side / 2 - point[1] * scale))
    for width, colour in ((6 * OVERSAMPLING, OUTLINE), (0, BODY)):  # the outline of everything first
        for geom in range(1, physics.ngeom):  # 0 is the floor
            centre, axis = data.geom_xpos[geom], data.geom_xmat[geom].reshape(3, 3)[:, 2]
            radius, half = physics.geom_size[geom, :2]
            ends = [at(centre - half * axis), at(centre + half * axis)]
            thick = 2 * radius * scale + width
            draw.line((*ends[0], *ends[1]), colour, round(thick))
            for x, y in ends:
                draw.ellipse((x - thick / 2, y - thick / 2, x + thick / 2, y + thick / 2), colour)
    return np.array(image.resize((pixels, pixels), Image.Resampling.BOX))
