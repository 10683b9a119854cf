"""A sound backend in numpy (float32 sums, paged memory), and what the contract has to say about unsound ones."""

from dataclasses import dataclass, replace

import ml_dtypes
import numpy as np

from core.errors import UserError
from core.interfaces.compute import DTYPE_BYTES, ComputeBackend, KVCache, Linear
from core.interfaces.graph import StaticStep
from core.interfaces.quantizer import packed_chunks
from core.testing import ComputeBackendContract, reference
from core.testing.inputs import PagedSequences, adjustment


class NumpyLinear(Linear):
    def __init__(self, role, matrix, nbytes):
        self.role, self.matrix, self.nbytes, self.format = role, matrix, nbytes, "numpy"
        self.out_features, self.in_features = matrix.shape


class NumpyCache(KVCache):
    def __init__(self, spec, num_pages, page_size, dtype):
        self.num_pages, self.page_size = num_pages, page_size
        shape = (spec.num_layers, num_pages * page_size, spec.num_kv_heads, spec.head_dim)
        self.k, self.v = np.full(shape, 9.0, dtype=np.float32), np.full(shape, 9.0, dtype=np.float32)
        self.nbytes = num_pages * page_size * spec.kv_bytes_per_token(DTYPE_BYTES[dtype])


@dataclass
class Step:
    batch: object
    spec: object
    page_size: int


class Numpy(ComputeBackend):
    framework, device = "numpy", "cpu"

    def __init__(self, dtype):
        self.dtype = dtype

    def rounded(self, values):
        return reference.rounded(values, self.dtype).astype(np.float32)

    def place(self, weight, spec, quantizer):
        if weight.name.role in ("embed", "norm"):
            return self.rounded(weight.parts[0])
        if quantizer is not None and weight.name.role in quantizer.roles:
            packed = quantizer.stack(list(packed_chunks(weight, quantizer)))
            return NumpyLinear(weight.name.role, quantizer.unpack(packed), packed.nbytes)
        matrix = self.rounded(np.concatenate(weight.parts))
        return NumpyLinear(weight.name.role, matrix, matrix.size * DTYPE_BYTES[self.dtype])

    def kv_cache(self, spec, num_pages, page_size):
        wanted = num_pages * page_size * spec.kv_bytes_per_token(DTYPE_BYTES[self.dtype])
        if wanted > self.memory()[0]:
            raise UserError.of(f"{wanted} bytes of pages cannot be had", "", "lower --max-num-seqs")
        return NumpyCache(spec, num_pages, page_size, self.dtype)

    def memory(self):
        return 1 << 33, 1 << 34

    def upload(self, batch, spec, kv):
        return Step(batch, spec, kv.page_size)

    def embed(self, table, step):
        return table[step.batch.token_ids]

    def norm(self, hidden, weight, spec_eps):
        return reference.rms_norm(hidden, weight, spec_eps).astype(np.float32)

    def qkv(self, hidden, norm, weight, kv, layer, step):
        spec = step.spec
        fused = self.norm(hidden, norm, spec.norm_eps) @ weight.matrix.T
        q, k, v = np.split(fused, [spec.q_width, spec.q_width + spec.kv_width], axis=1)
        q = self.rotate(q.reshape(-1, spec.num_heads, spec.head_dim), step)
        kv.k[layer, step.batch.slots] = self.rotate(k.reshape(-1, spec.num_kv_heads, spec.head_dim), step)
        kv.v[layer, step.batch.slots] = v.reshape(-1, spec.num_kv_heads, spec.head_dim)
        return q.reshape(len(q), spec.q_width)

    def rotate(self, x, step):
        return reference.rotate(x, step.batch.positions, step.spec).astype(np.float32)

    def attention(self, q, kv, layer, step):
        batch, spec, size = step.batch, step.spec, kv.page_size
        out = np.empty_like(q)
        for row in range(batch.num_sequences):
            own = slice(batch.query_starts[row], batch.query_starts[row + 1])
            slots = self.slots(batch, row, size)
            heads = q[own].reshape(-1, spec.num_heads, spec.head_dim)
            out[own] = self.attend(heads, kv.k[layer, slots], kv.v[layer, slots]).reshape(-1, spec.q_width)
        return out

    def slots(self, batch, row, size):
        every = batch.page_table[row][:, None] * size + np.arange(size)
        return every.ravel()[: batch.context_lens[row]]

    def attend(self, q, k, v):
        return reference.attend(q, k, v)

    def linear_add(self, x, weight, residual):
        return residual + x @ weight.matrix.T

    def gate_up(self, hidden, norm, weight):
        return self.gate(self.norm(hidden, norm, 1e-5) @ weight.matrix.T)

    def gate(self, both):
        return reference.gated(both)

    def logits(self, hidden, norm, head, step):
        rows = hidden[self.wanted(step)]
        return (self.norm(rows, norm, step.spec.norm_eps) @ head.matrix.T).astype(np.float32)

    def wanted(self, step):
        return step.batch.logit_rows

    def adjust(self, logits, adjustment):
        logits[:] = reference.adjusted(logits.astype(np.float64), adjustment)
        return logits

    def argmax(self, logits):
        return logits.argmax(axis=1)

    def logprobs(self, logits, token_ids, most):
        every = reference.log_softmax(logits.astype(np.float64)).astype(np.float32)
        rows = np.arange(len(logits))
        rank = (logits > logits[rows, token_ids][:, None]).sum(axis=1)
        best = np.argsort(-logits, axis=1, kind="stable")[:, :most]
        return every[rows, token_ids], rank, best, np.take_along_axis(every, best, axis=1)

    def clone(self, array):
        return array.copy()

    def to_host(self, array):
        floats = {"float16": np.float16, "bfloat16": np.float32, "float32": np.float32}
        if array.dtype == np.float64:
            return array.astype(np.float32)
        return array.astype(floats[self.dtype]) if array.shape[-1:] == (32,) and array.dtype == np.float32 else array


class Contract(ComputeBackendContract):
    __test__ = False
    dtypes = ("float32",)
    implementation = Numpy

    def make(self, dtype):
        return self.implementation(dtype)


class TestSound(Contract):
    __test__ = True
    dtypes = ("float32", "bfloat16", "float16")


class TestMemoryIsNegative(Contract):
    __test__ = True
    caught_by = "test_it_says_what_it_is"

    class implementation(Numpy):
        def memory(self):
            return 2, 1

        def kv_cache(self, spec, num_pages, page_size):
            return NumpyCache(spec, num_pages, page_size, self.dtype)


class TestHostRounds(Contract):
    __test__ = True
    caught_by = "test_arrays_arrive_on_the_host"

    class implementation(Numpy):
        def to_host(self, array):
            return super().to_host(array).astype(ml_dtypes.bfloat16).astype(np.float32)


class TestCacheCountsKeysOnly(Contract):
    __test__ = True
    caught_by = "test_the_kv_cache_has_its_size"

    class implementation(Numpy):
        def kv_cache(self, spec, num_pages, page_size):
            cache = super().kv_cache(spec, num_pages, page_size)
            cache.nbytes //= 2
            return cache


class TestCacheOfAnySize(Contract):
    __test__ = True
    caught_by = "test_a_kv_cache_beyond_the_memory_is_refused_with_a_remedy"

    class implementation(Numpy):
        def kv_cache(self, spec, num_pages, page_size):
            return super().kv_cache(spec, min(num_pages, 100), page_size)


class TestIgnoresTransposition(Contract):
    __test__ = True
    caught_by = "test_linears_are_placed"

    class implementation(Numpy):
        def place(self, weight, spec, quantizer):
            placed = super().place(weight, spec, quantizer)
            if weight.name.role in ("o", "down") and not weight.parts[0].flags.c_contiguous:
                placed.matrix = placed.matrix.ravel(order="F").reshape(placed.matrix.shape)
            return placed


class TestKeepsViewsOfTheFile(Contract):
    __test__ = True
    caught_by = "test_a_placed_weight_owes_nothing_to_its_source"

    class implementation(Numpy):
        def place(self, weight, spec, quantizer):
            if weight.name.role == "embed":
                return weight.parts[0]
            return super().place(weight, spec, quantizer)


class TestForgetsTheResidual(Contract):
    __test__ = True
    caught_by = "test_linear_add"

    class implementation(Numpy):
        def linear_add(self, x, weight, residual):
            return x @ weight.matrix.T


class TestGatesTheSecondHalf(Contract):
    __test__ = True
    caught_by = "test_gate_up"

    class implementation(Numpy):
        def gate(self, both):
            return reference.gated(np.roll(both, both.shape[1] // 2, axis=1))


class TestQuantizesNothing(Contract):
    __test__ = True
    caught_by = "test_a_quantized_linear_multiplies_by_the_unpacked_values"

    class implementation(Numpy):
        def place(self, weight, spec, quantizer):
            return super().place(weight, spec, None)


class TestQuantizesEveryRole(Contract):
    __test__ = True
    caught_by = "test_a_quantized_linear_multiplies_by_the_unpacked_values"

    class implementation(Numpy):
        def place(self, weight, spec, quantizer):
            if quantizer is not None:
                quantizer.roles |= {weight.name.role}
            return super().place(weight, spec, quantizer)


class TestJoinsBeforeItPacks(Contract):
    __test__ = True
    caught_by = "test_a_quantizer_gets_one_part_at_a_time"

    class implementation(Numpy):
        def place(self, weight, spec, quantizer):
            return super().place(type(weight)(weight.name, (np.concatenate(weight.parts),)), spec, quantizer)


class TestPacksAgain(Contract):
    __test__ = True
    caught_by = "test_a_weight_that_comes_packed_is_placed_as_it_is"

    class implementation(Numpy):
        def place(self, weight, spec, quantizer):
            if weight.packed is not None:
                weight = type(weight)(weight.name, (quantizer.unpack(weight.packed),))
            return super().place(weight, spec, quantizer)


class TestBeginsABlockWithEachPart(Contract):
    __test__ = True
    caught_by = "test_rows_that_belong_together_are_packed_together"

    class implementation(Numpy):
        def place(self, weight, spec, quantizer):
            if quantizer is None or weight.name.role not in quantizer.roles:
                return super().place(weight, spec, quantizer)
            packed = [quantizer.pack(np.asarray(part, dtype=np.float32)) for part in weight.parts]
            values = np.concatenate([quantizer.unpack(part) for part in packed])
            return NumpyLinear(weight.name.role, values, sum(part.nbytes for part in packed))


class TestRotatesTheOtherWay(Contract):
    __test__ = True
    caught_by = "test_qkv_and_attention_over_pages"

    class implementation(Numpy):
        def rotate(self, x, step):
            return reference.rotate(x, -step.batch.positions, step.spec).astype(np.float32)


class TestAllSequencesShareTheFirstTable(Contract):
    __test__ = True
    caught_by = "test_qkv_and_attention_over_pages"

    class implementation(Numpy):
        def slots(self, batch, row, size):
            return super().slots(batch, 0, size)[: batch.context_lens[row]]


class TestSeesTheFuture(Contract):
    __test__ = True
    caught_by = "test_qkv_and_attention_over_pages"

    class implementation(Numpy):
        def attend(self, q, k, v):
            return np.concatenate([reference.attend(q[row : row + 1], k, v) for row in range(len(q))])


class TestForgetsTheScale(Contract):
    __test__ = True
    caught_by = "test_the_whole_decoder"

    class implementation(Numpy):
        def attend(self, q, k, v):
            return reference.attend(q * 4.0, k, v)


class TestAlwaysTheLastToken(Contract):
    __test__ = True
    caught_by = "test_logits_are_those_of_the_rows_asked_for"

    class implementation(Numpy):
        def wanted(self, step):
            return step.batch.query_starts[1:] - 1


class TestReadsWholePages(Contract):
    __test__ = True
    caught_by = "test_old_contents_of_a_page_do_not_shine_through"

    class implementation(Numpy):
        def attention(self, q, kv, layer, step):
            batch = step.batch
            batch.context_lens = -(-batch.context_lens // kv.page_size) * kv.page_size
            return super().attention(q, kv, layer, step)

        def attend(self, q, k, v):
            return reference.attend(q, k, v)


class TestMixesTheBatch(Contract):
    __test__ = True
    caught_by = "test_a_sequence_alone_equals_itself_in_a_batch"

    class implementation(Numpy):
        def embed(self, table, step):
            rows = super().embed(table, step)
            return rows + 0.1 * rows.mean(axis=0)


class TestBansFirst(Contract):
    __test__ = True
    caught_by = "test_adjust"

    class implementation(Numpy):
        def adjust(self, logits, changes):
            logits[changes.banned_rows, changes.banned_tokens] = 0
            changes.banned_rows, changes.banned_tokens = changes.banned_rows[:0], changes.banned_tokens[:0]
            return super().adjust(logits, changes)


class TestPenalizesTheUnseen(Contract):
    __test__ = True
    caught_by = "test_adjust"

    class implementation(Numpy):
        def adjust(self, logits, changes):
            changes.seen_counts = np.maximum(changes.seen_counts, 1)
            return super().adjust(logits, changes)


class TestPenaltiesBeforeTheBias(Contract):
    __test__ = True
    caught_by = "test_adjust"

    class implementation(Numpy):
        def adjust(self, logits, changes):
            bias = dict(zip(zip(changes.bias_rows, changes.bias_tokens, strict=True), changes.bias_values, strict=True))
            changes.bias_rows, changes.bias_tokens, changes.bias_values = (
                column[:0] for column in (changes.bias_rows, changes.bias_tokens, changes.bias_values)
            )
            logits = super().adjust(logits, changes)
            return super().adjust(logits, adjustment(len(logits), bias=bias))


class TestAddsNoise(Contract):
    __test__ = True
    caught_by = "test_an_empty_adjustment_changes_nothing"

    class implementation(Numpy):
        def adjust(self, logits, changes):
            return super().adjust(logits, changes) + np.float32(1e-3)


class TestLastOfEquals(Contract):
    __test__ = True
    caught_by = "test_argmax_takes_the_lowest_id_among_equals"

    class implementation(Numpy):
        def argmax(self, logits):
            return logits.shape[1] - 1 - logits[:, ::-1].argmax(axis=1)


class TestCloneIsAView(Contract):
    __test__ = True
    caught_by = "test_clone_is_a_copy"

    class implementation(Numpy):
        def clone(self, array):
            return array.view()


class TestRanksFromOne(Contract):
    __test__ = True
    caught_by = "test_logprobs"

    class implementation(Numpy):
        def logprobs(self, logits, token_ids, most):
            logprob, rank, ids, top = super().logprobs(logits, token_ids, most)
            return logprob, rank + 1, ids, top


class TestWorstFirst(Contract):
    __test__ = True
    caught_by = "test_logprobs"

    class implementation(Numpy):
        def logprobs(self, logits, token_ids, most):
            logprob, rank, ids, top = super().logprobs(logits, token_ids, most)
            return logprob, rank, ids[:, ::-1], top[:, ::-1]


class Static(Step, StaticStep):
    """Numpy needs no padding: what is there is what was filled in."""

    def __init__(self, shape, spec, page_size):
        empty = PagedSequences(1, page_size).step({0: []}, logits="none")
        none = {"query_starts": empty.query_starts[:1], "context_lens": empty.context_lens[:0]}
        super().__init__(replace(empty, **none), spec, page_size)
        self.shape = shape

    def fill(self, step):
        self.batch = step.batch


class WithStaticSteps(Numpy):
    static = Static

    def upload(self, batch, spec, kv):
        step = super().upload(batch, spec, kv)
        step.shape = batch.shape
        return step

    def static_step(self, shape, spec, kv):
        return self.static(shape, spec, kv.page_size)


class TestSoundWithStaticSteps(Contract):
    __test__ = True
    implementation = WithStaticSteps


class TestFillsAStaticStepOnce(Contract):
    __test__ = True
    caught_by = "test_static_steps_are_what_they_are_filled_with"

    class implementation(WithStaticSteps):
        class static(Static):
            def fill(self, step):
                if not self.batch.num_tokens:
                    super().fill(step)


class TestAttendsToTheStepAloneInMixedSteps(Contract):
    __test__ = True
    caught_by = "test_static_steps_are_what_they_are_filled_with"

    class implementation(WithStaticSteps):
        class static(Static):
            def fill(self, step):
                super().fill(step)
                if self.shape.kind == "mixed":
                    self.batch = replace(self.batch, context_lens=np.diff(self.batch.query_starts).astype(np.int32))


class Following(WithStaticSteps):
    """Launches a step whose tokens it may not know, and leaves the next one behind it."""

    ahead = True
    lastly = 0

    class static(Static):
        ahead = 0

        def advance(self, tokens):
            if self.shape.kind != "decode":
                return False
            batch, size = self.batch, self.page_size
            positions = batch.positions + 1
            pages = np.pad(batch.page_table, ((0, 0), (0, 1)))[np.arange(len(positions)), (positions + self.ahead) // size]
            self.batch = replace(
                batch,
                token_ids=tokens[: len(positions)].astype(np.int32),
                positions=positions,
                slots=pages.astype(np.int64) * size + positions % size,
                context_lens=batch.context_lens + 1,
                sampling=replace(batch.sampling, positions=batch.sampling.positions + 1),
            )
            return True

    def follow(self, step, tokens):
        ids = step.batch.token_ids.copy()
        ids[ids < 0] = tokens[self.lastly - 1 - ids[ids < 0]]
        step.batch = replace(step.batch, token_ids=ids)


class TestSoundAndAhead(Contract):
    __test__ = True
    implementation = Following


class TestFollowsAnotherRow(Contract):
    __test__ = True
    caught_by = "test_a_step_may_follow_tokens_that_only_the_device_knows"

    class implementation(Following):
        lastly = -1


class TestAdvancesIntoTheNextPage(Contract):
    __test__ = True
    caught_by = "test_a_static_step_advances_to_the_one_that_follows"

    class implementation(Following):
        class static(Following.static):
            ahead = 1


class TestFetchesLate(Contract):
    __test__ = True
    caught_by = "test_fetched_arrays_are_as_they_were"

    class implementation(Numpy):
        def adjust(self, logits, adjustment):
            logits[:] = super().adjust(logits, adjustment)
            return logits

        def fetch(self, arrays):
            return lambda: arrays
