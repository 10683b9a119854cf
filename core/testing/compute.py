"""The contract of compute backends: each operation against ``core.testing.reference``, in every dtype the backend has.

Nothing here looks inside a backend's arrays. Values get in as rows of an embedding table, and out through ``to_host``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from core.errors import UserError
from core.interfaces.compute import DTYPE_BYTES, Array, ComputeBackend, DType, LogitAdjustment
from core.interfaces.graph import StepShape
from core.interfaces.model import DecoderSpec, Role, Weight, WeightName, weight_names
from core.interfaces.quantizer import Packed, Quantizer
from core.models.decoder import Decoder
from core.testing import reference
from core.testing.contract import Contract
from core.testing.fakes import BlockInt8, RowInt8
from core.testing.inputs import PagedSequences, adjustment, random_weights, tiny_spec

DTYPES: tuple[DType, ...] = ("float32", "bfloat16", "float16")
SHAPES: dict[str, Mapping[str, Any]] = {
    "interleaved": {},
    "half": {"rope_style": "half"},
    "one kv head": {"num_kv_heads": 1},
    "a kv head each": {"num_kv_heads": 4, "rope_style": "half"},
    "seven queries a kv head": {"num_heads": 7, "num_kv_heads": 1, "head_dim": 8},
    "linear scaling": {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    "llama3 scaling": {
        "rope_style": "half",
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    },
    "untied": {"tied_head": False},
}


class ComputeBackendContract(Contract, kit=True):
    """Give ``make``. ``dtypes``: those the device computes in; every test runs in each.

    ``tolerance``: the largest error of one operation, as a share of the largest value in its result. The defaults are a few
    units in the last place of each dtype, since the reference starts from the same rounded inputs.
    """

    dtypes: tuple[DType, ...] = DTYPES
    tolerance: Mapping[str, float] = {"float32": 1e-5, "bfloat16": 2e-2, "float16": 3e-3}

    def make(self, dtype: DType) -> ComputeBackend:
        """A new backend of this dtype, as your offer's ``create`` makes it."""
        raise NotImplementedError(f"{type(self).__name__} must define make(dtype)")

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Every test that wants a backend runs once a dtype."""
        if "backend" in metafunc.fixturenames:
            metafunc.parametrize("backend", self.dtypes, indirect=True)

    @pytest.fixture
    def backend(self, request: pytest.FixtureRequest) -> Iterator[ComputeBackend]:
        made = self.make(request.param)
        assert made.dtype == request.param
        yield made
        made.close()

    # --- how values get in and out ----------------------------------------------------------------------------------

    def array(self, backend: ComputeBackend, values: NDArray[Any]) -> Array:
        """[T, width] of the backend, holding ``values`` rounded to its dtype: an embedding, looked up row by row."""
        spec = replace(tiny_spec(), vocab=len(values), hidden=values.shape[1])
        table = backend.place(Weight(WeightName("embed"), (np.ascontiguousarray(values, dtype=np.float32),)), spec, None)
        step = self.plain_step(backend, spec, list(range(len(values))))
        return backend.embed(table, step)

    def plain_step(self, backend: ComputeBackend, spec: DecoderSpec, tokens: Sequence[int], rows: str = "all") -> Any:
        kv = backend.kv_cache(spec, max(1, -(-len(tokens) // 16)) + 1, 16)
        return backend.upload(PagedSequences(kv.num_pages, 16).step({0: tokens}, logits=rows), spec, kv)

    def logits_of(self, backend: ComputeBackend, values: NDArray[np.float32]) -> Array:
        """Float32 logits [R, V] holding exactly ``values``: a head that gives zeros, and a bias on every token."""
        rows, vocab = values.shape
        spec = replace(tiny_spec(), vocab=vocab)
        zeros = np.zeros((vocab, spec.hidden), dtype=np.float32)
        head = backend.place(Weight(WeightName("head"), (zeros,)), spec, None)
        norm = backend.place(Weight(WeightName("norm", None, "final"), (np.ones(spec.hidden, dtype=np.float32),)), spec, None)
        hidden = self.array(backend, np.ones((rows, spec.hidden)))
        logits = backend.logits(hidden, norm, head, self.plain_step(backend, spec, [0] * rows))
        bias = {(row, token): float(values[row, token]) for row in range(rows) for token in range(vocab)}
        return backend.adjust(logits, adjustment(rows, bias=bias))

    def check(self, backend: ComputeBackend, got: Any, expected: NDArray[Any], what: str, slack: float = 1.0) -> None:
        found = np.asarray(got if isinstance(got, np.ndarray) else backend.to_host(got), dtype=np.float64)
        assert found.shape == expected.shape, f"{what}: shape {found.shape}, expected {expected.shape}"
        assert np.isfinite(found).all(), f"{what}: not finite"
        error, scale = np.abs(found - expected).max(initial=0.0), np.abs(expected).max(initial=1e-6)
        allowed = self.tolerance[backend.dtype] * slack
        assert error <= allowed * scale, f"{what}: off by {error / scale:.2g} of its largest value, {allowed:.2g} allowed"

    # --- memory -----------------------------------------------------------------------------------------------------

    def test_it_says_what_it_is(self, backend: ComputeBackend) -> None:
        assert backend.framework
        assert backend.device
        free, total = backend.memory()
        assert 0 < free <= total

    def test_arrays_arrive_on_the_host(self, backend: ComputeBackend) -> None:
        values = np.random.default_rng(0).standard_normal((5, 32))
        host = backend.to_host(self.array(backend, values))
        assert host.dtype == (np.float16 if backend.dtype == "float16" else np.float32)
        assert np.array_equal(host.astype(np.float64), reference.rounded(values, backend.dtype))

    def test_the_kv_cache_has_its_size(self, backend: ComputeBackend) -> None:
        spec = tiny_spec()
        kv = backend.kv_cache(spec, 6, 16)
        assert (kv.num_pages, kv.page_size) == (6, 16)
        assert kv.nbytes == 6 * 16 * spec.kv_bytes_per_token(DTYPE_BYTES[backend.dtype])

    def test_a_kv_cache_beyond_the_memory_is_refused_with_a_remedy(self, backend: ComputeBackend) -> None:
        _, total = backend.memory()
        spec = tiny_spec()
        page = 64 * spec.kv_bytes_per_token(DTYPE_BYTES[backend.dtype])
        with pytest.raises(UserError) as refused:
            backend.kv_cache(spec, 1000 * total // page, 64)
        assert all(problem.remedies for problem in refused.value.problems)

    @pytest.mark.parametrize("stored", ["[out, in]", "[in, out]"])
    def test_linears_are_placed(self, backend: ComputeBackend, stored: str) -> None:
        """Every role, its parts stacked; parts may be transposed views of what a checkpoint stores the other way round."""
        spec = tiny_spec(tied_head=False)
        weights = random_weights(spec)
        for name in weight_names(spec):
            if name.layer not in (0, None) or name.role in ("embed", "norm"):
                continue
            weight = weights[name]
            if stored == "[in, out]":
                weight = Weight(name, tuple(np.ascontiguousarray(part.T).T for part in weight.parts))
            linear = backend.place(weight, spec, None)
            out_features, in_features = spec.shape(name.role)
            assert (linear.role, linear.out_features, linear.in_features) == (name.role, out_features, in_features)
            assert linear.nbytes >= out_features * in_features * DTYPE_BYTES[backend.dtype]
            assert linear.format
            if name.role in ("o", "down"):
                self.check_linear(backend, linear, np.concatenate(weight.parts), f"{name} stored {stored}")

    def check_linear(self, backend: ComputeBackend, linear: Any, weight: NDArray[Any], what: str, tokens: int = 5) -> None:
        random = np.random.default_rng(11)
        x = random.standard_normal((tokens, weight.shape[1]))
        residual = random.standard_normal((tokens, weight.shape[0]))
        got = backend.linear_add(self.array(backend, x), linear, self.array(backend, residual))
        x, residual, weight = (reference.rounded(each, backend.dtype) for each in (x, residual, weight))
        self.check(backend, got, residual + x @ weight.T, what)

    def test_a_placed_weight_owes_nothing_to_its_source(self, backend: ComputeBackend) -> None:
        """Parts are views of mapped files: they are gone when the next weight is taken."""
        spec = tiny_spec()
        values = np.random.default_rng(2).standard_normal(spec.shape("o")).astype(np.float32)
        table = np.random.default_rng(3).standard_normal(spec.shape("embed")).astype(np.float32)
        lent, lent_table = values.copy(), table.copy()
        linear = backend.place(Weight(WeightName("o", 0), (lent,)), spec, None)
        embed = backend.place(Weight(WeightName("embed"), (lent_table,)), spec, None)
        lent[:], lent_table[:] = 1e4, 1e4
        self.check_linear(backend, linear, values, "o after its source changed")
        rows = backend.to_host(backend.embed(embed, self.plain_step(backend, spec, [3, 0, 95])))
        assert np.array_equal(rows.astype(np.float64), reference.rounded(table[[3, 0, 95]], backend.dtype))

    @pytest.mark.parametrize("tokens", [1, 2, 3, 17, 130])
    def test_linear_add(self, backend: ComputeBackend, tokens: int) -> None:
        spec = tiny_spec(hidden=48, intermediate=80)
        weights = random_weights(spec)
        for role in ("o", "down"):
            name = WeightName(role, 1)
            linear = backend.place(weights[name], spec, None)
            self.check_linear(backend, linear, weights[name].parts[0], f"{role} of {tokens} tokens", tokens)

    @pytest.mark.parametrize("tokens", [1, 2, 17, 130])
    def test_gate_up(self, backend: ComputeBackend, tokens: int) -> None:
        spec = tiny_spec()
        weights = random_weights(spec)
        names = WeightName("norm", 0, "post"), WeightName("gate_up", 0)
        norm, linear = (backend.place(weights[name], spec, None) for name in names)
        hidden = np.random.default_rng(tokens).standard_normal((tokens, spec.hidden)) * 3
        got = backend.gate_up(self.array(backend, hidden), norm, linear)
        scale, matrix = (reference.rounded(np.concatenate(weights[name].parts), backend.dtype) for name in names)
        normed = reference.rms_norm(reference.rounded(hidden, backend.dtype), scale, spec.norm_eps)
        self.check(backend, got, reference.gated(normed @ matrix.T), "gate_up")

    def test_a_quantized_linear_multiplies_by_the_unpacked_values(self, backend: ComputeBackend) -> None:
        spec = tiny_spec(hidden=64)
        quantizer: Quantizer = RowInt8(frozenset({"o", "down"}))
        for name, weight in random_weights(spec).items():
            if name.role in ("o", "down"):
                linear = backend.place(weight, spec, quantizer)
                packed = quantizer.pack(np.concatenate(weight.parts))
                assert linear.nbytes >= packed.nbytes, "the bytes held are fewer than the packed matrix has"
                self.check_linear(backend, linear, quantizer.unpack(packed), f"{name} in eight bits")
        untouched = backend.place(random_weights(spec)[WeightName("gate_up", 0)], spec, quantizer)
        assert untouched.nbytes >= np.prod(spec.shape("gate_up")) * DTYPE_BYTES[backend.dtype], (
            "a role the quantizer does not take"
        )

    def test_a_quantizer_gets_one_part_at_a_time(self, backend: ComputeBackend) -> None:
        """The fused matrix never exists unpacked."""
        spec = tiny_spec()
        seen: list[tuple[int, ...]] = []

        class Watched(RowInt8):
            def pack(self, weight: NDArray[np.float32]) -> Packed:
                seen.append(weight.shape)
                return super().pack(weight)

        backend.place(random_weights(spec)[WeightName("qkv", 0)], spec, Watched(frozenset({"qkv"})))
        assert sum(rows for rows, _ in seen) == spec.shape("qkv")[0]
        assert max(rows for rows, _ in seen) <= spec.q_width

    def test_rows_that_belong_together_are_packed_together(self, backend: ComputeBackend) -> None:
        """In blocks counted from the matrix's first row, over the seams of its parts."""
        spec, quantizer = tiny_spec(), BlockInt8()
        for name, weight in random_weights(spec).items():
            if name.role in quantizer.roles:
                linear = backend.place(weight, spec, quantizer)
                values = quantizer.unpack(quantizer.pack(np.concatenate(weight.parts)))
                self.check_linear(backend, linear, values, f"{name} in blocks of rows")

    def test_a_weight_that_comes_packed_is_placed_as_it_is(self, backend: ComputeBackend) -> None:
        """Its arrays lie in a file that goes away: they are copied."""

        class Unpacking(RowInt8):
            def pack(self, weight: NDArray[np.float32]) -> Packed:
                raise AssertionError("what is packed is not packed again")

        spec = tiny_spec(hidden=64)
        roles: frozenset[Role] = frozenset({"o", "down"})
        for name, weight in random_weights(spec).items():
            if name.role in roles:
                packed = RowInt8().pack(np.concatenate(weight.parts))
                values = RowInt8().unpack(packed)
                linear = backend.place(Weight(name, (), weight.tied, packed), spec, Unpacking(roles))
                for array in packed.arrays.values():
                    array.fill(1)
                self.check_linear(backend, linear, values, f"{name}, packed before")

    # --- one step ---------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("shape", SHAPES)
    @pytest.mark.parametrize("page_size", [4, 16])
    def test_qkv_and_attention_over_pages(self, backend: ComputeBackend, shape: str, page_size: int) -> None:
        """Prompts, split prompts and decodes in one cache, pages in a shuffled order, page 0 in the padding of the table."""
        spec = tiny_spec(num_layers=1, **SHAPES[shape])
        weights = random_weights(spec, seed=4)
        names = WeightName("norm", 0, "input"), WeightName("qkv", 0)
        norm, linear = (backend.place(weights[name], spec, None) for name in names)
        truth = reference.ReferenceDecoder(spec, weights, backend.dtype)
        kv = backend.kv_cache(spec, 160 // page_size, page_size)
        paged = PagedSequences(kv.num_pages, page_size, seed=page_size)
        random = np.random.default_rng(5)
        script = ({0: 9, 1: 30}, {0: 1, 1: 1, 2: 16}, {2: 1, 0: 7, 3: 1}, {0: 1, 1: 1, 2: 1, 3: 1}, {3: 20, 1: 4})
        for number, counts in enumerate(script):
            batch = paged.step({s: [0] * count for s, count in counts.items()})
            step = backend.upload(batch, spec, kv)
            hidden = random.standard_normal((batch.num_tokens, spec.hidden))
            q = backend.qkv(self.array(backend, hidden), norm, linear, kv, 0, step)
            q_before = np.array(backend.to_host(q))
            mixed = backend.to_host(backend.attention(q, kv, 0, step))
            for row, sequence in enumerate(paged.order):
                own = slice(batch.query_starts[row], batch.query_starts[row + 1])
                expected = truth.qkv(sequence, 0, reference.rounded(hidden[own], backend.dtype), batch.positions[own])
                what = f"step {number}, sequence {sequence}"
                self.check(backend, q_before[own], expected.reshape(-1, spec.q_width), f"q, {what}", slack=2)
                self.check(backend, mixed[own], truth.attention(sequence, 0, expected), f"attention, {what}", slack=3)

    @pytest.mark.parametrize("shape", SHAPES)
    def test_the_whole_decoder(self, backend: ComputeBackend, shape: str) -> None:
        spec = tiny_spec(**SHAPES[shape])
        run = self.decoder_run(backend, spec)
        run({0: [5, 6, 7, 8, 9], 1: list(range(40))})
        run({0: [3], 1: [95], 2: [1, 2, 3]})
        run({0: [4], 2: [9], 1: [11, 12]})

    def decoder_run(self, backend: ComputeBackend, spec: DecoderSpec, num_pages: int = 16, page_size: int = 8) -> Any:
        """A function that runs a step through the backend and through the reference, compares, and returns the logits."""
        weights = random_weights(spec)
        decoder = Decoder.load(spec, weights.values(), backend)
        truth = reference.ReferenceDecoder(spec, weights, backend.dtype)
        kv = backend.kv_cache(spec, num_pages, page_size)
        paged = PagedSequences(num_pages, page_size)

        def run(work: Mapping[int, Sequence[int]], logits: str = "last") -> NDArray[Any]:
            batch = paged.step(work, logits=logits)
            found = np.array(backend.to_host(decoder.forward(backend.upload(batch, spec, kv), kv)))
            assert found.dtype == np.float32
            expected = {s: truth.forward(s, tokens) for s, tokens in work.items()}
            rows = np.concatenate([expected[s] for s in paged.order])[batch.logit_rows]
            self.check(backend, found, rows, f"logits of {dict(work)}", slack=4)
            return found

        run.paged, run.truth = paged, truth  # type: ignore[attr-defined]
        return run

    def test_logits_are_those_of_the_rows_asked_for(self, backend: ComputeBackend) -> None:
        run = self.decoder_run(backend, tiny_spec())
        assert run({0: [5, 6, 7], 1: [8, 9]}, logits="all").shape == (5, 96)
        assert run({0: [5], 1: [8, 9]}, logits="last").shape == (2, 96)
        assert run({1: [8, 9, 10]}, logits="none").shape == (0, 96)

    def test_old_contents_of_a_page_do_not_shine_through(self, backend: ComputeBackend) -> None:
        run = self.decoder_run(backend, tiny_spec(), num_pages=5)
        run({0: list(range(40))})
        run.paged.drop(0)
        run.truth.forget(0)
        run({1: [50, 51, 52]})
        run({1: [53], 2: [60] * 9})

    def test_a_sequence_alone_equals_itself_in_a_batch(self, backend: ComputeBackend) -> None:
        tokens = {0: [1, 2, 3, 4], 1: [9] * 20, 2: [7]}
        together = self.decoder_run(backend, tiny_spec())(tokens)
        for row, (sequence, own) in enumerate(tokens.items()):
            alone = self.decoder_run(backend, tiny_spec())({sequence: own})
            self.check(backend, alone[0], together[row].astype(np.float64), f"sequence {sequence} alone", slack=2)

    def test_static_steps_are_what_they_are_filled_with(self, backend: ComputeBackend) -> None:
        """Of a backend whose steps, or some kinds of them, can be recorded: others give none. Padding changes no page, and an
        old filling is gone.
        """
        spec = tiny_spec()
        weights = random_weights(spec)
        decoder = Decoder.load(spec, weights.values(), backend)
        truth = reference.ReferenceDecoder(spec, weights, backend.dtype)
        kv, paged = backend.kv_cache(spec, 24, 8), PagedSequences(24, 8)
        mixed = StepShape("mixed", 36, 7, decodes=4, rows=7)
        shapes = (StepShape("prompts", 32, 3), StepShape("decode", 4, 4), mixed)
        steps = {shape.kind: step for shape in shapes if (step := backend.static_step(shape, spec, kv)) is not None}
        script: list[dict[int, list[int]]] = [{0: list(range(20)), 1: [7] * 9}, {2: [1]}, {0: [3], 1: [4], 2: [5]}, {1: [6]}]
        script += [{3: [8, 9], 4: [2] * 17}, {number: [30 + number] for number in range(4)}, {4: [1], 0: [2]}]
        script += [{0: [5] * 9, 1: [6], 3: [7]}, {5: [1] * 30}, {2: [9], 6: [4], 5: [3, 3]}, {7: [8], 8: [9]}]
        for number, work in enumerate(script):
            batch = paged.step(work)
            step = backend.upload(batch, spec, kv)
            own = batch.shape.kind
            kinds = (own, "mixed") if number % 2 else ("mixed", own)  # a mixed one holds the others too
            static = next((steps[kind] for kind in kinds if kind in steps), None)
            if static is not None:
                assert step.shape == batch.shape
                assert static.shape.holds(batch.shape)
                static.fill(step)
                step = static
            found = np.array(backend.to_host(decoder.forward(step, kv)))[: len(work)]
            for shape in shapes:
                blank = backend.static_step(shape, spec, kv)
                if blank is not None:
                    decoder.forward(blank, kv)
            expected = {s: truth.forward(s, tokens)[-1:] for s, tokens in work.items()}
            rows = np.concatenate([expected[s] for s in paged.order])
            self.check(backend, found, rows, f"logits of {work}, {'static' if static else 'uploaded'}", slack=4)

    def test_a_step_may_follow_tokens_that_only_the_device_knows(self, backend: ComputeBackend) -> None:
        """For a backend that launches a step before the tokens of the one before are read, or could."""
        if type(backend).follow is ComputeBackend.follow:
            assert not backend.ahead, "a backend that works ahead has a way to follow the step before"
            return
        spec = tiny_spec()
        decoder = Decoder.load(spec, random_weights(spec).values(), backend)
        kvs = [backend.kv_cache(spec, 16, 8) for _ in range(2)]
        paged = PagedSequences(16, 8)
        prompts = paged.step({0: [5] * 9, 1: [7, 8], 2: [1]})
        outcomes = [decoder.forward(backend.upload(prompts, spec, kv), kv) for kv in kvs]
        tokens = backend.argmax(outcomes[0])
        known = backend.to_host(tokens).tolist()
        batch = paged.step({2: [known[2]], 0: [known[0]], 3: [4, 11, 6]})
        expected = backend.to_host(decoder.forward(backend.upload(batch, spec, kvs[0]), kvs[0]))
        step = backend.upload(replace(batch, token_ids=np.array([-3, -1, 4, 11, 6], np.int32)), spec, kvs[1])
        backend.follow(step, tokens)
        assert np.array_equal(backend.to_host(decoder.forward(step, kvs[1])), expected)

    def test_a_static_step_advances_to_the_one_that_follows(self, backend: ComputeBackend) -> None:
        """For a backend with such steps: it gives the very values of the step filled anew, to the end of a page."""
        spec = tiny_spec()
        decoder = Decoder.load(spec, random_weights(spec).values(), backend)
        kvs = [backend.kv_cache(spec, 16, 8) for _ in range(2)]
        going, anew = (backend.static_step(StepShape("decode", 4, 4), spec, kv) for kv in kvs)
        if going is None or anew is None:
            return
        paged = PagedSequences(16, 8)
        prompts = paged.step({0: [5] * 9, 1: [7, 8, 9], 2: [1]})
        for kv in kvs:
            decoder.forward(backend.upload(prompts, spec, kv), kv)
        advances = False
        for number in range(5):
            batch = paged.step({sequence: [number + sequence] for sequence in range(3)})
            batch.sampling.seeds[:], batch.sampling.positions[:] = 2**63 + 5, batch.positions + 1
            step = backend.upload(batch, spec, kvs[0])
            anew.fill(step)
            if not advances:
                going.fill(step)
            arrays = [backend.sampling(each) for each in (step, anew, going)]
            for name in ("temperature", "top_k", "top_p", "min_p", "seeds", "positions") if arrays[0] is not None else ():
                given = [np.asarray(backend.to_host(getattr(each, name)))[:3] for each in arrays]
                expected = getattr(batch.sampling, name)
                expected = expected.view(np.int64) if name == "seeds" else expected
                assert all(np.array_equal(each, expected) for each in given), f"step {number}: other {name} on the device"
            both = zip((anew, going), kvs, strict=True)
            before, after = (np.array(backend.to_host(decoder.forward(each, kv)))[:3] for each, kv in both)
            assert np.array_equal(before, after), f"step {number}: a step that was advanced is not the one that follows"
            tokens = backend.argmax(self.logits_of(backend, np.eye(4, 96, number + 1, dtype=np.float32)))  # number + 1 + row
            advances = going.advance(tokens)

    def test_fetched_arrays_are_as_they_were(self, backend: ComputeBackend) -> None:
        values = np.random.default_rng(8).standard_normal((2, 9)).astype(np.float32)
        logits = self.logits_of(backend, values)
        tokens = backend.argmax(logits)
        wait = backend.fetch([logits, tokens])
        backend.adjust(logits, adjustment(2, banned=[(0, 1)]))
        found, likeliest = wait()
        assert np.array_equal(found, values)
        assert likeliest.tolist() == values.argmax(1).tolist()

    # --- logits -----------------------------------------------------------------------------------------------------

    def test_adjust(self, backend: ComputeBackend) -> None:
        """Bias, then penalties, then bans: token 3 is biased from positive to negative, token 5 is biased and banned."""
        values = np.random.default_rng(6).standard_normal((3, 12)).astype(np.float32)
        values[1, 3] = 1.0
        logits = self.logits_of(backend, values)
        assert np.array_equal(backend.to_host(backend.clone(logits)), values), "a bias on zero logits gives the bias"
        changes = adjustment(
            3,
            bias={(1, 3): -3.0, (1, 5): 100.0, (0, 0): 0.25},
            banned=[(1, 5), (2, 11)],
            seen={(0, token): float(token % 4) for token in range(12)} | {(1, 3): 2.0, (1, 4): 0.0},
            repetition=[1.3, 1.5, 1.0],
            presence=[0.5, 0.25, 0.0],
            frequency=[-0.3, 0.1, 0.0],
        )
        expected = reference.adjusted(values.astype(np.float64), changes)
        found = backend.to_host(backend.adjust(logits, changes))
        assert np.array_equal(np.isneginf(found), np.isneginf(expected)), "banned tokens are -inf, and no others"
        kept = np.isfinite(expected)
        assert np.allclose(found[kept], expected[kept], rtol=1e-5, atol=1e-6)

    def test_an_empty_adjustment_changes_nothing(self, backend: ComputeBackend) -> None:
        values = np.random.default_rng(7).standard_normal((2, 9)).astype(np.float32)
        changes: LogitAdjustment = adjustment(2)
        assert np.array_equal(backend.to_host(backend.adjust(self.logits_of(backend, values), changes)), values)

    def test_argmax_takes_the_lowest_id_among_equals(self, backend: ComputeBackend) -> None:
        values = np.zeros((4, 300), dtype=np.float32)
        values[1, [17, 250]] = 1.0
        values[2, 299] = 2.0
        values[3] = -5.0
        values[3, 130:] = -4.0
        found = backend.to_host(backend.argmax(self.logits_of(backend, values)))
        assert found.tolist() == [0, 17, 299, 130]

    def test_clone_is_a_copy(self, backend: ComputeBackend) -> None:
        values = np.random.default_rng(8).standard_normal((2, 9)).astype(np.float32)
        logits = self.logits_of(backend, values)
        kept = backend.clone(logits)
        backend.adjust(logits, adjustment(2, banned=[(0, 1)]))
        assert np.array_equal(backend.to_host(kept), values)

    @pytest.mark.parametrize("most", [0, 1, 5])
    def test_logprobs(self, backend: ComputeBackend, most: int) -> None:
        values = (np.random.default_rng(9).permuted(np.tile(np.arange(60.0), (4, 1)), axis=1) / 7).astype(np.float32)
        logits = self.logits_of(backend, values)
        kept = backend.clone(logits)
        worst = backend.adjust(backend.clone(logits), adjustment(4, bias={(0, 13): 1e4, (1, 0): 1e4, (2, 59): 1e4}))
        ids = backend.argmax(worst)
        chosen = backend.to_host(ids)
        assert chosen[:3].tolist() == [13, 0, 59]
        logprob, rank, top_ids, top = (backend.to_host(each) for each in backend.logprobs(logits, ids, most))
        truth = reference.log_softmax(values.astype(np.float64))
        rows = np.arange(4)
        assert np.allclose(logprob, truth[rows, chosen], atol=1e-5)
        assert rank.tolist() == (values > values[rows, chosen][:, None]).sum(axis=1).tolist()
        best = np.argsort(-values, axis=1)[:, :most]
        assert top_ids.shape == top.shape == (4, most)
        assert np.array_equal(top_ids, best)
        assert np.allclose(top, np.take_along_axis(truth, best, axis=1), atol=1e-5)
        of_the_host = backend.logprobs(logits, chosen.astype(np.int64), most)
        assert np.array_equal(backend.to_host(of_the_host[0]), logprob)
        assert np.array_equal(backend.to_host(of_the_host[1]), rank)
        assert np.array_equal(backend.to_host(kept), values)
