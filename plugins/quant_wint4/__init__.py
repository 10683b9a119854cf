"""Four-bit weights, one scale a group."""
