"""Outputs of a given form (JSON schemas, regular expressions, choices, grammars) through the llguidance library."""
