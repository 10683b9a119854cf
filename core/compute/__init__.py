"""Compute backends, one folder a framework, with the same file names in each; beside them what all of them say alike."""
