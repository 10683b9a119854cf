"""The environment, read by pydantic-settings: DOVETAIL_NAME for the core, DOVETAIL_PLUGIN__FIELD for a plugin.

A whole table may be given as JSON (DOVETAIL_PLUGIN='{"field": 1}'); names are taken in any case; empty values are no values.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, create_model
from pydantic_settings import BaseSettings, EnvSettingsSource

from core.compose.settings import PREFIX


class _Environment(EnvSettingsSource):
    """Reads a given mapping instead of the process's own, and leaves to us what a text that is no JSON means."""

    def __init__(self, model: type[BaseSettings], variables: Mapping[str, str]) -> None:
        self._variables = variables
        super().__init__(model, case_sensitive=False, env_prefix=PREFIX, env_nested_delimiter="__", env_ignore_empty=True)

    def _load_env_vars(self) -> Mapping[str, str | None]:
        return {name.lower(): value for name, value in self._variables.items() if value != ""}

    def decode_complex_value(self, field_name: str, field: Any, value: Any) -> Any:
        try:
            return json.loads(value)
        except ValueError:
            return value


def read_environment(
    core: type[BaseModel], sections: Mapping[str, type[BaseModel]], variables: Mapping[str, str]
) -> dict[tuple[str, ...], Any]:
    """Every value the variables give, by key; texts are not validated yet."""
    fields: dict[str, Any] = {name: (info.annotation, None) for name, info in core.model_fields.items()}
    fields |= {name: (section, None) for name, section in sections.items()}
    model = create_model("Environment", __base__=BaseSettings, **fields)
    found: dict[tuple[str, ...], Any] = {}
    for name, value in _Environment(model, variables)().items():
        if name in sections:
            if isinstance(value, Mapping):
                found |= {(name, key): inner for key, inner in value.items()}
        else:
            found[(name,)] = value
    return found
