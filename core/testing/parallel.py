"""The contract of parallelisms: ranks find each other, add up, gather, notice a loss, and compute what one alone computes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from core.errors import EngineDeadError
from core.interfaces.compute import ComputeBackend
from core.interfaces.model import DecoderSpec, Weight, WeightName
from core.interfaces.parallel import Collective
from core.interfaces.quantizer import ByRole, Quantizer
from core.models.decoder import Decoder
from core.models.shard import Shard
from core.testing.contract import Contract
from core.testing.fakes import RowInt8
from core.testing.inputs import PagedSequences, random_weights, tiny_spec

STEPS: tuple[dict[int, list[int]], ...] = (
    {0: [5, 6, 7, 8, 9], 1: list(range(40))},
    {0: [3], 1: [95], 2: [1, 2, 3]},
    {0: [4], 2: [9], 1: [11, 12]},
)
SPLITS: dict[str, tuple[int, dict[str, Any]]] = {
    "two ranks": (2, {}),
    "a key/value head for two ranks": (4, {}),
    "a vocabulary that does not divide": (2, {"vocab": 97, "tied_head": False}),
    "a rank without vocabulary": (4, {"vocab": 97, "num_kv_heads": 4, "rope_style": "half"}),
}
PACKED: dict[str, Quantizer] = {
    "all": RowInt8(frozenset({"qkv", "o", "gate_up", "down", "head"})),
    "the head": ByRole(None, RowInt8()),
}


class ParallelismContract(Contract, kit=True):
    """Give ``make`` and ``backend``. Ranks are threads here: nothing may be kept for a whole process.

    ``tolerance``: the largest error of logits, as a share of the largest; the sums' order is another than on one rank.
    """

    tolerance: float = 1e-5

    def make(self, rank: int, ranks: int) -> Collective:
        """One rank's, as your offer's ``create`` makes it."""
        raise NotImplementedError(f"{type(self).__name__} must define make(rank, ranks)")

    def backend(self) -> ComputeBackend:
        """A new float32 backend of the framework whose arrays it takes."""
        raise NotImplementedError(f"{type(self).__name__} must define backend()")

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        return tmp_path

    def on_each(self, ranks: int, folder: Path, work: Callable[[Collective], Any]) -> list[Any]:
        """What ``work`` gives on every rank, when they have met."""

        def one(rank: int) -> Any:
            collective = self.make(rank, ranks)
            assert (collective.rank, collective.ranks) == (rank, ranks)
            collective.meet(folder)
            try:
                return work(collective)
            finally:
                collective.close()

        with ThreadPoolExecutor(ranks) as pool:
            return list(pool.map(one, range(ranks), timeout=60))

    # --- what is promised -------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("ranks", [2, 3])
    def test_sums_have_the_same_bits_on_every_rank(self, folder: Path, ranks: int) -> None:
        values = np.random.default_rng(ranks).standard_normal((ranks, 5, 33)).astype(np.float32)

        def work(collective: Collective) -> NDArray[Any]:
            backend = self.backend()
            return np.array(backend.to_host(collective.sum(array_of(backend, values[collective.rank]))))

        first, *others = self.on_each(ranks, folder, work)
        assert np.allclose(first, values.sum(0), atol=1e-5)
        assert all(np.array_equal(first, other) for other in others)

    def test_rank_0_gathers_side_by_side(self, folder: Path) -> None:
        def work(collective: Collective) -> NDArray[Any] | None:
            backend = self.backend()
            whole = collective.gather(array_of(backend, np.full((2, 3), float(collective.rank))))
            return None if whole is None else np.array(backend.to_host(whole))

        found, *others = self.on_each(3, folder, work)
        assert np.array_equal(found, np.repeat([[0.0, 1.0, 2.0]] * 2, 3, axis=1))
        assert others == [None, None]

    def test_a_rank_that_leaves_is_noticed(self, folder: Path) -> None:
        def work(collective: Collective) -> None:
            backend = self.backend()
            for number in range(100 if collective.rank == 0 else 1):  # the one that leaves has met the other then
                try:
                    collective.sum(array_of(backend, np.full((1, 4), float(number))))
                except EngineDeadError:
                    return
            assert collective.rank, "sums go on without the rank that left"

        self.on_each(2, folder, work)

    @pytest.mark.parametrize("split", SPLITS)
    def test_ranks_compute_the_logits_of_one_alone(self, folder: Path, split: str) -> None:
        ranks, shape = SPLITS[split]
        self.compare(folder, ranks, tiny_spec(**shape), None)

    @pytest.mark.parametrize("packed", PACKED)
    def test_ranks_multiply_by_the_quantized_weights_of_one_alone(self, folder: Path, packed: str) -> None:
        self.compare(folder, 2, tiny_spec(vocab=97, tied_head=packed == "all"), PACKED[packed])

    def compare(self, folder: Path, ranks: int, spec: DecoderSpec, quantizer: Quantizer | None) -> None:
        weights = random_weights(spec)
        alone = list(logits(self.backend(), spec, weights.values(), quantizer))

        def work(collective: Collective) -> list[NDArray[Any]]:
            shard = Shard(spec, collective.rank, ranks)
            backend = self.backend()
            backend.join(collective, spec.vocab)
            return list(logits(backend, shard.spec, shard.weights(weights.values(), quantizer), quantizer))

        together = self.on_each(ranks, folder, work)[0]
        for one, other in zip(alone, together, strict=True):
            assert one.shape == other.shape
            error = np.abs(one - other).max() / np.abs(one).max()
            assert error < self.tolerance, f"logits are off by {error:.2g} of the largest"


def array_of(backend: ComputeBackend, values: NDArray[Any]) -> Any:
    """An array of the backend with these values: rows of an embedding."""
    spec = replace(tiny_spec(), vocab=len(values), hidden=values.shape[1])
    table = backend.place(Weight(WeightName("embed"), (values.astype(np.float32),)), spec, None)
    kv = backend.kv_cache(spec, 2, 16)
    return backend.embed(table, backend.upload(PagedSequences(2, 16).step({0: list(range(len(values)))}), spec, kv))


def logits(backend: ComputeBackend, spec: DecoderSpec, weights: Any, quantizer: Quantizer | None) -> Iterator[NDArray[Any]]:
    """Of each step."""
    decoder = Decoder.load(spec, weights, backend, quantizer)
    kv, paged = backend.kv_cache(spec, 16, 8), PagedSequences(16, 8)
    for work in STEPS:
        batch = paged.step(work)
        yield np.array(backend.to_host(decoder.forward(backend.upload(batch, spec, kv), kv)))
    backend.close()
