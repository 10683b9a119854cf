"""``python -m core.bench``: how fast a composition is, and whether what it computes is right; ``gpu``, ``tune``: see there."""

import sys

from core.bench.command import main

sys.exit(main())
