"""What must be known before plugins are loaded, because they bring flags of their own: read by hand, validated later."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from core.compose.actions import asked, normalized
from core.compose.config_file import ConfigFile, read_config_file
from core.compose.settings import PREFIX
from core.errors import UserError
from core.plugin_manager import PluginManager


@dataclass(frozen=True)
class FirstPass:
    """All that was said, and of it what the first look understood."""

    argv: tuple[str, ...]
    env: Mapping[str, str]
    overrides: Mapping[str, Any]
    actions: frozenset[str]
    file: ConfigFile | None
    without: tuple[str, ...]

    def discover(self, trace: Callable[[str], None] | None = None) -> PluginManager:
        return PluginManager.discover(self.without, trace=trace)


def first_pass(
    argv: Sequence[str] = (), env: Mapping[str, str] | None = None, overrides: Mapping[str, Any] | None = None
) -> FirstPass:
    """Find --config, --without and what is to be done; the rest is kept for ``readers``.

    :raises UserError: when the config file cannot be read, or two are named.
    """
    env = os.environ if env is None else env
    overrides = overrides or {}
    tokens = tuple(normalized(token) for token in argv)
    actions = asked(tokens)
    path, origin = env.get(f"{PREFIX}CONFIG") or None, f"${PREFIX}CONFIG"
    if flags := list(dict.fromkeys(_values_of("--config", tokens))):
        path, origin = flags[0], "--config"
        if len(flags) > 1:
            raise UserError.of(f"--config is given twice, with {flags[0]!r} and {flags[1]!r}", "", "keep one of them")
    if overrides.get("config") is not None:
        path, origin = str(overrides["config"]), "LLM(config=...)"
    file = read_config_file(path, origin) if path is not None and not actions & {"--version"} else None
    without: Any = overrides.get("without") or _values_of("--without", tokens) or env.get(f"{PREFIX}WITHOUT")
    if without is None or without == []:
        without = file.values.get("without", ()) if file else ()
    return FirstPass(tokens, env, overrides, actions, file, tuple(plugin_names(without)))


def plugin_names(value: Any) -> list[str]:
    """ "a,b" or ["a", "b,c"] as a list of names; my-plugin is my_plugin."""
    parts = [value] if isinstance(value, str) else value if isinstance(value, Iterable) else ()
    return [name.strip().replace("-", "_") for part in parts for name in str(part).split(",") if name.strip()]


def _values_of(flag: str, tokens: Sequence[str]) -> list[str]:
    found = [token.partition("=")[2] for token in tokens if token.startswith(f"{flag}=")]
    found += [after for token, after in pairwise(tokens) if token == flag and not after.startswith("--")]
    return found
