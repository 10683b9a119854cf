import json

import pytest
import sentencepiece
from hypothesis import given

from core.errors import UserError
from core.interfaces.model import ModelFolder
from core.text.tokenizer import load_tokenizer


def byte_level_parts(library):
    vocabulary = library.get_vocab()
    tokens = sorted(vocabulary, key=vocabulary.get)
    kinds = [3 if token.startswith("<|") else 1 for token in tokens]
    merges = [" ".join(merge) for merge in json.loads(library.to_str())["model"]["merges"]]
    return {"tokens": tokens, "kinds": kinds, "merges": merges, "model": "gpt2"}


@pytest.fixture
def smollm(gguf_file, libraries):
    path = gguf_file(
        **byte_level_parts(libraries["byte level"]), pre="smollm", bos_token_id=1, eos_token_id=2, add_bos_token=False
    )
    return load_tokenizer(ModelFolder("a model", path, "gguf"), {})


def test_byte_level_is_the_tokenizer_it_was_made_of(smollm, libraries, any_text):
    library = libraries["byte level"]

    @given(any_text)
    def check(text):
        ids = library.encode(text).ids
        assert smollm.encode(text) == ids
        assert smollm.decode(ids) == text

    check()
    assert smollm.encode("<|im_start|>a<|im_end|>")[::2] == [1, 2]
    assert (smollm.bos_token_id, smollm.eos_token_ids, smollm.special_ids) == (1, (2,), {0, 1, 2})


def test_a_folder_that_holds_the_file(smollm, gguf_file, libraries, tmp_path):
    gguf_file(**byte_level_parts(libraries["byte level"]), pre="smollm")
    ours = load_tokenizer(ModelFolder("a model", tmp_path, "gguf"), {})
    assert ours.encode("the fox") == smollm.encode("the fox")


def test_llama3_splits_digits_by_three_and_gets_a_bos(gguf_file, libraries):
    parts = byte_level_parts(libraries["byte level"])
    path = gguf_file(**parts, pre="llama-bpe", bos_token_id=1, eos_token_id=2)
    ours = load_tokenizer(ModelFolder("a model", path, "gguf"), {})
    assert ours.encode("a")[0] == 1
    assert ours.decode(ours.encode("I've 12345 apples,\n\n ok?")) == "I've 12345 apples,\n\n ok?"


def test_sentencepiece_is_the_tokenizer_it_was_made_of(gguf_file, sentencepiece_model, any_text):
    library = sentencepiece.SentencePieceProcessor(
        model_proto=sentencepiece_model(add_dummy_prefix=True, remove_extra_whitespaces=False)
    )
    every = range(library.get_piece_size())
    kinds = [2 if library.is_unknown(i) else 3 if library.is_control(i) else 6 if library.is_byte(i) else 1 for i in every]
    path = gguf_file(
        [library.id_to_piece(i) for i in every],
        kinds,
        scores=[library.get_score(i) for i in every],
        model="llama",
        bos_token_id=1,
        eos_token_id=2,
        unknown_token_id=0,
    )
    ours = load_tokenizer(ModelFolder("a model", path, "gguf"), {})

    @given(any_text.filter(lambda text: "\x00" not in text))
    def check(text):
        ids = library.encode(text)
        assert ours.encode(text, add_special_tokens=False) == ids
        assert ours.decode(ids) == library.decode(ids)

    check()
    assert ours.encode("the fox</s>") == [1, *library.encode("the fox"), 2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model": "bert"},
            "model.gguf has a tokenizer of kind 'bert'; known are gpt2 (byte-level BPE) and llama (SentencePiece)",
        ),
        ({"pre": "tekken"}, "model.gguf splits text by the rule 'tekken'; known are default, gpt-2, llama-bpe, smollm"),
    ],
)
def test_unknown_kinds_are_refused(changes, message, gguf_file, libraries):
    path = gguf_file(**{**byte_level_parts(libraries["byte level"]), **changes})
    with pytest.raises(UserError) as refused:
        load_tokenizer(ModelFolder("a model", path, "gguf"), {})
    assert str(refused.value) == (f"{message}\n  set by: {path}\n  remedy: use the model's safetensors checkpoint instead")


@pytest.mark.demo
def test_the_demo_round_trips_and_matches_its_recipe(demo_folder, samples):
    ours = load_tokenizer(demo_folder, {})
    for text in samples:
        assert ours.decode(ours.encode(text)) == text
    assert ours.vocab_size == 49152
    assert (ours.bos_token_id, ours.eos_token_ids) == (1, (2,))
    assert len(ours.encode("2024")) == 4
    prompt = "<|im_start|>user\nHello<|im_end|>\n"
    ids = ours.encode(prompt)
    assert (ids[0], ids.count(2)) == (1, 1)
    assert ours.decode(ids, skip_special_tokens=False) == prompt
