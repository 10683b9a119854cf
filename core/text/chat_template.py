"""Chat templates: a conversation becomes prompt text by the checkpoint's own Jinja template.

A template comes with the checkpoint, so it is a stranger's program: it runs in Jinja's immutable sandbox, with a budget of loop
rounds and calls, and of characters in any text it makes, and without what makes giants out of dwarfs at a stroke ("a" * 10**9).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from datetime import datetime
from importlib.resources import files
from pathlib import Path
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from core.errors import RequestError, UserError
from core.interfaces.frontend import ChatTemplate, Tokenizer
from core.interfaces.model import ModelFolder
from core.models.gguf_file import GgufFile
from core.text.files import gguf_file, read_json

MAX_ROUNDS = 200_000  # of loops, and calls
MAX_CHARACTERS = 8_000_000
MAX_REPEATED = 10_000
_RESERVED = frozenset({"messages", "add_generation_prompt", "raise_exception", "strftime_now"})

_rounds_left: ContextVar[int] = ContextVar("_rounds_left", default=MAX_ROUNDS)

_WIDE_FIELD = re.compile(r"%(\([^()]*\))?[-+ #0]*(\d{5}|[*])|\{[^{}:]*::?[^{}:]*\d{5}")
"""A field of ``%`` or ``format`` that is padded to 10000 characters or more, or to a number that is not written out."""
_PADDING = frozenset({"center", "expandtabs", "ljust", "rjust", "zfill"})


class _Refused(jinja2.TemplateError):
    """The template called ``raise_exception``."""


class _GenerationBlock(Extension):
    """``{% generation %}`` marks the assistant's words for training; here its body is rendered as it is."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so

    def parse(self, parser: Parser) -> nodes.Node:
        next(parser.stream)
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body)


class _Sandbox(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"*", "**", "%", "+"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _GenerationBlock], cache_size=0
        )
        self.filters["tojson"] = _to_json
        self.filters["_budgeted"] = _budgeted
        self.filters["_bounded"] = _bounded
        for name in ("batch", "center", "indent", "slice"):
            self.filters[name] = _measured(self.filters[name])
        self.filters["format"] = lambda text, *values, **named: self.call_binop(None, "%", str(text), named or values)
        del self.globals["lipsum"]
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = _strftime_now

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        for loop in list(tree.find_all(nodes.For)):
            loop.iter = nodes.Filter(loop.iter, "_budgeted", [], [], None, None, lineno=loop.lineno, environment=self)
        for joined in list(tree.find_all(nodes.Concat)):
            copy = nodes.Concat(joined.nodes, lineno=joined.lineno, environment=self)
            bounded = nodes.Filter(copy, "_bounded", [], [], None, None, lineno=joined.lineno, environment=self)
            joined.nodes = [bounded]
        return tree

    def call(self, context: Context, callee: Any, /, *args: Any, **kwargs: Any) -> Any:
        _spend_a_round()
        if isinstance(getattr(callee, "__self__", None), str) and callee.__name__ in _PADDING:
            _refuse_large(args)
        return super().call(context, callee, *args, **kwargs)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        wrapped = super().wrap_str_format(value)
        if wrapped is not None:
            _refuse_wide(value.__self__)
        return wrapped

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "**" and isinstance(left, int) and isinstance(right, int) and left.bit_length() * right > MAX_REPEATED:
            raise SecurityError("it computes a number of too many digits")
        if operator == "%" and isinstance(left, str):
            _refuse_wide(left)
        for repeated, times in ((left, right), (right, left)) if operator == "*" else ():
            if hasattr(repeated, "__len__") and isinstance(times, int) and len(repeated) * times > MAX_REPEATED:
                raise SecurityError(f"it repeats something to a length of more than {MAX_REPEATED}")
        return _bounded(super().call_binop(context, operator, left, right))


def _measured(function: Callable[..., Any]) -> Callable[..., Any]:
    def measured(value: Any, *args: Any, **kwargs: Any) -> Any:
        _refuse_large((*args, *kwargs.values()))
        return function(value, *args, **kwargs)

    return measured


def _refuse_large(numbers: Iterable[Any]) -> None:
    if any(isinstance(each, int) and each > MAX_REPEATED for each in numbers):
        raise SecurityError(f"it repeats something to a length of more than {MAX_REPEATED}")


def _refuse_wide(form: str) -> None:
    if _WIDE_FIELD.search(form):
        raise SecurityError(f"it pads something to a length of more than {MAX_REPEATED}")


def _bounded(value: Any) -> Any:
    if isinstance(value, str) and len(value) > MAX_CHARACTERS:
        raise SecurityError(f"it makes a text of more than {MAX_CHARACTERS} characters")
    return value


def _spend_a_round() -> None:
    left = _rounds_left.get() - 1
    if left < 0:
        raise SecurityError(f"it loops and calls more than {MAX_ROUNDS} times")
    _rounds_left.set(left)


def _budgeted(items: Any) -> Iterable[Any]:
    if isinstance(items, jinja2.Undefined):
        return items
    return _counted(items)


def _counted(items: Iterable[Any]) -> Iterator[Any]:
    for item in items:
        _spend_a_round()
        yield item


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes for HTML, which would reach the model.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise _Refused(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


class JinjaChatTemplate:
    """One template, or several by name ("default", "tool_use"); ``variables`` are seen by all (bos_token and the like)."""

    def __init__(self, sources: Mapping[str, str], variables: Mapping[str, Any] | None = None, *, where: str = "") -> None:
        environment = _Sandbox()
        self._variables = {"tools": None, "documents": None, **(variables or {})}
        self._templates: dict[str, jinja2.Template] = {}
        for name, source in sources.items():
            try:
                self._templates[name] = environment.from_string(source)
            except jinja2.TemplateSyntaxError as error:
                raise UserError.of(
                    f"the chat template does not parse: line {error.lineno}: {error.message}",
                    where,
                    "correct the template, or give another with --chat-template FILE",
                ) from error

    def render(self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True, **kwargs: Any) -> str:
        if taken := sorted(_RESERVED & kwargs.keys()):
            raise RequestError(f"{taken[0]} cannot be given to the chat template", param="chat_template_kwargs")
        name = "tool_use" if kwargs.get("tools") and "tool_use" in self._templates else "default"
        template = self._templates.get(name) or next(iter(self._templates.values()))
        variables = {**self._variables, **kwargs}
        conversation = [_flat(message, index) for index, message in enumerate(messages)]
        if not conversation:
            raise RequestError("messages is empty", param="messages")
        budget = _rounds_left.set(MAX_ROUNDS)
        try:
            return _joined(template.generate(messages=conversation, add_generation_prompt=add_generation_prompt, **variables))
        except _Refused as error:
            raise RequestError(f"the chat template refuses these messages: {error.message}", param="messages") from error
        except (
            jinja2.TemplateError,
            ArithmeticError,
            AttributeError,
            LookupError,
            RecursionError,
            TypeError,
            ValueError,
        ) as error:
            raise RequestError(f"the chat template cannot render these messages: {error}", param="messages") from error
        finally:
            _rounds_left.reset(budget)


def _joined(chunks: Iterable[str]) -> str:
    parts, length = [], 0
    for chunk in chunks:
        length += len(chunk)
        if length > MAX_CHARACTERS:
            raise SecurityError(f"it writes more than {MAX_CHARACTERS} characters")
        parts.append(chunk)
    return "".join(parts)


def _flat(message: Mapping[str, Any], index: int) -> dict[str, Any]:
    """The message with its content as one string: what templates of text models expect."""
    where = f"messages[{index}]"
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise RequestError(f"{where} needs a role", param="messages")
    flat = dict(message)
    content = flat.get("content")
    if content is None and flat.get("tool_calls"):
        flat["content"] = ""
    elif isinstance(content, (list, tuple)):
        flat["content"] = "\n".join(_text_of(part, f"{where}.content[{at}]") for at, part in enumerate(content))
    elif not isinstance(content, str):
        raise RequestError(f"{where} needs a content that is a string or a list of text parts", param="messages")
    return flat


def _text_of(part: Any, where: str) -> str:
    if isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    raise RequestError(f"{where} is of type {kind!r}; this model reads only text", param="messages")


def load_chat_template(folder: ModelFolder, override: str | None, tokenizer: Tokenizer) -> ChatTemplate | None:
    """The override (a file, or the template itself), else the checkpoint's own, else its family's; else None.

    A model without files has a plain one where its family has none.

    :raises UserError: for a template that does not parse, or an override file that does not exist.
    """
    variables = dict(getattr(tokenizer, "named", {}))
    if override is not None:
        return JinjaChatTemplate({"default": _override(override)}, variables, where="chat_template")
    found = _own(folder)
    if found is not None:
        sources, where = found
        return JinjaChatTemplate(sources, variables, where=where)
    instead = family_template(folder)
    return None if instead is None else JinjaChatTemplate({"default": instead}, variables)


def template_source(folder: ModelFolder, override: str | None) -> str:
    """The text of the template that ``load_chat_template`` would load, of several by name all; "" for none."""
    if override is not None:
        return _override(override)
    found = _own(folder)
    if found is not None:
        return "\n".join(found[0].values())
    return family_template(folder) or ""


def family_template(folder: ModelFolder) -> str | None:
    """What stands in for a template that the checkpoint does not have. Nothing for a GGUF file, which may hold any Llama."""
    if gguf_file(folder) is not None:
        return None
    if folder.path is None and folder.family.chat_template is None:
        return files("core.text").joinpath("templates/plain.jinja").read_text(encoding="utf-8")
    return folder.family.chat_template


def _override(override: str) -> str:
    if "\n" in override or "{{" in override or "{%" in override:
        return override
    try:
        return Path(os.path.expanduser(override)).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UserError.of(
            f"chat template {override!r} is neither a file that can be read nor a Jinja template",
            "chat_template",
            "give the path of a .jinja file",
        ) from error


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise _unreadable(path, str(error)) from error


def _unreadable(path: Path, why: str) -> UserError:
    return UserError.of(
        f"the chat template in {path.name} cannot be read: {why}",
        str(path),
        "fetch the checkpoint's file again, or give a template with --chat-template FILE",
    )


def _own(folder: ModelFolder) -> tuple[dict[str, str], str] | None:
    """The checkpoint's templates by name, and the file they come from."""
    if folder.path is None:
        return None
    if folder.path.is_dir():
        own = folder.path / "chat_template.jinja"
        if own.is_file():
            more = {path.stem: path for path in sorted((folder.path / "additional_chat_templates").glob("*.jinja"))}
            return {name: _text(path) for name, path in {"default": own, **more}.items()}, str(own)
        for name in ("tokenizer_config.json", "chat_template.json"):
            stated = read_json(folder.path / name).get("chat_template")
            if isinstance(stated, list):
                stated = {each.get("name"): each.get("template") for each in stated if isinstance(each, dict)} or stated
            if isinstance(stated, str):
                stated = {"default": stated}
            if not stated:
                continue
            if not isinstance(stated, dict) or not all(isinstance(each, str) for each in (*stated, *stated.values())):
                raise _unreadable(folder.path / name, "chat_template is neither a text nor a list of named ones")
            return stated, str(folder.path / name)
    if (path := gguf_file(folder)) is not None and (source := GgufFile(path).metadata.get("tokenizer.chat_template")):
        return {"default": source}, str(path)
    return None
