"""Eight-bit floating-point weights in blocks of 128 x 128."""
