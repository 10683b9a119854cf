"""How projections are divided among programs: the data that is shipped, and other widths than it was found for."""

import json
from dataclasses import astuple, replace
from pathlib import Path

import pytest

from core.compute.torch_backend.triton import candidates, tables
from core.compute.torch_backend.triton.tiling import (
    HELD,
    LANES,
    TILE,
    WARPS,
    Way,
    Ways,
    division,
    fitted,
    power_of_two,
    tiling,
)

ROLES = ("qkv", "o", "gate_up", "down", "head")
SHIPPED = tables.shipped()
CHOICES = json.loads(Path(__file__).with_name("sm_90_choices.json").read_text())


def most_tokens(format, role):
    return SHIPPED.ways[format][role].rows[-1][0]


def test_what_is_shipped_has_every_role_and_packed_weights_are_not_unpacked_for_a_tile_of_tokens():
    for format, roles in SHIPPED.ways.items():
        assert set(roles) == set(ROLES)
        assert all(most_tokens(format, role) >= (4 if format == "fp8" else TILE) for role in ROLES)


@pytest.mark.parametrize("what", CHOICES)
def test_what_is_chosen_for_ernie_on_capability_9_is_what_was_measured(what):
    """Recorded when the table was found, for 1 to 600 tokens: [first number of tokens, the fields of the choice]."""
    role, _, rest = what.partition(" of ")
    columns, format, value_bytes = (part.removesuffix(" bytes") for part in rest.split(", ")) if rest else ("0", "", "0")
    runs = []
    for number in range(1, 601):
        if role == "attention":
            chosen = list(astuple(division(SHIPPED, number)))
        else:
            way = tiling(SHIPPED, role, number, int(columns), format, int(value_bytes))
            chosen = None if way is None else list(astuple(way))
        if not runs or runs[-1][1] != chosen:
            runs.append([number, chosen])
    assert runs == [[number, rest[0] if rest else None] for number, *rest in CHOICES[what]]


def test_what_is_shipped_for_attention_would_be_tried_where_another_table_is_in_force():
    for most, how in SHIPPED.attention:
        other = replace(SHIPPED, attention=((1, replace(how, keys=16, warps=16)),))
        assert how in candidates.divisions(other, most)


@pytest.mark.parametrize("format", ["16", "8", "4", "fp8"])
@pytest.mark.parametrize("role", ROLES)
def test_there_is_a_way_for_every_width(format, role):
    most = most_tokens(format, role)
    for tokens in range(1, most + 1):
        for columns in (24, 64, 1024, 3072, 14_336, 60_000):
            for value_bytes in (2, 4):
                way = tiling(SHIPPED, role, tokens, columns, format, value_bytes)
                pairs = 2 if role in ("qkv", "gate_up") else 1
                held = way.outputs * pairs * columns * value_bytes / (4 * LANES * way.warps)
                assert way.rows >= tokens or (way.dot and way.rows % TILE == 0)
                assert way.columns == power_of_two(way.columns) >= LANES
                assert (way.dot and not way.held) or held <= HELD, "registers are left for what the weights are multiplied by"
                assert not way.held or (way.columns // way.warps >= TILE and way.warps <= WARPS and value_bytes == 2)
                assert not way.early or value_bytes == 2
    assert tiling(SHIPPED, role, most + 1, 1024, format) is None


def test_the_model_it_was_found_for_takes_it_as_it_is():
    for format, roles in SHIPPED.ways.items():
        for role, ways in roles.items():
            for tokens, given in ways.rows:
                way = tiling(SHIPPED, role, tokens, ways.columns, format)
                assert (way.outputs, way.columns, way.warps) == (given.outputs, given.take, given.warps)
                assert (way.held, way.dot) == (given.way == "held", given.way != "sums")


@pytest.mark.parametrize("value_bytes", [2, 4])
@pytest.mark.parametrize("format", ["16", "4", "fp8"])
def test_a_candidate_that_is_written_down_is_divided_as_it_was_tried(format, value_bytes):
    for role in ROLES:
        for columns in (64, 1024, 14_336):
            for tokens in (1, 4, 16, 33, 64):
                present = tiling(SHIPPED, role, tokens, columns, format, value_bytes)
                tried = candidates.ways(SHIPPED, role, tokens, columns, format, value_bytes)
                divided = [fitted(way, columns, role, tokens, columns, value_bytes) for way in tried]
                assert divided[0] == present, "what is in force is tried first, and is what it is"
                assert len(set(divided)) == len(divided)
                assert None in divided, "kernels for many tokens are tried against"
                roles = {**SHIPPED.ways[format], role: Ways(columns, ((tokens, tried[-1]),))}
                table = replace(SHIPPED, ways={**SHIPPED.ways, format: roles})
                _, again = tables.parsed(tables.written(tables.Found("x", "9.0"), table), "")
                assert tiling(again, role, tokens, columns, format, value_bytes) == divided[-1]


def test_a_row_may_leave_it_to_kernels_for_many_tokens():
    rows = ((4, Way("library")), (8, Way("read", 16, 128)))
    table = replace(SHIPPED, ways={"16": {"o": Ways(64, rows)}})
    assert tiling(table, "o", 3, 64, "16") is None
    assert tiling(table, "o", 5, 64, "16").outputs == 16
