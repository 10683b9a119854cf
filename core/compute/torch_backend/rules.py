"""What the torch backend can and cannot do together, as data: its facts and its rules."""

from __future__ import annotations

from core.compute.torch_backend import affinity
from core.interfaces.rules import Condition, Fact, FactRef, Remedy, Rule

COMPILER = Fact("torch.compiler", str, "the C++ compiler that makes the native kernels of a CPU; None when there is none")
TRITON = Fact("torch.triton", str, "the version of Triton, which makes the native kernels of a CUDA device; None without it")
NAMED = Fact("torch.named_cpus", int, "how many CPUs cpu_affinity names; None where some are not this process's")
OWN = Fact("torch.own_cpus", str, "CPUs that this process may run on; None where the system does not tell")
OTHERS = Fact("torch.other_cpus", str, "CPUs that cpu_affinity names and this process may not run on; None for none")
AFFINITY = "settings.backend_torch.cpu_affinity"
TILING = "settings.backend_torch.tiling"
FOUND_FOR = Fact("torch.tiling_capability", float, "the compute capability that the file of --torch-tiling was found for")
FOUND_ON = Fact(
    "torch.tiling_elsewhere", str, "on what the file of --torch-tiling was found, if not on such a device and Triton"
)
BINDS = Fact("torch.binds", bool, "whether threads can be bound to CPUs here, which Linux alone does")
PLAIN = Remedy("--torch-kernels reference, for plain torch", {"backend_torch.kernels": "reference"})
INSTALL = Remedy("install g++ or clang++, or name a compiler by $CXX")
WITH_TRITON = Remedy("pip install triton, or a torch that brings it")
ON_CUDA = Condition("device.kind", "==", "cuda")
ON_CPU = Condition("device.kind", "==", "cpu")
RECORDED_ON_CUDA = (ON_CUDA, Condition("graph_backend.frameworks", "!=", None), Condition("chosen.graph_backend", "!=", None))
EAGERLY = Remedy("run steps eagerly, without {chosen.graph_backend}")
DETERMINISTIC = Condition("settings.backend_torch.deterministic", "==", True)
ANYHOW = Remedy("leave out --deterministic", {"backend_torch.deterministic": False})
NATIVE = Remedy("--torch-kernels auto", {"backend_torch.kernels": "auto"})
EIGHT = Condition("settings.backend_torch.kv_cache_dtype", "==", "int8")
NOT_EIGHT = Remedy("--kv-cache-dtype auto", {"backend_torch.kv_cache_dtype": "auto"})
TILED = Condition(TILING, "!=", None)
UNTILED = Remedy("leave out --torch-tiling", {"backend_torch.tiling": None})
TUNE = Remedy("python -m core.bench tune --output FILE, on this device")
BFLOAT16 = Remedy("--dtype bfloat16", {"dtype": "bfloat16"})
DETERMINISTIC_RULES = (
    Rule(
        id="deterministic-in-plain-torch",
        when=(DETERMINISTIC, Condition("settings.backend_torch.kernels", "==", "reference")),
        reason="plain torch picks how to add up by how many tokens a step has, so that neighbours move the last bits of a "
        "request's logits",
        remedies=(NATIVE, ANYHOW),
    ),
    Rule(
        id="deterministic-without-compiler",
        when=(DETERMINISTIC, ON_CPU, Condition("torch.compiler", "==", None)),
        reason="what is deterministic on a CPU are the native kernels, which are compiled on this machine, and no C++ compiler "
        "was found",
        remedies=(INSTALL, ANYHOW),
    ),
    Rule(
        id="deterministic-without-triton",
        when=(DETERMINISTIC, ON_CUDA, Condition("torch.triton", "==", None)),
        reason="what is deterministic on CUDA are Triton's kernels, and no Triton is installed",
        remedies=(WITH_TRITON, ANYHOW),
    ),
    Rule(
        id="deterministic-on-old-devices",
        when=(DETERMINISTIC, Condition("device.capability", "<", 8.0)),
        reason="what is deterministic on CUDA are kernels for compute capability 8.0 and newer, and {device.name} has "
        "{device.capability}",
        remedies=(ANYHOW,),
    ),
    Rule(
        id="deterministic-in-float16",
        when=(DETERMINISTIC, ON_CPU, Condition("compute.dtype", "==", "float16")),
        reason="on a CPU float16 is left to plain torch, which picks how to add up by how many tokens a step has",
        remedies=(BFLOAT16, ANYHOW),
    ),
    Rule(
        id="deterministic-with-other-heads",
        when=(DETERMINISTIC, ON_CPU, Condition("model.head_dim", "not in", tuple(range(16, 1025, 16)))),
        reason="on a CPU attention over heads of {model.head_dim}, no multiple of 16 up to 1024, is left to plain torch, which "
        "picks how to add up by what a step has",
        remedies=(ANYHOW,),
    ),
    Rule(
        id="deterministic-with-rounded-activations",
        when=(DETERMINISTIC, Condition("quantizer.rounds_activations", "==", True)),
        reason="products of {chosen.quantizer}, which rounds activations too, are divided by how many tokens a step has",
        remedies=(Remedy("--quantization none", {"quantization": "none"}), ANYHOW),
    ),
    Rule(
        id="deterministic-among-ranks",
        when=(DETERMINISTIC, Condition("parallel.ranks", ">", 1)),
        reason="what several processes add up together they add in an order that may depend on how much it is",
        remedies=(Remedy("let one process hold the model"), ANYHOW),
    ),
)
EIGHT_BIT_RULES = (
    Rule(
        id="eight-bit-kv-on-cuda",
        when=(EIGHT, ON_CUDA),
        reason="keys and values in eight bits are what the native kernels of a CPU read and write; on CUDA they are as the "
        "model has them",
        remedies=(NOT_EIGHT,),
    ),
    Rule(
        id="eight-bit-kv-in-plain-torch",
        when=(EIGHT, ON_CPU, Condition("settings.backend_torch.kernels", "==", "reference")),
        reason="keys and values in eight bits are what native kernels read and write, and plain torch is to compute",
        remedies=(NATIVE, NOT_EIGHT),
    ),
    Rule(
        id="eight-bit-kv-without-compiler",
        when=(EIGHT, ON_CPU, Condition("torch.compiler", "==", None)),
        reason="keys and values in eight bits are what native kernels read and write, which are compiled on this machine, and "
        "no C++ compiler was found",
        remedies=(INSTALL, NOT_EIGHT),
    ),
    Rule(
        id="eight-bit-kv-in-float16",
        when=(EIGHT, ON_CPU, Condition("compute.dtype", "==", "float16")),
        reason="on a CPU float16 is left to plain torch, which holds keys and values as the model has them",
        remedies=(BFLOAT16, NOT_EIGHT),
    ),
    Rule(
        id="eight-bit-kv-with-other-heads",
        when=(EIGHT, ON_CPU, Condition("model.head_dim", "not in", tuple(range(16, 1025, 16)))),
        reason="attention over heads of {model.head_dim}, no multiple of 16 up to 1024, is left to plain torch, which holds "
        "keys and values as the model has them",
        remedies=(NOT_EIGHT,),
    ),
)
TILING_RULES = (
    Rule(
        id="tiling-on-cpu",
        when=(TILED, ON_CPU),
        reason="the file {settings.backend_torch.tiling} divides Triton's kernels, which compute on CUDA devices alone",
        remedies=(UNTILED,),
    ),
    Rule(
        id="tiling-of-plain-torch",
        when=(TILED, ON_CUDA, Condition("settings.backend_torch.kernels", "==", "reference")),
        reason="the file {settings.backend_torch.tiling} divides Triton's kernels, and plain torch is to compute",
        remedies=(UNTILED, NATIVE),
    ),
    Rule(
        id="tiling-of-deterministic-steps",
        when=(TILED, ON_CUDA, DETERMINISTIC),
        reason="deterministic steps divide their kernels in one way for every number of tokens, and not as "
        "{settings.backend_torch.tiling} says",
        remedies=(UNTILED, ANYHOW),
    ),
    Rule(
        id="tiling-of-another-capability",
        when=(TILED, ON_CUDA, Condition("device.capability", "!=", FactRef(FOUND_FOR.name))),
        reason="the file {settings.backend_torch.tiling} was found for compute capability {torch.tiling_capability}, and "
        "{device.name} has {device.capability}",
        remedies=(UNTILED, TUNE),
    ),
    Rule(
        id="tiling-of-another-device",
        when=(
            TILED,
            Condition("device.capability", "==", FactRef(FOUND_FOR.name)),
            Condition(FOUND_ON.name, "!=", None),
        ),
        reason="the file {settings.backend_torch.tiling} was found on {torch.tiling_elsewhere}: another may be faster here",
        remedies=(UNTILED, TUNE),
        severity="warning",
    ),
)
RULES = (
    *DETERMINISTIC_RULES,
    *EIGHT_BIT_RULES,
    *TILING_RULES,
    Rule(
        id="plain-torch-recorded",
        when=(*RECORDED_ON_CUDA, Condition("settings.backend_torch.kernels", "==", "reference")),
        reason="the graph backend {chosen.graph_backend} records steps of fixed shapes, and plain torch sizes what it launches "
        "by what is in a step",
        remedies=(NATIVE, EAGERLY),
    ),
    Rule(
        id="recorded-without-triton",
        when=(
            *RECORDED_ON_CUDA,
            Condition("settings.backend_torch.kernels", "==", "auto"),
            Condition("torch.triton", "==", None),
        ),
        reason="the graph backend {chosen.graph_backend} records steps of fixed shapes, as Triton's kernels take them, and no "
        "Triton is installed",
        remedies=(WITH_TRITON, EAGERLY),
    ),
    Rule(
        id="native-kernels-without-compiler",
        when=(ON_CPU, Condition("settings.backend_torch.kernels", "==", "native"), Condition("torch.compiler", "==", None)),
        reason="the native kernels are compiled on this machine, and no C++ compiler was found",
        remedies=(INSTALL, PLAIN),
    ),
    Rule(
        id="plain-torch-without-compiler",
        when=(ON_CPU, Condition("settings.backend_torch.kernels", "==", "auto"), Condition("torch.compiler", "==", None)),
        reason="no C++ compiler was found: steps are computed by plain torch, which is slower",
        remedies=(INSTALL, PLAIN),
        severity="warning",
    ),
    Rule(
        id="native-kernels-in-float16",
        when=(ON_CPU, Condition("settings.backend_torch.kernels", "==", "native"), Condition("compute.dtype", "==", "float16")),
        reason="on a CPU the native kernels compute in bfloat16 and float32, not in float16",
        remedies=(BFLOAT16, PLAIN),
    ),
    Rule(
        id="affinity-without-linux",
        when=(Condition(AFFINITY, "!=", None), Condition("torch.binds", "==", False)),
        reason="threads are bound to CPUs on Linux only",
        remedies=(Remedy("leave out --cpu-affinity", {"backend_torch.cpu_affinity": None}),),
    ),
    Rule(
        id="affinity-beyond-the-process",
        when=(Condition(AFFINITY, "!=", None), Condition("torch.other_cpus", "!=", None)),
        reason="this process may not run on CPU {torch.other_cpus}, only on {torch.own_cpus}",
        remedies=(
            Remedy("--cpu-affinity auto", {"backend_torch.cpu_affinity": affinity.AUTO}),
            Remedy("--cpu-affinity {torch.own_cpus}", {"backend_torch.cpu_affinity": FactRef("torch.own_cpus")}),
        ),
    ),
    Rule(
        id="more-threads-than-affinity",
        when=(Condition("settings.threads", ">", FactRef("torch.named_cpus")), Condition(AFFINITY, "!=", None)),
        reason="{settings.threads} threads are to stay on {torch.named_cpus} CPUs",
        remedies=(Remedy("--threads {torch.named_cpus}", {"threads": FactRef("torch.named_cpus")}), Remedy("name more CPUs")),
    ),
    Rule(
        id="native-kernels-without-triton",
        when=(ON_CUDA, Condition("settings.backend_torch.kernels", "==", "native"), Condition("torch.triton", "==", None)),
        reason="on CUDA the native kernels are Triton's, which is not installed",
        remedies=(WITH_TRITON, PLAIN),
    ),
    Rule(
        id="plain-torch-without-triton",
        when=(ON_CUDA, Condition("settings.backend_torch.kernels", "==", "auto"), Condition("torch.triton", "==", None)),
        reason="no Triton is installed: steps are computed by plain torch, which is slower, and cannot be recorded",
        remedies=(WITH_TRITON, PLAIN),
        severity="warning",
    ),
)
