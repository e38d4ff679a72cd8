"""Action NLL of the base model, and the exact yardsticks beside it."""

from collections.abc import Callable
from functools import partial

import jax
import numpy as np

from internal_rl.data.batches import Batch
from internal_rl.driver import in_chunks
from internal_rl.models.backbone import Backbone
from internal_rl.models.model import Model

EVALUATION_CHUNK = 512  # episodes per forward pass


def make_log_probs() -> Callable[[Model[Backbone], Batch], np.ndarray]:
    """A function (base model, batch of whole episodes) -> log p(a_t) [B, T], on the host."""

    @jax.jit
    def log_probs(base: Model[Backbone], batch: Batch) -> jax.Array:
        prediction = base.module().unroll(batch.observation, batch.first)
        return prediction.action.log_prob(batch.action)

    def on_host(base: Model[Backbone], batch: Batch) -> np.ndarray:
        return in_chunks(partial(log_probs, base), EVALUATION_CHUNK, batch)

    return on_host


def yardsticks(labels: dict[str, np.ndarray], mask: np.ndarray) -> dict[str, float]:
    """Exact NLLs of the best predictors of these very labels, nats per step.

    The Bayes filter's is left out where it is not known.
    """
    names = {"bayes_nll": "bayes_log_prob", "oracle_nll": "oracle_log_prob"}
    return {
        name: float(-labels[label][mask].mean()) for name, label in names.items() if label in labels
    }
