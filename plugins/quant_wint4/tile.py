# ruff: noqa: ANN001, ANN201, ANN202, N803, N806 - arguments are pointers and scalars of Triton, constants are in capitals
# mypy: disable-error-code="no-untyped-def,untyped-decorator,no-untyped-call"
"""The formats as fused kernels of a CUDA device read them: four bits in groups, and the head's eight bits a row."""

import triton  # type: ignore[import-untyped, import-not-found, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, import-not-found, unused-ignore]

INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))
LIFTED = tl.constexpr(136.0)  # what a code has in ``_lifted`` where a weight has none


@triton.jit
def _lifted(both):
    """The codes of even and of odd columns plus 128, in float32: a code is put where 128 has bits of its value."""
    if INTERPRETED:
        return (both & 15).to(tl.float32) + 128.0, (both >> 4).to(tl.float32) + 128.0
    return tl.inline_asm_elementwise(
        """{ .reg .b32 even, odd;
        and.b32 even, $8, 0x0f0f0f0f; shr.u32 odd, $8, 4; and.b32 odd, odd, 0x0f0f0f0f;
        prmt.b32 $0, even, 0x43, 0x4055; prmt.b32 $1, even, 0x43, 0x4155;
        prmt.b32 $2, even, 0x43, 0x4255; prmt.b32 $3, even, 0x43, 0x4355;
        prmt.b32 $4, odd, 0x43, 0x4055; prmt.b32 $5, odd, 0x43, 0x4155;
        prmt.b32 $6, odd, 0x43, 0x4255; prmt.b32 $7, odd, 0x43, 0x4355; }""",
        "=r,=r,=r,=r,=r,=r,=r,=r,r",
        [both],
        dtype=(tl.float32, tl.float32),
        is_pure=True,
        pack=4,
    )


@triton.jit
def _steps(codes):
    """int8 as float32. A device converts a quarter as fast as it puts a byte where 2**23 has bits of its value."""
    if INTERPRETED:
        return codes.to(tl.float32)
    return tl.inline_asm_elementwise(
        """{ .reg .b32 up;
        xor.b32 up, $4, 0x80808080;
        prmt.b32 $0, up, 0x4b, 0x4550; prmt.b32 $1, up, 0x4b, 0x4551;
        prmt.b32 $2, up, 0x4b, 0x4552; prmt.b32 $3, up, 0x4b, 0x4553;
        add.f32 $0, $0, 0fCB000080; add.f32 $1, $1, 0fCB000080;
        add.f32 $2, $2, 0fCB000080; add.f32 $3, $3, 0fCB000080; }""",
        "=r,=r,=r,=r,r",
        [codes],
        dtype=tl.float32,
        is_pure=True,
        pack=4,
    )


@triton.jit
def group_tile(codes, scale, output, is_output, start, IN: tl.constexpr, COLUMNS: tl.constexpr, GROUP: tl.constexpr):
    STORED: tl.constexpr = (IN + GROUP - 1) // GROUP * GROUP  # columns, the padding's included
    pair = start // 2 + tl.arange(0, COLUMNS // 2)
    row = output.to(tl.int64)[:, None]
    mask = is_output[:, None] & (pair < STORED // 2)[None, :]
    both = tl.load(codes + row * (STORED // 2) + pair[None, :], mask=mask, other=0x88)
    even, odd = _lifted(both)
    if COLUMNS % GROUP == 0:  # a scale is read once for all it scales
        group = start // GROUP + tl.arange(0, COLUMNS // GROUP)
        is_group = is_output[:, None] & (group < STORED // GROUP)[None, :]
        step = tl.load(scale + row * (STORED // GROUP) + group[None, :], mask=is_group, other=0.0).to(tl.float32)[:, :, None]
        even = tl.reshape(even, [output.shape[0], COLUMNS // GROUP, GROUP // 2])
        odd = tl.reshape(odd, [output.shape[0], COLUMNS // GROUP, GROUP // 2])
    elif GROUP % COLUMNS == 0:
        place = scale + output.to(tl.int64) * (STORED // GROUP) + start // GROUP
        step = tl.load(place, mask=is_output & (start < STORED), other=0.0).to(tl.float32)[:, None]
    else:
        # The two columns of a byte share their scale: groups are of even size.
        step = tl.load(scale + row * (STORED // GROUP) + (2 * pair // GROUP)[None, :], mask=mask, other=0.0).to(tl.float32)
    values = tl.interleave(even * step - LIFTED * step, odd * step - LIFTED * step)  # exact: a scale has 8 bits
    return tl.reshape(values, [output.shape[0], COLUMNS])


@triton.jit
def row_tile(codes, scale, output, is_output, start, IN: tl.constexpr, COLUMNS: tl.constexpr, GROUP: tl.constexpr):
    column = start + tl.arange(0, COLUMNS)
    place = codes + output.to(tl.int64)[:, None] * IN + column[None, :]
    steps = tl.load(place, mask=is_output[:, None] & (column < IN)[None, :], other=0)
    return _steps(steps) * tl.load(scale + output, mask=is_output, other=0.0)[:, None]
