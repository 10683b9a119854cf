"""The decoder's operations in PyTorch. One backend is one device and one number format."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from core.compute import freed_memory, room
from core.compute.torch_backend import fp8, linear, logits, machine, quantized, rope, step
from core.compute.torch_backend.attention import PagedKV
from core.compute.torch_backend.linear import Target, TorchLinear
from core.compute.torch_backend.step import Step
from core.errors import UserError
from core.host import usable_cores
from core.interfaces.compute import ComputeBackend, DType, KVCache, Linear, LogitAdjustment, StepBatch
from core.interfaces.model import DecoderSpec, Weight
from core.interfaces.parallel import Collective
from core.interfaces.quantizer import Quantizer

linear.KERNELS |= quantized.CPU_KERNELS | fp8.FP8_KERNELS
DTYPES: dict[DType, torch.dtype] = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


class Norm(NamedTuple):
    weight: Tensor  # [hidden]
    eps: float

    def __call__(self, hidden: Tensor) -> Tensor:
        return functional.rms_norm(hidden, self.weight.shape, self.weight, self.eps)


def not_deterministic(what: str, *remedies: str) -> UserError:
    """What rules cannot know before weights are read and kernels are made."""
    return UserError.of(what, "backend_torch.deterministic", "leave out --deterministic", *remedies)


def not_in_eight_bits(what: str) -> UserError:
    return UserError.of(what, "backend_torch.kv_cache_dtype", "--kv-cache-dtype auto")


class TorchBackend(ComputeBackend):
    """Tensors here never require a gradient, so nothing is recorded. They are no inference tensors: those a sampler from
    elsewhere could not write to, and inference mode saves nothing measurable.
    """

    framework = "torch"

    def __init__(self, device: str, dtype: DType, threads: int = 0, *, deterministic: bool = False) -> None:
        """``threads``: of a CPU; 0 is one for each physical core that this process may use. ``deterministic``: subclasses
        compute so, and what they leave to plain torch, which they check, is the same however many tokens there are.
        """
        self.device = device
        self.dtype = dtype
        self.ahead = device != "cpu"
        self._target = Target(torch.device(device), DTYPES[dtype])
        self._embedding: Any = None  # until a tied head has been placed
        self._deterministic = deterministic
        self._ranks: Collective | None = None
        self._vocab = 0  # of all ranks together
        if self._target.device.type == "cpu":
            torch.set_num_threads(threads or usable_cores())
            freed_memory.keep()
        elif self._target.device.index is not None:
            torch.cuda.set_device(self._target.device)  # for kernels that are launched without saying where

    # --- several ranks ----------------------------------------------------------------------------------------------

    def join(self, ranks: Collective, vocab: int) -> None:
        self._ranks, self._vocab = ranks, vocab

    @property
    def split(self) -> bool:
        """Whether the weights here are one rank's of several. A kernel may add a residual itself only where they are not."""
        return self._ranks is not None

    def summed(self, partial: Tensor) -> Tensor:
        """What a product with "o" or "down", or a look into the embedding, has to go through before anything is added to it.

        A rank of several has multiplied some of the columns; this is the sum over all ranks, perhaps in the same memory.
        Where the weights are not split it is ``partial``.
        """
        return partial if self._ranks is None else self._ranks.sum(partial)

    def gathered(self, own: Tensor) -> Tensor:
        """Float32 logits [R, vocabulary] from those of this rank's rows of the head; on other ranks than 0 no matter what."""
        if self._ranks is None:
            return own
        whole = self._ranks.gather(own)
        return own if whole is None else whole[:, : self._vocab].contiguous()

    # --- memory -----------------------------------------------------------------------------------------------------

    def place(self, weight: Weight, spec: DecoderSpec, quantizer: Quantizer | None) -> Any:
        with machine.memory_for(
            f"the weights of the model, at {weight.name}",
            "take a smaller model",
            "pack the weights: --quantization (--list-plugins shows what is installed)",
            "free memory, or use a machine that has more",
        ):
            if weight.name.role == "norm":
                return Norm(linear.array(weight, spec, self._target), spec.norm_eps)
            if weight.name.role == "embed":
                table = linear.array(weight, spec, self._target)
                self._embedding = table if spec.tied_head else None
                return table
            placed = linear.place(weight, spec, quantizer, self._target, self._embedding)
            if self._deterministic and not self._row_by_row(placed):
                what = f"{weight.name} is held as {placed.format}, whose products depend on how many tokens there are"
                raise not_deterministic(what, "--quantization none")
            if weight.name.role == "head":
                self._embedding = None
            return placed

    def _row_by_row(self, linear: TorchLinear) -> bool:
        """Whether what is multiplied by it comes out the same to the bit, however many rows there are."""
        return linear.row_by_row

    def kv_cache(self, spec: DecoderSpec, num_pages: int, page_size: int) -> PagedKV:
        free, _ = self.memory()
        taken = self._kv_bytes_per_token(spec)
        what = room.for_pages(spec, self.dtype, num_pages, page_size, free, self.device, taken)
        with machine.memory_for(what, *room.REMEDIES):
            return self._kv_memory(spec, num_pages, page_size)

    def _kv_bytes_per_token(self, spec: DecoderSpec) -> int:
        return spec.kv_bytes_per_token(self._target.dtype.itemsize)

    def _kv_memory(self, spec: DecoderSpec, num_pages: int, page_size: int) -> PagedKV:
        return PagedKV(spec, num_pages, page_size, self._target.dtype, self._target.device)

    def memory(self) -> tuple[int, int]:
        return machine.free_and_total(self._target.device)

    # --- one step ---------------------------------------------------------------------------------------------------

    def upload(self, batch: StepBatch, spec: DecoderSpec, kv: KVCache) -> Step:
        assert isinstance(kv, PagedKV)
        return step.upload(batch, kv.page_size, kv.turns, kv.masks)

    def follow(self, step: Step, tokens: Tensor) -> None:
        ids = step.token_ids
        ids.copy_(torch.where(ids < 0, tokens.index_select(0, (-1 - ids).clamp_(min=0)), ids))

    def embed(self, table: Tensor, step: Step) -> Tensor:
        if self._ranks is None:
            return functional.embedding(step.token_ids, table)
        ids = step.token_ids - self._ranks.rank * len(table)
        elsewhere = (ids < 0) | (ids >= len(table))
        rows = functional.embedding(ids.masked_fill_(elsewhere, 0), table)
        return self.summed(rows.masked_fill_(elsewhere[:, None], 0))

    def qkv(self, hidden: Tensor, norm: Norm, weight: Linear, kv: KVCache, layer: int, step: Step) -> Tensor:
        assert isinstance(weight, TorchLinear)
        assert isinstance(kv, PagedKV)
        spec = kv.spec
        heads = weight(norm(hidden)).view(len(hidden), -1, spec.head_dim)  # q, then k, then v
        turning = spec.num_heads + spec.num_kv_heads
        turned = rope.rotate(heads[:, :turning], step.turns, spec.rope_style)
        kv.write(layer, step.slots, turned[:, spec.num_heads :], heads[:, turning:])
        return turned.flatten(1)[:, : spec.q_width]

    def attention(self, q: Tensor, kv: KVCache, layer: int, step: Step) -> Tensor:
        assert isinstance(kv, PagedKV)
        return kv.attend(layer, q.view(len(q), kv.spec.num_heads, kv.spec.head_dim), step)

    def linear_add(self, x: Tensor, weight: Linear, residual: Tensor) -> Tensor:
        assert isinstance(weight, TorchLinear)
        return residual.add_(self.summed(weight(x)))

    def gate_up(self, hidden: Tensor, norm: Norm, weight: Linear) -> Tensor:
        assert isinstance(weight, TorchLinear)
        gate, up = weight(norm(hidden)).chunk(2, -1)
        return functional.silu(gate).mul_(up)

    def logits(self, hidden: Tensor, norm: Norm, head: Linear, step: Step) -> Tensor:
        assert isinstance(head, TorchLinear)
        if not step.num_logits:
            return torch.empty((0, self._vocab or head.out_features), device=hidden.device)
        if step.logit_rows is not None:
            hidden = hidden.index_select(0, step.logit_rows)
        return self.gathered(head.logits(norm(hidden)))

    def adjust(self, array: Tensor, adjustment: LogitAdjustment) -> Tensor:
        return logits.adjust(array, adjustment)

    def argmax(self, array: Tensor) -> Tensor:
        return array.argmax(-1)

    def logprobs(
        self, array: Tensor, token_ids: Tensor | NDArray[np.int64], most: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        if isinstance(token_ids, np.ndarray):
            token_ids = step.to_device(token_ids, self._target.device)
        return logits.logprobs(array, token_ids, most)

    def clone(self, array: Tensor) -> Tensor:
        return array.clone()

    def to_host(self, array: Tensor) -> NDArray[Any]:
        host: NDArray[np.generic] = (array.float() if array.dtype == torch.bfloat16 else array).cpu().numpy()
        return host

    def fetch(self, arrays: Sequence[Tensor]) -> Callable[[], list[NDArray[Any]]]:
        if self._target.device.type == "cpu":
            copies = [self.to_host(array).copy() for array in arrays]
            return lambda: copies
        hosts = [torch.empty(array.shape, dtype=array.dtype, pin_memory=True) for array in arrays]
        for host, array in zip(hosts, arrays, strict=True):
            host.copy_(array, non_blocking=True)
        done = torch.cuda.Event()  # type: ignore[no-untyped-call]
        done.record()

        def wait() -> list[NDArray[Any]]:
            done.synchronize()
            return [host.numpy() for host in hosts]

        return wait
