"""The paper's equation: a controller between the two halves of the frozen base model (Section 3).

e_t is the residual stream at the cut; the upper half reads e_t + U(z_t) e_t in its place. Whole
sequences and single steps stand side by side; both give the same numbers.
"""

from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from internal_rl.models.backbone import Backbone, Memory, Prediction


class Controller(Protocol):
    """What steers: a linear map of the residual stream that a latent chooses.

    `control` returns e + U(z) e for e [..., D] and a latent of the same leading axes.
    """

    def control(self, e: Array, latent: Any) -> Array: ...


class SteeredModel:
    """A base model and what steers it."""

    def __init__(self, base: Backbone, controller: Controller):
        self.base = base
        self.controller = controller

    def unroll(
        self, e: Float[Array, "B T D"], first: Bool[Array, "B T"], latent: Any
    ) -> Prediction:
        """Predictions under the latents [B, T, ...] of every step; first: where episodes start."""
        return self.base.unroll_upper(self.controller.control(e, latent), first)

    def step(
        self, e: Float[Array, "B D"], latent: Any, memory: list[Memory], t: Int[Array, ""]
    ) -> tuple[Prediction, list[Memory]]:
        """One step of `unroll`; memory: of the upper half."""
        return self.base.step_upper(self.controller.control(e, latent), memory, t)


@struct.dataclass
class GoalControllers:
    """Supervised controllers (Fig. 4): a low-rank map U_k = B_k^T A_k per abstract subgoal k.

    a: [subgoals, rank, D], A_k, which reads.
    b: [subgoals, rank, D], B_k, which writes.
    """

    a: jax.Array
    b: jax.Array

    @classmethod
    def init(cls, key: Array, subgoals: int, rank: int, width: int) -> "GoalControllers":
        """Fresh controllers, small, so that control starts near nothing."""
        key_a, key_b = jax.random.split(key)
        shape = (subgoals, rank, width)
        return cls(jax.random.normal(key_a, shape) / 8, jax.random.normal(key_b, shape) / 8)

    def control(self, e: Float[Array, "... D"], latent: Int[Array, "..."]) -> Float[Array, "... D"]:
        """e + B_k^T A_k e, where k = `latent` is the subgoal of each step.

        All controllers read, and all but one are masked before any writes: two dense products
        instead of a gather of weights for every step.
        """
        subgoals, rank, width = self.a.shape
        inner = e @ self.a.reshape(-1, width).T
        chosen = jnp.repeat(jax.nn.one_hot(latent, subgoals), rank, axis=-1)
        return e + (inner * chosen) @ self.b.reshape(-1, width)
