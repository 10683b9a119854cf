"""The standard sampler: exact top-k, top-p and min-p in plain torch."""
