"""TOML with the line of every key, so that a value can say where it was set. tomllib parses; this only finds lines.

A file whose name ends in .yaml or .yml is YAML, as other servers have it.
"""

from __future__ import annotations

import os
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.errors import UserError

Key = tuple[str, ...]

_BARE = re.compile(r"[A-Za-z0-9_-]+")
_SPACE = re.compile(r"[ \t]*")
_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_STRING = re.compile(
    r'"""(?:\\.|[^\\])*?"{3,5}(?!")' + r"|'''.*?'{3,5}(?!')" + r'|"(?:\\.|[^"\\\n])*"' + r"|'[^'\n]*'", re.DOTALL
)


@dataclass(frozen=True)
class ConfigFile:
    """``path`` as the user wrote it."""

    path: str
    values: dict[str, Any]
    lines: dict[Key, int]

    def origin(self, key: Key) -> str:
        """ "demo.toml:7"; a key inside an inline table is where that table is."""
        while key and key not in self.lines:
            key = key[:-1]
        return f"{self.path}:{self.lines[key]}" if key else self.path


def read_config_file(path: str, origin: str) -> ConfigFile:
    """:raises UserError: when it is not there, or neither TOML nor YAML as its name says; with the line."""
    if not path:
        raise UserError.of(f"{origin} names no config file: it is empty", origin, f"{origin} FILE, or leave it out")
    try:
        text = Path(os.path.expanduser(path)).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError.of(f"the config file {path} cannot be read: {error.strerror}", origin, "check the path") from None
    except UnicodeDecodeError:
        raise UserError.of(f"the config file {path} is not UTF-8 text", origin, "save it as UTF-8") from None
    if Path(path).suffix.lower() in (".yaml", ".yml"):
        from core.compose.yaml_file import read_yaml

        return ConfigFile(path, *read_yaml(text, path))
    try:
        values = tomllib.loads(text)
    except RecursionError:
        raise UserError.of(f"the config file {path} is nested too deeply", path) from None
    except ValueError as error:
        found = re.search(r"^(.*) \(at line (\d+), column (\d+)\)$", str(error))
        what, where = (found[1], f"{path}:{found[2]}") if found else (str(error), path)
        raise UserError.of(
            f"the config file {path} is not TOML: {what[0].lower() + what[1:]}", where, *_other_name(path)
        ) from None
    return ConfigFile(path, values, key_lines(text))


def _other_name(path: str) -> tuple[str, ...]:
    return () if path.lower().endswith(".toml") else ("if it is YAML, or JSON, give it a name that ends in .yaml",)


def key_lines(text: str) -> dict[Key, int]:
    """The line, from 1, on which each key of a valid TOML document is first written; tables count as keys."""
    text = text.replace("\r\n", "\n")
    lines: dict[Key, int] = {}
    table: Key = ()
    at = _skip(_BLANK, text, 0)
    while at < len(text):
        line = text.count("\n", 0, at) + 1
        if text[at] == "[":
            table, at = _key(text, at + (2 if text.startswith("[[", at) else 1))
            key = table
            at = text.find("\n", at) if "\n" in text[at:] else len(text)
        else:
            key, at = _key(text, at)
            key = table + key
            at = _skip_value(text, at)
        for length in range(1, len(key) + 1):
            lines.setdefault(key[:length], line)
        at = _skip(_BLANK, text, at)
    return lines


def _key(text: str, at: int) -> tuple[Key, int]:
    """A dotted key and where it ends."""
    parts: list[str] = []
    while True:
        at = _skip(_SPACE, text, at)
        if text[at] in "\"'":
            end = _skip(_STRING, text, at)
            parts.append(tomllib.loads(f"key = {text[at:end]}")["key"])
        else:
            end = _skip(_BARE, text, at)
            parts.append(text[at:end])
        at = _skip(_SPACE, text, end)
        if text[at : at + 1] != ".":
            return tuple(parts), at
        at += 1


def _skip_value(text: str, at: int) -> int:
    """Behind the value that starts at ``at``: the end of its line, or of the line its last bracket closes on."""
    depth = 0
    while at < len(text):
        character = text[at]
        if character in "\"'":
            at = _skip(_STRING, text, at)
            continue
        if character == "#":
            at = text.find("\n", at) if "\n" in text[at:] else len(text)
            continue
        if character == "\n" and depth == 0:
            return at
        depth += (character in "[{") - (character in "]}")
        at += 1
    return at


def _skip(pattern: re.Pattern[str], text: str, at: int) -> int:
    found = pattern.match(text, at)
    return found.end() if found else at
