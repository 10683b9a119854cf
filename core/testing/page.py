"""The contract of pages: whole, and content with what a server's strict policy lets a browser load."""

from __future__ import annotations

import posixpath
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from core.testing.contract import Contract

MOST_BYTES = 4 << 20
"""A page is held in memory."""
_IMPORT = re.compile(r"""^\s*(?:import|export)\b(?:[^;"'(=]*\bfrom\b)?\s*["']([^"']+)["']""", re.MULTILINE)
_URL = re.compile(r"""(?:url\(|@import)\s*["']?([^"')]+)""")


class PageContract(Contract, kit=True):
    """Give ``folder``: where the files are that your offer's ``folder`` returns."""

    def folder(self) -> Path:
        raise NotImplementedError(f"{type(self).__name__} must define folder()")

    @pytest.fixture
    def index(self) -> _Index:
        parsed = _Index()
        parsed.feed((self.folder() / "index.html").read_text(encoding="utf-8"))
        return parsed

    # --- what is promised -------------------------------------------------------------------------------------------

    def test_it_says_what_it_is(self, index: _Index) -> None:
        assert index.title.strip(), "index.html has no title"
        assert index.language, "index.html does not say its language: <html lang=...>"
        assert "width=device-width" in index.viewport, "index.html is not made for phones: no viewport"

    def test_nothing_is_inline(self, index: _Index) -> None:
        assert not index.inline, f"the server's policy lets no browser run or apply what is inline: {', '.join(index.inline)}"

    def test_it_loads_nothing_from_elsewhere(self, index: _Index) -> None:
        strange = [name for _, name in self.named(index) if re.match(r"(?!data:)[a-z]+:|//", name)]
        assert not strange, f"the server's policy lets no browser load {', '.join(strange)}"

    def test_every_file_it_names_is_there(self, index: _Index) -> None:
        lost = []
        for file, name in self.named(index):
            if not re.match(r"[a-z]+:|//|#", name):
                path = posixpath.normpath(posixpath.join(posixpath.dirname(file), name.split("?")[0].split("#")[0]))
                if not (self.folder() / path.lstrip("/")).is_file():
                    lost.append(f"{name} of {file}")
        assert not lost, f"not in the page's folder: {', '.join(lost)}"

    def test_it_is_small(self) -> None:
        size = sum(path.stat().st_size for path in self.folder().rglob("*") if path.is_file())
        assert size <= MOST_BYTES, f"the page has {size} bytes; a server holds it in memory"

    def named(self, index: _Index) -> list[tuple[str, str]]:
        """(file, what it names): links and sources, static imports, and what style sheets load."""
        folder = self.folder()
        found = [("index.html", name) for name in index.named]
        for pattern, suffix in ((_IMPORT, "*.js"), (_URL, "*.css")):
            for path in sorted(folder.rglob(suffix)):
                text = re.sub(r"/\*.*?\*/", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
                found += [(path.relative_to(folder).as_posix(), name) for name in pattern.findall(text)]
        return found


class _Index(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.title = self.language = self.viewport = ""
        self.inline: list[str] = []
        self.named: list[str] = []
        self._inside = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self._inside = tag
        if tag == "html":
            self.language = given.get("lang", "")
        if tag == "meta" and given.get("name") == "viewport":
            self.viewport = given.get("content", "")
        if tag == "style" or (tag == "script" and "src" not in given):
            self.inline.append(f"<{tag}>")
        self.inline += [f"{name}=" for name in given if name == "style" or name.startswith("on")]
        if tag != "a":
            self.named += [given[name] for name in ("src", "href") if name in given]

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "title":
            self.title += data
