"""YAML with the line of every key: other servers' config files, a mapping of flags' names to values."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml

from core.errors import UserError

Key = tuple[str, ...]


def read_yaml(text: str, path: str) -> tuple[dict[str, Any], dict[Key, int]]:
    """The values, and the line from 1 of each key.

    :raises UserError: when it is no YAML mapping, or says one key twice.
    """
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        values = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        what = error.problem or ""
        if what.startswith("but "):
            what = f"{error.context}, {what}"
        raise UserError.of(f"the config file {path} is not YAML: {what}", f"{path}:{line}") from None
    except RecursionError:
        raise UserError.of(f"the config file {path} is nested too deeply", path) from None
    except (yaml.YAMLError, ValueError) as error:  # no date, no number, though it looks like one
        raise UserError.of(f"the config file {path} is not YAML: {str(error).splitlines()[0]}", path) from None
    if root is None:
        return {}, {}
    if not isinstance(root, yaml.MappingNode):
        raise UserError.of(
            f"the config file {path} is no mapping of settings to values",
            f"{path}:{root.start_mark.line + 1}",
            "max_model_len: 4096",
        )
    lines: dict[Key, int] = {}
    for key, line in _keys(root, ()):
        if key in lines:
            raise UserError.of(f"{'.'.join(key)} is set twice", f"{path}:{lines[key]}, {path}:{line}", "keep one of them")
        lines[key] = line
    return {str(name): value for name, value in values.items()}, lines


def _keys(node: Any, above: Key) -> Iterator[tuple[Key, int]]:
    for name, value in node.value:
        key = (*above, str(name.value))
        yield key, name.start_mark.line + 1
        if isinstance(value, yaml.MappingNode) and not above:
            yield from _keys(value, key)
