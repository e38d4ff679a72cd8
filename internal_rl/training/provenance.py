"""What made a result: versions, device and commit."""

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

import jax

from internal_rl.training.jobs import cores

PACKAGES = (
    "jax",
    "flax",
    "optax",
    "orbax-checkpoint",
    "numpy",
    "gymnasium",
    "minigrid",
    "hydra-core",
)


def versions() -> dict[str, str]:
    """Version of Python and of each package that is installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str:
    """Git commit of the code, with "+changes" if the tree differs; "unknown" outside a checkout."""
    root = Path(__file__).resolve().parents[2]

    def git(*arguments: str) -> str:
        command = ["git", *arguments]
        return subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout

    try:
        head = git("rev-parse", "--short", "HEAD").strip()
        return f"{head}+changes" if git("status", "--porcelain") else head
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def device() -> dict[str, str | int]:
    """Kind and number of the devices JAX computes on, and of XLA's threads on the CPU.

    On a CPU the last digits hang on the threads (findings/jax_cpu_sums_follow_cores.sh): as many as
    this process has cores, unless NPROC says otherwise (jobs.py).
    """
    first, *_ = devices = jax.devices()
    return {
        "platform": first.platform,
        "kind": first.device_kind,
        "count": len(devices),
        "threads": int(os.environ.get("NPROC") or len(cores())),
    }


def maker() -> dict[str, object]:
    """All three: what a result that is computed now is made by."""
    return {"commit": commit(), "versions": versions(), "device": device()}
