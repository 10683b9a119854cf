"""The form a request wants its output in: OpenAI's ``response_format``, and what vLLM and FastDeploy call guided decoding."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
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
    if body.structural_tag is not None:
        yield "structural_tag", _structural_tag(body.structural_tag, "structural_tag")
    for kind, value in (body.structured_outputs or {}).items():
        if value is None:
            continue
        if kind == "structural_tag":
            yield "structured_outputs", _structural_tag(value, "structured_outputs")
        elif kind == "json_object":
            yield "structured_outputs", Grammar("json_object")
        elif kind in _GUIDED:
            yield "structured_outputs", _guided(f"structured_outputs.{kind}", kind, value)
        else:
            raise RequestError(
                f"structured_outputs knows {', '.join(_GUIDED)}, json_object and structural_tag, not {kind[:40]!r}",
                param="structured_outputs",
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
        case "structural_tag":
            return _structural_tag(given, "response_format")
        case other:
            raise RequestError(
                f"response_format is text, json_object, json_schema or structural_tag, not {str(other)[:40]!r}",
                param="response_format",
                code="unsupported_parameter",
            )


def _structural_tag(given: Any, field: str) -> Grammar:
    """Free text, in which a trigger begins one of the structures; it goes on as that does, with JSON of its schema."""
    with suppress(ValueError, RecursionError):
        given = json.loads(given) if isinstance(given, str) else given
    structures: Any = given.get("structures") if isinstance(given, dict) else None
    triggers: Any = given.get("triggers") if isinstance(given, dict) else None
    if not _is_list(structures, dict) or not _is_list(triggers, str):
        raise RequestError(f"{field}: a structural tag has a list of structures and a list of triggers", param=field)
    by_trigger: dict[str, list[list[dict[str, Any]]]] = {}
    for structure in structures:
        begin, end = structure.get("begin"), structure.get("end")
        if not isinstance(begin, str) or not isinstance(end, str) or not isinstance(structure.get("schema"), dict):
            raise RequestError(f"{field}: a structure has texts begin and end, and a JSON schema between", param=field)
        trigger = next((each for each in triggers if each and begin.startswith(each)), None)
        if trigger is None:
            raise RequestError(f"{field}: no trigger begins {begin[:40]!r}", param=field)
        opening, closing = ([{"text": text}] if text else [] for text in (begin[len(trigger) :], end))
        by_trigger.setdefault(trigger, []).append([*opening, {"json_schema": structure["schema"]}, *closing])
    tags = [[{"until": trigger}, {"any_of": choices}] for trigger, choices in by_trigger.items()]
    return Grammar("parts", json.dumps([{"repeat": [{"any_of": tags}], "least": 0}, {"anything": True}]))


def _is_list(value: Any, kind: type) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(each, kind) for each in value)


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
