"""The measure of quality: right where it can be computed otherwise, and the bounds that each packed format has to keep."""

import numpy as np
import pytest

from core.bench import quality
from core.compose import compose

BASE = ["--model", "random:tiny", "--dtype", "bfloat16", "--threads", "1", "--max-model-len", "512"]
TEXT = "The quick brown fox jumps over the lazy dog, and the dog does not mind. " * 8


def measured(*more, most=300):
    return quality.measure(compose([*BASE, *more]), compose(BASE), TEXT, most)


def test_a_model_is_as_good_as_itself():
    found = measured()
    assert found.tokens == 299
    assert found.nll == found.reference_nll
    assert found.kl == 0
    assert found.same_best == 1
    assert found.perplexity == pytest.approx(np.exp(found.nll))


def test_pieces_are_read_as_one_text(monkeypatch):
    whole = measured()
    monkeypatch.setattr(quality, "PIECE", 37)
    assert measured().nll == pytest.approx(whole.nll, abs=1e-3)


def test_packing_is_seen():
    eight, four = measured("--quantization", "wint8"), measured("--quantization", "wint4", "--quant-wint4-group-size", "32")
    assert 0 < eight.kl < four.kl
    assert eight.layer_bytes > 1.5 * four.layer_bytes
    assert [format.partition(",")[0] for format in eight.formats] == ["int8 a row"]
    assert [format.partition(",")[0] for format in four.formats] == ["int4 in groups of 32", "int8 a row"]


@pytest.mark.parametrize(
    ("layers", "model", "kernels"),
    [
        ([], "random:tiny", "auto"),
        ([], "random:llama-tiny", "reference"),
        (["--quantization", "fp8", "--fp8-emulate"], "random:llama-tiny", "auto"),
    ],
    ids=["tied", "untied, plain torch", "untied, fp8"],
)
def test_a_head_in_eight_bits_beside_any_layers(layers, model, kernels):
    """It takes the bytes it says, leaves the layers alone, and moves the predictions by little, but moves them."""
    base = [*BASE, "--model", model, "--torch-kernels", kernels, *layers]
    found = quality.measure(compose([*base, "--head-quantization", "wint8"]), compose(base), TEXT, 200)
    assert found.formats[-1].startswith("int8 a row, ")
    reference = quality.measure(compose(base), compose(base), TEXT, 2)
    assert found.formats[:-1] == reference.formats[: len(found.formats) - 1]
    assert found.layer_bytes == reference.layer_bytes
    assert found.head_bytes < 0.6 * 2 * 512 * 64
    assert 0 < found.kl < 1e-4
    assert found.same_best > 0.9


def test_the_report(capsys):
    assert quality.main(["--model", "random:tiny", "--tokens", "64", "--quantization", "wint8", "--threads", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "tokens read          63"
    assert lines[-1].startswith("held as              int8 a row, ")


def test_a_refused_composition_is_told(capsys):
    assert quality.main(["--model", "random:tiny", "--quantization", "wint9"]) == 2
    assert "wint9" in capsys.readouterr().err


@pytest.mark.demo
@pytest.mark.parametrize(
    ("flags", "worse", "divergence"),
    [
        (["--quantization", "wint8"], 0.04, 0.05),
        (["--quantization", "wint8", "--quant-wint8-activations", "int16"], 0.01, 0.01),
        (["--head-quantization", "wint8"], 0.01, 0.01),
        (["--quantization", "wint4", "--quant-wint4-group-size", "32"], 0.30, 0.40),
    ],
)
def test_the_demo_model(flags, worse, divergence):
    """The figures of the plugins' READMEs, over a part of the text."""
    base = ["--model", "demo", "--dtype", "bfloat16", "--threads", "1", "--max-model-len", "512"]
    text = quality.TEXT.read_text(encoding="utf-8")
    found = quality.measure(compose([*base, *flags]), compose(base), text, 512)
    assert found.perplexity / found.reference_perplexity - 1 < worse
    assert found.kl < divergence
