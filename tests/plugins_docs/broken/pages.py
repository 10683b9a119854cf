"""A sound page, and what the contract has to say about unsound ones."""

import tempfile
from pathlib import Path

from core.testing import PageContract

INDEX = """<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>mine</title><link rel="stylesheet" href="style.css"><script type="module" src="app.js"></script><h1>Mine</h1></html>"""
SOUND = {
    "index.html": INDEX,
    "app.js": 'import { a } from "./a.js";\n',
    "a.js": "export const a = 1;\n",
    "style.css": "h1 {}\n",
}


class Contract(PageContract):
    __test__ = False
    changed: dict[str, str] = {}

    def folder(self):
        folder = Path(tempfile.mkdtemp())
        for name, text in {**SOUND, **self.changed}.items():
            (folder / name).write_text(text)
        return folder


class TestSound(Contract):
    __test__ = True


class TestForDesksOnly(Contract):
    __test__ = True
    caught_by = "test_it_says_what_it_is"
    changed = {"index.html": INDEX.replace("viewport", "author")}


class TestInlineScript(Contract):
    __test__ = True
    caught_by = "test_nothing_is_inline"
    changed = {"index.html": INDEX.replace("<h1>", '<h1 onclick="go()">')}


class TestFontFromElsewhere(Contract):
    __test__ = True
    caught_by = "test_it_loads_nothing_from_elsewhere"
    changed = {"style.css": "@font-face { src: url(https://fonts.example/a.woff2) }\n"}


class TestLostImport(Contract):
    __test__ = True
    caught_by = "test_every_file_it_names_is_there"
    changed = {"a.js": 'export { b } from "./b.js";\n'}


class TestBloated(Contract):
    __test__ = True
    caught_by = "test_it_is_small"
    changed = {"a.js": "//" + "x" * (5 << 20)}
