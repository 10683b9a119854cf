# ruff: noqa: ANN001, ANN201, ANN202, N803, N806 - arguments are pointers and scalars of Triton, constants are in capitals
# mypy: disable-error-code="no-untyped-def,untyped-decorator,no-untyped-call,misc,assignment"
"""Rows of a weight times a few tokens, in a kernel: as sums of products, or by tensor cores.

All of a program's weights are asked for before the kernel before has ended, and stay in registers. Sums: one token after the
other is multiplied by them. Tensor cores: tokens are rows of one tile, and each warp takes a part of the columns, so that a few
rows of a weight keep several warps busy. More tokens than that leave no room for weights, which are read as they are needed.
"""

from __future__ import annotations

import triton  # type: ignore[import-untyped, import-not-found, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, import-not-found, unused-ignore]

from core.compute.torch_backend.triton.arithmetic import INTERPRETED, await_kernel_before, multiply


@triton.jit
def fetched(weight, more, output, outputs, IN: tl.constexpr, COLUMNS: tl.constexpr, TILE: tl.constexpr, GROUP: tl.constexpr):
    """These rows of the weight, COLUMNS at a time.

    Sums are of one row at a time: then a lane has the same columns of every row and of the token, as many as it reads at once.
    """
    tiles = ()
    for start in tl.static_range(0, IN, COLUMNS):
        tiles = tiles + (TILE(weight, more, output, output < outputs, start, IN, COLUMNS, GROUP),)  # noqa: RUF005 - for Triton
    return tiles


@triton.jit
def _rounded(x, dtype: tl.constexpr):
    """Two at a time, where a compiler that loses sight of pairs would take the slow way."""
    if not INTERPRETED and x.dtype == tl.float32 and dtype == tl.bfloat16:
        x = tl.inline_asm_elementwise("cvt.rn.bf16x2.f32 $0, $2, $1;", "=r,r,r", [x], dtype=tl.bfloat16, is_pure=True, pack=2)
    return x.to(dtype)


@triton.jit
def unpacked(rows, seal, dtype: tl.constexpr, OUTPUTS: tl.constexpr, COUNT: tl.constexpr, EARLY: tl.constexpr):
    """The values of these rows; EARLY: as ``dtype``, of 16 bits, and before ``await_sealed`` of the seal is passed."""
    if EARLY:
        values = ()
        for number in tl.static_range(OUTPUTS):
            row = ()
            for part in tl.static_range(COUNT):
                tile = _rounded(rows[number][part], dtype)
                if not INTERPRETED:
                    seal = tl.inline_asm_elementwise(
                        "xor.b32 $0, $1, $2;",
                        "=r,r,r",
                        [seal, tile.to(tl.int16, bitcast=True)],
                        dtype=tl.int16,
                        is_pure=True,
                        pack=2,
                    )
                row = row + (tile,)  # noqa: RUF005 - for Triton
            values = values + (row,)  # noqa: RUF005 - for Triton
        rows = values
    return rows, seal


@triton.jit
def await_sealed(seal, EARLY: tl.constexpr, OVERLAP: tl.constexpr):
    """``await_kernel_before``, not until everything is known that went into the seal. Compilers would put it off."""
    if EARLY and OVERLAP:
        tl.inline_asm_elementwise(
            "{ .reg .pred known; .reg .b32 all; xor.b32 all, $2, $3; setp.ne.b32 known, all, 1;"
            "@known griddepcontrol.wait; @!known griddepcontrol.wait; mov.b32 $0, all; mov.b32 $1, all; }",
            "=r,=r,r,r", [seal], dtype=tl.int16, is_pure=False, pack=4,
        )  # fmt: skip
    else:
        await_kernel_before(OVERLAP)


@triton.jit
def scales(norm, IN: tl.constexpr, COLUMNS: tl.constexpr):
    """Of a norm, COLUMNS at a time."""
    parts = ()
    for start in tl.static_range(0, IN, COLUMNS):
        column = start + tl.arange(0, COLUMNS)[None, :]
        parts = parts + (tl.load(norm + column, mask=column < IN, other=0.0),)  # noqa: RUF005 - for Triton
    return parts


@triton.jit
def token_of(x, is_token, norms, EPS: tl.constexpr, IN: tl.constexpr, COLUMNS: tl.constexpr, NORMED: tl.constexpr,
             ROUND: tl.constexpr):  # fmt: skip
    """A token's columns in float32, and the factor that sums of their products still lack."""
    read = ()
    squares = tl.zeros([1, COLUMNS], tl.float32)
    for start in tl.static_range(0, IN, COLUMNS):
        column = start + tl.arange(0, COLUMNS)[None, :]
        values = tl.load(x + column, mask=(column < IN) & is_token, other=0.0).to(tl.float32)
        if NORMED:
            squares += values * values
        read = read + (values,)  # noqa: RUF005 - for Triton
    factor = tl.full([1], 1.0, tl.float32)
    if NORMED:
        factor = tl.rsqrt(tl.sum(squares, 1) / IN + EPS)
    columns = ()
    for number in tl.static_range((IN + COLUMNS - 1) // COLUMNS):
        values = read[number]
        if NORMED:
            values = values * norms[number].to(tl.float32)
        if ROUND is not None:  # what is rounded hangs on how large it is
            values = ROUND((values * factor[:, None]).to(x.dtype.element_ty).to(tl.float32))
        columns = columns + (values,)  # noqa: RUF005 - for Triton
    if ROUND is not None:
        factor = tl.full([1], 1.0, tl.float32)
    return columns, factor


@triton.jit
def summed(columns, factor, tiles, COLUMNS: tl.constexpr, COUNT: tl.constexpr):
    """float32 [1]"""
    total = tl.zeros([1, COLUMNS], tl.float32)
    for number in tl.static_range(COUNT):
        total += columns[number] * tiles[number].to(tl.float32)
    return tl.sum(total, 1) * factor


@triton.jit
def inverse_rms(x, row, is_row, EPS: tl.constexpr, IN: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    squares = tl.zeros([ROWS], tl.float32)
    for start in tl.static_range(0, IN, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        mask = is_row[:, None] & (column < IN)[None, :]
        values = tl.load(x + row[:, None] * IN + column[None, :], mask=mask, other=0.0).to(tl.float32)
        squares += tl.sum(values * values, 1)
    return tl.rsqrt(squares / IN + EPS)


@triton.jit
def by_warp(values, ROWS: tl.constexpr, COLUMNS: tl.constexpr, WARPS: tl.constexpr):
    """[rows, columns] -> [warps, rows, columns of each]"""
    return tl.permute(tl.reshape(values, [ROWS, WARPS, COLUMNS // WARPS]), (1, 0, 2))


@triton.jit
def held(x, row, is_row, norms, tiles, more_tiles, EPS: tl.constexpr, IN: tl.constexpr, NORMED: tl.constexpr,
         ROWS: tl.constexpr, OUTPUTS: tl.constexpr, COLUMNS: tl.constexpr, PAIRED: tl.constexpr,
         WARPS: tl.constexpr):  # fmt: skip
    """Products of a tile of tokens with weights in registers: two of float32 [rows, outputs], the second only if PAIRED."""
    a = tl.zeros([WARPS, ROWS, OUTPUTS], tl.float32)
    b = tl.zeros([WARPS, ROWS, OUTPUTS], tl.float32)
    squares = tl.zeros([ROWS, COLUMNS], tl.float32)
    factor = tl.full([ROWS], 1.0, tl.float32)
    FIRST: tl.constexpr = NORMED and x.dtype.element_ty == tl.float16  # which has no room for what is not normed yet
    if FIRST:
        factor = inverse_rms(x, row, is_row, EPS, IN, ROWS, COLUMNS)
    for number in tl.static_range((IN + COLUMNS - 1) // COLUMNS):
        column = number * COLUMNS + tl.arange(0, COLUMNS)
        mask = is_row[:, None] & (column < IN)[None, :]
        values = tl.load(x + row[:, None] * IN + column[None, :], mask=mask, other=0.0)
        if NORMED:
            wide = values.to(tl.float32)
            if FIRST:
                wide = wide * factor[:, None]
            else:
                squares += wide * wide
            values = (wide * norms[number].to(tl.float32)).to(values.dtype)
        part = by_warp(values, ROWS, COLUMNS, WARPS)
        tile = by_warp(tiles[number].to(values.dtype), OUTPUTS, COLUMNS, WARPS)
        a = multiply(part, tl.permute(tile, (0, 2, 1)), a)
        if PAIRED:
            tile = by_warp(more_tiles[number].to(values.dtype), OUTPUTS, COLUMNS, WARPS)
            b = multiply(part, tl.permute(tile, (0, 2, 1)), b)
    total, total_b = tl.sum(a, 0), tl.sum(b, 0)
    if NORMED and not FIRST:
        factor = tl.rsqrt(tl.sum(squares, 1) / IN + EPS)[:, None]
        total, total_b = total * factor, total_b * factor
    return total, total_b


@triton.jit
def inputs(x, row, is_row, column, norm, inverse, IN: tl.constexpr, NORMED: tl.constexpr, ROUND: tl.constexpr):
    """[rows, columns], rounded as a norm's kernel of its own would round it."""
    values = tl.load(x + row[:, None] * IN + column[None, :], mask=is_row[:, None] & (column < IN)[None, :], other=0.0)
    if NORMED:
        scale = tl.load(norm + column, mask=column < IN, other=0.0).to(tl.float32)
        values = (values.to(tl.float32) * inverse[:, None] * scale[None, :]).to(values.dtype)
    if ROUND is not None:
        values = ROUND(values.to(tl.float32)).to(values.dtype)
    return values


@triton.jit
def ahead(norm, weight, more, output, outputs, IN: tl.constexpr, COLUMNS: tl.constexpr, NORMED: tl.constexpr,
          PARTS: tl.constexpr, TILE: tl.constexpr, GROUP: tl.constexpr):  # fmt: skip
    """What tensor cores need that no kernel of a step writes: these rows of the weight and the norm, if they are to be held."""
    tiles, norms = (), ()
    if PARTS:
        tiles = fetched(weight, more, output, outputs, IN, COLUMNS, TILE, GROUP)
        if NORMED:
            norms = scales(norm, IN, COLUMNS)
    return tiles, norms


@triton.jit
def tiled(x, row, is_row, norm, norms, weight, more, output, outputs, tiles, EPS: tl.constexpr, IN: tl.constexpr,
          NORMED: tl.constexpr, ROWS: tl.constexpr, OUTPUTS: tl.constexpr, COLUMNS: tl.constexpr, PARTS: tl.constexpr,
          TILE: tl.constexpr, GROUP: tl.constexpr, ROUND: tl.constexpr):  # fmt: skip
    """float32 [rows, outputs], by tensor cores"""
    if PARTS:
        total, _ = held(x, row, is_row, norms, tiles, (), EPS, IN, NORMED, ROWS, OUTPUTS, COLUMNS, False, PARTS)
    else:
        total = tl.zeros([ROWS, OUTPUTS], tl.float32)
        inverse = tl.zeros([ROWS], tl.float32)
        if NORMED:
            inverse = inverse_rms(x, row, is_row, EPS, IN, ROWS, COLUMNS)
        for start in range(0, IN, COLUMNS):
            column = start + tl.arange(0, COLUMNS)
            tile = TILE(weight, more, output, output < outputs, start, IN, COLUMNS, GROUP)
            values = inputs(x, row, is_row, column, norm, inverse, IN, NORMED, ROUND)
            total = multiply(values, tl.trans(tile.to(values.dtype)), total)
    return total


@triton.jit
def tiled_pairs(x, row, is_row, norm, norms, weight, more, first, second, outputs, tiles, more_tiles, EPS: tl.constexpr,
                IN: tl.constexpr, ROWS: tl.constexpr, OUTPUTS: tl.constexpr, COLUMNS: tl.constexpr, PARTS: tl.constexpr,
                TILE: tl.constexpr, GROUP: tl.constexpr, ROUND: tl.constexpr):  # fmt: skip
    """Two of float32 [rows, outputs], of normed rows."""
    if PARTS:
        a, b = held(x, row, is_row, norms, tiles, more_tiles, EPS, IN, True, ROWS, OUTPUTS, COLUMNS, True, PARTS)
    else:
        a = tl.zeros([ROWS, OUTPUTS], tl.float32)
        b = tl.zeros([ROWS, OUTPUTS], tl.float32)
        inverse = inverse_rms(x, row, is_row, EPS, IN, ROWS, COLUMNS)
        for start in range(0, IN, COLUMNS):
            column = start + tl.arange(0, COLUMNS)
            tile = TILE(weight, more, first, first < outputs, start, IN, COLUMNS, GROUP)
            tile_b = TILE(weight, more, second, second < outputs, start, IN, COLUMNS, GROUP)
            values = inputs(x, row, is_row, column, norm, inverse, IN, True, ROUND)
            a = multiply(values, tl.trans(tile.to(values.dtype)), a)
            b = multiply(values, tl.trans(tile_b.to(values.dtype)), b)
    return a, b
