"""Resolving what was left open. Every resolution has a reason, which --explain prints; nothing is decided elsewhere."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from core.compose.calling import call
from core.compose.choose import Selection, splitting_schedulers
from core.compose.configuration import Configuration
from core.compose.exchange import framework_between, number_formats
from core.compose.facts import GIB
from core.compose.memory import Memory
from core.compose.probe import DeviceProbe
from core.interfaces.compute import DTYPE_BYTES
from core.interfaces.model import LINEAR_ROLES, DecoderSpec, Role
from core.models.shard import Shard
from core.offers import HEAD_QUANTIZER, ComputeBackendOffer, ParallelismOffer, QuantizerOffer

LONGEST_BY_ITSELF = 32768
SEQUENCES = 128
STEP_TOKENS = 8192
SHORTEST = 16  # the least that the setting max_model_len takes


@dataclass
class Resolved:
    """``settings`` has no open value left; ``reasons`` and ``origins`` ("auto") are only of what was open."""

    settings: dict[str, Any]
    reasons: dict[str, str] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    memory: Memory | None = None
    num_pages: int | None = None
    ranks: int = 1

    def decide(self, name: str, value: Any, reason: str) -> None:
        self.settings[name], self.reasons[name], self.origins[name] = value, reason, "auto"


def resolve_machine(
    configuration: Configuration, probe: DeviceProbe, ranks: int = 1, selection: Selection | None = None
) -> Resolved:
    """What needs no model: device, number format, threads, names."""
    resolved = Resolved(dict(configuration.settings), ranks=ranks)
    settings = resolved.settings
    backend: Any = None if selection is None else selection.offer("compute_backend")
    if settings["device"] == "auto":
        kinds: tuple[str, ...] = ("cpu", "cuda") if backend is None else backend.devices
        if len(kinds) == 1:
            resolved.decide("device", kinds[0], f"the compute backend {backend.name} runs on nothing else")
        elif probe.devices:
            resolved.decide("device", "cuda", f"found {probe.devices[0].name}")
        else:
            resolved.decide("device", "cpu", probe.note or "no CUDA device was found")
    if settings["dtype"] == "auto":
        old = settings["device"] == "cuda" and probe.devices and probe.devices[0].capability < 8.0
        if old:
            resolved.decide("dtype", "float16", f"a device of capability {probe.devices[0].capability} has no bfloat16")
        else:
            resolved.decide("dtype", "bfloat16", "the format the models were trained in")
        formats = number_formats(backend, settings["device"])
        if formats is not None and settings["dtype"] not in formats:
            where = "a CPU" if settings["device"] == "cpu" else "a CUDA device"
            why = f"on {where} the compute backend {backend.name} does not compute in {settings['dtype']}"
            resolved.decide("dtype", formats[0], why)
    if selection is not None:
        between = framework_between(selection)
        if between is not None:
            own = selection.offer("compute_backend").framework
            resolved.reasons["sampler"] = f"it draws from arrays of {between}: those of {own} are lent to it, without a copy"
    if settings["threads"] == 0:
        cores, whose = _cores(configuration, probe, selection)
        if resolved.ranks == 1:
            resolved.decide("threads", cores, f"one for each physical core {whose}")
        else:
            share = max(1, cores // resolved.ranks)
            resolved.decide("threads", share, f"{cores} physical cores among {resolved.ranks} processes")
    if not settings["served_model_name"]:
        resolved.decide("served_model_name", (settings["model"],), "the model as given")
    return resolved


def _cores(configuration: Configuration, probe: DeviceProbe, selection: Selection | None) -> tuple[int, str]:
    """How many there are for threads, and which these are."""
    backend = None if selection is None else selection.offer("compute_backend")
    if selection is not None and isinstance(backend, ComputeBackendOffer):
        left = call(selection.offers["compute_backend"], "cores", section_of(configuration, selection, "compute_backend"))
        if left is not None and left < probe.cores:
            return left, f"that the settings of {backend.name} leave to it"
    return probe.cores, "this process may use"


def _kv_head_bytes(configuration: Configuration, selection: Selection, head_dim: int, element: int) -> int | None:
    if not isinstance(selection.offer("compute_backend"), ComputeBackendOffer):
        return None
    section = section_of(configuration, selection, "compute_backend")
    taken: int = call(selection.offers["compute_backend"], "kv_head_bytes", section, head_dim, element)
    return taken


def budget_bytes(settings: dict[str, Any], probe: DeviceProbe, ranks: int) -> int | None:
    """What a rank may use of its device's memory, on a CPU of everyone's; None where there is no such device."""
    if settings["device"] == "cpu":
        return probe.free_bytes // ranks
    if not probe.devices:
        return None
    gpu = probe.devices[0]
    used = gpu.memory_bytes - gpu.free_bytes
    return max(0, int(gpu.memory_bytes * settings["gpu_memory_utilization"]) - used)


def resolve_sizes(
    resolved: Resolved, configuration: Configuration, selection: Selection, spec: DecoderSpec, probe: DeviceProbe
) -> None:
    """Lengths, batch sizes, the scheduler where it hangs on them, and the pages: in this order, each from those before."""
    settings = resolved.settings
    ranks = resolved.ranks
    bits = _stored_bits(configuration, selection, Shard(spec, 0, ranks).spec)
    budget = budget_bytes(settings, probe, ranks)
    asked_step = settings["max_num_batched_tokens"]
    if settings["max_num_seqs"] is None:
        if asked_step is not None and asked_step < SEQUENCES:
            resolved.decide("max_num_seqs", asked_step, f"a step of {asked_step} tokens serves no more")
        else:
            resolved.decide("max_num_seqs", SEQUENCES, "the usual number")
    sequences = settings["max_num_seqs"]
    kv_head = _kv_head_bytes(configuration, selection, spec.head_dim, DTYPE_BYTES[settings["dtype"]])
    memory = Memory(spec, settings["dtype"], bits, settings["block_size"], sequences, budget, ranks, kv_head)
    resolved.memory = memory
    if selection.origins.get(HEAD_QUANTIZER) == "auto":
        resolved.reasons["head_quantization"] = f"{selection.offers[HEAD_QUANTIZER].name} packs it with the layers"
    if settings["max_model_len"] is None:
        _resolve_length(resolved, selection, spec, memory)
    length = settings["max_model_len"]
    prefer_splitting(resolved, configuration, selection)
    if asked_step is None:
        splits = _splits(selection)
        step = _step(length, sequences, splits)
        why = "a prompt is computed in one step" if step == length and not splits else "the usual step"
        if step == length * sequences:
            why = "more tokens than max_model_len times max_num_seqs there never are"
        resolved.decide("max_num_batched_tokens", step, why)
    _resolve_pages(resolved, memory, probe)


def _stored_bits(configuration: Configuration, selection: Selection, spec: DecoderSpec) -> dict[Role, float]:
    """The bits of a weight in each role that is packed."""
    stored: dict[Role, float | None] = {}
    for role in LINEAR_ROLES:
        kind = HEAD_QUANTIZER if role == "head" else QuantizerOffer.kind
        offer = selection.offer(kind)
        if not isinstance(offer, QuantizerOffer):
            continue
        if offer.stored_bits is None:
            stored[role] = offer.bits
            continue
        section = section_of(configuration, selection, kind)
        if role == "head" and offer.head is not None:
            section = section.model_copy(update={offer.head: True})
        stored[role] = call(selection.offers[kind], "stored_bits", section, role, spec.shape(role)[1])
    return {role: bits for role, bits in stored.items() if bits is not None}


def ranks_of(configuration: Configuration, selection: Selection) -> int:
    """How many processes share the model."""
    offered = selection.offers.get(ParallelismOffer.kind)
    return 1 if offered is None else int(call(offered, "ranks", section_of(configuration, selection, ParallelismOffer.kind)))


def section_of(configuration: Configuration, selection: Selection, kind: str) -> Any:
    """The settings of the chosen offer; its defaults where those given are wrong, which is told elsewhere."""
    offered = selection.offers[kind]
    if offered.offer.settings is None:
        return None
    values, problems = configuration.section(offered.plugin)
    return offered.offer.settings() if problems else offered.offer.settings.model_validate(values)


def _splits(selection: Selection) -> bool:
    return bool(getattr(selection.offer("scheduler"), "splits_prompts", False))


def _step(length: int, sequences: int, splits: bool) -> int:
    everything = length * sequences
    step = min(STEP_TOKENS, everything)
    return max(step, min(sequences, everything)) if splits else max(step, length)


def _resolve_length(resolved: Resolved, selection: Selection, spec: DecoderSpec, memory: Memory) -> None:
    """The shortest of what the model, good sense, the pages and the memory allow."""
    settings = resolved.settings
    limits = [
        (spec.max_positions, "the model's positions"),
        (LONGEST_BY_ITSELF, "the longest that is taken without being asked for"),
    ]
    if settings["num_gpu_blocks_override"] is not None:
        tokens = settings["num_gpu_blocks_override"] * settings["block_size"]
        limits.append((tokens, f"what {settings['num_gpu_blocks_override']} pages of {settings['block_size']} tokens hold"))
    elif settings["kv_cache_memory"] is not None and settings["device"] == "cpu":
        pages = int(settings["kv_cache_memory"] * GIB) // (memory.page * resolved.ranks)
        limits.append((pages * memory.page_size, f"what {settings['kv_cache_memory']:g} GiB of KV pages hold"))
    if memory.budget is not None:
        fitting = fitting_length(resolved, selection, memory, min(limit for limit, _ in limits))
        limits.append((fitting, "what fits the memory"))
    length, why = min(limits, key=lambda limit: limit[0])
    resolved.decide("max_model_len", max(SHORTEST, length), why)


def fitting_length(resolved: Resolved, selection: Selection, memory: Memory, most: int) -> int:
    """The longest max_model_len, at most ``most``, of which one request fits; 0 when none does."""

    settings = resolved.settings
    given = None if "max_num_batched_tokens" in resolved.reasons else settings["max_num_batched_tokens"]

    def fits(length: int) -> bool:
        step = given or _step(length, settings["max_num_seqs"], _splits(selection))
        return memory.one_request(length, step) <= (memory.budget or 0)

    if fits(most):
        return most
    low, high = 0, most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low if low >= SHORTEST else 0


def prefer_splitting(resolved: Resolved, configuration: Configuration, selection: Selection) -> None:
    """Prompts longer than a step need a scheduler that splits them; nobody is overruled who named one.

    Before the model is known too, where both lengths were given: what can be had is not refused for want of a look.
    """
    step, length = resolved.settings["max_num_batched_tokens"], resolved.settings["max_model_len"]
    if step is None or length is None or step >= length:
        return
    if selection.origins.get("scheduler") != "default" or _splits(selection):
        return
    refused = {no.value for no in configuration.refused if no.key == ("scheduler",)}
    found = [each for each in splitting_schedulers(configuration.manager) if each.name not in refused]
    if not found:
        return
    which = "" if len(found) == 1 else f", the first by name of {', '.join(each.name for each in found)}"
    selection.take("scheduler", found[0], "auto")
    resolved.reasons["scheduler"] = f"prompts may be longer ({length}) than a step ({step}), so it must split them{which}"


def _resolve_pages(resolved: Resolved, memory: Memory, probe: DeviceProbe) -> None:
    settings = resolved.settings
    one = memory.pages_for(settings["max_model_len"])
    if settings["num_gpu_blocks_override"] is not None:
        resolved.num_pages = settings["num_gpu_blocks_override"]
        return
    if settings["device"] == "cuda":
        pages = 0 if memory.budget is None else memory.fitting_pages(settings["max_num_batched_tokens"])
        resolved.num_pages = pages if pages >= one else None
        resolved.reasons["kv.num_pages"] = (
            "an estimate: the engine takes what is free after loading, up to gpu_memory_utilization"
        )
        return
    if settings["kv_cache_memory"] is not None:
        resolved.num_pages = int(settings["kv_cache_memory"] * GIB) // (memory.page * resolved.ranks)
        resolved.reasons["kv.num_pages"] = f"{settings['kv_cache_memory']:g} GiB of kv_cache_memory"
        return
    fitting = memory.fitting_pages(settings["max_num_batched_tokens"])
    quarter = min(probe.free_bytes // 4 // (memory.page * resolved.ranks), fitting)
    wanted = settings["max_num_seqs"] * one
    if wanted <= quarter:
        resolved.num_pages, why = wanted, "all requests at their longest"
    elif quarter >= one:
        resolved.num_pages, why = quarter, "a quarter of the free memory"
    else:
        resolved.num_pages, why = one, "one request at its longest"
    resolved.reasons["kv.num_pages"] = why
