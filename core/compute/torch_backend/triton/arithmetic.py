# ruff: noqa: ANN001, ANN201, N803 - a kernel's arguments are pointers and scalars of Triton
# mypy: disable-error-code="no-untyped-def,untyped-decorator,no-untyped-call,misc"
"""What kernels share."""

from __future__ import annotations

import triton  # type: ignore[import-untyped, import-not-found, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, import-not-found, unused-ignore]
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait  # type: ignore[import-untyped, import-not-found, unused-ignore]

INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))


@triton.jit
def multiply(a, b, total):
    """total + a b, with all of a float32's bits. The interpreter knows no products of bfloat16."""
    if INTERPRETED:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, total, input_precision="ieee")


@triton.jit
def bound(x):
    """``x`` for a loop. What the interpreter takes for a number is an array of one, which Python's range refuses."""
    if INTERPRETED:
        return x if isinstance(x, int) else x.handle.data.item()
    return x


@triton.jit
def let_kernel_behind_start(OVERLAP: tl.constexpr):
    """First of all: its programs are placed where there is room, and may ask for what no kernel of this step writes."""
    if OVERLAP:
        gdc_launch_dependents()


@triton.jit
def await_kernel_before(OVERLAP: tl.constexpr):
    """Nothing that a kernel of this step writes may be read, and nothing may be written, before this.

    Every program of a kernel that is placed early has to come by here: so whoever waits for the kernel before has waited for
    all before that one.
    """
    if OVERLAP:
        gdc_wait()
