#!/usr/bin/env bash
# jax 0.10.2, CPU: the last digits of a compiled sum hang on how many cores the process may use, those
# of a product of matrices do not. `--xla_cpu_multi_thread_eigen=false`, by its name the cure, changes
# nothing; the environment variable NPROC=1 makes a process with two cores compute as on one. So a
# program that is resumed on another number of cores does not go on with the same digits.
#
# Seen (sum of 100,000 normal values; exit status 0 says that it is still so; needs two cores):
#   one core                                            A
#   two cores                                           B
#   two cores, --xla_cpu_multi_thread_eigen=false       B
#   two cores, NPROC=1                                  A
#   products of 16 x 100,000 and 100,000 x 16: the same four times
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6 scipy==1.17.1
cat > "$folder/digits.py" <<'PYTHON'
import hashlib
import os
import sys

os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: int(sys.argv[1])])
import jax
import jax.numpy as jnp

values = jax.random.normal(jax.random.key(0), (100_000,))
a, b = (jax.random.normal(jax.random.key(key), (16, 100_000)) for key in (1, 2))
product = jax.device_get(jax.jit(lambda a, b: a @ b.T)(a, b))
print(float(jax.jit(jnp.sum)(values)).hex(), hashlib.sha256(product.tobytes()).hexdigest()[:8])
PYTHON
digits() { JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/digits.py" "$1"; }

one=$(digits 1)
two=$(digits 2)
option=$(XLA_FLAGS=--xla_cpu_multi_thread_eigen=false digits 2)
nproc=$(NPROC=1 digits 2)
printf '%-48s %s\n' "one core" "$one" "two cores" "$two" \
    "two cores, --xla_cpu_multi_thread_eigen=false" "$option" "two cores, NPROC=1" "$nproc"
[[ ${one% *} != "${two% *}" ]]      # the sum
[[ ${one#* } == "${two#* }" ]]      # the product
[[ $option == "$two" ]]
[[ $nproc == "$one" ]]
