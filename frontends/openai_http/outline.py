"""What is to come of a chat's outputs: how they are read (reasoning, calls of tools), and which form they are kept to.

Whichever route a chat comes by: ``outline`` makes an ``Outline`` of it, which puts the form into the call's parameters
(``guided``) and makes a ``Reading`` for each of its outputs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import msgspec

from core.errors import RequestError
from core.interfaces.frontend import Service, Tokenizer
from core.interfaces.parsers import CallBegins, CallGrows, Part, Piece, ReasoningParser, Said, Tool, ToolParser
from core.interfaces.request import FinishReason, Grammar, SamplingParams
from frontends.openai_http.form import field_of, grammar_of
from frontends.openai_http.schema import AllowedTools, ChatBody, NamedFunction

_SEEN = 32  # tokens at the end of a prompt, which say whether it ends in reasoning


@dataclass(frozen=True)
class CallDelta:
    """What a call gained. Its first delta has ``id`` and ``name``, all others None."""

    index: int
    id: str | None
    name: str | None
    arguments: str


@dataclass
class MadeCall:
    id: str
    name: str
    arguments: str = ""


@dataclass
class Gained:
    """What an output gained: reasoning, text for the reader, and calls, of each at most one delta."""

    reasoning: str = ""
    text: str = ""
    calls: list[CallDelta] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.reasoning or self.text or self.calls)


@dataclass(frozen=True)
class Outline:
    """``tools`` are those that the model may call; ``several``, whether it may make more than one call."""

    tools: tuple[Tool, ...] = ()
    several: bool = True
    tool_parser: ToolParser | None = None
    reasoning_parser: ReasoningParser | None = None
    prompt: str = ""  # its end
    grammar: Grammar | None = None
    shows_reasoning: bool = True
    shows_special: bool = False  # a parser looks for control tokens
    field: str = "grammar"  # whose form it is, for messages about it
    tokenizer: Tokenizer | None = None

    @property
    def plain(self) -> bool:
        """Whether all of an output is text for the reader."""
        return self.reasoning_parser is None and not self.tools

    def guided(self, params: SamplingParams) -> SamplingParams:
        """The same parameters with the form of this outline."""
        skips = params.skip_special_tokens and not self.shows_special
        if params.grammar == self.grammar and skips == params.skip_special_tokens:
            return params
        return msgspec.structs.replace(params, grammar=self.grammar, skip_special_tokens=skips)

    def reading(self) -> Reading:
        return Reading(self)


class Reading:
    """One output as it comes. ``reasoning``, ``text`` and ``calls`` are what it has said so far."""

    def __init__(self, outline: Outline) -> None:
        self.reasoning = self.text = ""
        self.calls: list[MadeCall] = []
        self._outline = outline
        thinks, calls = outline.reasoning_parser, outline.tool_parser if outline.tools else None
        self._thoughts = thinks.stream(outline.prompt) if thinks is not None else None
        self._tools = calls.stream(outline.tools) if calls is not None else None
        self._before_answer = 0  # tokens
        self._reasoned = self._answered = False
        self._surplus = False  # a call beyond the one that was wanted is left out

    @property
    def reasoning_tokens(self) -> int:
        """The output's tokens before the answer, marks included; none of an output without reasoning."""
        return self._before_answer if self._reasoned else 0

    def take(self, text: str, token_ids: Sequence[int], num_tokens: int) -> Gained:
        """``text`` came next, with these tokens; the output has ``num_tokens`` by now."""
        reasoning, answer = self._thoughts.push(text, token_ids) if self._thoughts is not None else ("", text)
        self._reasoned = self._reasoned or bool(reasoning)
        if not self._answered:
            self._answered = bool(answer)
            others = len(token_ids) - self._tokens_in(text[: len(text) - len(answer)], token_ids) if answer else 0
            self._before_answer = num_tokens - others
        return self._gained(reasoning, self._read(answer, token_ids))

    def end(self, reason: FinishReason | None) -> Gained:
        """The output has ended for this reason: what was held until now, and is no beginning of something that was cut off."""
        cut = reason in ("length", "abort")
        reasoning, answer = self._thoughts.final(cut=cut) if self._thoughts is not None else ("", "")
        pieces = self._read(answer, ())
        if self._tools is not None:
            pieces += self._tools.final(cut=cut)
        return self._gained(reasoning, pieces)

    def finish_reason(self, reason: str | None) -> str | None:
        """``reason`` as the engine has it, or what it means with calls."""
        return "tool_calls" if reason == "stop" and self.calls else reason

    def _tokens_in(self, text: str, token_ids: Sequence[int]) -> int:
        """How many of these tokens it takes to write ``text``, with which theirs begins."""
        tokenizer, missing = self._outline.tokenizer, len(text.encode())
        assert tokenizer is not None
        for count, token in enumerate(token_ids):
            if missing <= 0:
                return count
            if self._outline.shows_special or token not in tokenizer.special_ids:
                missing -= len(tokenizer.token_bytes(token))
        return len(token_ids)

    def _read(self, text: str, token_ids: Sequence[int]) -> list[Piece]:
        if not text:
            return []
        return self._tools.push(text, token_ids) if self._tools is not None else [Said(text)]

    def _gained(self, reasoning: str, pieces: list[Piece]) -> Gained:
        gained = Gained(reasoning if self._outline.shows_reasoning else "")
        for piece in pieces:
            match piece:
                case Said():
                    gained.text += piece.text
                case CallBegins():
                    self._surplus = bool(self.calls) and not self._outline.several
                    if not self._surplus:
                        self.calls.append(MadeCall(f"call_{uuid4().hex[:24]}", piece.name))
                        gained.calls.append(CallDelta(len(self.calls) - 1, self.calls[-1].id, piece.name, ""))
                case CallGrows() if not self._surplus:
                    self.calls[-1].arguments += piece.arguments
                    index = len(self.calls) - 1
                    before = gained.calls.pop() if gained.calls and gained.calls[-1].index == index else None
                    known = before or CallDelta(index, None, None, "")
                    gained.calls.append(CallDelta(index, known.id, known.name, known.arguments + piece.arguments))
        self.reasoning += gained.reasoning
        self.text += gained.text
        return gained


def tools_of(service: Service, body: ChatBody) -> tuple[Tool, ...]:
    """The tools that the model may call. :raises RequestError: where it could not be understood when it calls them."""
    choice = body.tool_choice
    if not body.tools:
        if choice not in (None, "none", "auto"):
            raise RequestError("tool_choice wants a call, and there are no tools", param="tool_choice")
        return ()
    if choice == "none":
        return ()
    if service.tool_parser is None:
        raise RequestError(
            "this server reads no calls of tools in what its model writes: it would have to be started with "
            "--tool-call-parser NAME (--list-plugins shows which there are)",
            param="tools",
            code="unsupported_parameter",
        )
    functions = [tool.function for tool in body.tools]
    names = [function.name for function in functions]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise RequestError(f"two tools are named {twice!r}", param="tools")
    chosen = [choice.name] if isinstance(choice, NamedFunction) else choice.names if isinstance(choice, AllowedTools) else []
    if strange := next((name for name in chosen if name not in names), None):
        raise RequestError(f"there is no tool {strange[:100]!r}; there are {', '.join(names)}", param="tool_choice")
    return tuple(
        Tool(each.name, each.description or "", each.parameters or {"type": "object"}, bool(each.strict))
        for each in functions
        if not isinstance(choice, AllowedTools) or each.name in chosen
    )


def template_fields(service: Service, body: ChatBody) -> dict[str, Any]:
    """What a chat template is given beside the messages. :raises RequestError: as ``tools_of`` does."""
    fields: dict[str, Any] = {}
    if tools_of(service, body):
        fields["tools"] = [tool.model_dump(exclude_none=True) for tool in body.tools or ()]
    if body.reasoning_effort is not None:
        fields["reasoning_effort"] = body.reasoning_effort
    return fields | (body.chat_template_kwargs or {})


def outline(service: Service, body: ChatBody, prompt: Sequence[int]) -> Outline:
    """:raises RequestError: for tools that cannot be called, and for forms that cannot be had together."""
    tools, grammar = tools_of(service, body), grammar_of(body)
    parser, reasoning = service.tool_parser, service.reasoning_parser
    several = body.parallel_tool_calls is not False and not isinstance(body.tool_choice, NamedFunction)
    end = ""
    if reasoning is not None:
        end = service.tokenizer.decode(prompt[-_SEEN:], skip_special_tokens=False)
    name = field_of(body)
    form: Sequence[Part] | None = None
    if tools and parser is not None:
        form = _tool_form(parser, tools, body, grammar, several)
        name = "tools" if grammar is None else name
    if reasoning is not None and (form is not None or grammar is not None):
        before = reasoning.form(end)
        if before is None:
            raise RequestError("with this reasoning parser an output cannot be kept to a form", param=name)
        if before:
            form = [*before, *(form if form is not None else _parts(grammar, name))]
    if form is not None:
        grammar = Grammar("parts", json.dumps(form))
    marks = (*(parser.marks if tools and parser is not None else ()), *(reasoning.marks if reasoning is not None else ()))
    return Outline(
        tools=tools,
        several=several,
        tool_parser=parser,
        reasoning_parser=reasoning,
        prompt=end,
        grammar=grammar,
        shows_reasoning=body.include_reasoning is not False,
        shows_special=any(_is_control(service.tokenizer, mark) for mark in marks),
        field=name,
        tokenizer=service.tokenizer,
    )


def _is_control(tokenizer: Tokenizer, mark: str) -> bool:
    return not tokenizer.special_ids.isdisjoint(tokenizer.encode(mark, add_special_tokens=False))


def _tool_form(
    parser: ToolParser, tools: tuple[Tool, ...], body: ChatBody, grammar: Grammar | None, several: bool
) -> Sequence[Part] | None:
    """The form of an answer that may or has to call tools; None where it is free."""
    choice = body.tool_choice.mode if isinstance(body.tool_choice, AllowedTools) else body.tool_choice or "auto"
    kept_from_some = len(tools) < len(body.tools or ())
    form: Sequence[Part] | None
    if choice == "auto":
        if grammar is not None:
            calls = parser.form(tools, several=several)
            form = calls and [{"any_of": [_parts(grammar, field_of(body)), calls]}]
        elif kept_from_some or any(tool.strict for tool in tools):
            checked = [tool if tool.strict else Tool(tool.name) for tool in tools]
            form = parser.strict_form(checked, several=several)
        else:
            return None
        wish = "tool_choice allowed_tools" if kept_from_some else "strict functions"
        wish = wish if grammar is None else f"tools with {field_of(body)}"
    else:
        wish = "tool_choice with a function's name" if isinstance(choice, NamedFunction) else "tool_choice required"
        if grammar is not None:
            name = field_of(body)
            raise RequestError(f"with {wish} the output is a call: {name} cannot be had together with it", param=name)
        wanted = [tool for tool in tools if not isinstance(choice, NamedFunction) or tool.name == choice.name]
        form = parser.form(wanted, several=several)
    if form is None:
        raise RequestError(
            f"{wish} cannot be had from the tool parser of this server: it cannot keep an output to the form it reads",
            param="tool_choice" if choice != "auto" or kept_from_some else "tools",
            code="unsupported_parameter",
        )
    return form


def _parts(grammar: Grammar | None, name: str) -> list[Part]:
    """A form as parts, so that others can stand before or beside it."""
    assert grammar is not None
    match grammar.kind:
        case "json_object":
            return [{"json_schema": {"type": "object"}}]
        case "json_schema":
            return [{"json_schema": _json(grammar.text, name)}]
        case "regex":
            return [{"regex": grammar.text}]
        case "choice":
            return [{"any_of": [[{"text": text}] for text in _json(grammar.text, name)]}]
        case "parts":
            parts: list[Mapping[str, Any]] = _json(grammar.text, name)
            return parts
    raise RequestError(f"{name} cannot be had with tools, nor after reasoning: it is all of an output", param=name)


def _json(text: str, name: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise RequestError(f"{name} is no JSON that can be read", param=name) from None
