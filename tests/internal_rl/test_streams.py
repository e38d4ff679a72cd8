"""Random streams: no two purposes, of any two seeds, share a number."""

import ast
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from envs.gridworld import GridWorld
from internal_rl import streams
from internal_rl.config import Config
from internal_rl.trained import fresh_base, fresh_metacontroller

ROOT = Path(__file__).resolve().parents[2]
SEEDS = range(4)


def key_words(key: jax.Array) -> tuple[int, ...]:
    return tuple(np.asarray(jax.random.key_data(key)).tolist())


def test_keys_of_all_streams_and_seeds_differ_from_each_other_and_from_the_maps() -> None:
    named = [key_words(streams.key(seed, name)) for seed in SEEDS for name in streams.NAMES]
    maps = [
        key_words(jax.random.fold_in(jax.random.key(seed), number))
        for seed in SEEDS
        for number in range(40)
    ]
    seeds = [key_words(jax.random.key(seed)) for seed in SEEDS]
    assert len({*named, *maps, *seeds}) == len(named) + len(maps) + len(seeds)


def test_numbers_of_streams_are_their_own_and_beyond_any_step() -> None:
    assert len(set(streams.STREAMS.values())) == len(streams.NAMES)
    assert all(2**31 <= number < 2**32 for number in streams.STREAMS.values())


def test_generators_of_all_streams_seeds_and_steps_differ() -> None:
    draws = {
        streams.generator(seed, name, *numbers).integers(2**62)
        for seed in SEEDS
        for name in streams.NAMES
        for numbers in (
            (),
            (0,),
            (1,),
            (0, 0),
            (0, 1),
            (1, 0),
        )  # NumPy takes (1,) and (1, 0) for one seed
    }
    assert len(draws) == len(SEEDS) * len(streams.NAMES) * 6


def test_an_unknown_stream_is_an_error() -> None:
    with pytest.raises(KeyError):
        streams.key(0, "no such stream")


def test_models_of_neighbouring_seeds_share_no_weights(config: Config, env: GridWorld) -> None:
    """The metacontroller of seed 0 and the base model of seed 1 once had six arrays in common."""
    starts = []
    for seed in (0, 1, 2):
        seeded = replace(config, seed=seed)
        models = fresh_base(seeded, env), fresh_metacontroller(seeded)
        matrices = [np.asarray(leaf).ravel() for leaf in jax.tree.leaves(models) if leaf.ndim >= 2]
        starts += [tuple(matrix[:8].tolist()) for matrix in matrices]
    assert len(starts) > 50
    assert len(set(starts)) == len(starts)


def names_of_keys(function: str, tree: ast.AST) -> set[str]:
    """What `jax.random.FUNCTION` is applied to in a piece of code, as written."""
    return {
        ast.unparse(node.args[0])
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) == f"jax.random.{function}"
        and node.args
    }


def test_no_key_is_both_split_and_folded() -> None:
    """split(key, n)[i] equals fold_in(key, i): both from one key give the same numbers twice."""
    np.testing.assert_array_equal(
        jax.random.key_data(jax.random.split(jax.random.key(3), 4)[2]),
        jax.random.key_data(jax.random.fold_in(jax.random.key(3), 2)),
    )
    twice = []
    for path in [
        *ROOT.glob("internal_rl/**/*.py"),
        *ROOT.glob("envs/**/*.py"),
        *ROOT.glob("scripts/*.py"),
    ]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                both = names_of_keys("split", node) & names_of_keys("fold_in", node)
                # In a class only what its methods share; a function's own names are its own.
                shared = {
                    key
                    for key in both
                    if isinstance(node, ast.FunctionDef) or key.startswith("self.")
                }
                twice += [f"{path.name}: {node.name}: {key}" for key in shared]
    assert twice == []


def test_seeds_are_drawn_from_only_by_name() -> None:
    """`Rngs(seed)`, `key(seed + 1)` and the like share numbers with the next seed."""
    bare = []
    for path in ROOT.glob("internal_rl/**/*.py"):
        if path.name == "streams.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(
                ("random.key", "Rngs", "default_rng")
            ):
                argument = ast.unparse(node.args[0]) if node.args else ""
                if "seed" in argument and "streams." not in argument:
                    bare.append(f"{path.name}: {ast.unparse(node)}")
    assert bare == []
