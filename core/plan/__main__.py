"""``python -m core.plan``."""

import sys

from core.plan.command import main

sys.exit(main())
