"""Diagnostics: they say which stage fails when the effect does not show."""
