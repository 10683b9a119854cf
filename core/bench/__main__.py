"""``python -m core.bench``: how fast a composition is, and whether what it computes is right; ``gpu``: other workloads."""

import sys

if sys.argv[1:2] == ["gpu"]:
    from core.bench.gpu import main

    sys.exit(main(sys.argv[2:]))

from core.bench.command import main

sys.exit(main())
