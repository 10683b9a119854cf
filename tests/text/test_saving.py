"""What is written of a model's text side reads as the model's own does."""

import json

import pytest
import sentencepiece

from core.interfaces.model import ModelFolder
from core.models.gguf_format import Gguf
from core.models.random_format import SHAPES
from core.text import generation_defaults
from core.text.chat_template import load_chat_template
from core.text.saving import text_files
from core.text.tokenizer import load_tokenizer

TALK = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "a <|im_start|> fox </s>"}]
TEXTS = [
    "",
    "the fox",
    "  two  spaces ",
    "I've 12345 apples,\n\n ok?",
    "<|im_start|>a<|im_end|>",
    "<s>a</s> b<unk>",
    "\u00e9\u4e2d",
]


def written(folder, target):
    target.mkdir()
    for name, content in text_files(folder).items():
        (target / name).parent.mkdir(exist_ok=True)
        (target / name).write_bytes(content)
    return ModelFolder("written", target, "safetensors")


def assert_alike(ours, theirs):
    for text in TEXTS:
        for special in (True, False):
            ids = theirs.encode(text, add_special_tokens=special)
            assert ours.encode(text, add_special_tokens=special) == ids
            assert ours.decode(ids) == theirs.decode(ids)
    for attribute in ("vocab_size", "eos_token_ids", "bos_token_id", "special_ids"):
        assert getattr(ours, attribute) == getattr(theirs, attribute)


def template(first):
    return {"tokenizer.chat_template": first + "{{ messages[1].content }}"}.items()


@pytest.mark.parametrize("more", [{"pre": "smollm", "add_bos_token": False}, {"pre": "llama-bpe"}, {"add_eos_token": True}])
def test_a_byte_level_gguf(more, gguf_file, libraries, tmp_path):
    library = libraries["byte level"]
    vocabulary = library.get_vocab()
    tokens = sorted(vocabulary, key=vocabulary.get)
    merges = [" ".join(merge) for merge in json.loads(library.to_str())["model"]["merges"]]
    kinds = [3 if token.startswith("<|") else 1 for token in tokens]
    path = gguf_file(tokens, kinds, merges=merges, model="gpt2", bos_token_id=1, eos_token_id=2, strings=template(""), **more)
    check_gguf(path, tmp_path)


@pytest.mark.parametrize("more", [{}, {"add_bos_token": False}, {"add_eos_token": True}])
def test_a_sentencepiece_gguf(more, gguf_file, sentencepiece_model, tmp_path):
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
        strings=template("{{ bos_token }}"),
        **more,
    )
    check_gguf(path, tmp_path)


def check_gguf(path, tmp_path):
    source = ModelFolder("source", path, "gguf", {"temperature": 0.0})
    config = {"eos_token_id": [2], "bos_token_id": 1}
    theirs = load_tokenizer(source, config)
    copy = written(source, tmp_path / "written")
    ours = load_tokenizer(copy, config)
    assert_alike(ours, theirs)
    assert load_chat_template(copy, None, ours).render(TALK) == load_chat_template(source, None, theirs).render(TALK)
    assert generation_defaults(copy) == {"temperature": 0.0}
    assert not Gguf().recognizes(copy.path)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_model_without_files(shape, tmp_path):
    source = ModelFolder(f"random:{shape}", None, "random")
    theirs = load_tokenizer(source, SHAPES[shape])
    copy = written(source, tmp_path / "written")
    ours = load_tokenizer(copy, SHAPES[shape])
    assert_alike(ours, theirs)
    assert load_chat_template(copy, None, ours).render(TALK) == load_chat_template(source, None, theirs).render(TALK)
    assert generation_defaults(copy) == generation_defaults(source) == {}


def test_a_folder_is_copied_but_for_its_weights(tmp_path):
    folder = tmp_path / "source"
    (folder / "additional_chat_templates").mkdir(parents=True)
    kept = {
        "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "added_tokens.json", "generation_config.json",
        "chat_template.jinja", "additional_chat_templates/tool_use.jinja", "merges.txt", "LICENSE", "NOTICE.md",
    }  # fmt: skip
    left = {
        "config.json", "model.safetensors", "model.safetensors.index.json", "model-00001-of-00002.safetensors",
        "pytorch_model.bin", ".gitattributes", "README.md",
    }  # fmt: skip
    for name in kept | left:
        (folder / name).write_bytes(name.encode())
    found = text_files(ModelFolder("source", folder, "safetensors"))
    assert found == {name: name.encode() for name in kept}
