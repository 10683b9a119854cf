import itertools
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.interfaces.request import SamplingParams, TokenEvent, TokenLogprobs
from core.text.assembler import TextAssembler
from core.text.pieces import ByteTokenizer


class Letters(ByteTokenizer):
    """Few tokens, each of one or several letters, so that random ids hit stop strings; and the bytes of two characters."""

    PIECES = (
        b"<s>",
        b"a",
        b"b",
        b"ab",
        b"ba",
        b"c",
        b"abc",
        "é".encode(),
        b"\xc3",
        b"\xa9",
        b"\xf0\x9f",
        b"\x99\x82",
        b" ",
        b"",
    )

    def __init__(self):
        super().__init__(len(self.PIECES), bos=None, eos=(), others=(0,))

    def _piece(self, token_id):
        return self.PIECES[token_id]


LETTERS = Letters()
ids_of_letters = st.lists(st.integers(0, len(Letters.PIECES) - 1), max_size=40)


def events_of(ids, cuts, finish_reason="length"):
    """The ids in events cut at the given places; the last event ends the request."""
    places = sorted({0, len(ids), *(cut % (len(ids) + 1) for cut in cuts)})
    pairs = list(itertools.pairwise(places)) or [(0, 0)]
    for start, end in pairs:
        yield TokenEvent("r", ids[start:end], finish_reason=finish_reason if end == len(ids) else None)


def feed(tokenizer, params, events):
    assembler = TextAssembler(tokenizer, params, index=3, num_prompt_tokens=7)
    return [assembler.feed(event) for event in events]


def text_of(deltas):
    return "".join(delta.text for delta in deltas)


def naive(ids, params, tokenizer=LETTERS):
    """(text, number of tokens, stop string) by decoding everything anew for each token, character by character."""

    def decoded(count, complete=False):
        kept = [token for token in ids[:count] if not (params.skip_special_tokens and token in tokenizer.special_ids)]
        data = b"".join(tokenizer.token_bytes(token) for token in kept)
        if complete:
            return data.decode("utf-8", "replace")
        # without what may be the beginning of a character
        for tail in range(min(3, len(data)) + 1):
            head = data[: len(data) - tail]
            try:
                data[len(head) :].decode("utf-8") if tail else None
            except UnicodeDecodeError as error:
                if error.reason == "unexpected end of data" and error.start == 0:
                    return head.decode("utf-8", "replace")
        return data.decode("utf-8", "replace")

    seen = 0
    for count in range(1, len(ids) + 1):
        for complete in (False, True) if count == len(ids) else (False,):
            text = decoded(count, complete)
            for end in range(seen + 1, len(text) + 1):
                ending = [stop for stop in params.stop if text[:end].endswith(stop)]
                if ending and count >= params.min_tokens:
                    stop = max(ending, key=len)
                    return text[: end if params.include_stop_str_in_output else end - len(stop)], count, stop
            seen = max(seen, len(text))
    return decoded(len(ids), True), len(ids), None


@given(ids_of_letters, st.lists(st.integers(0, 100)), st.booleans())
def test_the_deltas_make_up_the_decoding(ids, cuts, skip):
    params = SamplingParams(max_tokens=None, skip_special_tokens=skip)
    deltas = feed(LETTERS, params, events_of(ids, cuts))
    assert text_of(deltas) == LETTERS.decode(ids, skip_special_tokens=skip)
    assert [token for delta in deltas for token in delta.token_ids] == ids
    assert deltas[-1].finish_reason == "length"
    assert all(delta.finish_reason is None for delta in deltas[:-1])
    assert {(delta.index, delta.num_prompt_tokens) for delta in deltas} == {(3, 7)}
    assert deltas[-1].num_generated_tokens == len(ids)


@given(st.text(st.characters(exclude_categories=("Cs",))), st.lists(st.integers(0, 100)))
def test_no_character_is_replaced_that_a_later_token_completes(text, cuts):
    tokenizer = ByteTokenizer(300, bos=None, eos=())
    deltas = feed(tokenizer, SamplingParams(max_tokens=None), events_of(tokenizer.encode(text), cuts))
    assert text_of(deltas) == text
    so_far = ""
    for delta in deltas:
        so_far += delta.text
        assert text.startswith(so_far)


stop_strings = st.lists(st.text("abcé <s>", min_size=1, max_size=5) | st.just("\ufffd"), min_size=1, max_size=4)


@settings(max_examples=500)
@given(ids_of_letters, st.lists(st.integers(0, 100)), stop_strings, st.booleans(), st.booleans(), st.integers(0, 20))
def test_stop_strings_mean_what_the_naive_way_means(ids, cuts, stops, include, skip, min_tokens):
    params = SamplingParams(
        max_tokens=None, stop=tuple(stops), include_stop_str_in_output=include, skip_special_tokens=skip, min_tokens=min_tokens
    )
    deltas = feed(LETTERS, params, events_of(ids, cuts))
    text, count, stop = naive(ids, params)
    last = next(delta for delta in deltas if delta.finish_reason is not None)
    assert text_of(deltas) == text
    assert last.num_generated_tokens == count
    assert last.finish_reason == ("length" if stop is None else "stop")
    assert last.stop_reason == stop
    assert sum(len(delta.token_ids) for delta in deltas) == count


@given(ids_of_letters, stop_strings)
def test_text_that_went_out_is_never_taken_back(ids, stops):
    """What is sent, token by token, is as much as can be known not to begin a stop string, and no less."""
    params = SamplingParams(max_tokens=None, stop=tuple(stops))
    assembler = TextAssembler(LETTERS, params)
    sent = ""
    for count, token in enumerate(ids, start=1):
        delta = assembler.feed(TokenEvent("r", [token]))
        sent += delta.text
        if delta.finish_reason is not None:
            return
        held = TextAssembler(LETTERS, SamplingParams(max_tokens=None))
        everything = text_of([held.feed(TokenEvent("r", ids[:count]))])
        longest = max((n for stop in stops for n in range(len(stop)) if everything.endswith(stop[:n])), default=0)
        assert sent == everything[: len(everything) - longest]


def ids(text):
    return LETTERS_BY_TEXT.encode(text)


LETTERS_BY_TEXT = ByteTokenizer(300, bos=None, eos=(299,))


def test_a_stop_string_across_deltas_is_held_back_and_cut():
    params = SamplingParams(stop=("END",), max_tokens=None)
    deltas = feed(LETTERS_BY_TEXT, params, [TokenEvent("r", ids(part)) for part in ("one E", "N", "Two EN", "D three", "four")])
    assert [delta.text for delta in deltas] == ["one ", "", "ENTwo ", "", ""]
    assert [delta.finish_reason for delta in deltas] == [None, None, None, "stop", None]
    assert deltas[3].stop_reason == "END"
    assert deltas[3].token_ids == tuple(ids("D"))
    assert deltas[4].token_ids == ()
    assert deltas[4].num_generated_tokens == deltas[3].num_generated_tokens == len(ids("one ENTwo END"))


def test_what_was_held_back_goes_out_at_the_end():
    deltas = feed(LETTERS_BY_TEXT, SamplingParams(stop=("END",)), [TokenEvent("r", ids("EN")), TokenEvent("r", [], "abort")])
    assert [delta.text for delta in deltas] == ["", "EN"]
    assert deltas[1].finish_reason == "abort"


def test_half_a_character_at_the_end_becomes_one_mark():
    half = ids("🙂")[:2]
    deltas = feed(LETTERS_BY_TEXT, SamplingParams(), [TokenEvent("r", half), TokenEvent("r", [], "length")])
    assert [delta.text for delta in deltas] == ["", "\ufffd"]


def test_the_stop_token_is_counted_but_not_written():
    event = TokenEvent("r", [*ids("a"), *ids("b")], "stop", stop_token=ids("b")[0])
    (delta,) = feed(LETTERS_BY_TEXT, SamplingParams(skip_special_tokens=False), [event])
    assert (delta.text, delta.stop_reason, delta.num_generated_tokens) == ("a", ids("b")[0], 2)
    assert delta.token_ids == tuple(ids("ab"))


def test_special_tokens_are_written_when_asked_for():
    event = TokenEvent("r", [*ids("a"), 299, *ids("b")])
    assert feed(LETTERS_BY_TEXT, SamplingParams(), [event])[0].text == "ab"
    assert feed(LETTERS_BY_TEXT, SamplingParams(skip_special_tokens=False), [event])[0].text == "a<299>b"


def test_an_error_and_cached_tokens_are_passed_on():
    (delta,) = feed(
        LETTERS_BY_TEXT, SamplingParams(), [TokenEvent("r", [], "error", num_cached_tokens=64, error="out of luck")]
    )
    assert (delta.finish_reason, delta.error, delta.num_cached_tokens) == ("error", "out of luck", 64)


def test_min_tokens_counts_the_token_that_completes_the_stop_string():
    for min_tokens, expected in ((5, "aXbb"), (6, "aXbbYaXbb")):
        params = SamplingParams(stop=("Y",), min_tokens=min_tokens, max_tokens=None)
        assert text_of(feed(LETTERS_BY_TEXT, params, [TokenEvent("r", ids("aXbbYaXbbY"))])) == expected


def test_logprobs_tell_where_each_token_begins():
    text = "é🙂b"
    tokens = ids(text)
    logprobs = [TokenLogprobs(-0.5, 1, [5, token], [-0.25, -0.5]) for token in tokens]
    events = [TokenEvent("r", [token], logprobs=[each]) for token, each in zip(tokens, logprobs, strict=True)]
    deltas = feed(LETTERS_BY_TEXT, SamplingParams(logprobs=2, stop=("🙂c",)), events)
    infos = [info for delta in deltas for info in delta.logprobs]
    assert [info.text_offset for info in infos] == [0, 0, 1, 1, 1, 1, 2]
    assert b"".join(info.bytes for info in infos) == text.encode()
    assert infos[-1].text == "b"
    assert (infos[0].logprob, infos[0].rank, infos[0].token_id) == (-0.5, 1, tokens[0])
    assert [(top.token_id, top.logprob, top.bytes) for top in infos[0].top] == [(5, -0.25, b"\x05"), (tokens[0], -0.5, b"\xc3")]


def test_no_logprobs_when_none_came():
    (delta,) = feed(LETTERS_BY_TEXT, SamplingParams(), [TokenEvent("r", ids("a"))])
    assert delta.logprobs is None


def test_a_continuation_keeps_the_space_its_first_token_has():
    class Sentence(Letters):
        def __init__(self):
            super().__init__()
            self._first_spaces = 1

    assert Sentence().decode([12, 1]) == "a"
    assert text_of(feed(Sentence(), SamplingParams(), [TokenEvent("r", [12, 1])])) == " a"


@pytest.mark.parametrize("stop", [(), ("a" * 50 + "b", "aab")])
def test_a_token_costs_the_same_late_as_early(stop):
    """Also for bytes that never become a character, and for text that is always nearly a stop string."""

    def seconds(count):
        assembler = TextAssembler(LETTERS_BY_TEXT, SamplingParams(stop=stop, max_tokens=None))
        half = [*ids("a") * 3, ids("🙂")[1]]
        start = time.process_time()
        for _ in range(count // 4):
            for token in half:
                assembler.feed(TokenEvent("r", [token]))
        return time.process_time() - start

    seconds(400)
    early, late = min(seconds(1000) for _ in range(5)), min(seconds(16000) for _ in range(3))
    assert late < 16 * early * 3
