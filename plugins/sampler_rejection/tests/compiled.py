"""Run by the tests in an interpreter of its own: the kernel through Triton's compiler, which needs no device."""

import sys

from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

from sampler_rejection import kernel

floats = dict.fromkeys(("logits", "temperatures", "top_ps", "min_ps"), "*fp32")
whole = {"top_ks": "*i32", "seeds": "*i64", "positions": "*i32", "tokens": "*i64", "stride": "i32"}
constants = {"vocab": 103_424, "WIDTH": kernel.WIDTH, "FEWEST": kernel.FEWEST}
signature = {name: (floats | whole).get(name, "constexpr") for name in kernel._sample.arg_names}
source = ASTSource(kernel._sample, signature, constexprs=constants)
sys.stdout.write(str(len(compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 8}).asm["cubin"])))
