"""The torch backend's offer. Torch itself is imported when a backend is created, not before."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator

from core.compute.torch_backend import affinity, eight_bits, rules
from core.compute.torch_backend.rules import AFFINITY, BINDS, COMPILER, FOUND_FOR, FOUND_ON, NAMED, OTHERS, OWN, TILING, TRITON
from core.hookspecs import hookimpl
from core.offers import Alias, ComputeBackendOffer, Context, RulesOffer, Section

if TYPE_CHECKING:
    from core.compute.torch_backend.triton.tables import Found
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

    kv_cache_dtype: Literal["auto", "int8"] = Field(
        "auto",
        description="how keys and values are held: as numbers of the model's format, or each head of them as whole numbers of "
        "eight bits times one of its own, for half the memory. int8 on a CPU with native kernels only",
    )

    tiling: str | None = Field(
        None,
        description="a file that says how Triton's kernels are divided, as `python -m core.bench tune` writes it; by default "
        "what that has found for such a device, or what is shipped",
    )

    @field_validator("tiling")
    @classmethod
    def _table(cls, text: str | None) -> str | None:
        if text is not None:
            _heading(text)
        return text

    @field_validator("cpu_affinity")
    @classmethod
    def _cpus(cls, text: str | None) -> str | None:
        if text is not None and text != affinity.AUTO:
            affinity.cpus(text)
        return text


def _heading(path: str) -> Found:
    """:raises ValueError: when it is no table of divisions."""
    from core.compute.torch_backend.triton.tables import TUNE, parsed

    try:
        return parsed(Path(path).read_text(encoding="utf-8"), path)[0]
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{path} is no table as `{TUNE}` writes it: {error}") from error


def create(context: Context) -> ComputeBackend:
    from core.compute.torch_backend import kernels

    dtype, threads = context.facts["compute.dtype"], context.settings["threads"]
    if context.section.cpu_affinity is not None:
        affinity.stay_on(context.section.cpu_affinity, threads)
    if context.facts["device.kind"] == "cpu":
        return kernels.on_cpu(context.section.kernels, dtype, threads, context.section.deterministic, _eight(context.section))
    device = f"cuda:{context.facts.get('parallel.rank', 0)}"
    tiling = None if context.section.tiling is None else Path(context.section.tiling)
    return kernels.on_cuda(context.section.kernels, device, dtype, context.section.deterministic, tiling)


def _eight(section: TorchSettings) -> bool:
    return section.kv_cache_dtype == "int8"


def _kv_head_bytes(section: TorchSettings, head_dim: int, element_bytes: int) -> int:
    return eight_bits.head_bytes(_eight(section), head_dim, element_bytes)


@hookimpl
def register_compute_backends() -> Iterable[ComputeBackendOffer]:
    yield ComputeBackendOffer(
        name="torch",
        summary="PyTorch on a CPU or a CUDA device",
        framework="torch",
        requires=("torch",),
        ahead=("core.compute.torch_backend.kernels",),
        cores=lambda section: affinity.cores_left(section.cpu_affinity),
        kv_head_bytes=_kv_head_bytes,
        create=create,
        splits=True,
        settings=TorchSettings,
        rules=rules.RULES,
        aliases=(
            Alias("native kernels, plain torch, or auto", flag="--torch-kernels", sets="kernels"),
            Alias("CPUs that the engine's threads stay on", flag="--cpu-affinity", sets="cpu_affinity"),
            Alias("how keys and values are held", flag="--kv-cache-dtype", sets="kv_cache_dtype"),
            Alias("how Triton's kernels are divided, as tuning found it", flag="--torch-tiling", sets="tiling"),
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
        values |= _tiling(facts)
        if not binds:
            return values
        own = os.sched_getaffinity(0)
        wanted = facts.get(AFFINITY)
        named = frozenset() if wanted is None else affinity.named(wanted)
        values[OWN.name] = affinity.listed(own)
        values[OTHERS.name] = affinity.listed(named - own) or None
        values[NAMED.name] = len(named) if wanted is not None and named <= own else None
        return values

    facts = COMPILER, TRITON, BINDS, NAMED, OWN, OTHERS, FOUND_FOR, FOUND_ON
    yield RulesOffer(name="torch", summary="what can compile and bind here", facts=facts, derive=derive)


def _tiling(facts: Mapping[str, Any]) -> Mapping[str, Any]:
    path, name = facts.get(TILING), facts.get("device.name")
    if path is None:
        return {}
    from core.compute.torch_backend.triton.tables import Device, triton_of

    found = _heading(path)
    here = Device(name or found.device, found.capability, triton_of(version_of("triton") or "") or found.triton)
    where = f"{found.device} with Triton {found.triton or 'unknown'}"
    return {FOUND_FOR.name: float(found.capability), FOUND_ON.name: None if found.fits(here) else where}


def version_of(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
