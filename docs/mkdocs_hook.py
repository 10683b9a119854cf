"""A hook of MkDocs: pages that live elsewhere in the repository, plugins' READMEs and the architecture, are the site's too."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
_LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?:|#)([^)\s]+)\)")


def _readmes() -> dict[str, Path]:
    found = sorted([*ROOT.glob("plugins/*/README.md"), *ROOT.glob("frontends/*/README.md")], key=lambda path: path.parent.name)
    return {f"plugins/{readme.parent.name}.md": readme for readme in found}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """What is one of many is not listed by hand: plugins that come along, decisions."""
    assert config.nav is not None
    decisions = sorted(f"decisions/{path.name}" for path in (ROOT / "docs" / "decisions").glob("*.md"))
    config.nav += [{"What comes along": [{place[8:-3]: place} for place in _readmes()]}, {"Decisions": decisions}]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    pages = {"architecture.md": ROOT / "ARCHITECTURE.md", "contributing.md": ROOT / "CONTRIBUTING.md", **_readmes()}
    for place, path in pages.items():
        files.append(File.generated(config, place, content=path.read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """A link to a file of the repository that is no page becomes its text."""

    def shown(link: re.Match[str]) -> str:
        target = link[3].partition("#")[0]
        place = posixpath.normpath(posixpath.join(posixpath.dirname(page.file.src_uri), target))
        return link[0] if files.get_file_from_path(place) is not None else link[2]

    return _LINK.sub(shown, markdown)
