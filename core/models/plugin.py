"""The decoder families and checkpoint formats that are always there."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from core.hookspecs import hookimpl
from core.offers import CheckpointFormatOffer, ModelOffer

if TYPE_CHECKING:
    from core.interfaces.model import CheckpointFormat, ModelFamily


def ernie45() -> ModelFamily:
    from core.models.ernie45 import Ernie45

    return Ernie45()


def llama() -> ModelFamily:
    from core.models.llama import Llama

    return Llama()


def safetensors() -> CheckpointFormat:
    from core.models.safetensors_format import Safetensors

    return Safetensors()


def gguf() -> CheckpointFormat:
    from core.models.gguf_format import Gguf

    return Gguf()


def random() -> CheckpointFormat:
    from core.models.random_format import Random

    return Random()


@hookimpl
def register_models() -> Iterable[ModelOffer]:
    yield ModelOffer(
        name="ernie45",
        summary="ERNIE-4.5 dense decoders; GGUF Llamas run as one",
        architectures=("Ernie4_5_ForCausalLM", "Ernie4_5ForCausalLM"),
        family=ernie45,
    )
    yield ModelOffer(
        name="llama",
        summary="Llama-family decoders as transformers saves them",
        architectures=("LlamaForCausalLM",),
        family=llama,
    )


@hookimpl
def register_checkpoint_formats() -> Iterable[CheckpointFormatOffer]:
    yield CheckpointFormatOffer(name="safetensors", summary="config.json and .safetensors files", create=safetensors)
    yield CheckpointFormatOffer(name="gguf", summary="one .gguf file, packed or not", create=gguf)
    yield CheckpointFormatOffer(name="random", summary="random:SHAPE, seeded weights made on demand", create=random)
