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


def on_files(files: Files, config: MkDocsConfig) -> Files:
    pages = {"architecture.md": ROOT / "ARCHITECTURE.md", "contributing.md": ROOT / "CONTRIBUTING.md"}
    for readme in sorted([*ROOT.glob("plugins/*/README.md"), *ROOT.glob("frontends/*/README.md")]):
        pages[f"plugins/{readme.parent.name}.md"] = readme
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
