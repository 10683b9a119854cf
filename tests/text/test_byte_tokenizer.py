from hypothesis import given
from hypothesis import strategies as st

from core.interfaces.model import ModelFolder
from core.text.tokenizer import load_tokenizer

CONFIG = {"vocab_size": 103424, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def random_model(**changes):
    return load_tokenizer(ModelFolder("random:ernie-4.5-0.3b", None, "random"), {**CONFIG, **changes})


def test_round_trips(any_text):
    ours = random_model()

    @given(any_text)
    def check(text):
        assert ours.decode(ours.encode(text)) == text
        assert not ours.special_ids & set(ours.encode(text))

    check()


def test_every_id_of_the_model_is_a_token():
    ours = random_model()
    assert ours.vocab_size == 103424
    assert all(ours.token_bytes(token) for token in range(103424))
    assert ours.token_bytes(103424) == b""
    assert ours.special_ids == {0, 1, 2}
    assert ours.eos_token_ids == (2,)


def test_the_ids_above_the_bytes_are_words():
    words = random_model().decode([300, 50000, 103423]).split(" ")
    assert words[0] == ""
    assert all(word.isalpha() for word in words[1:])
    assert len(words) == 4


@given(st.integers(4, 300), st.text(max_size=10))
def test_a_small_vocabulary_still_takes_any_text(vocab_size, text):
    assert all(0 <= token < vocab_size for token in random_model(vocab_size=vocab_size).encode(text.replace("\x00", "")))
