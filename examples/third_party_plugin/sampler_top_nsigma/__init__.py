"""Top-n-sigma sampling for Dovetail."""
