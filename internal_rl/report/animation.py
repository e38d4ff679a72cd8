"""The recorded episode of the latent policy as a GIF."""

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
from jaxtyping import Bool, UInt8

from internal_rl.report.figures import MissingDataError

Picture = UInt8[np.ndarray, "H W 3"]
Recording = Mapping[str, np.ndarray]  # rollout.npz

TILE = 28  # pixels
TIMELINE = 12
# Milliseconds that a frame is shown.
STEP = 180
SWITCH_STEP = 500
LAST = 2_000
ANT_STEP = 60
ANT_PIXELS = 280  # side of the floor
MOST_FRAMES = 120  # of a longer episode every n-th step is shown
NEW_LATENT = (255, 225, 0)
SAME_LATENT = (190, 190, 190)
TO_COME = (60, 60, 60)
COLOURS = 128


def rollout_animation(rollout: Recording, env: Mapping[str, Any], path: Path) -> None:
    """Write the episode with one frame per step, above a timeline; a new latent is marked yellow.

    env: settings of the environment.
    rollout: arrays by name,
        objects: [O + W], cells of the colours, then of the walls.
        task: [K], the colours to visit.
        agent: [L + 1], the agent's cell per step; or qpos: [L + 1, ...], the ant's positions.
        index: [L + 1], how many colours have been visited.
        switch: [L + 1], whether the policy chooses a new latent.

    Raises:
        MissingDataError: the environment has no picture, or what draws it is not installed.
    """
    from PIL import Image

    # Frames above their timeline.
    rollout = _thinned(rollout)
    switch = rollout["switch"]
    is_ant = env.get("name") == "ant"
    frames = _ant_frames(rollout, env) if is_ant else _frames(rollout, env)
    frames = [
        np.concatenate([frame, _timeline(switch, step, frame.shape[1])])
        for step, frame in enumerate(frames)
    ]

    # All frames share the colours of some of them, so that no colour flickers.
    typical = frames[:: max(1, len(frames) // 8)]
    typical = typical + [frames[step] for step in np.flatnonzero(switch)[:2]]
    palette = Image.fromarray(np.concatenate(typical)).quantize(COLOURS)
    images = [
        Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE)
        for frame in frames
    ]

    step = ANT_STEP if is_ant else STEP
    durations = [SWITCH_STEP if taken else step for taken in switch[:-1]] + [LAST]
    path.parent.mkdir(parents=True, exist_ok=True)
    images[0].save(path, save_all=True, append_images=images[1:], duration=durations, loop=0)


def _thinned(rollout: Recording) -> dict[str, np.ndarray]:
    """The episode with at most about MOST_FRAMES steps.

    A switch at a step that is left out is shown at the next one that is not.
    """
    length = len(rollout["index"])
    every = -(-length // MOST_FRAMES)
    shown = sorted({*range(0, length, every), length - 1})
    switch = [bool(rollout["switch"][max(0, step - every + 1) : step + 1].any()) for step in shown]
    per_step = {
        name: rollout[name][shown] for name in ("agent", "qpos", "index") if name in rollout
    }
    return {**rollout, **per_step, "switch": np.array(switch)}


def _ant_frames(rollout: Recording, env: Mapping[str, Any]) -> list[Picture]:
    try:
        import minigrid  # noqa: F401  # its colours
        import mujoco  # noqa: F401  # `frame` asks it where the legs are
    except ImportError as error:
        raise MissingDataError(f"the ant is drawn with MuJoCo and MiniGrid: {error}") from error
    from envs.ant.picture import frame
    from envs.ant.world import AntWorld
    from envs.gridworld_picture import mark_switch, task_strip

    # `frame` reads three numbers of the world, not its physics.
    names = ("size", "num_colours", "cell_size")
    world = cast(AntWorld, SimpleNamespace(**{name: env[name] for name in names}))

    # The floor from above, and below it the task with the colours visited so far.
    pictures = []
    for step, (qpos, index) in enumerate(zip(rollout["qpos"], rollout["index"], strict=True)):
        picture = frame(world, qpos, rollout["objects"], ANT_PIXELS)
        if rollout["switch"][step]:
            mark_switch(picture, ANT_PIXELS // 50)
        strip = task_strip(rollout["task"], int(index), ANT_PIXELS // 10, ANT_PIXELS)
        pictures.append(np.concatenate([picture, strip]))
    return pictures


def _frames(rollout: Recording, env: Mapping[str, Any]) -> list[Picture]:
    if env.get("name", "gridworld") != "gridworld":
        raise MissingDataError("only the grid world and the ant have pictures")
    try:
        import minigrid  # noqa: F401  # `frame` draws with it
    except ImportError as error:
        raise MissingDataError("MiniGrid, which draws the grid, is not installed") from error
    from envs.gridworld import GridWorld
    from envs.gridworld_picture import frame

    # `frame` reads two numbers of the world; a whole GridWorld would draw its maps anew, which
    # takes seconds.
    sizes = {name: int(env[name]) for name in ("size", "num_colours")}
    world = cast(GridWorld, SimpleNamespace(**sizes))
    objects = rollout["objects"]
    task = rollout["task"]
    pictures = []
    for step, (agent, index) in enumerate(zip(rollout["agent"], rollout["index"], strict=True)):
        new_latent = bool(rollout["switch"][step])
        pictures.append(frame(world, objects, agent, task, int(index), TILE, highlight=new_latent))
    return pictures


def _timeline(switch: Bool[np.ndarray, "L"], step: int, width: int) -> Picture:
    """A bar that fills up with time.

    It also makes all frames differ: a GIF would merge equal ones.
    """
    bar = np.full((TIMELINE, width, 3), TO_COME, np.uint8)
    edges = np.linspace(0, width, len(switch) + 1).astype(int)
    for at in range(step + 1):
        bar[2:-2, edges[at] : edges[at + 1]] = NEW_LATENT if switch[at] else SAME_LATENT
    return bar
