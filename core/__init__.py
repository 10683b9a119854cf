"""Dovetail's core: composes plugins into one plan, judges it, and serves it."""
