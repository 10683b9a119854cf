"""A model as data: the decoder's shape, where its weights lie in a checkpoint, and the checkpoint itself.

Tensors of a checkpoint are numpy arrays (bfloat16 and float8 through ml_dtypes), so that no compute framework is
needed to read one and any framework can take them without a copy.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from core.interfaces.quantizer import Packed

Tensor = NDArray[Any]
RopeStyle = Literal["interleaved", "half"]
Role = Literal["embed", "norm", "qkv", "o", "gate_up", "down", "head"]
LINEAR_ROLES: tuple[Role, ...] = ("qkv", "o", "gate_up", "down", "head")


@dataclass(frozen=True)
class DecoderSpec:
    """The shape of a pre-norm decoder with grouped-query attention and a SwiGLU feed-forward, without biases.

    ``rope_style`` "interleaved" rotates pairs (2j, 2j+1) of a head (GPT-J, ERNIE-4.5, GGUF Llama); "half" rotates pairs
    (j, j + head_dim/2) (GPT-NeoX, HF Llama). ``rope_scaling`` is None or the checkpoint's own mapping (only
    "llama3" and "linear" are known; a model offer refuses others).
    """

    num_layers: int
    hidden: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    max_positions: int
    rope_theta: float
    rope_style: RopeStyle
    norm_eps: float
    tied_head: bool
    rope_scaling: Mapping[str, Any] | None = None
    eos_token_ids: tuple[int, ...] = ()
    bos_token_id: int | None = None
    pad_token_id: int | None = None

    @property
    def q_width(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def kv_width(self) -> int:
        return self.num_kv_heads * self.head_dim

    def shape(self, role: Role) -> tuple[int, ...]:
        """The canonical shape of a weight: [out, in] for linears, [vocab, hidden] for embed, [hidden] for norm."""
        return {
            "embed": (self.vocab, self.hidden),
            "head": (self.vocab, self.hidden),
            "norm": (self.hidden,),
            "qkv": (self.q_width + 2 * self.kv_width, self.hidden),
            "o": (self.hidden, self.q_width),
            "gate_up": (2 * self.intermediate, self.hidden),
            "down": (self.hidden, self.intermediate),
        }[role]

    def parts(self, role: Role) -> tuple[int, ...]:
        """How many rows each part of a weight has: q, k and v of "qkv", gate and up of "gate_up"; one part otherwise."""
        if role == "qkv":
            return (self.q_width, self.kv_width, self.kv_width)
        if role == "gate_up":
            return (self.intermediate, self.intermediate)
        return self.shape(role)[:1]

    @property
    def layer_parameters(self) -> int:
        linears = sum(int(np.prod(self.shape(role))) for role in ("qkv", "o", "gate_up", "down"))
        return linears + 2 * self.hidden

    @property
    def parameters(self) -> int:
        """Parameters in all; a tied head counts once."""
        tables = 1 if self.tied_head else 2
        return self.num_layers * self.layer_parameters + tables * self.vocab * self.hidden + self.hidden

    def kv_bytes_per_token(self, element_bytes: int, head_bytes: int | None = None) -> int:
        """``head_bytes``: what a head of a key or of a value takes, if not ``head_dim`` elements."""
        return self.num_layers * 2 * self.num_kv_heads * (head_bytes or self.head_dim * element_bytes)


@dataclass(frozen=True)
class WeightName:
    """The canonical name of one weight: its role, its layer (None outside the layers) and, for norms, which one."""

    role: Role
    layer: int | None = None
    norm: Literal["", "input", "post", "final"] = ""

    def __str__(self) -> str:
        name = f"{self.norm}_norm" if self.role == "norm" else self.role
        return name if self.layer is None else f"layers.{self.layer}.{name}"


@dataclass(frozen=True)
class Weight:
    """One canonical weight, ready to be placed by a backend.

    ``parts`` are views that, stacked along axis 0, give the array of ``DecoderSpec.shape(role)``: q, k, v for "qkv";
    gate, up for "gate_up"; one part otherwise. A view may be transposed (``-Paddle`` checkpoints store [in, out]):
    a backend that wants [in, out] asks for ``part.T`` and gets the contiguous original. Parts are
    backed by mapped files and are valid only until the next weight is taken: copy, do not keep.
    ``tied`` is True for the head of a model whose head is its embedding; ``parts`` is then the embedding again.
    ``packed`` is the weight of a checkpoint that was saved packed, by the quantizer that comes with it: there are no
    ``parts`` then, and its arrays are borrowed like them.
    """

    name: WeightName
    parts: tuple[Tensor, ...]
    tied: bool = False
    packed: Packed | None = None


class Checkpoint(ABC):
    """A checkpoint opened for reading: its config and, on demand, its tensors. Opening reads no weights."""

    config: Mapping[str, Any]

    @abstractmethod
    def names(self) -> frozenset[str]:
        """The names of the stored tensors."""

    @abstractmethod
    def tensor(self, name: str) -> Tensor:
        """One tensor, mapped rather than read where the format allows. :raises KeyError: if there is none."""

    def release(self, name: str) -> None:  # noqa: B027 - not every format has something to give back
        """The caller has copied this tensor: give the memory behind its mapping back to the system."""

    def close(self) -> None:  # noqa: B027
        """Close files. Tensors handed out before are no longer valid."""


@dataclass(frozen=True)
class Stored:
    """Where a part lies: the tensor's name; whether it is stored [in, out]; which rows of the canonical [out, in] view."""

    name: str
    transposed: bool = False
    rows: slice = field(default_factory=lambda: slice(None))


@dataclass(frozen=True)
class FamilyText:
    """How a family's checkpoints are talked to where their own files do not say. A GGUF file speaks for itself alone."""

    chat_template: str | None = None  # Jinja
    sampling: Mapping[str, float] = field(default_factory=dict)  # in generation_config.json's terms


class ModelFamily(ABC):
    """What makes a family of checkpoints loadable: config -> spec, and canonical name -> stored tensors.

    ``architectures``: the strings of config.json's "architectures" that this family answers to.
    """

    architectures: tuple[str, ...]

    @abstractmethod
    def spec(self, config: Mapping[str, Any]) -> DecoderSpec:
        """:raises UserError: naming the key, when the config asks for what this decoder does not do."""

    @abstractmethod
    def stored(self, weight: WeightName, spec: DecoderSpec, names: frozenset[str]) -> tuple[Stored, ...]:
        """The parts of one weight (``DecoderSpec.parts``), in the layout of the checkpoint that has these tensor names.

        Parts that lie in one tensor are given one by one, each with its ``rows`` of it.
        """

    def text(self) -> FamilyText:
        """What its checkpoints leave unsaid of chat and sampling. By default nothing."""
        return FamilyText()


@dataclass(frozen=True)
class HubFiles:
    """Which files of a model hub's repository belong to a checkpoint, as patterns of their names ("*.safetensors").

    Those of any checkpoint come without being named: *.json, *.model, *.jinja and *.txt, for config, tokenizer and template.
    """

    weights: tuple[str, ...]  # fetched when the model is loaded
    light: tuple[str, ...] = ()  # what ``recognizes`` and ``config`` read beside: fetched before anything is composed


@dataclass(frozen=True)
class ModelFolder:
    """A model on disk, resolved but not read: what ``core.models.sources`` finds or fetches."""

    name: str  # as the user wrote it
    path: Path | None  # None for "random:" models, which have no files
    format: str  # the name of the CheckpointFormat that reads it
    defaults: Mapping[str, float] = field(default_factory=dict)  # how to sample where its files do not say
    family: FamilyText = field(default_factory=FamilyText)  # what its family says in their place, once that is known
    hub_files: HubFiles | None = None  # of a repository on a hub whose weights are not fetched yet


class CheckpointFormat(ABC):
    """A way a checkpoint lies on disk.

    ``hub_files``: what is fetched for this format of a repository OWNER/NAME on a model hub; None where no repository as a
    whole is of it. A repository is of the format whose ``recognizes`` knows the folder by its light files alone, and of
    safetensors where none does: so a format that lies on hubs has a light file with a name of its own.
    """

    hub_files: ClassVar[HubFiles | None] = None

    @abstractmethod
    def recognizes(self, path: Path) -> bool:
        """Whether this folder or file is of this format. Cheap: looks at names and headers only."""

    @abstractmethod
    def config(self, path: Path) -> Mapping[str, Any]:
        """The config in config.json's terms (GGUF metadata is translated to them). Reads no weights."""

    @abstractmethod
    def open(self, path: Path) -> Checkpoint: ...


def weight_names(spec: DecoderSpec) -> Iterator[WeightName]:
    """Every weight of a decoder in loading order: the largest temporary (embedding) first, while little is loaded."""
    yield WeightName("embed")
    yield WeightName("head")
    for layer in range(spec.num_layers):
        yield WeightName("norm", layer, "input")
        yield WeightName("qkv", layer)
        yield WeightName("o", layer)
        yield WeightName("norm", layer, "post")
        yield WeightName("gate_up", layer)
        yield WeightName("down", layer)
    yield WeightName("norm", None, "final")
