"""The form a request wants its output in: OpenAI's ``response_format``, and what vLLM and FastDeploy call guided decoding."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from core.errors import RequestError
from core.interfaces.request import Grammar
from frontends.openai_http.schema import GenerationBody

_GUIDED = ("json", "regex", "choice", "grammar")


def grammar_of(body: GenerationBody) -> Grammar | None:
    """:raises RequestError: for a form that is not known, or two of them."""
    wanted = list(_wanted(body))
    if len(wanted) > 1:
        names = " and ".join(name for name, _ in wanted)
        raise RequestError(f"an output has one form: {names} cannot be had together", param=wanted[1][0])
    return wanted[0][1] if wanted else None


def field_of(body: GenerationBody) -> str:
    """The field that says it, for messages about it."""
    return next((name for name, _ in _wanted(body)), "grammar")


def _wanted(body: GenerationBody) -> Iterator[tuple[str, Grammar]]:
    if body.response_format is not None and (grammar := _format(body.response_format)) is not None:
        yield "response_format", grammar
    for kind in _GUIDED:
        value = getattr(body, f"guided_{kind}")
        if value is not None:
            yield f"guided_{kind}", _guided(f"guided_{kind}", kind, value)
    for kind, value in (body.structured_outputs or {}).items():
        if value is None:
            continue
        if kind == "json_object":
            yield "structured_outputs", Grammar("json_object")
        elif kind in _GUIDED:
            yield "structured_outputs", _guided(f"structured_outputs.{kind}", kind, value)
        else:
            raise RequestError(
                f"structured_outputs knows {', '.join(_GUIDED)} and json_object, not {kind[:40]!r}", param="structured_outputs"
            )


def _format(given: dict[str, Any]) -> Grammar | None:
    match given.get("type"):
        case "text":
            return None
        case "json_object":
            return Grammar("json_object")
        case "json_schema":
            described = given.get("json_schema")
            schema = described.get("schema") if isinstance(described, dict) else None
            if not isinstance(schema, dict):
                raise RequestError(
                    "json_schema needs an object with the schema under the key 'schema'", param="response_format"
                )
            return Grammar("json_schema", json.dumps(schema))
        case other:
            raise RequestError(
                f"response_format is text, json_object or json_schema, not {str(other)[:40]!r}",
                param="response_format",
                code="unsupported_parameter",
            )


def _guided(field: str, kind: str, value: Any) -> Grammar:
    if kind == "json":
        if isinstance(value, dict):
            return Grammar("json_schema", json.dumps(value))
        if isinstance(value, str):
            return Grammar("json_schema", value)
        raise RequestError(f"{field} takes a JSON schema, as an object or as text", param=field.partition(".")[0])
    if kind == "choice":
        if isinstance(value, list) and value and all(isinstance(each, str) and each for each in value):
            return Grammar("choice", json.dumps(value))
        raise RequestError(f"{field} takes a list of non-empty strings", param=field.partition(".")[0])
    if not isinstance(value, str) or not value:
        raise RequestError(f"{field} takes a non-empty string", param=field.partition(".")[0])
    return Grammar("regex" if kind == "regex" else "grammar", value)
