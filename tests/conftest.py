"""What holds for all tests."""

import os

# Most programs here run once: compiling them well would cost far more than it gains. Set before JAX is imported, and
# inherited by the scripts that tests start. The slow tests run long enough for the contrary (`make test-slow`).
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
