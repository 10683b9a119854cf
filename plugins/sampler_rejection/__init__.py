"""The rejection sampler: exact top-k, top-p and min-p without sorting the vocabulary."""
