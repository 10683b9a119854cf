"""docs/operating/errors.md has every code that an answer may carry, and no other."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "operating" / "errors.md"
MAKERS = ("RequestError", "error_body")


def codes():
    """Each ``code=`` of an error in the sources, and what the errors' own defaults are."""
    found = {"invalid_value", "invalid_json", "missing_required_parameter", "response_not_found", "previous_response_not_found"}
    for folder in ("core", "frontends", "plugins"):
        for path in (ROOT / folder).rglob("*.py"):
            if "tests" in path.parts:
                continue
            for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(call, ast.Call) and getattr(call.func, "id", getattr(call.func, "attr", "")) in MAKERS:
                    found |= {
                        each.value.value
                        for each in call.keywords
                        if each.arg == "code" and isinstance(each.value, ast.Constant) and each.value.value
                    }
    return found


def test_the_page_has_every_code():
    rows = re.findall(r"^\| \d{3} \| ([`\w, ]+) \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    told = [code for row in rows for code in re.findall(r"\w+", row)]
    assert len(told) == len(set(told)) > 10
    assert set(told) == codes()
