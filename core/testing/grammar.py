"""The contract of grammar backends: what is allowed leads to outputs of the asked form, and nothing else is allowed."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from core.errors import RequestError
from core.interfaces.grammar import GrammarBackend, Matcher, Vocabulary
from core.interfaces.request import Grammar
from core.testing.contract import Contract

WORDS = (b"<s>", b"</s>", b"true", b"false", b"null", b'":', b'{"', b'"}', b"yes", b"no", b" ", b"12")
BYTES = tuple(bytes([byte]) for byte in range(256))
VOCABULARY = Vocabulary(WORDS + BYTES, frozenset({0, 1}), (1,))
EOS = 1
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 5}, "old": {"type": "boolean"}, "size": {"enum": [1, 12, None]}},
    "required": ["name", "old", "size"],
    "additionalProperties": False,
}


class GrammarBackendContract(Contract, kit=True):
    """Give ``make``. ``kinds``: the kinds of grammar your backend knows; the others it refuses."""

    kinds: tuple[str, ...] = ("json_object", "json_schema", "regex", "choice", "parts", "grammar")

    def make(self) -> GrammarBackend:
        """A new backend, as your offer's ``create`` makes it."""
        raise NotImplementedError(f"{type(self).__name__} must define make()")

    # --- what is promised -------------------------------------------------------------------------------------------

    def test_outputs_have_the_asked_form(self) -> None:
        """Twenty walks a kind, each token drawn from the allowed ones."""
        backend = self.attached()
        for kind, (grammar, fits) in FORMS.items():
            if kind in self.kinds:
                for seed in range(20):
                    output = walk(backend.matcher(grammar), seed)
                    assert output is None or fits(output), f"{kind} {grammar.text!r}: {output!r}"

    def test_every_output_of_the_form_is_allowed(self) -> None:
        backend = self.attached()
        for kind, (grammar, fits) in FORMS.items():
            if kind not in self.kinds:
                continue
            for text in (b'{"name":"Ann","old":true,"size":12}', b"no", b"ab12", b"x-x-x", PARTED):
                if fits(text):
                    matcher = backend.matcher(grammar)
                    for byte in text:
                        token = len(WORDS) + byte
                        assert token in allowed(matcher), f"{kind}: {bytes([byte])!r} of {text!r} is not allowed"
                        matcher.accept(token)
                    assert matcher.done or EOS in allowed(matcher), f"{kind}: the output may not end after {text!r}"

    def test_what_was_not_allowed_is_not_accepted(self) -> None:
        matcher = self.attached().matcher(FORMS[self.kinds[-1]][0])
        wrong = next(token for token in range(len(VOCABULARY.tokens)) if token not in allowed(matcher))
        with pytest.raises(ValueError):  # noqa: PT011 - the words are the backend's own
            matcher.accept(wrong)
        assert len(allowed(matcher)) > 0, "a matcher in trouble allows something, and says so in accept"

    def test_matchers_are_apart(self) -> None:
        backend = self.attached()
        grammar = FORMS[self.kinds[0]][0]
        first, second = backend.matcher(grammar), backend.matcher(grammar)
        before = allowed(second)
        walk(first, 1, most=3)
        assert allowed(second) == before, "another output's tokens moved this one's grammar"

    def test_what_is_no_grammar_is_refused(self) -> None:
        backend = self.attached()
        for grammar in (
            Grammar("json_schema", "{"),
            Grammar("regex", "("),
            Grammar("choice", "[]"),
            Grammar("parts", '[{"text": 1}]'),
            Grammar("grammar", "start: ("),
        ):
            with pytest.raises(RequestError):
                backend.matcher(grammar)

    def attached(self) -> GrammarBackend:
        backend = self.make()
        backend.attach(lambda: VOCABULARY)
        return backend


def is_object(text: bytes) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False


def is_of_schema(text: bytes) -> bool:
    if not is_object(text):
        return False
    found = json.loads(text)
    return (
        set(found) == {"name", "old", "size"}
        and isinstance(found["name"], str)
        and len(found["name"]) <= 5
        and isinstance(found["old"], bool)
        and found["size"] in (1, 12, None)
        and not isinstance(found["size"], bool)
    )


PARTED = b'so<</-yes-noc/{"name":"Ann","old":true,"size":12}\nand on'
PARTS = [
    {"until": "</"},
    {"repeat": [{"text": "-"}, {"any_of": [[{"text": "yes"}], [{"text": "no"}]]}], "least": 1, "most": 2},
    {"regex": "[a-c]/?"},
    {"json_schema": SCHEMA},
    {"anything": True},
]


def is_of_parts(text: bytes) -> bool:
    found = re.fullmatch(rb"(?s:.*?)</(?:-(?:yes|no)){1,2}[a-c]/?(?s:(\{.*))", text)
    if found is None:
        return False
    document = found[1].decode(errors="replace")
    return is_of_schema(document[: json.JSONDecoder().raw_decode(document)[1]].encode())


FORMS = {
    "json_object": (Grammar("json_object"), is_object),
    "json_schema": (Grammar("json_schema", json.dumps(SCHEMA)), is_of_schema),
    "regex": (Grammar("regex", "[a-c]{1,4}(12|yes)"), lambda text: bool(re.fullmatch(rb"[a-c]{1,4}(12|yes)", text))),
    "choice": (Grammar("choice", '["yes", "no", "now"]'), lambda text: text in (b"yes", b"no", b"now")),
    "parts": (Grammar("parts", json.dumps(PARTS)), is_of_parts),
    "grammar": (
        Grammar("grammar", 'start: "x" rest\nrest: "-x" rest | "-x"\n'),
        lambda text: bool(re.fullmatch(rb"x(-x)+", text)),
    ),
}


def allowed(matcher: Matcher) -> set[int]:
    mask = matcher.allowed()
    assert mask.dtype == np.uint32
    assert mask.shape == (-(-len(VOCABULARY.tokens) // 32),)
    bits = np.unpackbits(mask.view(np.uint8), bitorder="little")
    return set(np.flatnonzero(bits[: len(VOCABULARY.tokens)]).tolist())


def walk(matcher: Matcher, seed: int, most: int = 400) -> bytes | None:
    """An output of random allowed tokens; None when it was not complete after ``most``."""
    random, output = np.random.default_rng(seed), b""
    for _ in range(most):
        may = sorted(allowed(matcher))
        assert may, f"nothing is allowed after {output!r}, and the output is not done"
        assert 0 not in may, "a token that stands for no text is allowed"
        closing = [token for token in may if VOCABULARY.tokens[token] in (b'"', b"}", b'"}')]
        token = EOS if EOS in may else int(random.choice(closing if closing and random.random() < 0.3 else may))
        if token == EOS:
            return output
        output += VOCABULARY.tokens[token]
        matcher.accept(token)
        if matcher.done:
            return output
    return None
