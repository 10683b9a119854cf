"""A compute backend: the few fused operations a decoder needs, and the memory they work on.

One step of the engine runs ``layers``, which is for every layer::

    q      = backend.qkv(hidden, input_norm, qkv, kv, layer, step)     norm + projection + rope + K/V write
    mixed  = backend.attention(q, kv, layer, step)                     paged, causal, grouped-query
    hidden = backend.linear_add(mixed, o, hidden)                      projection + residual
    gated  = backend.gate_up(hidden, post_norm, gate_up)               norm + projection + SiLU(gate) * up
    hidden = backend.linear_add(gated, down, hidden)                   projection + residual

and then ``backend.logits(hidden, final_norm, head, step)`` for the rows that are sampled, ``adjust``, a sampler,
``logprobs`` and ``to_host``. ``Array`` is whatever the backend computes with; nothing outside a backend looks inside one.

Shapes: T tokens in the step, S sequences, R rows to sample, V vocabulary, H hidden size.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from core.errors import UserError
from core.interfaces.graph import StaticStep, StepShape
from core.interfaces.model import DecoderSpec, Role, Weight
from core.interfaces.quantizer import Quantizer
from core.interfaces.tuning import Tuned, Tuning

if TYPE_CHECKING:
    from core.interfaces.parallel import Collective

Array = Any
DType = Literal["bfloat16", "float16", "float32"]
DTYPE_BYTES: dict[str, int] = {"bfloat16": 2, "float16": 2, "float32": 4}


@dataclass(slots=True)
class LogitAdjustment:
    """Changes to the raw logits before sampling, as flat arrays; row indices are into the R rows of the step.

    ``bias``: logits[bias_rows, bias_tokens] += bias_values. ``banned``: logits[banned_rows, banned_tokens] = -inf.
    Penalties, for every (row, token) that occurred: ``repetition`` divides a positive logit or multiplies a negative
    one; it counts prompt and output. ``seen_counts`` counts occurrences in the *output*: frequency * count and
    presence * (count > 0) are subtracted. Order: bias, penalties, bans.

    ``masks``: gives, for the rows of ``masked_rows``, the tokens that are not banned, as bits [rows, ceil(V / 32)] (bit t % 32
    of word t // 32). They are computed beside the step, so it may wait: call it after the model's operations are launched.
    """

    bias_rows: NDArray[np.int32]
    bias_tokens: NDArray[np.int32]
    bias_values: NDArray[np.float32]
    banned_rows: NDArray[np.int32]
    banned_tokens: NDArray[np.int32]
    seen_rows: NDArray[np.int32]  # one entry for each distinct (row, token) of penalized rows
    seen_tokens: NDArray[np.int32]
    seen_counts: NDArray[np.float32]  # occurrences in the output; 0 for tokens of the prompt alone
    repetition: NDArray[np.float32]  # [R]; 1 where off
    presence: NDArray[np.float32]  # [R]; 0 where off
    frequency: NDArray[np.float32]  # [R]; 0 where off
    masked_rows: NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))
    masks: Callable[[], NDArray[np.uint32]] | None = None

    def allowed(self, vocab: int) -> NDArray[np.bool_]:
        """What ``masks`` gives, a truth a token: [rows, V]."""
        assert self.masks is not None
        return np.unpackbits(self.masks().view(np.uint8), axis=1, count=vocab, bitorder="little").view(np.bool_)


@dataclass(slots=True)
class SamplingRows:
    """How each of the R rows is sampled. ``temperature`` 0 is greedy; ``top_k`` 0 is off; ``top_p`` 1 and ``min_p`` 0 are off.

    Random numbers come from (``seeds``, ``positions``) alone (``core.interfaces.randomness``), so that a row's token does not
    depend on its batch mates; ``positions`` is the position the sampled token will take in its sequence.
    ``logprobs`` is how many likeliest tokens to report, -1 for none at all.
    """

    temperature: NDArray[np.float32]
    top_k: NDArray[np.int32]
    top_p: NDArray[np.float32]
    min_p: NDArray[np.float32]
    seeds: NDArray[np.uint64]
    positions: NDArray[np.int64]
    logprobs: NDArray[np.int32]
    adjustment: LogitAdjustment | None = None
    all_greedy: bool = False

    def __len__(self) -> int:
        return len(self.temperature)


@dataclass(frozen=True, slots=True)
class SamplingArrays:
    """The same parameters on the device, [R] each, for what samples there without the host: what they say may change under it.

    ``temperature``, ``top_p`` and ``min_p`` are float32, ``top_k`` and ``positions`` int32, ``seeds`` int64 of the same bits.
    """

    temperature: Array
    top_k: Array
    top_p: Array
    min_p: Array
    seeds: Array
    positions: Array


@dataclass(slots=True)
class StepBatch:
    """One step's work on host arrays. Sequences that decode one token come first: the first ``num_decodes`` of S.

    Sequence s owns tokens ``query_starts[s]:query_starts[s+1]`` of T. A negative token id -1 - r stands for the token that row
    r of the step launched just before gives, and that the host may not know yet: ``ComputeBackend.follow``. ``slots`` says
    where each token's K and V go (page * page_size + offset). ``context_lens[s]`` counts the cached tokens of s with this
    step's included. ``page_table`` is padded with 0 behind each sequence's own pages. ``logit_rows`` are the indices in T
    whose logits are wanted.

    ``continues``: the step launched just before was a "decode" step of the same sequences in the same order, and nothing but
    its tokens has come since: every sequence is one token further, in the same pages.
    """

    token_ids: NDArray[np.int32]  # [T]
    positions: NDArray[np.int32]  # [T]
    slots: NDArray[np.int64]  # [T]
    query_starts: NDArray[np.int32]  # [S + 1]
    context_lens: NDArray[np.int32]  # [S]
    page_table: NDArray[np.int32]  # [S, pages of the longest]
    logit_rows: NDArray[np.int64]  # [R]
    num_decodes: int
    sampling: SamplingRows
    continues: bool = False

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def num_sequences(self) -> int:
        return len(self.context_lens)

    @property
    def shape(self) -> StepShape:
        """What a graph backend knows the step by."""
        tokens, sequences = self.num_tokens, self.num_sequences
        drawn = not self.sampling.all_greedy and self.sampling.adjustment is None
        if len(self.logit_rows) == sequences:
            if self.num_decodes == sequences == tokens:
                return StepShape("decode", tokens, sequences, drawn)
            if not self.num_decodes and (np.diff(self.query_starts) == self.context_lens).all():
                return StepShape("prompts", tokens, sequences, drawn)
        return StepShape("mixed", tokens, sequences, drawn, self.num_decodes, len(self.logit_rows))


@dataclass(slots=True)
class Sampled:
    """What a step brings back to the host. Logprob arrays are None when no row asked; rows that did not hold padding."""

    token_ids: NDArray[np.int64]  # [R]
    logprobs: NDArray[np.float32] | None = None  # [R]
    ranks: NDArray[np.int64] | None = None  # [R]; 0 = likeliest
    top_ids: NDArray[np.int64] | None = None  # [R, most asked for]
    top_logprobs: NDArray[np.float32] | None = None


class Linear(ABC):
    """A placed projection y = x W^T, W of canonical shape [out, in], in whatever format the backend keeps it."""

    role: Role
    out_features: int
    in_features: int
    nbytes: int  # bytes really held, scales and padding included
    format: str  # how it is held, for people: "bfloat16", "bfloat16 packed for oneDNN", "wint4 g128", ...

    def __init__(self, role: Role, shape: Sequence[int], nbytes: int, format: str) -> None:
        """``shape``: (out, in)."""
        self.role = role
        self.out_features, self.in_features = shape
        self.nbytes = nbytes
        self.format = format


@dataclass(frozen=True, slots=True)
class Layer:
    """The placed weights of one layer."""

    input_norm: Array
    qkv: Linear
    o: Linear
    post_norm: Array
    gate_up: Linear
    down: Linear


class Copying(ABC):
    """Copies of pages under way."""

    @abstractmethod
    def done(self) -> bool:
        """Whether they have arrived; does not wait. :raises EngineDeadError: when they cannot any more."""

    @abstractmethod
    def wait(self) -> None:
        """Until they have arrived."""


class HostPages(ABC):
    """Host memory for ``number`` copies of KV pages, in places 0 to ``number`` - 1; taken as places are first used.

    Copies are made beside the steps and one after the other, in the order they are asked for. A copy sees what the steps
    launched before it have written; no later step may write to its pages, or read those it writes to, until it is done.
    """

    number: int

    @abstractmethod
    def save(self, pages: NDArray[np.int32], places: NDArray[np.int32]) -> Copying:
        """Copy pages of the KV cache to these places."""

    @abstractmethod
    def restore(self, places: NDArray[np.int32], pages: NDArray[np.int32]) -> Copying:
        """Copy these places to pages of the KV cache."""

    def close(self) -> None:  # noqa: B027 - most have nothing to give back
        """Wait for what is under way and end; nothing is asked for afterwards."""


class KVCache(ABC):
    """The paged key/value memory of all layers. ``num_pages`` pages of ``page_size`` tokens."""

    num_pages: int
    page_size: int
    nbytes: int

    def host_pages(self, number: int) -> HostPages | None:
        """Room for copies of pages in host memory; None for a backend that has no such thing."""
        return None


class ComputeBackend(ABC):
    """One framework on one device. Created in the engine process; everything it returns stays there."""

    framework: str  # "torch", "paddle": samplers and graph backends say which they can work with
    device: str  # "cpu", "cuda:0"
    dtype: DType
    ahead: bool = False
    """Whether what is launched runs beside the host, so that it pays to launch a step before the tokens of the one before have
    been read. A backend that says so has ``follow``, and a ``fetch`` that does not wait.
    """

    def join(self, ranks: Collective, vocab: int) -> None:
        """This backend is one of several that share a model: called once, before a weight is placed.

        Its specs and weights are a shard's from then on (``core.models.shard``). ``embed`` and ``linear_add`` have to sum over
        the ranks, and ``logits`` to give [R, ``vocab``] on rank 0; what it gives on the others is not looked at.

        :raises NotImplementedError: by a backend whose offer does not say ``splits``.
        """
        raise NotImplementedError(f"{type(self).__name__} cannot share a model with other ranks")

    # --- memory -----------------------------------------------------------------------------------------------------

    @abstractmethod
    def place(self, weight: Weight, spec: DecoderSpec, quantizer: Quantizer | None) -> Linear | Array:
        """Copy one checkpoint weight into this backend's memory, converted to ``dtype`` and packed.

        Returns a ``Linear`` for linear roles and "head", an array for "embed" and "norm". With a quantizer that
        takes ``weight.name.role``, the linear is packed by it, part by part, so that the unpacked matrix never exists whole;
        a ``weight.packed`` is taken as it is. ``core.interfaces.quantizer.packed_chunks`` gives either.
        The head of a tied model may share the embedding's memory.
        """

    @abstractmethod
    def kv_cache(self, spec: DecoderSpec, num_pages: int, page_size: int) -> KVCache:
        """:raises UserError: when the memory cannot be had, with what to lower."""

    @abstractmethod
    def memory(self) -> tuple[int, int]:
        """(bytes free, bytes in all) of the device's memory, other processes counted as used."""

    # --- one step ---------------------------------------------------------------------------------------------------

    @abstractmethod
    def upload(self, batch: StepBatch, spec: DecoderSpec, kv: KVCache) -> Any:
        """The step's inputs where the operations want them; passed on to each as ``step``."""

    def follow(self, step: Any, tokens: Array) -> None:
        """Put the tokens that the step before gave into an uploaded one, where its token ids are negative; on the device."""
        raise NotImplementedError(f"{type(self).__name__} launches no step before the tokens of the one before are known")

    def static_step(self, shape: StepShape, spec: DecoderSpec, kv: KVCache) -> StaticStep | None:
        """A step of this shape that graph backends can record (``core.interfaces.graph``), or None: this one's cannot be.

        A backend that gives one lets its uploaded steps tell their ``shape``, ``batch.shape``.
        """
        return None

    def sampling(self, step: Any) -> SamplingArrays | None:
        """An uploaded or static step's sampling parameters on the device; None: this backend keeps them on the host alone.

        A backend that has them for static steps has them for those it uploads, whose rows have parameters.
        """
        return None

    @abstractmethod
    def embed(self, table: Array, step: Any) -> Array:
        """[T, H] rows of the embedding."""

    def layers(self, hidden: Array, layers: Sequence[Layer], kv: KVCache, step: Any) -> Array:
        """What the layers make of the hidden states, one after the other. A backend that has one call for it may override this.

        :param layers: all of a model, the same object at every step.
        """
        for index, layer in enumerate(layers):
            q = self.qkv(hidden, layer.input_norm, layer.qkv, kv, index, step)
            mixed = self.attention(q, kv, index, step)
            hidden = self.linear_add(mixed, layer.o, hidden)
            gated = self.gate_up(hidden, layer.post_norm, layer.gate_up)
            hidden = self.linear_add(gated, layer.down, hidden)
        return hidden

    @abstractmethod
    def qkv(self, hidden: Array, norm: Array, weight: Linear, kv: KVCache, layer: int, step: Any) -> Array:
        """RMS-normalize, project, rotate q and k to their positions, write k and v into their slots; returns q [T, q_width]."""

    @abstractmethod
    def attention(self, q: Array, kv: KVCache, layer: int, step: Any) -> Array:
        """Causal attention of each token over its sequence's pages; scale 1/sqrt(head_dim); returns [T, q_width]."""

    @abstractmethod
    def linear_add(self, x: Array, weight: Linear, residual: Array) -> Array:
        """residual + x W^T; may reuse the residual's memory. The sum over ranks, where weights are split, happens here."""

    @abstractmethod
    def gate_up(self, hidden: Array, norm: Array, weight: Linear) -> Array:
        """RMS-normalize, project to [T, 2 * intermediate], return silu(first half) * second half."""

    @abstractmethod
    def logits(self, hidden: Array, norm: Array, head: Linear, step: Any) -> Array:
        """Final norm and head for ``logit_rows`` only; float32 [R, V]."""

    @abstractmethod
    def adjust(self, logits: Array, adjustment: LogitAdjustment) -> Array:
        """The logits with biases, penalties and bans applied; may write in place."""

    @abstractmethod
    def argmax(self, logits: Array) -> Array:
        """[R]; the lowest id among equals."""

    @abstractmethod
    def logprobs(self, logits: Array, token_ids: Array | NDArray[np.int64], most: int) -> tuple[Array, Array, Array, Array]:
        """(logprob [R], rank [R], top ids [R, most], top logprobs [R, most]) of raw logits; ids ordered best first.

        :param token_ids: as ``argmax`` gives them, or the host's own.
        """

    @abstractmethod
    def clone(self, array: Array) -> Array:
        """A copy, for values that must survive an in-place operation."""

    @abstractmethod
    def to_host(self, array: Array) -> NDArray[Any]:
        """Wait for the device and copy to a numpy array; bfloat16 arrives as float32."""

    def fetch(self, arrays: Sequence[Array]) -> Callable[[], list[NDArray[Any]]]:
        """Begin to bring arrays to the host, as they are when what has been launched is done. What is returned waits for them.

        They may be written to by what is launched afterwards.
        """
        here = [np.array(self.to_host(array)) for array in arrays]  # copies: some are the memory of the array itself
        return lambda: here

    def tune(self, spec: DecoderSpec, layers: Sequence[Layer], norm: Array, head: Linear, wanted: Tuning) -> Tuned:
        """Try out how this backend's kernels are divided best on this device, for these weights of a model: its layers',
        the final norm and the head. What does not compute what the reference computes must not win.

        :raises UserError: by a backend that has nothing to try out, as most have not.
        """
        what = f"{type(self).__name__} on {self.device} has nothing to tune: its operations are divided in one way"
        raise UserError.of(what, "", "tune where kernels can be divided in several: choose another --device or --backend")

    def close(self) -> None:  # noqa: B027 - most backends have nothing to give back
        """Release what a garbage collector would not."""
