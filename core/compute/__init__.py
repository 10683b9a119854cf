"""Compute backends, one folder a framework, with the same file names in each."""
