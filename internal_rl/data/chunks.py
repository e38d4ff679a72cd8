"""Computations over many rows, piece by piece."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np


def in_chunks(compute: Callable[..., Any], chunk: int, *rows: Any) -> Any:
    """compute(*rows) for at most `chunk` rows at a time, joined on the host.

    A whole dataset does not fit on the device at once. rows: pytrees of arrays [B, ...], all with
    the same number of rows.
    """
    count = len(jax.tree.leaves(rows)[0])
    parts = []
    for first in range(0, count, chunk):
        piece = jax.tree.map(lambda x, first=first: x[first : first + chunk], rows)
        parts.append(jax.device_get(compute(*piece)))
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)
