"""Stage 1: roll the expert out and store its behaviour, the data D and D* (Section 2)."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from envs.api import Dense, Discrete, Environment, MultiHot
from internal_rl import streams
from internal_rl.config import Config
from internal_rl.data.dataset import Behaviour, ShardWriter, concatenate
from internal_rl.data.expert_episodes import chunk_size, is_kept, make_expert, make_generator
from internal_rl.run import Result, Run, Stage
from internal_rl.training.provenance import versions
from internal_rl.training.tracking import Tracker, progress

# An expert that succeeds less often than this, of that many episodes, is refused: collecting
# successful episodes only would not end.
LEAST_TRIED = 4_096
LEAST_SUCCESS = 0.01
LABEL_TYPES = {"subgoal": np.uint8, "colour": np.uint8, "place": np.uint16}  # others: float32


def _ragged(record: dict[str, np.ndarray], env: Environment) -> Behaviour:
    """Drop the padding and shrink the integer types."""
    steps = {name: value for name, value in record.items() if name not in ("success", "usable")}
    mask = steps.pop("mask")
    observation = steps.pop("observation")[mask].astype(_compact_type(env.observation_spec))
    action_type = np.uint8 if isinstance(env.action_spec, Discrete) else np.float32
    action = steps.pop("action")[mask].astype(action_type)
    target = steps.pop("target")[mask].astype(_compact_type(env.target_spec))

    # What is left are labels, for analysis only.
    labels = {
        name: value[mask].astype(LABEL_TYPES.get(name, np.float32)) for name, value in steps.items()
    }
    return Behaviour(observation, action, target, mask.sum(1).astype(np.int32), labels)


def _compact_type(spec: MultiHot | Dense | Discrete) -> type[np.generic]:
    """What observations and targets are stored as.

    Half precision is enough for what `symlog` gives.
    """
    if isinstance(spec, Dense):
        return np.float16
    values = spec.n if isinstance(spec, Discrete) else spec.size
    return np.uint16 if values <= 2**16 else np.uint32


def collect_split(config: Config, env: Environment, directory: Path, split: str) -> dict[str, Any]:
    """Generate one split ("train", "valid" or "star") into `directory`.

    Continues after the last shard written there. Returns the manifest, in which `tried` and
    `succeeded` count the expert's episodes.
    """
    # The expert, with the noise of D*, or of D.
    collect = config.collect
    max_steps = collect.max_steps or env.horizon
    expert = make_expert(env, config, config.discover.noise if split == "star" else None)

    # A dataset is continued only where all of this agrees.
    settings = {
        "split": split,
        "seed": config.seed,
        "noise": expert.noise,
        "noise_kind": expert.kind,
        "detours": expert.detours,
        "max_steps": max_steps,
        "env": vars(config.env),
        "collect": vars(collect),
        "mean_actions": config.discover.mean_actions,
        "versions": versions(),
    }
    writer = ShardWriter(directory, settings)
    if writer.finished:
        return writer.manifest

    # The episodes of each call follow from how many were tried before it.
    episodes = collect.valid_episodes if split == "valid" else collect.episodes
    generate = make_generator(env, expert, max_steps, yardsticks=split == "valid")
    key = streams.key(config.seed, f"data.{split}")
    chunk = min(chunk_size(env), episodes)
    tried = writer.manifest.get("tried", 0)
    succeeded = writer.manifest.get("succeeded", 0)
    made = writer.manifest["episodes"]
    parts: list[Behaviour] = []
    held = 0
    with progress(episodes, f"collect {split}", initial=made) as bar:
        while made < episodes:
            # Play, with success counted over all episodes, kept or not.
            keys = jax.random.split(jax.random.fold_in(key, tried), chunk)
            record = jax.device_get(generate(keys))
            tried += chunk
            succeeded += int(record["success"].sum())
            hopeless = tried >= LEAST_TRIED and succeeded < LEAST_SUCCESS * tried
            if hopeless and collect.successful_only:
                raise RuntimeError(
                    f"the expert succeeded in {succeeded} of {tried} episodes: "
                    "ease env, or lower collect.noise"
                )

            # Keep what belongs to the data, and write a shard once there is enough for it.
            kept = np.flatnonzero(is_kept(config, record))[: episodes - made]
            parts.append(_ragged({name: value[kept] for name, value in record.items()}, env))
            made += len(kept)
            held += len(kept)
            bar.update(len(kept))
            if held >= collect.shard_episodes or made == episodes:
                writer.write(concatenate(parts), tried=tried, succeeded=succeeded)
                parts = []
                held = 0
    writer.finish()
    return writer.manifest


def run(run: Run, tracker: Tracker) -> Result:
    """Collect every split.

    Returns the sizes of the training data (of the held-out data where none are stored), and how
    often the expert succeeded while it was made.
    """
    # Held-out episodes always; D, and D* where it differs, unless they are generated on the fly.
    config = run.config
    stored = []
    if not config.collect.on_the_fly:
        stored = ["train"] if config.discover.noise is None else ["train", "star"]
    manifests = {
        split: collect_split(config, run.env, run.directory / "data" / split, split)
        for split in ("valid", *stored)
    }

    data = manifests["train" if stored else "valid"]
    return {
        "episodes": data["episodes"],
        "mean_length": data["steps"] / data["episodes"],
        "success_collecting": data["succeeded"] / data["tried"],
    }


STAGE = Stage(
    name="collect",
    run=run,
    reads=("seed", "env", "collect", "discover.noise", "discover.mean_actions"),
    writes=("data",),
)
