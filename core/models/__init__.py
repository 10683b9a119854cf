"""Models: families (spec + weight map), checkpoint formats, where models come from, and the one generic decoder."""
