"""The page that leads to a third compute backend: its table of the two folders is theirs."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMPUTE = ROOT / "core" / "compute"
PAGE = (ROOT / "docs" / "plugins" / "compute-backend.md").read_text()
ROWS = {name: counts for name, *counts in re.findall(r"^\| `(\w+\.py)` \| (\d+|-) \| (\d+|-) \|", PAGE, re.MULTILINE)}


@pytest.mark.parametrize(("column", "folder"), [(0, "torch_backend"), (1, "paddle_backend")])
def test_the_table_has_every_file_and_about_its_size(column, folder):
    """About: nobody has to come here for a line more."""
    told = {name: int(counts[column]) for name, counts in ROWS.items() if counts[column] != "-"}
    files = [path for path in (COMPUTE / folder).glob("*.py") if path.name != "__init__.py"]
    sizes = {path.name: len(path.read_text().splitlines()) for path in files}
    assert told.keys() == sizes.keys()
    assert {name: size for name, size in sizes.items() if abs(size - told[name]) > 10 + size // 5} == {}


def test_what_both_share_is_told():
    shared = {path.name for path in COMPUTE.glob("*.py")} - {"__init__.py"}
    assert shared == set(re.findall(r"^\| `(\w+\.py)` \| [a-z]", PAGE, re.MULTILINE))
