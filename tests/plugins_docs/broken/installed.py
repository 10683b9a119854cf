"""Installs a plugin made up on the spot: a module and the metadata of a distribution, in a folder that is on the path."""

import sys
import tempfile
from pathlib import Path

FOLDER = Path(tempfile.mkdtemp(prefix="dovetail-broken-"))
sys.path.insert(0, str(FOLDER))

HEAD = '''"""A plugin made up for a test."""
from pydantic import Field
from core.hookspecs import hookimpl
from core.interfaces.rules import Condition, FactRef, Remedy, Rule
from core.offers import Alias, RulesOffer, SamplerOffer, Section
'''


def install(plugin, source, readme="{plugin}, made up for a test", value=None):
    package = FOLDER / plugin
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "plugin.py").write_text(HEAD + source)
    if readme:
        (package / "README.md").write_text(readme.format(plugin=plugin))
    info = FOLDER / f"{plugin}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {plugin}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[dovetail]\n{plugin} = {value or plugin + '.plugin'}\n")
