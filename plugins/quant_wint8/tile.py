# ruff: noqa: ANN001, ANN201, ANN202, N803 - arguments are pointers and scalars of Triton, constants are in capitals
# mypy: disable-error-code="no-untyped-def,untyped-decorator,no-untyped-call"
"""The format as fused kernels of a CUDA device read it."""

import triton  # type: ignore[import-untyped, import-not-found, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, import-not-found, unused-ignore]

INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))


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
def tile(codes, scale, output, is_output, start, IN: tl.constexpr, COLUMNS: tl.constexpr, GROUP: tl.constexpr):
    column = start + tl.arange(0, COLUMNS)
    place = codes + output.to(tl.int64)[:, None] * IN + column[None, :]
    steps = tl.load(place, mask=is_output[:, None] & (column < IN)[None, :], other=0)
    return _steps(steps) * tl.load(scale + output, mask=is_output, other=0.0)[:, None]
