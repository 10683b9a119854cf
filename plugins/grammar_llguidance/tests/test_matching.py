"""What llguidance makes of grammars: limits, troubles, compact JSON."""

import json

import numpy as np
import pytest

from core.errors import RequestError
from core.interfaces.grammar import Vocabulary
from core.interfaces.request import Grammar
from core.offers import Context
from core.testing.grammar import VOCABULARY, WORDS, allowed
from grammar_llguidance.matching import MOST_CHARACTERS, Llguidance
from grammar_llguidance.plugin import LlguidanceSettings, register_grammar_backends


def backend(compact=False, size=500_000):
    made = Llguidance(compact, size)
    made.attach(lambda: VOCABULARY)
    return made


def test_compact_json_has_no_room_for_whitespace():
    grammar = Grammar("json_schema", '{"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}')
    loose, compact = (backend(each).matcher(grammar) for each in (False, True))
    for matcher in (loose, compact):
        matcher.accept(len(WORDS) + ord("{"))
    assert len(WORDS) + ord("\n") in allowed(loose)
    assert len(WORDS) + ord("\n") not in allowed(compact)


def offered(**settings):
    [offer] = register_grammar_backends()
    made = offer.create(Context(LlguidanceSettings(**settings), {}, {}))
    made.attach(lambda: VOCABULARY)
    return made


def test_the_settings_come_to_the_backend():
    matcher = offered(compact_json=True).matcher(Grammar("json_object"))
    matcher.accept(len(WORDS) + ord("{"))
    assert len(WORDS) + ord("\n") not in allowed(matcher)
    names = [f"a{number}" for number in range(300)]
    schema = {"type": "object", "properties": {name: {"type": "boolean"} for name in names}, "required": names}
    large = Grammar("json_schema", json.dumps(schema))
    offered().matcher(large)
    with pytest.raises(RequestError, match=r"cannot be used: grammar size .* too big .limit for this grammar: 1000"):
        offered(max_grammar_size=1000).matcher(large)


def test_parts_with_free_text_between_them():
    called = [{"text": "a>"}, {"json_schema": {"type": "boolean"}}, {"text": "</f>"}]
    either = [{"any_of": [[{"until": "<f="}, {"any_of": [called]}], [{"until": "<g="}, {"text": "b>"}]]}]
    matcher = backend().matcher(Grammar("parts", json.dumps([{"repeat": either, "least": 0}, {"anything": True}])))
    for text, then in ((b"x <f", b"=/ "), (b"=", b"a"), (b"a>", b"tf"), (b"true</f> and <g=", b"b"), (b"b> <", b"fg\n")):
        for byte in text:
            matcher.accept(len(WORDS) + byte)
        may = {token - len(WORDS) for token in allowed(matcher) if token >= len(WORDS)}
        assert set(then) <= may
        assert len(may) > 100 or may <= set(then) | set(b" \n\t"), f"after {text!r}"
    assert VOCABULARY.eos[0] in allowed(matcher)


def test_whitespace_has_an_end():
    matcher = backend().matcher(Grammar("json_object"))
    matcher.accept(len(WORDS) + ord("{"))
    spaces = 0
    while len(WORDS) + ord(" ") in allowed(matcher):
        matcher.accept(len(WORDS) + ord(" "))
        spaces += 1
    assert spaces == 16


@pytest.mark.parametrize(
    ("grammar", "said"),
    [
        (Grammar("regex", "("), 'the grammar cannot be used: at 1(8): invalid regex "(" (in regex): regex parse error:'),
        (Grammar("json_schema", "{"), "the grammar cannot be read: Expecting property name"),
        (Grammar("json_schema", '{"type": "nothing"}'), "the grammar cannot be used: "),
        (Grammar("choice", "[1]"), "the grammar cannot be read: a choice is a list of non-empty strings"),
        (Grammar("parts", "{}"), "the grammar cannot be read: parts are a list"),
        (Grammar("parts", '[{"word": "a"}]'), "the grammar cannot be read: a part is an object of one of the kinds any_of,"),
        (Grammar("parts", '[{"until": ""}]'), "the grammar cannot be read: this kind of part has a text"),
        (Grammar("parts", '[{"repeat": [], "least": "x"}]'), "the grammar cannot be read: "),
        (Grammar("parts", '[{"json_schema": {"type": "nothing"}}]'), "the grammar cannot be used: "),
        (Grammar("grammar", "start: other\n"), "the grammar cannot be used: "),
        (Grammar("regex", "a" * (MOST_CHARACTERS + 1)), "the grammar has 262145 characters, the most is 262144"),
    ],
)
def test_what_is_refused(grammar, said):
    with pytest.raises(RequestError) as refused:
        backend().matcher(grammar)
    assert refused.value.message.startswith(said)
    assert (refused.value.param, refused.value.status) == ("grammar", 400)


def test_what_would_take_for_ever_is_refused_and_holds_up_nobody_after_it():
    patterns = [{"type": "string", "pattern": f".*x{number}.*"} for number in range(30)]
    made = backend()
    for _ in range(2):
        with pytest.raises(
            RequestError, match=r"^the grammar cannot be used: it takes more than 0\.5 s to prepare$"
        ) as refused:
            made.matcher(Grammar("json_schema", json.dumps({"allOf": patterns})))
        assert refused.value.status == 400
    assert allowed(made.matcher(Grammar("regex", "a|b"))) == {len(WORDS) + ord("a"), len(WORDS) + ord("b")}


def test_ten_thousand_choices():
    matcher = backend().matcher(Grammar("choice", json.dumps(["é", 'a"\n', *(f"number {each}" for each in range(10_000))])))
    for byte in b"number 77":
        matcher.accept(len(WORDS) + byte)
    may = allowed(matcher)
    assert {token - len(WORDS) for token in may if token >= len(WORDS)} == set(b"0123456789")
    assert VOCABULARY.eos[0] in may


def test_a_grammar_with_more_ways_on_than_can_be_followed_is_refused_before_it_runs():
    fields = {f"field_{number}": {"type": "string"} for number in range(600)}
    schema = {"type": "object", "properties": fields, "additionalProperties": False}
    with pytest.raises(RequestError, match=r"^the grammar cannot be used: .*max is 2000"):
        backend().matcher(Grammar("json_schema", json.dumps(schema)))


def test_a_grammar_beyond_the_limit_is_refused():
    fields = {f"field_{number}": {"type": "string", "maxLength": 2} for number in range(200)}
    many = Grammar("json_schema", json.dumps({"type": "object", "properties": fields, "additionalProperties": False}))
    assert allowed(backend().matcher(many))
    with pytest.raises(RequestError, match="the grammar cannot be used: "):
        backend(size=1000).matcher(many)


def test_a_vocabulary_that_cannot_be_read_refuses_every_grammar():
    def broken():
        raise OSError("the tokenizer is gone")

    made = Llguidance(False, 500_000)
    made.attach(broken)
    with pytest.raises(RequestError, match="the vocabulary of this model cannot be used \\(OSError: the tokenizer is gone\\)"):
        made.matcher(Grammar("json_object"))


def test_what_must_come_is_written_in_the_longest_tokens():
    pieces = (*VOCABULARY.tokens, b"name", b'": "', b"get", b"get_w", b"_weather", b'"}!', b"eather")
    made = Llguidance(False, 500_000)
    made.attach(lambda: Vocabulary(pieces, VOCABULARY.special, VOCABULARY.eos))
    matcher = made.matcher(Grammar("choice", json.dumps(['name": "get_weather"}'])))
    written = []
    while not matcher.done:
        bits = np.unpackbits(matcher.allowed().view(np.uint8), bitorder="little")
        [token] = np.flatnonzero(bits[: len(pieces)]).tolist()
        matcher.accept(token)
        written.append(pieces[token])
    assert written == [b"name", b'": "', b"get_w", b"eather", b'"}']
