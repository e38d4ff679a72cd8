"""A model as a value: it comes back as it was, and equal graphs share one compiled program."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from internal_rl.models.backbone import Backbone
from internal_rl.models.metacontroller import Metacontroller
from internal_rl.models.model import Model


@pytest.fixture(scope="module")
def model(make_metacontroller: Callable) -> Model[Metacontroller]:
    return Model.of(make_metacontroller())


def test_a_module_comes_back_as_it_was(
    make_backbone: Callable[[str], Backbone], env, normal: Callable
) -> None:
    backbone = make_backbone("hawk")
    model = Model.of(backbone)
    again = model.module()
    assert again is not backbone
    e, first = normal(2, 3, backbone.width), jnp.zeros((2, 3), bool).at[:, 0].set(True)
    outputs = (jax.jit(each.unroll_upper)(e, first) for each in (backbone, again))
    jax.tree.map(np.testing.assert_array_equal, *outputs)
    assert Model.of(again).graph == model.graph
    jax.tree.map(np.testing.assert_array_equal, Model.of(again).params, model.params)


def test_a_model_made_in_one_program_is_that_made_operation_by_operation(
    make_metacontroller: Callable, model: Model[Metacontroller]
) -> None:
    made = Model.made(make_metacontroller)
    assert made.graph == model.graph
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5), made.params, model.params)
    like = jax.eval_shape(lambda: Model.made(make_metacontroller))
    assert jax.tree.map(jnp.shape, like) == jax.tree.map(jnp.shape, model)


def test_its_leaves_are_the_parameters(model: Model[Metacontroller]) -> None:
    leaves = jax.tree.leaves(model)
    assert len(leaves) == len(jax.tree.leaves(model.params)) > 10
    doubled = jax.tree.map(lambda x: 2 * x, model)
    assert doubled.graph is model.graph
    same = model.with_params(doubled.params)
    jax.tree.map(np.testing.assert_array_equal, same, doubled)
    kernel = model.params["switch_latent"]["kernel"]
    np.testing.assert_array_equal(doubled.module().switch_latent.kernel[...], 2 * kernel)


def test_other_parameters_of_the_same_graph_are_not_traced_again(
    model: Model[Metacontroller], make_metacontroller: Callable, stream: jax.Array
) -> None:
    traced: list[str] = []

    @jax.jit
    def control(model: Model[Metacontroller], e: jax.Array) -> jax.Array:
        traced.append("once more")
        return model.module().control(e, jnp.ones((*e.shape[:-1], 3)))

    first = control(model, stream)
    second = control(jax.tree.map(lambda x: 2 * x, model), stream)
    built_anew = Model.of(make_metacontroller())
    np.testing.assert_array_equal(control(built_anew, stream), first)
    assert np.abs(second - first).max() > 1e-3
    assert len(traced) == 1
    control(Model.of(make_metacontroller(rank=1)), stream)  # another graph
    assert len(traced) == 2


def test_a_module_with_more_than_parameters_is_refused() -> None:
    with pytest.raises(ValueError, match="Non-exhaustive"):
        Model.of(nnx.BatchNorm(3, rngs=nnx.Rngs(0)))
