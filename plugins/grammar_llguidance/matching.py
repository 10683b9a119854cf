"""Grammars and matchers of llguidance behind the engine's interface."""

from __future__ import annotations

import json
from collections.abc import Callable
from threading import Thread
from typing import TYPE_CHECKING

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper, grammar_from
from numpy.typing import NDArray

from core.errors import RequestError
from core.interfaces.grammar import GrammarBackend, Matcher, Vocabulary
from core.interfaces.request import Grammar
from grammar_llguidance.parts import lark_of
from grammar_llguidance.trial import Trials

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

MOST_CHARACTERS = 256 << 10  # of a grammar's text
LONGEST_PIECE = 16  # bytes of a token that a text is split into
SOME_WHITESPACE = r"[ \n\t]{0,16}"
"""Between the parts of a JSON document. Without a bound a small model may go on with it for ever."""


class Llguidance(GrammarBackend):
    def __init__(self, compact_json: bool, max_grammar_size: int) -> None:
        """``compact_json``: in one line, not laid out as the model likes. ``max_grammar_size``: in llguidance's units."""
        self._json: JsonCompileOptions = {"whitespace_flexible": not compact_json}
        if not compact_json:
            self._json["whitespace_pattern"] = SOME_WHITESPACE
        self._limits = LLParserLimits(max_grammar_size=max_grammar_size, verbose_errors=False)
        self._trials = Trials(max_grammar_size)

    def attach(self, vocabulary: Callable[[], Vocabulary]) -> None:
        self._tokenizer: LLTokenizer | None = None
        self._trouble = ""

        def read() -> None:
            try:
                known = vocabulary()
                self._words = -(-len(known.tokens) // 32)
                self._tokenizer = LLTokenizer(TokenizerWrapper(_Tokens(known)), len(known.tokens), list(known.eos) or None)
            except Exception as error:
                self._trouble = f"{type(error).__name__}: {error}"

        self._reading = Thread(target=read, name="grammar vocabulary", daemon=True)
        self._reading.start()

    def matcher(self, grammar: Grammar) -> Matcher:
        self._reading.join()
        if self._tokenizer is None:
            raise RequestError(
                f"no grammar can be followed: the vocabulary of this model cannot be used ({self._trouble})",
                param="grammar",
                code="unsupported_parameter",
            )
        if len(grammar.text) > MOST_CHARACTERS:
            raise RequestError(
                f"the grammar has {len(grammar.text)} characters, the most is {MOST_CHARACTERS}", param="grammar"
            )
        translated = self._translated(grammar)
        if trouble := self._trials.trouble(translated):
            raise RequestError(f"the grammar cannot be used: {_first_line(trouble)}", param="grammar")
        matcher = LLMatcher(self._tokenizer, translated, log_level=0, limits=self._limits)
        if matcher.is_error():
            raise RequestError(f"the grammar cannot be used: {_first_line(matcher.get_error())}", param="grammar")
        return LlguidanceMatcher(matcher, self._words)

    def _translated(self, grammar: Grammar) -> str:
        try:
            match grammar.kind:
                case "json_object":
                    return LLMatcher.grammar_from_json_schema({"type": "object"}, overrides=self._json)
                case "json_schema":
                    return LLMatcher.grammar_from_json_schema(json.loads(grammar.text), overrides=self._json)
                case "choice":
                    return grammar_from("lark", _choices(grammar.text))
                case "parts":
                    return grammar_from("lark", lark_of(grammar.text, {**self._json}))
                case kind:
                    return grammar_from(kind, grammar.text)
        except (ValueError, TypeError) as error:
            raise RequestError(f"the grammar cannot be read: {_first_line(str(error))}", param="grammar") from error


def _choices(text: str) -> str:
    """One terminal, so that thousands are as cheap as two. :raises ValueError: when it is no list of strings."""
    choices = json.loads(text)
    if not isinstance(choices, list) or not choices or not all(isinstance(each, str) and each for each in choices):
        raise ValueError("a choice is a list of non-empty strings")
    return "start: CHOICE\nCHOICE: " + " | ".join(json.dumps(each, ensure_ascii=False) for each in choices)


class LlguidanceMatcher(Matcher):
    def __init__(self, matcher: LLMatcher, words: int) -> None:
        self._matcher = matcher
        self._words = words

    def allowed(self) -> NDArray[np.uint32]:
        if not self._matcher.is_error():
            mask = np.frombuffer(self._matcher.compute_bitmask(), np.uint32)
            if not self._matcher.is_error():
                return mask[: self._words]
        return np.full(self._words, 0xFFFFFFFF, np.uint32)

    def accept(self, token: int) -> None:
        if not self._matcher.consume_token(token):
            raise ValueError(f"the grammar cannot be followed any further: {_first_line(self._matcher.get_error())}")
        self.done = self._matcher.is_stopped()


class _Tokens:
    """A vocabulary as llguidance asks for it. It has text split where a grammar says what comes next, and allows that alone."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.tokens = list(vocabulary.tokens)
        self.special_token_ids = sorted(vocabulary.special)
        self.eos_token_id = vocabulary.eos[0] if vocabulary.eos else 0
        self.bos_token_id = None
        self._of_bytes = {
            token: number
            for number, token in enumerate(self.tokens)
            if 0 < len(token) <= LONGEST_PIECE and number not in vocabulary.special
        }

    def __call__(self, text: bytes) -> list[int]:
        """In the longest tokens there are: a model goes on best after what is nearest to what it was trained on."""
        tokens, at = [], 0
        while at < len(text):
            ends = range(min(at + LONGEST_PIECE, len(text)), at, -1)
            end = next((end for end in ends if text[at:end] in self._of_bytes), at + 1)
            tokens.append(self._of_bytes.get(text[at:end], 0))
            at = end
        return tokens


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0][:500]
