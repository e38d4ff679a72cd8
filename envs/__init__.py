"""Environments: pure-JAX worlds behind one protocol, their experts, and Gymnasium adapters."""

from envs.api import Dense, Discrete, Environment, MultiHot, TimeStep

__all__ = ["Dense", "Discrete", "Environment", "MultiHot", "TimeStep"]
