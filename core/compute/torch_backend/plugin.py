"""The torch backend's offer. Torch itself is imported when a backend is created, not before."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from importlib import metadata
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator

from core.compute.torch_backend import affinity
from core.hookspecs import hookimpl
from core.interfaces.rules import Condition, Fact, FactRef, Remedy, Rule
from core.offers import Alias, ComputeBackendOffer, Context, RulesOffer, Section

if TYPE_CHECKING:
    from core.interfaces.compute import ComputeBackend


class TorchSettings(Section, frozen=True):
    kernels: Literal["auto", "native", "reference"] = Field(
        "auto",
        description="what computes a step's operations: native kernels (on a CPU C++, compiled at first use; on CUDA Triton), "
        "the reference in plain torch, or auto: native where they can be had",
    )
    cpu_affinity: str | None = Field(
        None,
        description="CPUs that the engine's threads stay on, such as 0-3,8; auto is one of each physical core. By default the "
        "system moves them as it likes. On Linux only",
    )
    deterministic: bool = Field(
        False,
        description="a request's logits are the same to the last bit whoever shares its steps, and however its prompt is "
        "divided among them; slower, on CUDA by far for prompts",
    )

    @field_validator("cpu_affinity")
    @classmethod
    def _cpus(cls, text: str | None) -> str | None:
        if text is not None and text != affinity.AUTO:
            affinity.cpus(text)
        return text


COMPILER = Fact("torch.compiler", str, "the C++ compiler that makes the native kernels of a CPU; None when there is none")
TRITON = Fact("torch.triton", str, "the version of Triton, which makes the native kernels of a CUDA device; None without it")
NAMED = Fact("torch.named_cpus", int, "how many CPUs cpu_affinity names; None where some are not this process's")
OWN = Fact("torch.own_cpus", str, "CPUs that this process may run on; None where the system does not tell")
OTHERS = Fact("torch.other_cpus", str, "CPUs that cpu_affinity names and this process may not run on; None for none")
AFFINITY = "settings.backend_torch.cpu_affinity"
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
RULES = (
    *DETERMINISTIC_RULES,
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


def create(context: Context) -> ComputeBackend:
    from core.compute.torch_backend import kernels

    dtype, threads = context.facts["compute.dtype"], context.settings["threads"]
    if context.section.cpu_affinity is not None:
        affinity.stay_on(context.section.cpu_affinity, threads)
    if context.facts["device.kind"] == "cpu":
        return kernels.on_cpu(context.section.kernels, dtype, threads, context.section.deterministic)
    device = f"cuda:{context.facts.get('parallel.rank', 0)}"
    return kernels.on_cuda(context.section.kernels, device, dtype, context.section.deterministic)


@hookimpl
def register_compute_backends() -> Iterable[ComputeBackendOffer]:
    yield ComputeBackendOffer(
        name="torch",
        summary="PyTorch on a CPU or a CUDA device",
        framework="torch",
        requires=("torch",),
        ahead=("core.compute.torch_backend.kernels",),
        cores=lambda section: affinity.cores_left(section.cpu_affinity),
        create=create,
        splits=True,
        settings=TorchSettings,
        rules=RULES,
        aliases=(
            Alias("native kernels, plain torch, or auto", flag="--torch-kernels", sets="kernels"),
            Alias("CPUs that the engine's threads stay on", flag="--cpu-affinity", sets="cpu_affinity"),
            Alias("the same logits whoever shares a request's steps", flag="--deterministic", sets="deterministic"),
            Alias(
                "deterministic steps, as SGLang spells them",
                flag="--enable-deterministic-inference",
                sets="deterministic",
            ),
            Alias("deterministic steps, as vLLM spells them", env="VLLM_BATCH_INVARIANT", sets="deterministic"),
        ),
    )


@hookimpl
def register_rules() -> Iterable[RulesOffer]:
    def derive(facts: Mapping[str, Any]) -> Mapping[str, Any]:
        from core.compute.torch_backend.native.build import NotBuiltError, find_compiler

        try:
            compiler = find_compiler()
        except NotBuiltError:
            compiler = None
        binds = hasattr(os, "sched_setaffinity")
        values: dict[str, Any] = {COMPILER.name: compiler, TRITON.name: version_of("triton"), BINDS.name: binds}
        if not binds:
            return values
        own = os.sched_getaffinity(0)
        wanted = facts.get(AFFINITY)
        named = frozenset() if wanted is None else affinity.named(wanted)
        values[OWN.name] = affinity.listed(own)
        values[OTHERS.name] = affinity.listed(named - own) or None
        values[NAMED.name] = len(named) if wanted is not None and named <= own else None
        return values

    facts = COMPILER, TRITON, BINDS, NAMED, OWN, OTHERS
    yield RulesOffer(name="torch", summary="what can compile and bind here", facts=facts, derive=derive)


def version_of(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
