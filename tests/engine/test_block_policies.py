"""What the block manager makes of a block policy: parts that keep to themselves, pages ahead, and everybody ends."""

import pytest

from kv_blocks.policies import PartitionedBlocks
from tests.engine.fake_runner import collect, drain, make_engine, request, tokens_of

TOTAL = 16


def engine_with(blocks, seqs=8, context=32, pages=TOTAL):
    return make_engine(seqs=seqs, context=context, pages=pages, page_size=4, budget=256, blocks=blocks)


def pages_of(engine):
    rows = engine._rows
    return sorted(rows.num_pages[rows.num_pages > 0].tolist())


def grown(engine):
    return int(engine._rows.num_grown.sum())


@pytest.mark.parametrize(("ratio", "growth"), [(0.5, 8), (0.75, 4), (1.0, 0)])
def test_neither_part_takes_from_the_other(ratio, growth):
    engine = engine_with(PartitionedBlocks(ratio, 0))
    part = int(TOTAL * ratio)
    for number in range(8):
        engine.add(request(f"r{number}", [number] * 8, max_tokens=6 + number, ignore_eos=True))
    events, most_grown, most_admitted = {}, 0, 0
    while engine.has_work:
        collect(events, engine.step())
        most_grown = max(most_grown, grown(engine))
        most_admitted = max(most_admitted, sum(pages_of(engine)) - grown(engine))
    assert (most_admitted, most_grown) == (part, growth)
    assert [len(tokens_of(events[f"r{number}"])) for number in range(8)] == [6 + number for number in range(8)]


def test_growth_that_is_used_up_preempts_though_the_prompts_part_has_pages_to_spare():
    engine = engine_with(PartitionedBlocks(0.875, 0), seqs=3)  # two pages to grow
    for number in range(3):
        engine.add(request(f"r{number}", [number] * 8, max_tokens=12))
    engine.step()
    assert (pages_of(engine), engine.stats().preemptions) == ([2, 2, 2], 0)
    engine.step()  # each wants a third page; the last is computed again instead, in the prompts' part
    assert (grown(engine), engine.stats().preemptions) == (2, 1)
    assert engine.stats().pages_free == TOTAL - 9
    drain(engine)


def test_pages_ahead_are_given_at_admission_and_never_beyond_the_end():
    engine = engine_with(PartitionedBlocks(0.75, 2))
    engine.add(request("long", [1] * 8, max_tokens=20))
    engine.add(request("short", [2] * 8, max_tokens=2))
    engine.step()
    assert pages_of(engine) == [3, 4]  # the short one's last token is never computed: 9 tokens, 3 pages
    assert grown(engine) == 0


def test_a_pool_without_a_growth_part_gives_everybody_the_same_tokens():
    found = []
    for blocks in (None, PartitionedBlocks(1.0, 0)):
        engine = engine_with(blocks, seqs=4, pages=8)
        for number in range(4):
            engine.add(request(f"r{number}", [number, 3, 5, 7, 9], max_tokens=20, ignore_eos=True))
        found.append({name: tokens_of(events) for name, events in drain(engine).items()})
    assert found[0] == found[1]
    assert {len(tokens) for tokens in found[0].values()} == {20}


def test_the_longest_request_is_what_the_prompts_part_holds():
    assert engine_with(PartitionedBlocks(0.5, 0), context=64, pages=10).limits.context == 20
