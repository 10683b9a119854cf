"""Words that an output may not have: single tokens, and sequences of them, whatever runs beside and ahead."""

import numpy as np
import pytest

from core.errors import RequestError
from core.interfaces.request import SamplingParams
from tests.engine.fake_runner import EOS, VOCAB, Prophet, assert_idle, drain, logits_of, make_engine, request, tokens_of

NUMBER = 24


def naive(prompt, words):
    """Greedy, everything looked at anew for every token."""
    tokens, output = list(prompt), []
    for _ in range(NUMBER):
        logits = logits_of(tokens).copy()
        for word in words:
            if output[len(output) - len(word) + 1 :] == list(word[:-1]) or len(word) == 1:
                logits[word[-1]] = -np.inf
        output.append(int(logits.argmax()))
        tokens.append(output[-1])
    return output


def said(engine, prompt, words, **params):
    engine.add(request("r", prompt, temperature=0.0, max_tokens=NUMBER, ignore_eos=True, bad_words=words, **params))
    engine.add(request("other", [9, 8], temperature=0.0, max_tokens=NUMBER, ignore_eos=True))
    events = drain(engine)
    assert_idle(engine)
    return tokens_of(events["r"])


@pytest.mark.parametrize("ahead", [False, True])
def test_an_output_never_has_them(ahead):
    free = naive([1, 2, 3], [])
    words = ((free[0],), (free[1], free[2]), tuple(free[4:7]))
    output = said(make_engine(ahead=ahead), [1, 2, 3], words)
    assert output == naive([1, 2, 3], words)
    assert output != free
    for word in words:
        assert all(tuple(output[at : at + len(word)]) != word for at in range(NUMBER))


@pytest.mark.parametrize("ahead", [False, True])
def test_what_must_not_end_early_may_not_say_them_either(ahead):
    free = naive([5], [(EOS,)])
    words = ((free[0],),)
    assert said(make_engine(ahead=ahead), [5], words, min_tokens=NUMBER) == naive([5], (*words, (EOS,)))


def test_the_prompt_may_have_them():
    free = naive([4, 6], [])
    assert said(make_engine(), [4, 6], ((4, 6), (6, free[0]))) == free


def test_nothing_is_guessed_for_whom_words_are_barred():
    words, drafts = ((naive([1, 2, 3], [])[3],),), Prophet()
    assert said(make_engine(drafts=drafts), [1, 2, 3], words) == naive([1, 2, 3], words)
    assert set(drafts.asked) == {"other"}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (((VOCAB,),), f"{VOCAB} is not a token id of this model"),
        (tuple((token,) for token in range(VOCAB)), "bad_words leaves no token to say"),
        (((),), "bad_words takes at most 1024 sequences of 1 to 64 tokens"),
        (((-1,),), "-1 is not a token id"),
    ],
)
def test_what_is_refused(words, told):
    with pytest.raises(RequestError, match=told) as refused:
        make_engine().add(request("r", [1], bad_words=words))
    assert refused.value.param == "bad_words"


def test_a_grammar_goes_not_with_them():
    with pytest.raises(RequestError, match="bad_words cannot be had together with a grammar"):
        SamplingParams(bad_words=((1,),), grammar=("regex", "a"))
