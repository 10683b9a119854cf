"""Run by the tests in an interpreter of its own: prints by which instructions the product of fp8 multiplies."""

import re
import sys

from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

from core.compute.torch_backend import fp8_kernel

POINTERS = {"x": "*fp8e4nv", "by_token": "*fp32", "codes": "*fp8e4nv", "scales": "*fp32", "out": "*bf16"}
ALIGNED = {(argument,): [["tt.divisibility", 16]] for argument in range(5)}
SHARED = {89: 101_376, 90: 232_448}  # bytes a program may have, by capability


def made(kernel, capability, signature, constants, **options):
    source = ASTSource(kernel, signature | dict.fromkeys(constants, "constexpr"), constexprs=constants, attrs=ALIGNED)
    return compile(source, target=GPUTarget("cuda", capability, 32), options=options)


for capability, room in SHARED.items():
    quantize = {"x": "*bf16", "stride": "i32", "codes": "*fp8e4nv", "scales": "*fp32", "columns": "i32", "groups": "i32"}
    rounding = made(fp8_kernel._quantize, capability, quantize, {"COUNT": fp8_kernel.GROUPS}, enable_fp_fusion=False)
    assert "fma." not in rounding.asm["ptx"], "a multiplication was fused with the addition that rounds"
    for tokens in (16, 4096):
        many, rows, warps, stages = fp8_kernel.tile(tokens)
        constants = {"COLUMNS": 1024, "TOKENS": many, "ROWS": rows}
        sizes = {"tokens": "i32", "rows": "i32"}
        product = made(fp8_kernel._multiply, capability, POINTERS | sizes, constants, num_warps=warps, num_stages=stages)
        assert product.metadata.shared <= room
        found = set(re.findall(r"(?:mma\.sync|wgmma\.mma_async|tcgen05\.mma)[\w.:]*", product.asm["ptx"]))
        eight = all("e4m3" in name or "f8f6f4" in name for name in found)
        sys.stdout.write(f"{capability} {tokens} {'e4m3' if found and eight else 'wider'}\n")
