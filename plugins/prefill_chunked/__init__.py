"""Chunked prefill: a long prompt is computed over several steps."""
