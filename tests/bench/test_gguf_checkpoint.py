"""What is written for llama.cpp is the same model: read again by our own reader, weight by weight, and computed with."""

import numpy as np
import pytest

from core.bench.contestant import Dovetail
from core.bench.gguf_checkpoint import write_gguf
from core.interfaces.model import ModelFolder
from core.models import loading
from core.models.ernie45 import Ernie45
from core.models.gguf_format import Gguf
from core.models.llama import Llama
from core.models.random_format import Random

FORMATS = {"random": Random(), "gguf": Gguf()}


def written(folder, family, path, dtype):
    spec = family.spec(loading.read_config(folder, FORMATS))
    write_gguf(path, spec, loading.weights(loading.open_checkpoint(folder, FORMATS), family, spec), dtype)
    return spec


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_an_ernie_is_written_as_it_is(dtype, tmp_path):
    folder, file = ModelFolder("random:tiny", None, "random"), tmp_path / "model.gguf"
    spec = written(folder, Ernie45(), file, dtype)
    original = loading.weights(loading.open_checkpoint(folder, FORMATS), Ernie45(), spec)
    again = loading.open_checkpoint(ModelFolder("written", file, "gguf"), FORMATS)
    for ours, theirs in zip(loading.weights(again, Ernie45(), spec), original, strict=True):
        assert ours.name == theirs.name
        for a, b in zip(ours.parts, theirs.parts, strict=True):
            expected = b.astype(np.float32)
            assert np.array_equal(a.astype(np.float32), expected) or dtype == "bfloat16"
            assert np.allclose(a.astype(np.float32), expected, rtol=2**-8)
    again.close()


def test_a_llama_computes_the_same_when_its_rows_are_paired(tmp_path):
    file = tmp_path / "model.gguf"
    written(ModelFolder("random:llama-tiny", None, "random"), Llama(), file, "float32")
    as_it_is, as_a_file = (
        Dovetail(["--model", model, "--dtype", "float32", "--max-model-len", "64", "--threads", "1"])
        for model in ("random:llama-tiny", str(file))
    )
    prompts = [[5, 9, 33, 7], [1, 2, 3, 4, 5, 6]]
    assert as_it_is.generate(prompts, 12).token_ids == as_a_file.generate(prompts, 12).token_ids
