"""Facts: the flat, typed, declared values that rules are judged by. ``gather`` puts them together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, get_args, get_origin

from core.compose.settings import CoreSettings
from core.interfaces.rules import Fact
from core.offers import HEAD_QUANTIZER, MANY_KINDS, OPTIONAL_KINDS, SINGLE_KINDS, Section

if TYPE_CHECKING:  # at run time this file is part of --help, which waits for neither numpy nor a driver
    from core.compose.probe import DeviceProbe
    from core.interfaces.model import DecoderSpec

GIB = 1 << 30


def _plain_type(annotation: Any) -> type:
    """``int | None`` is int, a Literal is the type of its values, ``tuple[str, ...]`` is tuple."""
    if isinstance(annotation, type) and get_origin(annotation) is None:
        return annotation
    for part in get_args(annotation):
        if part is type(None):
            continue
        if get_origin(annotation) in (tuple, list, dict, set, frozenset):
            return get_origin(annotation) or object
        return _plain_type(part) if isinstance(part, type) or get_args(part) else type(part)
    return object


def settings_facts(model: type[CoreSettings] | type[Section], prefix: str) -> tuple[Fact, ...]:
    return tuple(
        Fact(f"{prefix}{name}", _plain_type(field.annotation), field.description or name)
        for name, field in model.model_fields.items()
    )


def _kind_facts() -> Iterator[Fact]:
    for kind in (*SINGLE_KINDS, *OPTIONAL_KINDS, *MANY_KINDS):
        yield Fact(f"chosen.{kind}", str, f"name of the chosen {kind.replace('_', ' ')}")
    for kind in (*SINGLE_KINDS, *OPTIONAL_KINDS):
        if kind == HEAD_QUANTIZER:
            continue
        yield Fact(f"named.{kind}", tuple, f"offers of this kind that the named plugins bring: {kind.replace('_', ' ')}")
        yield Fact(f"named.{kind}.count", int, "how many these are")
        yield Fact(f"named.{kind}.first", str, "the first of them, by the order of --plugins")


CORE_FACTS: tuple[Fact, ...] = (
    *settings_facts(CoreSettings, "settings."),
    *_kind_facts(),
    Fact("plugins", tuple, "names of the plugins in the plan"),
    Fact("plugins.named", tuple, "plugins as the configuration names them, each once"),
    Fact("plugins.repeated", tuple, "plugins that the configuration names more than once"),
    Fact("sections.unloaded", tuple, "installed plugins that are given settings but are not in the plan"),
    Fact("device.kind", str, "where the model runs: cpu or cuda"),
    Fact("device.name", str, "the processor's or graphics card's name"),
    Fact("device.capability", float, "CUDA compute capability (9.0), None on a CPU"),
    Fact("device.count", int, "CUDA devices that can be seen"),
    Fact("device.memory_bytes", int, "memory of the device the model runs on"),
    Fact("device.free_bytes", int, "what of it was free when probed"),
    Fact("cpu.cores", int, "physical cores this process may use"),
    Fact("cpu.flags", tuple, "instruction sets, as /proc/cpuinfo names them"),
    Fact("parallel.ranks", int, "processes that share the model, each with a device, or its part of the CPU; 1 for one alone"),
    Fact("parallel.rank", int, "which of them a process is; 0 while the plan is made"),
    Fact("parallel.fitting", int, "the most ranks, no more than are asked for, that heads, feed-forward and devices allow"),
    Fact("parallel.frameworks", tuple, "frameworks whose arrays the parallelism takes"),
    Fact("model.name", str, "the model as the configuration names it"),
    Fact("model.architecture", str, "the checkpoint's architecture"),
    Fact("model.format", str, "the checkpoint format that reads it"),
    Fact("model.max_positions", int, "positions the model was made for"),
    Fact("model.layers", int, "decoder layers"),
    Fact("model.hidden", int, "width of the residual stream"),
    Fact("model.intermediate", int, "width of the feed-forward"),
    Fact("model.heads", int, "query heads"),
    Fact("model.kv_heads", int, "key/value heads"),
    Fact("model.head_dim", int, "width of a head"),
    Fact("model.q_width", int, "width of all query heads together"),
    Fact("model.vocab", int, "vocabulary size"),
    Fact("model.parameters", int, "parameters in all; a tied head counts once"),
    Fact("shard.q_width", int, "width of the query heads of one rank: the inputs of its part of the attention's output"),
    Fact("shard.intermediate", int, "width of the feed-forward of one rank: the inputs of its part of what leads out of it"),
    Fact("compute.splits", bool, "whether the compute backend can be one of several ranks"),
    Fact("compute.devices", tuple, "kinds of device that the compute backend runs on"),
    Fact("compute.device", str, "the first of them"),
    Fact("compute.dtype", str, "number format of weights and KV cache"),
    Fact("compute.dtypes", tuple, "number formats that the compute backend has on this kind of device; None for all"),
    Fact("compute.best_dtype", str, "the one it takes by itself; None where it has all"),
    Fact("compute.framework", str, "array framework of the compute backend"),
    Fact("compute.missing_modules", tuple, "modules the compute backend needs and this Python has not"),
    Fact("compute.package", str, "what pip installs them by; None for a backend that pip did not install"),
    Fact("sampler.frameworks", tuple, "frameworks whose logits the sampler takes"),
    Fact("sampler.between", str, "the framework as whose arrays it is lent the logits of another; None where nothing is lent"),
    Fact("graph_backend.frameworks", tuple, "frameworks the graph backend can capture; None for any"),
    Fact("quantizer.bits", float, "nominal bits of a packed weight"),
    Fact("quantizer.rounds_activations", bool, "whether the packed format rounds activations as well as weights"),
    Fact("head_quantizer.rounds_activations", bool, "whether the head's does"),
    Fact("model.head_packed_by", str, "the quantizer that packed the head of the checkpoint; None where it is not packed"),
    Fact("scheduler.splits_prompts", bool, "whether a prompt may be computed over several steps"),
    Fact("scheduler.splitting", str, "an installed scheduler that splits prompts; None when there is none"),
    Fact("sampler.fitting", str, "an installed sampler that fits the compute backend; None when there is none"),
    Fact("graph_backend.fitting", str, "an installed graph backend that fits the compute backend; None when there is none"),
    Fact("kv.page_size", int, "tokens in a page"),
    Fact("kv.num_pages", int, "pages of the KV cache (on CUDA an estimate: the engine sizes it after loading)"),
    Fact("kv.pages_per_request", int, "pages that one request of max_model_len tokens fills"),
    Fact("kv.capacity_tokens", int, "tokens that the KV cache holds"),
    Fact("kv.capacity_model_len", int, "the longest max_model_len that the pages hold; None when they hold none"),
    Fact("memory.weights_bytes", int, "the weights in memory, packed as chosen; here and below of one rank"),
    Fact("memory.activation_bytes", int, "estimate of what the largest step needs beside weights and pages"),
    Fact("memory.kv_page_bytes", int, "one page of all layers"),
    Fact("memory.kv_bytes", int, "all pages"),
    Fact("memory.budget_bytes", int, "what the server may use of the device's memory; of a CPU's, one rank's part"),
    Fact("memory.one_request_bytes", int, "weights, the largest step, and the pages of one max_model_len request"),
    Fact("memory.total_bytes", int, "weights, the largest step, and all pages"),
    Fact("memory.host_spare_gib", float, "memory of the host that can be given to something else, GiB"),
    Fact("memory.smaller_dtype", str, "a number format of half the size, None when the weights have it already"),
    Fact("memory.fitting_pages", int, "pages to ask for instead, where a number was asked for; a CPU keeps a tenth free"),
    Fact("memory.fitting_kv_gib", float, "GiB of pages to ask for instead, where kv_cache_memory asked; a tenth stays free"),
    Fact("memory.fitting_model_len", int, "the longest max_model_len whose request fits; None when none does"),
    Fact("limits.max_batched_tokens", int, "max_model_len * max_num_seqs: no step can be larger"),
)

# Whose origin a computed fact has: settings (by name) that decide it.
_DECIDED_BY: dict[str, tuple[str, ...]] = {
    "plugins": ("plugins",),
    "plugins.named": ("plugins",),
    "plugins.repeated": ("plugins",),
    "kv.page_size": ("block_size",),
    "kv.num_pages": ("num_gpu_blocks_override", "kv_cache_memory"),
    "kv.capacity_tokens": ("num_gpu_blocks_override", "kv_cache_memory"),
    "kv.pages_per_request": ("max_model_len",),
    "parallel.fitting": ("parallel.ranks",),
    "shard.q_width": ("model", "parallel.ranks"),
    "shard.intermediate": ("model", "parallel.ranks"),
    "memory.weights_bytes": ("model", "dtype"),
    "memory.one_request_bytes": ("model", "dtype", "max_model_len"),
    "memory.total_bytes": ("num_gpu_blocks_override", "kv_cache_memory"),
    "limits.max_batched_tokens": ("max_model_len", "max_num_seqs"),
    "compute.dtype": ("dtype",),
    "compute.dtypes": ("dtype",),
    "device.kind": ("device",),
}


class Facts(Mapping[str, Any]):
    """Values by name, the schema they belong to, and where each came from. A declared fact nobody computed is None."""

    def __init__(
        self, values: Mapping[str, Any], schema: Iterable[Fact] = CORE_FACTS, origins: Mapping[str, str] | None = None
    ) -> None:
        self.schema = {fact.name: fact for fact in schema}
        strangers = [name for name in values if name not in self.schema]
        if strangers:
            raise ValueError(f"undeclared facts: {', '.join(strangers)}")
        self._values = {name: values.get(name) for name in self.schema}
        self._origins = dict(origins or {})

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Facts:
        """Facts for a test: the core's schema, and whatever else ``values`` names."""
        declared = {fact.name for fact in CORE_FACTS}
        more = [Fact(name, type(value), "given") for name, value in values.items() if name not in declared]
        return cls(values, (*CORE_FACTS, *more))

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def origins_of(self, name: str) -> tuple[str, ...]:
        """What a user can act on: "--max-model-len", "default of max_num_seqs"; nothing for a fact of the machine."""
        if name in self._origins:
            return (self._origins[name],)
        if name.startswith("settings."):
            keys: tuple[str, ...] = (name.removeprefix("settings."),)
        elif name.startswith("model."):
            keys = ("model",)
        else:
            keys = _DECIDED_BY.get(name, ())
        found = []
        for key in keys:
            origin = self._origins.get(key)
            if origin in ("default", "auto"):
                # Of a fact several settings may decide, those that nobody set say nothing.
                if len(keys) == 1 or name.startswith(("memory.one", "limits.", "memory.weights")):
                    found.append(f"{origin} of {key}")
            elif origin is not None:
                found.append(origin)
        return tuple(found)


def show(name: str, value: Any) -> str:
    """A fact's value as a user reads it."""
    if value is None:
        return "unknown"
    if name.endswith("_bytes"):
        return f"{value / GIB:.2f} GiB" if value >= GIB / 10 else f"{value / (1 << 20):.2f} MiB"
    if isinstance(value, (tuple, list, set, frozenset)):
        return ", ".join(str(item) for item in (value if isinstance(value, (tuple, list)) else sorted(value)))
    return f"{value:g}" if isinstance(value, float) else str(value)


def device_facts(device: str | None, probe: DeviceProbe) -> dict[str, Any]:
    gpu = probe.devices[0] if device == "cuda" and probe.devices else None
    return {
        "device.kind": device,
        "device.count": len(probe.devices),
        "device.name": gpu.name if gpu else (None if device == "cuda" else probe.cpu_name),
        "device.capability": gpu.capability if gpu else None,
        "device.memory_bytes": gpu.memory_bytes if gpu else (None if device == "cuda" else probe.memory_bytes),
        "device.free_bytes": gpu.free_bytes if gpu else (None if device == "cuda" else probe.free_bytes),
        "cpu.cores": probe.cores,
        "cpu.flags": probe.flags,
    }


def shard_facts(spec: DecoderSpec, ranks: int, devices: int | None) -> dict[str, Any]:
    """``devices``: how many there are for ranks to have one each; None on a CPU."""
    from core.models.shard import Shard, divides

    shard = Shard(spec, 0, ranks).spec
    most = ranks if devices is None else max(1, min(ranks, devices))
    return {
        "shard.q_width": shard.q_width,
        "shard.intermediate": shard.intermediate,
        "parallel.fitting": next(number for number in range(most, 0, -1) if divides(spec, number)),
    }


def model_facts(name: str, architecture: str, checkpoint_format: str, spec: DecoderSpec) -> dict[str, Any]:
    return {
        "model.name": name,
        "model.architecture": architecture,
        "model.format": checkpoint_format,
        "model.max_positions": spec.max_positions,
        "model.layers": spec.num_layers,
        "model.hidden": spec.hidden,
        "model.intermediate": spec.intermediate,
        "model.heads": spec.num_heads,
        "model.kv_heads": spec.num_kv_heads,
        "model.head_dim": spec.head_dim,
        "model.q_width": spec.q_width,
        "model.vocab": spec.vocab,
        "model.parameters": spec.parameters,
    }
