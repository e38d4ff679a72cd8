"""Process-wide settings: those of `setup` must be made before JAX is imported."""

import ctypes
import logging
import os
import signal
import sys
import threading
import time

# Names the pipe whose end says that the process which started this one has ended.
PARENT = "INTERNAL_RL_PARENT"
GRACE = 600.0  # seconds that a program may take to save before it is killed

# mallopt parameters of glibc, from malloc.h
_TRIM_THRESHOLD = -1
_TOP_PAD = -2
_MMAP_THRESHOLD = -3
_ARENA_MAX = -8


def keep_freed_memory() -> None:
    """Make glibc's allocator reuse the memory that XLA frees after every call.

    By default each execution maps and unmaps its temporaries (67 MB in the quickstart's base
    training), and the page faults cost a quarter of the step. Does nothing except on Linux with
    glibc.
    """
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(_MMAP_THRESHOLD, 2**31 - 1)
    mallopt(_TRIM_THRESHOLD, 2**31 - 1)
    mallopt(_TOP_PAD, 2**28)
    mallopt(_ARENA_MAX, 1)


def end_with_parent() -> None:
    """If another program of this project has started this one: stop when that ends, save before."""
    if (pipe := os.environ.pop(PARENT, None)) is None:
        return

    def watch() -> None:
        os.read(int(pipe), 1)  # returns when the last writer has gone
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def setup() -> None:
    """Call first in every script: allocator, quiet logs, persistent compilation cache."""
    if sys.platform == "win32":
        sys.exit("error: Windows is not supported; use WSL 2, where this is a Linux program")
    end_with_parent()
    keep_freed_memory()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    logging.getLogger("jax").setLevel(logging.WARNING)
    cache = os.environ.get(
        "INTERNAL_RL_COMPILE_CACHE", os.path.expanduser("~/.cache/internal_rl/jax")
    )
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", cache)
    # Also the programs that compile in no time: a start runs some 500 of them, most of them of one
    # operation.
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")


def use_matmul_precision(precision: str) -> None:
    """Compute the float32 matrix products of this process as `Config.matmul_precision` says.

    Scripts call it once, with the run's setting. `load_run` and `from_run` leave it to the program
    that calls them, because it would change that program's other models, too; without it JAX's own
    default holds.
    """
    import jax

    jax.config.update("jax_default_matmul_precision", precision)
