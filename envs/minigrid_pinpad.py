"""gridworld-pinpad (App. A) on MiniGrid: its pictures, and a twin that checks the JAX world.

Nothing here knows the JAX transition rules: moves, walls and colours are MiniGrid's own grid and
objects. MiniGrid frames its grid with walls, so that the inner cell (row, column) lies at the grid
position (column + 1, row + 1).
"""

from collections.abc import Sequence

import numpy as np
from gymnasium import spaces
from minigrid.core.grid import Grid
from minigrid.core.mission import MissionSpace
from minigrid.core.world_object import Wall, WorldObj
from minigrid.minigrid_env import MiniGridEnv
from minigrid.utils.rendering import downsample, fill_coords, point_in_circle, point_in_rect

# MiniGrid has six colours, one of them the grey of its walls: too few. Beyond ten pads these
# colours repeat, the numbers on the pads do not.
PALETTE = (
    (228, 87, 86),
    (76, 120, 220),
    (84, 190, 90),
    (245, 200, 60),
    (160, 100, 220),
    (245, 145, 50),
    (80, 205, 205),
    (245, 150, 200),
    (150, 105, 70),
    (235, 235, 235),
)
# Each digit as five rows of three dots.
DIGITS = (
    "### #.# #.# #.# ###",
    ".#. ##. .#. .#. ###",
    "### ..# ### #.. ###",
    "### ..# ### ..# ###",
    "#.# #.# ### ..# ..#",
    "### #.. ### ..# ###",
    "### #.. ### #.# ###",
    "### ..# ..# ..# ..#",
    "### #.# ### #.# ###",
    "### #.# ### ..# ###",
)
PAD_TYPE = 100  # an object code that MiniGrid does not use


class Pad(WorldObj):
    """A coloured cell that the agent can enter.

    channel: its colour and its observation channel.
    """

    def __init__(self, channel: int):
        super().__init__("floor", "grey")
        self.channel = channel

    def can_overlap(self) -> bool:
        return True

    def encode(self) -> tuple[int, int, int]:
        """MiniGrid caches tiles by this code, so each number needs its own."""
        return PAD_TYPE, self.channel, 0

    def render(self, r: np.ndarray) -> np.ndarray:
        """Fill the tile with the pad's colour and write its number in the middle."""
        fill_coords(r, point_in_rect(0.031, 1, 0.031, 1), PALETTE[self.channel % len(PALETTE)])
        glyphs = [DIGITS[int(digit)].split() for digit in str(self.channel)]
        rows = [".".join(glyph[row] for glyph in glyphs) for row in range(5)]
        dot = min(0.12, 0.9 / len(rows[0]))
        left = 0.5 - dot * len(rows[0]) / 2
        top = 0.5 - dot * 2.5

        def inked(x: float, y: float) -> bool:
            column = int((x - left) // dot)
            row = int((y - top) // dot)
            return 0 <= row < 5 and 0 <= column < len(rows[0]) and rows[row][column] == "#"

        return fill_coords(r, inked, (0, 0, 0))


class NumberedWall(Wall):
    """One of the W walls.

    channel: its observation channel (the walls of the frame have none).
    """

    def __init__(self, channel: int):
        super().__init__()
        self.channel = channel


def layout_grid(size: int, objects: Sequence[int], num_colours: int) -> Grid:
    """The framed (size + 2) x (size + 2) grid of a layout.

    objects: [O + W], cells of the colours, then of the walls.
    """
    grid = Grid(size + 2, size + 2)
    grid.wall_rect(0, 0, size + 2, size + 2)
    for channel, cell in enumerate(objects):
        row, column = divmod(int(cell), size)
        grid.set(
            column + 1, row + 1, Pad(channel) if channel < num_colours else NumberedWall(channel)
        )
    return grid


def draw_agent(tile: np.ndarray) -> None:
    """Draw the agent, a red disc with a white rim, onto `tile`, uint8 [side, side, 3], in place."""
    large = tile.repeat(3, 0).repeat(3, 1)  # for smooth edges, as MiniGrid does
    fill_coords(large, point_in_circle(0.5, 0.5, 0.36), (255, 255, 255))
    fill_coords(large, point_in_circle(0.5, 0.5, 0.28), (255, 0, 0))
    tile[:] = downsample(large, 3)


class MiniGridPinpad(MiniGridEnv):
    """One episode's world with everything given; every reset starts the same episode again.

    Actions: 0 up, 1 right, 2 down, 3 left. Observation (App. A): float32 [G * G * (O + W + 1)], per
    cell a one-hot of the object there plus the agent. Reward 1 at success only. Terminated by
    success or a wrong colour, truncated after `horizon` steps otherwise. The info of `step` holds
    `success` and the colour `entered` (-1: none).

    size: G.
    objects: [O + W], cells of the colours, then of the walls.
    num_colours: O.
    agent: the start cell.
    task: the colours to visit, in order.
    horizon: T.
    """

    def __init__(
        self,
        size: int,
        objects: Sequence[int],
        num_colours: int,
        agent: int,
        task: Sequence[int],
        horizon: int,
        render_mode: str | None = None,
        tile_size: int = 32,
    ):
        # The episode.
        self.size = size
        self.objects = tuple(objects)
        self.num_colours = num_colours
        self.start = agent
        self.task = tuple(task)
        self.visited = 0

        # MiniGrid's side of it; its default action and observation spaces are replaced.
        super().__init__(
            MissionSpace(lambda: "visit the colours in the hidden order"),
            grid_size=size + 2,
            max_steps=horizon,
            see_through_walls=True,
            render_mode=render_mode,
            highlight=False,
            tile_size=tile_size,
        )
        self.action_space = spaces.Discrete(4)
        self.observation_space = spaces.Box(
            0, 1, (size * size * (len(self.objects) + 1),), np.float32
        )

    def _gen_grid(self, width: int, height: int) -> None:
        self.grid = layout_grid(self.size, self.objects, self.num_colours)
        row, column = divmod(self.start, self.size)
        self.agent_pos = (column + 1, row + 1)
        self.agent_dir = 0
        self.visited = 0

    def gen_obs(self) -> np.ndarray:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The allocentric observation of App. A, read off the grid."""
        picture = np.zeros((self.size, self.size, len(self.objects) + 1), np.float32)
        for row in range(self.size):
            for column in range(self.size):
                cell = self.grid.get(column + 1, row + 1)
                if isinstance(cell, Pad | NumberedWall):
                    picture[row, column, cell.channel] = 1
        picture[self.agent_pos[1] - 1, self.agent_pos[0] - 1, -1] = 1
        return picture.ravel()

    def step(self, action: int):  # pyright: ignore[reportIncompatibleMethodOverride]
        """Face the action's direction and take one step that way if nothing blocks it."""
        self.step_count += 1
        self.agent_dir = (int(action) - 1) % 4  # MiniGrid counts from right
        ahead = (int(self.front_pos[0]), int(self.front_pos[1]))
        cell = self.grid.get(*ahead)
        entered = -1
        if cell is None or cell.can_overlap():
            self.agent_pos = ahead
            entered = cell.channel if isinstance(cell, Pad) else -1

        # The pin-pad automaton.
        wrong = entered >= 0 and entered != self.task[self.visited]
        self.visited += entered >= 0 and not wrong
        success = self.visited == len(self.task)
        terminated = success or wrong
        truncated = self.step_count >= self.max_steps and not terminated
        info = {"success": success, "entered": entered}
        return self.gen_obs(), float(success), terminated, truncated, info
