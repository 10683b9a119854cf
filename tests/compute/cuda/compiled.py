"""Run by the tests in an interpreter of its own: kernels through Triton's compiler, which needs no device."""

import sys

from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

from core.compute.torch_backend.triton import attention, few_rows, gate, likeliest, norm, packed, rope, segmented, static, step
from core.compute.torch_backend.triton.eight import block_tile, by_block
from core.compute.torch_backend.triton.tables import fixed_tiling, shipped
from core.compute.torch_backend.triton.tiling import tiling
from quant_wint4.tile import group_tile
from quant_wint8.tile import tile as row_tile

SHAPE = {"SCALE": 0.1, "PAGE": 16, "KV_HEADS": 2, "GROUP": 8, "DIM": 128, "WIDE": 128}
ROPE = {"Q_WIDTH": 2048, "KV_WIDTH": 256, "DIM": 128, "ADJACENT": True}


def projections(tokens, format="16", tile=packed.plain_tile, group=0, rounding=None):
    """As they are launched for ERNIE-4.5-0.3B, programs placed early; for no number of tokens, as in deterministic mode."""
    for role, kernel, constants in (
        ("qkv", few_rows._qkv, ROPE | {"IN": 1024, "PAIRS": 1280}),
        ("down", few_rows._linear_add, {"IN": 3072, "OUT": 1024}),
        ("gate_up", few_rows._gate_up, {"IN": 1024, "OUT": 3072}),
        ("head", few_rows._logits, {"IN": 1024, "OUT": 103_424, "CHOSEN": False}),
    ):
        way = tiling(shipped(), role, tokens, constants["IN"], format) if tokens else fixed_tiling(role, constants["IN"])
        yield kernel, {"EPS": 1e-5, "TILE": tile, "GROUP": group, "ROUND": rounding} | constants | way.constants, way.options


KERNELS = [
    (attention._decode, SHAPE | {"ROWS": 16, "FEWEST": 64, "KEYS": 64, "TOGETHER": 4, "OVERLAP": True}, {"num_warps": 8}),
    (attention._prompt, SHAPE | {"HEADS": 8, "QUERIES": 16, "KEYS": 64}, {"num_warps": 8}),
    (
        likeliest._likeliest,
        {
            "logits": "*fp32",
            "found": "*i64",
            "tokens": "*i64",
            "VOCAB": 9000,
            "WIDTH": 4096,
            "PARTS": 3,
            "BLOCK": 4,
            "OVERLAP": True,
        },
        {},
    ),
    (rope._rotate_and_write, ROPE | {"PAIRS": 2048}, {}),
    (gate._gated, {"WIDTH": 3072, "COLUMNS": 1024}, {}),
    (norm._normed, {"EPS": 1e-5, "WIDTH": 1024, "COLUMNS": 1024}, {}),
    (static._fill, {"WORDS": 256, "COLUMNS": step.COLUMNS, "ALIGNED": step.ALIGNED}, {}),
    (static._advance, {"WORDS": 256, "PAGE": 64, "tokens": "*i64"}, {}),
    (static._follow, {"WORDS": 256, "tokens": "*i64"}, {}),
    *projections(1),
    *projections(16),
    *list(projections(None))[:2],
    (
        segmented._segmented,
        SHAPE | {"HEADS": 8, "QUERIES": 16, "KEYS": 32, "SEGMENT": 256},
        {"num_warps": 4, "num_stages": 3, "enable_fp_fusion": False},
    ),
    *list(projections(1, "4", group_tile, 128))[:2],
    *list(projections(1, "8", row_tile))[:1],
    list(projections(1, "fp8", block_tile, 128, by_block))[2],
    (packed._unpack, {"IN": 1024, "OUTPUTS": 16, "COLUMNS": 256, "TILE": group_tile, "GROUP": 128}, {}),
]
CODES = {group_tile: "*u8", row_tile: "*i8", block_tile: "*fp8e4nv"}
FLOATS = {"turns": "*fp32", "mixed_parts": "*fp32", "score_parts": "*fp32"}
VALUES = ("q", "keys", "values", "out", "heads", "hidden", "more", "second", "norm", "x", "residual", "both")
NUMBERS = ("pages", "segments", "decodes", "stride", "tokens", "count", "outputs", "length", *static.SIZES)


def kind(name, codes):
    if name in ("weight", "first"):
        return codes
    return "*bf16" if name in VALUES else FLOATS.get(name, "i32" if name in NUMBERS else "*i32")


for kernel, constants, options in KERNELS:
    codes = CODES.get(constants.get("TILE"), "*bf16")
    stated = {name: value for name, value in constants.items() if isinstance(value, str)}  # an argument, not a constant
    constants = {name: value for name, value in constants.items() if name not in stated}
    signature = {name: "constexpr" if name in constants else kind(name, codes) for name in kernel.arg_names} | stated
    constants = {name: value for name, value in constants.items() if name in kernel.arg_names}
    source = ASTSource(kernel, signature, constexprs=constants)
    made = compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    sys.stdout.write(f"{len(made.asm['cubin']) > 0}\n")
