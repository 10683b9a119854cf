"""A model that was saved packed computes what packing it while loading does, to the last bit, whatever it was saved from."""

from contextlib import closing

import numpy as np
import pytest
import torch

from core.bench.quality import Reader
from core.compose import compose
from core.compose.build import fetched
from core.launch import open_local
from core.saving import save_packed
from tests.models import checkpoints as made

FORMATS = {
    "wint8": ["--quantization", "wint8"],
    "wint8 without the head": ["--quantization", "wint8", "--no-quant-wint8-head"],
    "wint4": ["--quantization", "wint4", "--quant-wint4-group-size", "32"],
    "wint4 searched": ["--quantization", "wint4", "--quant-wint4-group-size", "0", "--quant-wint4-search"],
    "wint4 filled up": ["--quantization", "wint4", "--quant-wint4-pad", "--no-quant-wint4-head"],
    "fp8": ["--quantization", "block_wise_fp8", "--quant-fp8-emulate", "--quant-fp8-head"],
    "the head alone": ["--head-quantization", "wint8"],
    "fp8, the head of another": ["--quantization", "block_wise_fp8", "--quant-fp8-emulate", "--head-quantization", "wint8"],
}
EMULATED = ["--quant-fp8-emulate"]
AT_LOAD = {"fp8": EMULATED, "fp8, the head of another": EMULATED}  # what config.json does not say
TOKENS = np.array([1, 5, 300, 7, 7, 21, 2, 40], np.int32)
SHARD = 100_000  # bytes: several files


def logits(model, *flags):
    argv = ["--model", str(model), "--threads", "1", "--max-model-len", "64", *flags]
    plan = fetched(compose(argv, env={}))
    assert plan.warnings == ()
    return Reader(plan, len(TOKENS)).read(TOKENS, 0)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    tied = made.ernie_model(dtype=torch.bfloat16)
    untied = made.ernie_model(seed=1, tie_word_embeddings=False)
    return {
        "random": "random:tiny@3",
        "random llama, untied": "random:llama-tiny",
        "shards": made.save_pt(tied, folder / "pt", max_shard_size="20KB"),
        "float32, untied": made.save_pt(untied, folder / "untied"),
        "paddle": made.save_paddle(tied, folder / "paddle"),
        "paddle, untied": made.save_paddle(untied, folder / "paddle_untied"),
        "gguf": made.save_gguf(tied, folder / "tied.gguf", metadata=TOKENIZER),
    }


TOKENIZER = {
    "add_tokenizer_model": ["gpt2"],
    "add_tokenizer_pre": ["smollm"],
    "add_token_list": [["<s>", "a", "b", "ab", *(f"t{number}" for number in range(316))]],
    "add_token_types": [[3] + [1] * 319],
    "add_token_merges": [["a b"]],
    "add_chat_template": ["{{ messages[0].content }}"],
}


@pytest.mark.parametrize(
    ("source", "packed"),
    [
        *(("shards", packed) for packed in FORMATS),
        ("random", "wint4"),
        ("random llama, untied", "wint8"),
        ("float32, untied", "wint4 filled up"),
        ("paddle", "wint4 searched"),
        ("paddle, untied", "wint8 without the head"),
        ("gguf", "wint8"),
        ("random llama, untied", "fp8"),
        ("float32, untied", "the head alone"),
    ],
)
def test_logits_are_those_of_packing_while_loading(sources, source, packed, tmp_path):
    model, flags = sources[source], FORMATS[packed]
    saved = save_packed(["--model", str(model), *flags], tmp_path / "packed", SHARD)
    for dtype in ("bfloat16", "float32") if packed in ("wint8", "fp8") and source == "shards" else ("bfloat16",):
        expected = logits(model, "--dtype", dtype, *flags)
        assert np.array_equal(logits(saved.folder, "--dtype", dtype, *AT_LOAD.get(packed, ())), expected)
        assert len(set(expected.argmax(1))) > 1


@pytest.mark.parametrize(
    ("saved_with", "loaded_with"),
    [
        (["--quantization", "wint8", "--head-quantization", "none"], ["--head-quantization", "wint8"]),
        (["--head-quantization", "wint8"], ["--quantization", "wint8"]),
    ],
    ids=["the head", "the layers"],
)
def test_what_the_folder_has_unpacked_may_be_packed_while_loading(sources, saved_with, loaded_with, tmp_path):
    model = str(sources["random llama, untied"])
    saved = save_packed(["--model", model, *saved_with], tmp_path / "packed", SHARD)
    assert np.array_equal(logits(saved.folder, *loaded_with), logits(model, "--quantization", "wint8"))


@pytest.mark.parametrize("source", ["random", "gguf"])
def test_a_folder_serves_as_its_source_does(sources, source, tmp_path):
    """Also its text: the same tokenizer, template and defaults."""
    model = sources[source]
    saved = save_packed(["--model", str(model), *FORMATS["wint8"]], tmp_path / "packed", SHARD)
    said = []
    for flags in ([str(model), *FORMATS["wint8"]], [str(saved.folder)]):
        with closing(open_local(compose(["--model", *flags, "--threads", "1", "--max-model-len", "64"], env={}))) as service:
            prompt = service.chat_template.render([{"role": "user", "content": "abba<s>b"}])
            ids = service.tokenizer.encode(prompt)
            defaults = service.card.defaults
        said.append((prompt, ids, service.tokenizer.decode(ids), defaults, service.tokenizer.eos_token_ids))
    assert said[0] == said[1]
    assert len(said[0][1]) > 3
