"""What hardware a configuration needs: ``python -m core.plan``, or ``dovetail plan``."""
