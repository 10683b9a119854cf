import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from core.bench.checkpoint import write_checkpoint
from core.errors import UserError
from core.interfaces.model import ModelFolder, weight_names
from core.interfaces.quantizer import Packed
from core.models import loading
from core.models.ernie45 import Ernie45
from core.models.llama import Llama
from core.models.random_format import Random
from core.models.safetensors_format import Safetensors

FORMATS = {"random": Random(), "safetensors": Safetensors()}


def canonical(folder, family):
    spec = family.spec(loading.read_config(folder, FORMATS))
    checkpoint = loading.open_checkpoint(folder, FORMATS)
    return spec, checkpoint, loading.weights(checkpoint, family, spec)


@pytest.mark.parametrize(("shape", "family"), [("tiny", Ernie45()), ("llama-tiny", Llama())])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_what_is_written_is_what_was_read(shape, family, dtype, tmp_path):
    spec, _, weights = canonical(ModelFolder(f"random:{shape}", None, "random"), family)
    write_checkpoint(tmp_path, spec, weights, dtype)
    assert (tmp_path / "model.safetensors").stat().st_size % 8 == 0

    again, checkpoint, written = canonical(ModelFolder("written", tmp_path, "safetensors"), family)
    assert again == spec
    _, _, original = canonical(ModelFolder(f"random:{shape}", None, "random"), family)
    for ours, theirs in zip(written, original, strict=True):
        assert ours.name == theirs.name
        for a, b in zip(ours.parts, theirs.parts, strict=True):
            assert str(a.dtype) == dtype
            assert np.array_equal(a.astype(np.float32), b.astype(np.float32))
    checkpoint.close()

    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=getattr(torch, dtype), output_loading_info=True
    )
    assert not any(info.values())
    assert model.config.rope_parameters["rope_theta"] == spec.rope_theta
    embedding = model.get_input_embeddings().weight
    assert embedding.shape == (spec.vocab, spec.hidden)
    assert (model.get_output_embeddings().weight is embedding) == spec.tied_head


def test_weights_out_of_order_are_refused(tmp_path):
    spec, _, weights = canonical(ModelFolder("random:tiny", None, "random"), Ernie45())
    backwards = list(weights)[::-1]
    with pytest.raises(ValueError, match=r"^final_norm came where embed was due$"):
        write_checkpoint(tmp_path, spec, backwards, "float32")
    assert len(backwards) == len(list(weight_names(spec)))


def test_a_scaled_rope_is_told(tmp_path: Path):
    scaling = {"rope_type": "linear", "factor": 2.0}
    spec, _, weights = canonical(ModelFolder("random:llama-tiny", None, "random"), Llama())
    write_checkpoint(tmp_path, replace(spec, rope_scaling=scaling), weights, "float32")
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["rope_parameters"] == {**scaling, "rope_theta": spec.rope_theta}
    assert Llama().spec(config).rope_scaling["factor"] == 2.0


def test_packed_weights_are_not_written_as_if_they_were_none(tmp_path):
    spec, _, weights = canonical(ModelFolder("random:tiny", None, "random"), Ernie45())
    packed = (replace(weight, packed=Packed((1, 1), {})) for weight in weights)
    with pytest.raises(UserError, match=r"^transformers cannot load a model that was saved packed\n"):
        write_checkpoint(tmp_path, spec, packed, "float32")
