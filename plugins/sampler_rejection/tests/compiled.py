"""Run by the tests in an interpreter of its own: the kernel through Triton's compiler, which needs no device."""

import sys

from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

from sampler_rejection import kernel

arguments = {"logits": "*fp32", "stride": "i32", "columns": "*fp64", "whole": "*i64", "tokens": "*i64", "count": "i32"}
source = ASTSource(
    kernel._sample,
    {**arguments, "vocab": "constexpr", "WIDTH": "constexpr"},
    constexprs={"vocab": 103_424, "WIDTH": kernel.WIDTH},
)
sys.stdout.write(str(len(compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 8}).asm["cubin"])))
