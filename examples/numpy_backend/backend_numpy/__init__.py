"""A compute backend for Dovetail in plain numpy."""
