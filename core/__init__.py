"""Dovetail's core: composes plugins into one plan, judges it, and serves it."""

__version__ = "0.1.0"
