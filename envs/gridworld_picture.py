"""Pictures of the grid world, drawn with MiniGrid's tiles."""

from typing import SupportsInt

import numpy as np
from numpy.typing import ArrayLike

from envs.gridworld import GridWorld

SWITCH_BORDER = (255, 255, 0)


def frame(
    env: GridWorld,
    objects: ArrayLike,
    agent: SupportsInt,
    task: ArrayLike | None = None,
    index: int = 0,
    tile_size: int = 32,
    highlight: bool = False,
) -> np.ndarray:
    """A picture of one step of the grid world, in MiniGrid's tiles; the agent is a red disc.

    objects: [O + W], cells of the colours, then of the walls.
    agent: its cell.
    task: colours to visit (padding of -1 is skipped), drawn as a strip below the grid; the first
      `index`, already visited, are dark and the next one has a white border.
    highlight: draw a yellow border, to say "a switch happened here".

    Returns uint8 [H, (G + 2) * tile_size, 3]; H is (G + 2) * tile_size, plus tile_size with a task.
    """
    from envs import minigrid_pinpad  # lazily: MiniGrid starts pygame

    # The layout, then the agent on its cell; MiniGrid frames the grid with walls one tile wide.
    grid = minigrid_pinpad.layout_grid(env.size, np.asarray(objects).tolist(), env.num_colours)
    row, column = divmod(int(agent), env.size)
    picture = grid.render(tile_size, agent_pos=(-1, -1))
    top = (row + 1) * tile_size
    left = (column + 1) * tile_size
    minigrid_pinpad.draw_agent(picture[top : top + tile_size, left : left + tile_size])

    # What is not part of the world: the hidden task, the switch of the metacontroller.
    if task is not None:
        picture = np.concatenate([picture, task_strip(task, index, tile_size, picture.shape[1])])
    if highlight:
        mark_switch(picture, max(2, tile_size // 6))
    return picture


def mark_switch(picture: np.ndarray, thickness: int) -> None:
    """Draw the yellow border that says "a switch happened here", in place."""
    _border(picture, thickness, SWITCH_BORDER)


def task_strip(task: ArrayLike, index: int, tile_size: int, width: int) -> np.ndarray:
    """The colours of a task as uint8 [tile_size, width, 3], as `frame` describes it."""
    from envs import minigrid_pinpad

    colours = [int(colour) for colour in np.asarray(task) if colour >= 0]
    strip = np.zeros((tile_size, width, 3), np.uint8)
    side = min(tile_size, width // len(colours))
    for position, colour in enumerate(colours):
        pad = minigrid_pinpad.Pad(colour)
        tile = minigrid_pinpad.Grid.render_tile(pad, tile_size=side).astype(np.uint8)
        if position < index:
            tile = tile // 3
        if position == index:
            _border(tile, max(1, side // 10), (255, 255, 255))
        strip[:side, position * side : (position + 1) * side] = tile
    return strip


def _border(picture: np.ndarray, thickness: int, colour: tuple[int, int, int]) -> None:
    picture[:thickness] = colour
    picture[-thickness:] = colour
    picture[:, :thickness] = colour
    picture[:, -thickness:] = colour
