"""Measuring: an engine alone or beside transformers (``python -m core.bench``), a server under load (``core.bench.load``)."""
