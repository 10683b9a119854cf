"""Run by the tests in an interpreter of its own: kernels through Triton's compiler, which needs no device."""

import sys

from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

from core.compute.torch_backend.triton import attention, rope, static

SHAPE = {"SCALE": 0.1, "PAGE": 16, "KV_HEADS": 2, "GROUP": 8, "DIM": 128, "WIDE": 128}
ROPE = {"Q_WIDTH": 2048, "KV_WIDTH": 256, "DIM": 128, "ADJACENT": True}
KERNELS = [
    (attention._decode, SHAPE | {"ROWS": 16, "FEWEST": 128, "KEYS": 64}),
    (attention._prompt, SHAPE | {"HEADS": 8, "QUERIES": 16, "KEYS": 64}),
    (rope._rotate_and_write, ROPE | {"PAIRS": 2048}),
    (static._fill, {"WORDS": 256}),
]
FLOATS = {"turns": "*fp32", "mixed_parts": "*fp32", "score_parts": "*fp32"}
VALUES = ("q", "keys", "values", "out", "heads", "hidden", "weight", "norm", "x")
NUMBERS = ("pages", *static.SIZES)


def kind(name):
    return "*bf16" if name in VALUES else FLOATS.get(name, "i32" if name in NUMBERS else "*i32")


for kernel, constants in KERNELS:
    signature = {name: "constexpr" if name in constants else kind(name) for name in kernel.arg_names}
    source = ASTSource(kernel, signature, constexprs=constants)
    made = compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 8})
    sys.stdout.write(f"{len(made.asm['cubin']) > 0}\n")
