"""Run by the tests in an interpreter of its own: the kernels through Triton's compiler, which needs no device."""

import sys

from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

from sampler_rejection import kernel, parts
from sampler_rejection.limits import FEWEST

floats = dict.fromkeys(("logits", "temperatures", "top_ps", "min_ps", "largest"), "*fp32") | {
    "sums": "*fp64",
    "numbers": "*fp64",
}
whole = {
    "top_ks": "*i32",
    "seeds": "*i64",
    "positions": "*i32",
    "tokens": "*i64",
    "states": "*i32",
    "places": "*i32",
    "stride": "i32",
}
constants = {"VOCAB": 103_424, "WIDTH": parts.WIDTH, "FEWEST": FEWEST, "PARTS": 26, "BLOCK": 32, "TURN": 1, "LAST": False}
for made in (kernel._sample, parts._survey, parts._begin, parts._weigh, parts._judge):
    signature = {name: (floats | whole).get(name, "constexpr") for name in made.arg_names}
    source = ASTSource(made, signature, constexprs={name: constants[name] for name in made.arg_names if name in constants})
    code = compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 8}).asm["cubin"]
    sys.stdout.write(f"{len(code) > 0}\n")
