import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models
from transformers import PreTrainedTokenizerFast

from core.errors import UserError
from core.text.json_tokenizer import JsonTokenizer
from core.text.tokenizer import load_tokenizer

KINDS = ["byte level", "metaspace"]


@pytest.mark.parametrize("kind", KINDS)
def test_encodes_and_decodes_as_the_library_does(kind, libraries, any_text):
    library = libraries[kind]
    ours = JsonTokenizer(tokenizers.Tokenizer.from_str(library.to_str()), named={})

    @given(any_text, st.booleans())
    def check(text, flag):
        ids = library.encode(text, add_special_tokens=flag).ids
        assert ours.encode(text, add_special_tokens=flag) == ids
        assert ours.decode(ids, skip_special_tokens=flag) == library.decode(ids, skip_special_tokens=flag)

    check()


def test_decodes_broken_utf8_as_the_library_does(libraries):
    library = libraries["byte level"]
    ours = JsonTokenizer(tokenizers.Tokenizer.from_str(library.to_str()), named={})

    @given(st.lists(st.integers(0, library.get_vocab_size() - 1), max_size=30))
    def check(ids):
        assert ours.decode(ids) == library.decode(ids)

    check()


@pytest.mark.parametrize("kind", KINDS)
def test_agrees_with_transformers(kind, libraries, folder, samples):
    model = folder(tokenizer__json=libraries[kind].to_str(), tokenizer_config__json={"eos_token": "<|im_end|>"})
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(model.path / "tokenizer.json"))
    ours = load_tokenizer(model, {})
    for text in samples:
        assert ours.encode(text) == theirs.encode(text)
        ids = ours.encode(text)
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def test_round_trips(libraries, samples, any_text):
    ours = JsonTokenizer(libraries["byte level"], named={})

    @given(any_text)
    def check(text):
        assert ours.decode(ours.encode(text)) == text

    check()


def test_control_tokens_in_a_text_are_recognized_and_left_out(libraries):
    ours = JsonTokenizer(libraries["byte level"], named={})
    ids = ours.encode("a<|im_end|>b")
    assert ids[1] == 2
    assert ours.decode(ids) == "ab"
    assert ours.decode(ids, skip_special_tokens=False) == "a<|im_end|>b"


def test_a_named_token_that_the_file_does_not_mark_is_special(folder):
    library = tokenizers.Tokenizer(models.BPE({"<eos>": 0, "a": 1, "<": 2, ">": 3, "e": 4, "o": 5, "s": 6}, []))
    library.decoder = decoders.ByteLevel()
    model = folder(tokenizer__json=library.to_str(), tokenizer_config__json={"eos_token": {"content": "<eos>"}})
    ours = load_tokenizer(model, {})
    assert ours.encode("a<eos>") == [1, 0]
    assert ours.special_ids == {0}
    assert ours.eos_token_ids == (0,)


def test_end_tokens_are_those_of_config_generation_config_and_tokenizer(folder, libraries):
    model = folder(
        tokenizer__json=libraries["byte level"].to_str(),
        tokenizer_config__json={"eos_token": "<|im_end|>", "bos_token": "<|im_start|>"},
        generation_config__json={"eos_token_id": [2, 5]},
    )
    ours = load_tokenizer(model, {"eos_token_id": 0})
    assert ours.eos_token_ids == (0, 2, 5)
    assert ours.bos_token_id == 1
    assert ours.named == {"eos_token": "<|im_end|>", "bos_token": "<|im_start|>"}


@pytest.mark.parametrize(
    ("stated", "before", "behind"),
    [
        ({}, [1], []),
        ({"add_bos_token": False}, [], []),
        ({"add_bos_token": True, "add_eos_token": True}, [1], [2]),
    ],
)
def test_the_config_decides_what_surrounds_a_text(stated, before, behind, folder, libraries):
    library = libraries["metaspace"]
    names = {"bos_token": "<s>", "eos_token": "</s>"}
    ours = load_tokenizer(folder(tokenizer__json=library.to_str(), tokenizer_config__json={**names, **stated}), {})
    inside = library.encode("the fox", add_special_tokens=False).ids
    assert ours.encode("the fox") == [*before, *inside, *behind]
    assert ours.encode("the fox", add_special_tokens=False) == inside


def test_one_token_as_bytes_and_text(libraries):
    ours = JsonTokenizer(libraries["byte level"], named={})
    first, *rest = ours.encode("😀")
    assert b"".join(ours.token_bytes(token) for token in [first, *rest]) == "😀".encode()
    assert rest, "the sample must take several tokens"
    assert ours.token_text(first) == "\ufffd"
    assert ours.token_text(1) == "<|im_start|>"


def test_an_id_beyond_the_vocabulary_is_no_text(libraries):
    ours = JsonTokenizer(libraries["byte level"], named={})
    assert ours.token_bytes(10**6) == b""
    assert ours.decode([10**6, *ours.encode("a")]) == "a"


def test_a_lone_surrogate_is_replaced_rather_than_refused(libraries):
    ours = JsonTokenizer(libraries["byte level"], named={})
    assert ours.decode(ours.encode("a\ud800b")) == "a?b"


def test_an_unknown_decoder_is_refused(folder, libraries):
    library = tokenizers.Tokenizer(models.BPE({"a": 0}, []))
    library.decoder = decoders.WordPiece()
    model = folder(tokenizer__json=library.to_str())
    with pytest.raises(UserError) as refused:
        load_tokenizer(model, {})
    assert str(refused.value) == (
        "the tokenizer's decoder WordPiece is not supported, only byte-level and SentencePiece ones are\n"
        f"  set by: {model.path / 'tokenizer.json'}\n"
        "  remedy: use the tokenizer.model of the checkpoint instead"
    )


def test_a_broken_file_is_refused(folder):
    model = folder(tokenizer__json="{")
    with pytest.raises(UserError, match=r"^tokenizer\.json cannot be read: "):
        load_tokenizer(model, {})


def test_a_folder_without_a_tokenizer_is_refused(folder):
    model = folder(config__json={})
    with pytest.raises(UserError) as refused:
        load_tokenizer(model, {})
    assert str(refused.value) == (
        "model 'a model' has no tokenizer: neither tokenizer.json nor tokenizer.model lies in its folder\n"
        f"  set by: {model.path}\n"
        "  remedy: copy the checkpoint's tokenizer files into that folder"
    )
