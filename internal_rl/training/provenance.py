"""What made a result: versions, device and commit."""

import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

import jax

PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint", "numpy", "gymnasium", "minigrid", "hydra-core")


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
    """Git commit of the code, with "+changes" if the tree differs from it; "unknown" outside a checkout."""
    root = Path(__file__).resolve().parent.parent
    try:
        run = lambda *args: subprocess.run(["git", *args], cwd=root, capture_output=True, text=True, check=True).stdout
        return run("rev-parse", "--short", "HEAD").strip() + ("+changes" if run("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def device() -> dict[str, Any]:
    """Kind and number of the devices JAX computes on."""
    devices = jax.devices()
    return {"platform": devices[0].platform, "kind": devices[0].device_kind, "count": len(devices)}


def maker() -> dict[str, Any]:
    """All three: what a result that is computed now is made by."""
    return {"commit": commit(), "versions": versions(), "device": device()}
