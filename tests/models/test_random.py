"""random: checkpoints: seeded, spread as they say, quick."""

import time
from pathlib import Path

import numpy as np
import pytest

from core.errors import UserError
from core.interfaces.model import ModelFolder
from core.models.loading import open_checkpoint, weights
from core.models.random_format import SHAPES, Random
from core.models.sources import resolve
from tests.models import checkpoints as made


def test_a_tensor_depends_on_seed_and_name_alone():
    name, other = "model.layers.1.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.weight"
    first = Random().open(Path("random:tiny"))
    first.tensor(other)
    value = first.tensor(name)
    assert value.tobytes() == Random().open(Path("random:tiny@0")).tensor(name).tobytes()
    assert value.tobytes() != first.tensor(other).tobytes()
    assert value.tobytes() != Random().open(Path("random:tiny@1")).tensor(name).tobytes()


def test_the_seed_comes_from_the_name_or_the_caller():
    def embedding(name, seed):
        return (
            open_checkpoint(ModelFolder(name, None, "random"), made.formats(), seed)
            .tensor("model.embed_tokens.weight")
            .tobytes()
        )

    assert embedding("random:tiny", 3) == embedding("random:tiny@3", 0)
    assert embedding("random:tiny", 3) != embedding("random:tiny", 0)


def test_values_are_normal():
    values = Random().open(Path("random:smollm2-135m")).tensor("model.embed_tokens.weight").astype(np.float32).ravel()
    assert abs(values.mean()) < 1e-4
    assert abs(values.std() - 0.02) < 1e-4
    assert abs((np.abs(values) < 0.02).mean() - 0.683) < 0.01
    norm = Random().open(Path("random:ernie-4.5-0.3b")).tensor("model.norm.weight").astype(np.float32)
    assert abs(norm.mean() - 1) < 0.02
    assert norm.std() > 0.05


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_loads(shape):
    checkpoint, family, spec = made.opened(f"random:{shape}")
    if spec.parameters > 1_000_000:
        names = [family.stored(weight, spec, checkpoint.names()) for weight in made_names(spec)]
        assert {part.name for stored in names for part in stored} == checkpoint.names()
        return
    assert (
        sum(part.size for weight in weights(checkpoint, family, spec) if not weight.tied for part in weight.parts)
        == spec.parameters
    )


def made_names(spec):
    from core.interfaces.model import weight_names

    return weight_names(spec)


def test_ernie_is_ernie_and_quick():
    checkpoint, family, spec = made.opened("random:ernie-4.5-0.3b")
    assert spec == family.spec(checkpoint.config)
    assert spec.parameters == 360_748_032
    start = time.perf_counter()
    size = sum(part.nbytes for weight in weights(checkpoint, family, spec) if not weight.tied for part in weight.parts)
    assert size == 2 * spec.parameters
    assert time.perf_counter() - start < 20  # about 1 s on an idle machine


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            "random:tny",
            "there is no random shape 'tny'; did you mean 'tiny'?\n  set by: model\n"
            "  remedy: choose one of random:ernie-4.5-0.3b, random:smollm2-135m, random:tiny, random:llama-tiny",
        ),
        (
            "random:tiny@x",
            "the seed of 'random:tiny@x' must be a whole number, not 'x'\n  set by: model\n  remedy: --model random:tiny@0",
        ),
    ],
)
def test_names_that_are_not(model, message):
    with pytest.raises(UserError) as error:
        resolve(model, {}, made.formats())
    assert str(error.value) == message
