import pytest
import sentencepiece
from hypothesis import given

from core.errors import UserError
from core.text.tokenizer import load_tokenizer

BEGIN = "<|begin_of_sentence|>"
ERNIE_CONFIG = {
    "tokenizer_class": "Ernie4_5_Tokenizer",
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "pad_token": "<unk>",
    "cls_token": BEGIN,
    "sep_token": "<|end_of_sentence|>",
    "additional_special_tokens": ["<|extra|>"],
}


@pytest.fixture(scope="module")
def ernie_model(sentencepiece_model):
    return sentencepiece_model(add_dummy_prefix=False, remove_extra_whitespaces=False)


@pytest.fixture
def ernie(folder, ernie_model):
    added = {"<|end_of_sentence|>": 1000, "<|extra|>": 1001}
    model = folder(tokenizer__model=ernie_model, tokenizer_config__json=ERNIE_CONFIG, added_tokens__json=added)
    return load_tokenizer(model, {"eos_token_id": 2})


@pytest.mark.parametrize("dummy_prefix", [True, False])
@pytest.mark.parametrize("remove_extra", [True, False])
def test_encodes_and_decodes_as_the_library_does(dummy_prefix, remove_extra, sentencepiece_model, tmp_path_factory, any_text):
    from core.text.sentencepiece_tokenizer import SentencePieceTokenizer

    model = sentencepiece_model(add_dummy_prefix=dummy_prefix, remove_extra_whitespaces=remove_extra)
    library = sentencepiece.SentencePieceProcessor(model_proto=model)
    ours = SentencePieceTokenizer(model, named={}, added={}, special=())

    @given(any_text.filter(lambda text: "\x00" not in text))
    def check(text):
        ids = library.encode(text)
        assert ours.encode(text) == ids
        assert ours.decode(ids) == library.decode(ids)

    check()


def test_ernie_gets_no_bos_and_its_control_tokens_are_recognized(ernie, ernie_model):
    library = sentencepiece.SentencePieceProcessor(model_proto=ernie_model)
    begin = library.piece_to_id(BEGIN)
    ids = ernie.encode(f"{BEGIN}User: hello\nAssistant: hi<|end_of_sentence|>")
    assert ids == [begin, *library.encode("User: hello\nAssistant: hi"), 1000]
    assert ernie.decode(ids) == "User: hello\nAssistant: hi"
    assert ernie.decode(ids, skip_special_tokens=False) == f"{BEGIN}User: hello\nAssistant: hi<|end_of_sentence|>"


def test_ernie_round_trips(ernie, samples):
    for text in samples:
        assert ernie.decode(ernie.encode(text)) == text


def test_what_ernie_says_of_itself(ernie):
    assert ernie.eos_token_ids == (2,)
    assert ernie.bos_token_id == 1
    assert ernie.vocab_size == 1002
    assert {0, 1, 2, 1000, 1001} <= ernie.special_ids
    assert ernie.named["sep_token"] == "<|end_of_sentence|>"


def test_a_character_out_of_bytes(ernie):
    tokens = ernie.encode("𓀀")
    assert b"".join(ernie.token_bytes(token) for token in tokens) == "𓀀".encode()
    assert len(tokens) == 4
    assert ernie.token_text(tokens[0]) == "\ufffd"


def test_a_llama_gets_a_bos_and_one_leading_space(folder, sentencepiece_model):
    model = sentencepiece_model(add_dummy_prefix=True, remove_extra_whitespaces=False)
    library = sentencepiece.SentencePieceProcessor(model_proto=model)
    stated = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "legacy": False}
    ours = load_tokenizer(folder(tokenizer__model=model, tokenizer_config__json=stated), {})
    assert ours.encode("the fox") == [1, *library.encode("the fox")]
    behind = ours.encode("the fox</s>the fox", add_special_tokens=False)
    assert ours.decode(behind[:-1], skip_special_tokens=False).startswith("the fox</s>the")
    assert behind[behind.index(2) + 1 :] != library.encode("the fox")


def test_added_tokens_of_the_config(folder, ernie_model):
    stated = {
        "added_tokens_decoder": {"900": {"content": "<tool>", "special": False}, "901": {"content": "<x>", "special": True}}
    }
    ours = load_tokenizer(folder(tokenizer__model=ernie_model, tokenizer_config__json=stated), {})
    ids = ours.encode("<tool>a<x>")
    assert (ids[0], ids[-1]) == (900, 901)
    assert ours.decode(ids) == "<tool>a"


def test_a_broken_file_is_refused(folder):
    model = folder(tokenizer__model=b"no model at all")
    with pytest.raises(UserError, match=r"^tokenizer\.model cannot be read: "):
        load_tokenizer(model, {})
