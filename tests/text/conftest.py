import io
import json
from pathlib import Path

import gguf
import pytest
import sentencepiece
import tokenizers
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from core.interfaces.model import FamilyText, ModelFolder
from core.text.pieces import ByteTokenizer

SAMPLES = [
    "The capital of France is Paris.",
    "  two spaces, a tab\tand\n\nline ends \r\n",
    "naïve café, Größe, Ελληνικά, русский",
    "東京タワー 한국어 العربية",
    "🙂👩‍👩‍👧‍👦🇫🇷 e\u0301",
    "def f(x):\n    return x ** 2  # 12345 + 3.14e-10\n",
    "x" * 300,
    "",
    " ",
]
CORPUS = [*SAMPLES * 5, *(f"line {n}: the quick brown fox jumps over the lazy dog" for n in range(200))]


@pytest.fixture(scope="session")
def samples():
    return SAMPLES


@pytest.fixture(scope="session")
def any_text():
    return st.text(st.characters(exclude_categories=("Cs",)), max_size=40) | st.sampled_from(SAMPLES)


def byte_level():
    library = tokenizers.Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    library.train_from_iterator(CORPUS, trainer)
    return library


def metaspace():
    """A SentencePiece model as the tokenizer.json that conversion makes of it: byte fallback and a leading space."""
    words = ["▁the", "▁quick", "▁fox", "th", "the", "qu", "qui", "quic", "quick", "fo", "fox"]
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"abcdefghijklmnopqrstuvwxyz", *words]
    vocabulary = {piece: at for at, piece in enumerate(pieces)}
    merges = [("t", "h"), ("th", "e"), ("q", "u"), ("qu", "i"), ("qui", "c"), ("quic", "k"), ("f", "o"), ("fo", "x")]
    merges += [("▁", "the"), ("▁", "quick"), ("▁", "fox")]
    library = tokenizers.Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    library.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    library.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    library.add_special_tokens(["<unk>", "<s>", "</s>"])
    library.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return library


@pytest.fixture(scope="session")
def libraries():
    return {"byte level": byte_level(), "metaspace": metaspace()}


@pytest.fixture
def folder(tmp_path):
    """Makes a model folder of files given as text, bytes or objects to be written as JSON."""

    def make(family=None, **files):
        for name, content in files.items():
            path = tmp_path / name.replace("__", ".")
            if isinstance(content, bytes):
                path.write_bytes(content)
            else:
                path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return ModelFolder("a model", tmp_path, "pt", family=family or FamilyText())

    return make


@pytest.fixture(scope="session")
def sentencepiece_model():
    """Trains a tiny byte-pair model, with a control token inside as ERNIE-4.5 has them."""

    def train(**options):
        written = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(CORPUS),
            model_writer=written,
            vocab_size=420,
            model_type="bpe",
            byte_fallback=True,
            hard_vocab_limit=False,
            control_symbols=["<|begin_of_sentence|>"],
            normalization_rule_name="identity",
            num_threads=1,
            minloglevel=2,
            **options,
        )
        return written.getvalue()

    return train


@pytest.fixture
def gguf_file(tmp_path):
    """Writes a GGUF file that has a tokenizer and no tensors."""

    def write(tokens, kinds, *, model, pre=None, merges=None, scores=None, strings=(), **numbers) -> Path:
        path = tmp_path / "model.gguf"
        writer = gguf.GGUFWriter(str(path), "llama")
        writer.add_tokenizer_model(model)
        writer.add_token_list(tokens)
        writer.add_token_types(kinds)
        if pre is not None:
            writer.add_tokenizer_pre(pre)
        if merges is not None:
            writer.add_token_merges(merges)
        if scores is not None:
            writer.add_token_scores(scores)
        for key, value in dict(strings).items():
            writer.add_string(key, value)
        for key, value in numbers.items():
            add = writer.add_bool if isinstance(value, bool) else writer.add_uint32
            add(f"tokenizer.ggml.{key}", value)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.close()
        return path

    return write


@pytest.fixture(scope="session")
def byte_tokenizer():
    return ByteTokenizer(600, bos=1, eos=(2,), others=(0,))


@pytest.fixture(scope="session")
def demo_folder():
    from core.models import plugin, sources

    formats = {offer.name: offer.create() for offer in plugin.register_checkpoint_formats()}
    return sources.fetch(sources.resolve("demo", {}, formats), {})
