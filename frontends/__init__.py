"""Doors: the ways requests come in."""
