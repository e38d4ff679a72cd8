#!/usr/bin/env bash
# jax 0.10.2, CPU: an explicit algorithm for a float32 product is honoured, refused or ignored without
# a word, by its name. A loss of precision that an accelerator will show can therefore not be rehearsed
# on a CPU by naming its algorithm: bfloat16 algorithms are accepted and computed in float32.
#
# Seen (largest error of a 256 x 256 product against float64; exit status 0 says that it is still so):
#   default            3.9e-05
#   bfloat16           3.9e-05   accepted, not applied
#   BF16_BF16_F32      3.9e-05   accepted, not applied (one pass in bfloat16 would err by about 2e-01)
#   BF16_BF16_F32_X3   3.9e-05   accepted, not applied
#   TF32_TF32_F32      ValueError: The precision 'TF32_TF32_F32' is not supported by dot_general on CPU
#   F16_F16_F32        ValueError: the same
#   F64_F64_F64        2.8e-06   applied: float32 in, float32 out, sums in float64, without jax_enable_x64
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6 scipy==1.17.1
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
import jax
import jax.numpy as jnp
import numpy as np

x = np.random.default_rng(0).normal(size=(256, 256)).astype(np.float32)
exact = x.astype(np.float64) @ x.astype(np.float64)


def error(algorithm: str) -> float | str:
    """Largest error of x @ x under an algorithm, or what JAX says."""
    try:
        with jax.default_matmul_precision(algorithm):
            product = jax.jit(lambda x: x @ x)(jnp.asarray(x))
    except ValueError as refusal:
        return str(refusal)
    assert product.dtype == jnp.float32
    return float(np.abs(np.asarray(product) - exact).max())


found = {
    name: error(name)
    for name in (
        "default", "bfloat16", "BF16_BF16_F32", "BF16_BF16_F32_X3", "TF32_TF32_F32", "F16_F16_F32",
        "F64_F64_F64",
    )
}
for name, value in found.items():
    print(f"{name:18} {value if isinstance(value, str) else f'{value:.1e}'}")

rounded = np.asarray(jnp.asarray(x).astype(jnp.bfloat16).astype(jnp.float32))
one_pass = np.abs(rounded.astype(np.float64) @ rounded.astype(np.float64) - exact).max()
print(f"inputs rounded     {one_pass:.1e}")
assert one_pass > 0.01
for name in ("bfloat16", "BF16_BF16_F32", "BF16_BF16_F32_X3"):
    assert found[name] == found["default"], name
for name in ("TF32_TF32_F32", "F16_F16_F32"):
    assert found[name] == f"The precision '{name}' is not supported by dot_general on CPU", name
assert found["F64_F64_F64"] < found["default"] / 5
PYTHON
