"""How projections are divided among programs: the data that is shipped, and other widths than it was found for."""

import pytest

from core.compute.torch_backend.triton.tiling import HELD, LANES, TILE, WARPS, power_of_two, tiling, ways

ROLES = ("qkv", "o", "gate_up", "down", "head")


def most_tokens(format, role):
    return max(int(key) for key in ways()[format][role] if key.isdigit())


def test_what_is_shipped_has_every_role_and_packed_weights_are_not_unpacked_for_a_tile_of_tokens():
    for format, roles in ways().items():
        assert set(roles) == set(ROLES)
        assert all(most_tokens(format, role) >= (4 if format == "fp8" else TILE) for role in ROLES)


@pytest.mark.parametrize("format", ["16", "8", "4", "fp8"])
@pytest.mark.parametrize("role", ROLES)
def test_there_is_a_way_for_every_width(format, role):
    most = most_tokens(format, role)
    for tokens in range(1, most + 1):
        for columns in (24, 64, 1024, 3072, 14_336, 60_000):
            for value_bytes in (2, 4):
                way = tiling(role, tokens, columns, format, value_bytes)
                pairs = 2 if role in ("qkv", "gate_up") else 1
                held = way.outputs * pairs * columns * value_bytes / (4 * LANES * way.warps)
                assert way.rows >= tokens or (way.dot and way.rows % TILE == 0)
                assert way.columns == power_of_two(way.columns) >= LANES
                assert (way.dot and not way.held) or held <= HELD, "registers are left for what the weights are multiplied by"
                assert not way.held or (way.columns // way.warps >= TILE and way.warps <= WARPS and value_bytes == 2)
                assert not way.early or value_bytes == 2
    assert tiling(role, most + 1, 1024, format) is None


def test_the_model_it_was_found_for_takes_it_as_it_is():
    for format, roles in ways().items():
        for role, row in roles.items():
            for tokens, given in row.items():
                if tokens.isdigit():
                    way = tiling(role, int(tokens), row["columns"], format)
                    assert (way.outputs, way.columns, way.warps) == (given["outputs"], given["take"], given["warps"])
                    assert (way.held, way.dot) == (given["way"] == "held", given["way"] != "sums")
