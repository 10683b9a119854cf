"""The policy on the page keeps the contract that the page speaks of."""

import re
from pathlib import Path

from core import testing

PAGE = Path(__file__).parents[2] / "docs" / "plugins" / "cache-policy.md"


class TestTheExample(testing.CachePolicyContract):
    walk_steps = 60

    def make(self):
        [example] = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
        names = {}
        exec(example, names)
        return names["Beginnings"]()
