"""The contracts of parsers: what a text means does not depend on how it was cut, and no text makes a parser raise."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np

from core.interfaces.parsers import (
    CallBegins,
    CallGrows,
    Part,
    Piece,
    ReasoningParser,
    ReasoningStream,
    Said,
    Tool,
    ToolParser,
    ToolStream,
)
from core.testing.contract import Contract

WEATHER = Tool(
    "get_weather",
    "The weather of a city.",
    {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
        "required": ["city"],
        "additionalProperties": False,
    },
)
TIME = Tool("get_time", "The time of day.", {"type": "object", "properties": {}, "additionalProperties": False})
TOOLS = (WEATHER, TIME)
CITY = {"city": 'Kö"ln }]', "days": 2}
PLAIN = ("", "Hello.", "  a <b> [c] {d}\n\n", "1 < 2, 3 > 2", "<", "get_weather(", "\N{EARTH GLOBE EUROPE-AFRICA} </p>\n")
"""Texts without a call. Some begin as one might."""

Told = tuple[str, list[tuple[str, Any]]]
"""What an output says: its text, and the calls as (name, arguments)."""


class ToolParserContract(Contract, kit=True):
    """Give ``make``, and ``examples``: outputs of a model that was offered ``TOOLS``, each with what it says: the text for the
    reader, and the calls as (name, arguments). ``plain`` are more texts without a call.
    """

    examples: ClassVar[Sequence[tuple[str, Told]]]
    plain: ClassVar[Sequence[str]] = ()

    def make(self) -> ToolParser:
        """A new parser, as your offer's ``create`` makes it."""
        raise NotImplementedError(f"{type(self).__name__} must define make()")

    # --- what is promised -------------------------------------------------------------------------------------------

    def test_calls_are_told(self) -> None:
        parser = self.make()
        assert any(len(calls) > 1 for _, (_, calls) in self.examples), "examples has an output with two calls"
        for text, says in self.examples:
            assert told(parser.stream(TOOLS), [text]) == says, f"{text!r} is read otherwise"

    def test_text_without_a_call_is_told_as_it_is(self) -> None:
        parser = self.make()
        for text in (*PLAIN, *self.plain):
            assert told(parser.stream(TOOLS), [text]) == (text, []), f"{text!r} is no call"

    def test_it_does_not_matter_how_a_text_is_cut(self) -> None:
        parser = self.make()
        for text in (*PLAIN, *self.plain, *(text for text, _ in self.examples)):
            whole = told(parser.stream(TOOLS), [text])
            for pieces in cuts(text):
                assert told(parser.stream(TOOLS), pieces) == whole, f"cut as {pieces} it says something else"

    def test_no_text_makes_it_raise(self) -> None:
        parser = self.make()
        for text, _ in self.examples:
            for broken in damaged(text):
                told(parser.stream(TOOLS), [broken], whole=False)
                told(parser.stream(TOOLS), list(broken), whole=False)

    def test_text_is_told_as_soon_as_it_is_certain(self) -> None:
        """A stream that holds everything to the end is no stream."""
        stream = self.make().stream(TOOLS)
        early = [piece for piece in stream.push("So much is certain: this is no call. And") if isinstance(piece, Said)]
        assert early, "nothing was told of a text that begins no call"

    def test_outputs_are_apart(self) -> None:
        parser = self.make()
        for text, says in self.examples:
            one, other = parser.stream(TOOLS), parser.stream(TOOLS)
            ones: list[Piece] = []
            for char in text:
                ones += one.push(char)
                other.push(char)
                other.push("x")
            assert folded([*ones, *one.final()]) == says, "another output's text moved this one's"

    def test_what_is_cut_off_shows_no_part_of_a_call(self) -> None:
        """However early the tokens run out, the reader sees a beginning of what the whole says, and no half of a mark."""
        parser = self.make()
        for text, (said, calls) in (*((text, (text, [])) for text in (*PLAIN, *self.plain)), *self.examples):
            for at in range(len(text)):
                words, begun = told(parser.stream(TOOLS), [text[:at]], whole=False, cut=True)
                assert said.lstrip().startswith(words.strip()), f"cut off as {text[:at]!r} it says {words!r}"
                names = [name for name, _ in begun]
                assert names == [name for name, _ in calls[: len(begun)]], f"cut off as {text[:at]!r} it calls {names}"

    def test_it_reads_the_form_it_gives(self) -> None:
        parser = self.make()
        for several in (False, True):
            form = parser.form(TOOLS, several=several)
            if form is None:
                continue
            for seed in range(20):
                text, _, calls = told_of_form(form, seed)
                assert calls, f"the form allows {text!r}, which calls nothing"
                assert several or len(calls) == 1, f"one call was asked for, the form allows {text!r}"
                assert told(parser.stream(TOOLS), [text]) == ("", calls), f"its own form, {text!r}, is read otherwise"

    def test_it_reads_the_strict_form_it_gives(self) -> None:
        parser = self.make()
        for several in (False, True):
            form = parser.strict_form(TOOLS, several=several)
            if form is None:
                continue
            numbers = set()
            for seed in range(40):
                text, _, calls = told_of_form(form, seed)
                found = told(parser.stream(TOOLS), [text])
                assert found[1] == calls, f"its own form, {text!r}, is read otherwise"
                numbers.add(len(calls))
            assert 0 in numbers, "nothing may be said but calls"
            assert max(numbers) >= 1 if several else max(numbers) == 1, "the form allows another number of calls"


class ReasoningParserContract(Contract, kit=True):
    """Give ``make``, and ``examples``: (the end of a prompt, an output, its reasoning, its answer)."""

    examples: ClassVar[Sequence[tuple[str, str, str, str]]]

    def make(self) -> ReasoningParser:
        """A new parser, as your offer's ``create`` makes it."""
        raise NotImplementedError(f"{type(self).__name__} must define make()")

    # --- what is promised -------------------------------------------------------------------------------------------

    def test_reasoning_is_told_from_the_answer(self) -> None:
        parser = self.make()
        assert any(reasoning and answer for _, _, reasoning, answer in self.examples), "examples has one with both"
        for prompt, text, reasoning, answer in self.examples:
            assert split(parser.stream(prompt), [text]) == (reasoning, answer), f"{text!r} is read otherwise"

    def test_it_does_not_matter_how_a_text_is_cut(self) -> None:
        parser = self.make()
        for prompt, text, reasoning, answer in self.examples:
            for pieces in cuts(text):
                found = split(parser.stream(prompt), pieces)
                assert found == (reasoning, answer), f"cut as {pieces} it says something else"

    def test_no_text_makes_it_raise(self) -> None:
        parser = self.make()
        for prompt, text, _, _ in self.examples:
            for broken in damaged(text):
                whole, cut = split(parser.stream(prompt), [broken]), split(parser.stream(prompt), list(broken))
                assert whole == cut, f"{broken!r} is read in two ways"

    def test_text_is_told_as_soon_as_it_is_certain(self) -> None:
        parser = self.make()
        for prompt, text, reasoning, answer in self.examples:
            if reasoning and answer:
                stream = parser.stream(prompt)
                early = [stream.push(char) for char in text]
                assert any(first for first, _ in early), f"the reasoning of {text!r} was held to the end"
                assert any(second for _, second in early), f"the answer of {text!r} was held to the end"

    def test_outputs_are_apart(self) -> None:
        parser = self.make()
        for prompt, text, reasoning, answer in self.examples:
            one, other = parser.stream(prompt), parser.stream(prompt)
            parts = []
            for char in text:
                parts.append(one.push(char))
                other.push(char)
                other.push("x")
            parts.append(one.final())
            found = "".join(first for first, _ in parts), "".join(second for _, second in parts)
            assert found == (reasoning, answer), "another output's text moved this one's"

    def test_what_is_cut_off_shows_no_part_of_a_mark(self) -> None:
        parser = self.make()
        for prompt, text, reasoning, answer in self.examples:
            for at in range(len(text)):
                before, after = split(parser.stream(prompt), [text[:at]], cut=True)
                shown = reasoning.startswith(before.strip()) and answer.lstrip().startswith(after.strip())
                assert shown, f"cut off as {text[:at]!r} it says {before!r} and {after!r}"

    def test_it_reads_the_form_it_gives(self) -> None:
        parser = self.make()
        for prompt in {prompt for prompt, _, _, _ in self.examples}:
            form = parser.form(prompt)
            for seed in range(20 if form is not None else 0):
                text, before, _ = told_of_form(form or (), seed)
                found = split(parser.stream(prompt), [text + "42"])
                assert found == (before.strip(), "42"), f"its own form, {text!r} before an answer, is read as {found}"


def told(stream: ToolStream, texts: Sequence[str], *, whole: bool = True, cut: bool = False) -> Told:
    pieces: list[Piece] = []
    for text in texts:
        pieces += stream.push(text)
    return folded([*pieces, *stream.final(cut=cut)], whole=whole)


def folded(pieces: Sequence[Piece], *, whole: bool = True) -> Told:
    """What pieces say together. ``whole``: the arguments have to be JSON, otherwise they stay text."""
    said, calls = "", list[tuple[str, str]]()
    for piece in pieces:
        match piece:
            case Said():
                assert piece.text, "an empty text is nothing to tell"
                said += piece.text
            case CallBegins():
                assert piece.name, "a call without a name"
                calls.append((piece.name, ""))
            case CallGrows():
                assert calls, "arguments came before the name of their call"
                calls[-1] = calls[-1][0], calls[-1][1] + piece.arguments
    return said, [(name, json.loads(arguments) if whole else arguments) for name, arguments in calls]


def split(stream: ReasoningStream, texts: Sequence[str], *, cut: bool = False) -> tuple[str, str]:
    parts = [*(stream.push(text) for text in texts), stream.final(cut=cut)]
    answered = False
    for reasoning, answer in parts:
        assert not (answered and reasoning), "reasoning came after the answer"
        answered = answered or bool(answer)
    return "".join(first for first, _ in parts), "".join(second for _, second in parts)


def cuts(text: str) -> Iterator[list[str]]:
    """The same text in pieces: each character, all pairs of halves, some at random."""
    yield list(text)
    yield from ([text[:at], text[at:]] for at in range(1, len(text)))
    random = np.random.default_rng(len(text))
    for _ in range(5):
        places = [0, *sorted(random.integers(0, len(text) + 1, 6).tolist()), len(text)]
        yield [text[low:high] for low, high in pairwise(places)]


def damaged(text: str) -> Iterator[str]:
    """Cut off, with something left out, and with something put in."""
    random = np.random.default_rng(len(text))
    for at in range(0, len(text), 5):
        yield text[:at]
        yield text[at:]
        yield text[:at] + text[at + 2 :]
        yield text[:at] + str(random.choice(list('{}[]":,\\<>x \n'))) + text[at:]


def told_of_form(form: Sequence[Part], seed: int) -> tuple[str, str, list[tuple[str, Any]]]:
    """A text of this form, what of it is free text, and the calls in it: arguments of the schemas of ``TOOLS``."""
    random = np.random.default_rng(seed)
    free, calls = [], list[tuple[str, Any]]()

    def write(parts: Sequence[Part]) -> str:
        return "".join(write_one(part) for part in parts)

    def write_one(part: Part) -> str:
        match part:
            case {"text": str() as text}:
                return text
            case {"until": str() as mark}:
                free.append("so it is\n")
                return free[-1] + mark
            case {"anything": True}:
                free.append("the end")
                return free[-1]
            case {"json_schema": schema}:
                return json.dumps(called(schema))
            case {"regex": _}:
                return ""  # what is between parts may be nothing
            case {"any_of": choices}:
                return write(choices[int(random.integers(len(choices)))])
            case {"repeat": repeated}:
                most = min(part.get("most") or 3, part.get("least", 0) + 2)
                return "".join(write(repeated) for _ in range(int(random.integers(part.get("least", 0), most + 1))))
        raise AssertionError(f"{part} is no part")

    def called(schema: Mapping[str, Any]) -> Any:
        tool = next(tool for tool in TOOLS if tool.parameters == schema)
        calls.append((tool.name, CITY if tool is WEATHER else {}))
        return calls[-1][1]

    text = write(form)
    return text, "".join(free), calls
