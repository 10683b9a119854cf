"""What each rank holds of every weight: together the whole, and the same products."""

from dataclasses import replace

import numpy as np
import pytest

from core.errors import UserError
from core.interfaces.model import Weight, WeightName
from core.interfaces.quantizer import Quantizer
from core.models.shard import Shard, divides
from core.testing.fakes import BlockInt8, RowInt8
from core.testing.inputs import random_weights, tiny_spec

SPLITS = {
    "a key/value head each": (2, tiny_spec()),
    "two ranks a key/value head": (4, tiny_spec()),
    "every rank the one key/value head": (4, tiny_spec(num_kv_heads=1)),
    "tables that do not divide": (2, tiny_spec(vocab=97, tied_head=False)),
    "a rank without any of the tables": (4, tiny_spec(vocab=9)),
}
SPLIT = pytest.mark.parametrize(("ranks", "spec"), SPLITS.values(), ids=SPLITS.keys())
ALL = frozenset({"qkv", "o", "gate_up", "down", "head"})


def shards(spec, ranks, name, quantizer=None, weights=None):
    """Each rank's part of one weight."""
    whole = (weights or random_weights(spec))[name]
    cut = []
    for rank in range(ranks):
        shard = Shard(spec, rank, ranks)
        (weight,) = shard.weights([whole], quantizer)
        assert weight.name == name
        assert weight.tied == whole.tied
        cut.append((shard.spec, weight))
    return np.concatenate(whole.parts), cut


def stacked(spec, weight, quantizer=None):
    values = np.concatenate(weight.parts) if weight.packed is None else quantizer.unpack(weight.packed)
    assert values.shape == spec.shape(weight.name.role)
    return values


@SPLIT
@pytest.mark.parametrize("quantizer", [None, RowInt8(ALL)], ids=["plain", "packed"])
def test_partial_products_make_the_product(ranks, spec, quantizer):
    for role in ("o", "down"):
        whole, cut = shards(spec, ranks, WeightName(role, 1), quantizer)
        if quantizer is not None:
            whole = quantizer.unpack(quantizer.pack(whole))
        x = np.random.default_rng(1).standard_normal((3, whole.shape[1]))
        parts = np.split(x, ranks, axis=1)
        partial = [part @ stacked(*each, quantizer).T for part, each in zip(parts, cut, strict=True)]
        assert np.allclose(sum(partial), x @ whole.T, atol=1e-12)
        assert np.array_equal(np.concatenate([stacked(*each, quantizer) for each in cut], axis=1), whole)


@SPLIT
def test_tables_are_ranges_of_the_vocabulary_and_zeros_behind_it(ranks, spec):
    for name in (WeightName("embed"), WeightName("head")):
        whole, cut = shards(spec, ranks, name)
        held = np.concatenate([stacked(*each) for each in cut])
        assert np.array_equal(held[: len(whole)], whole)
        assert not held[len(whole) :].any()
        assert len({own.vocab for own, _ in cut}) == 1


@SPLIT
def test_ranks_have_their_heads_and_the_keys_these_look_at(ranks, spec):
    whole, cut = shards(spec, ranks, WeightName("qkv", 0))
    dim, each = spec.head_dim, spec.num_heads // ranks
    q, k, v = np.split(whole, [spec.q_width, spec.q_width + spec.kv_width])
    for rank, (own, weight) in enumerate(cut):
        assert (own.num_heads, own.num_kv_heads) == (each, max(1, spec.num_kv_heads // ranks))
        assert own.head_dim == dim
        own_q, own_k, own_v = weight.parts
        for head in range(each):
            number = rank * each + head
            key = number // (spec.num_heads // spec.num_kv_heads)  # the one it looks at in the whole
            own_key = head // (own.num_heads // own.num_kv_heads)
            for held, of_whole, here, there in ((own_q, q, head, number), (own_k, k, own_key, key), (own_v, v, own_key, key)):
                assert np.array_equal(held[here * dim : (here + 1) * dim], of_whole[there * dim : (there + 1) * dim])


@SPLIT
def test_gate_and_up_keep_the_columns_that_down_multiplies(ranks, spec):
    whole, cut = shards(spec, ranks, WeightName("gate_up", 0))
    gates, ups = zip(*(weight.parts for _, weight in cut), strict=True)
    assert np.array_equal(np.concatenate([*gates, *ups]), whole)


def test_norms_are_whole_everywhere():
    whole, cut = shards(tiny_spec(), 2, WeightName("norm", 0, "input"))
    assert all(np.array_equal(weight.parts[0], whole) for _, weight in cut)


def test_one_rank_has_the_weights_as_they_are():
    spec = tiny_spec()
    weights = list(random_weights(spec).values())
    assert list(Shard(spec, 0, 1).weights(weights, RowInt8())) == weights
    assert Shard(spec, 0, 1).spec == spec


def test_parts_stored_the_other_way_round_are_cut_without_a_copy():
    spec = tiny_spec()
    weights = random_weights(spec)
    for role in ("qkv", "o"):
        name = WeightName(role, 0)
        stored = [np.ascontiguousarray(part.T) for part in weights[name].parts]
        turned = {name: replace(weights[name], parts=tuple(part.T for part in stored))}
        _, straight = shards(spec, 2, name, weights=weights)
        _, cut = shards(spec, 2, name, weights=turned)
        for (own, weight), (_, expected) in zip(cut, straight, strict=True):
            assert np.array_equal(stacked(own, weight), stacked(own, expected))
            assert all(np.shares_memory(part, kept) for part, kept in zip(weight.parts, stored, strict=True))


# --- packed ---------------------------------------------------------------------------------------------------------------


@SPLIT
@pytest.mark.parametrize("role", ["qkv", "o", "gate_up", "down", "head"])
def test_what_was_saved_packed_is_cut_as_it_is(ranks, spec, role):
    quantizer = RowInt8(ALL)
    name = WeightName(role, None if role == "head" else 0)
    weights = random_weights(spec)
    whole = quantizer.pack(np.concatenate(weights[name].parts))
    saved = {name: Weight(name, (), packed=whole)}
    unpacked = Weight(name, quantizer_parts(quantizer.unpack(whole), weights[name]))
    for rank in range(ranks):
        shard = Shard(spec, rank, ranks)
        (packed,) = shard.weights([saved[name]], quantizer)
        (expected,) = shard.weights([unpacked], None)
        assert np.array_equal(stacked(shard.spec, packed, quantizer), stacked(shard.spec, expected))


def quantizer_parts(values, weight):
    ends = np.cumsum([len(part) for part in weight.parts])[:-1]
    return tuple(np.split(values, ends))


class Uncut(RowInt8):
    """One that does not say how its columns are cut."""

    columns = Quantizer.columns


def test_columns_of_a_format_that_cannot_be_cut_are_packed_by_themselves():
    spec = tiny_spec()
    whole, cut = shards(spec, 2, WeightName("o", 0), Uncut(ALL))
    assert all(weight.packed is None for _, weight in cut)
    assert np.array_equal(np.concatenate([stacked(*each) for each in cut], axis=1), whole)


def test_what_was_saved_in_such_a_format_is_refused():
    name = WeightName("o", 0)
    saved = Weight(name, (), packed=Uncut(ALL).pack(random_weights(tiny_spec())[name].parts[0]))
    with pytest.raises(UserError) as refused:
        list(Shard(tiny_spec(), 0, 2).weights([saved], Uncut(ALL)))
    assert str(refused.value) == (
        "layers.0.o was saved packed as fake_int8, which cannot be cut where 2 ranks part\n"
        "  remedy: serve it on one rank\n"
        "  remedy: start from a checkpoint that is not packed"
    )


def test_saved_rows_that_share_a_scale_are_refused_where_ranks_would_part_them():
    name = WeightName("gate_up", 0)
    whole = BlockInt8(ALL).pack(np.concatenate(random_weights(tiny_spec())[name].parts))
    with pytest.raises(UserError, match="saved packed as fake_block_int8, which cannot be cut"):
        list(Shard(tiny_spec(), 1, 2).weights([Weight(name, (), packed=whole)], BlockInt8(ALL)))


@pytest.mark.parametrize(
    ("ranks", "fits"), [(1, True), (2, True), (3, False), (4, True), (8, False)], ids=["1", "2", "3", "4", "8"]
)
def test_what_divides(ranks, fits):
    assert divides(tiny_spec(), ranks) == fits
    assert not divides(tiny_spec(intermediate=63), 2)
    assert not divides(tiny_spec(num_heads=6, num_kv_heads=4), 6)
