"""Eight-bit weights, one scale a row."""
