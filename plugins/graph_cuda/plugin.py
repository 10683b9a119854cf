"""CUDA graphs: a step of a known size is launched as one thing instead of hundreds of kernels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator, model_validator

from core.hookspecs import hookimpl
from core.interfaces.rules import Condition, Fact, Remedy, Rule
from core.offers import Alias, Context, GraphBackendOffer, RulesOffer, Section
from graph_cuda.config import CHOOSES, WITHOUT_EFFECT, mistakes_in, settings_of
from graph_cuda.sizes import LARGEST, Sizes, decode_sizes, mixed_sizes, prompt_sizes

if TYPE_CHECKING:
    from core.interfaces.graph import GraphBackend

OURS = "settings.graph_cuda."
EAGERLY = Remedy("run steps eagerly: drop --use-cudagraph, or --plugins graph_cuda", {"plugins-": ["graph_cuda"]})
MIXED_SCOPE = Remedy("record steps with chunks and cached prefixes: --graph-cuda-scope mixed", {"graph_cuda.scope": "mixed"})
DECODE_SCOPE = Remedy("record decode steps alone: --graph-cuda-scope decode", {"graph_cuda.scope": "decode"})


class GraphSettings(Section, frozen=True):
    scope: Literal["decode", "full", "mixed"] = Field(
        "decode",
        description="record decode steps; steps of whole prompts as well; or any step, with chunks and cached prefixes",
    )
    capture_sizes: tuple[int, ...] = Field(
        (), description="numbers of decoding sequences to record a step for; default: what default_sizes says"
    )
    default_sizes: Literal["small_exact", "fastdeploy"] = Field(
        "small_exact",
        description=f"1 to 8 one by one and coarser ones above, or FastDeploy's list; up to max_num_seqs and {LARGEST}",
    )
    capture: Literal["start", "lazy"] = Field("start", description="record before the first request, or when a size is wanted")
    warmups: int = Field(2, ge=1, le=100, description="runs of a step before it is recorded")
    shared_pool: bool = Field(True, description="recordings share their memory, since one runs at a time")
    prefill_sequences: tuple[int, ...] = Field((1, 2, 4, 8), description="full scope: numbers of prompts to record steps for")
    prefill_tokens: int = Field(512, ge=1, description="full scope: tokens of the largest recorded step of prompts")
    mixed_tokens: int = Field(8192, ge=1, description="mixed scope: tokens of prompts in the largest recorded step")
    graph_opt_level: Literal[0, 1, 2] = Field(0, description="FastDeploy's; no level compiles anything here")
    graph_optimization_config: dict[str, Any] = Field(
        {}, description="FastDeploy's JSON object; its keys set the settings of this plugin"
    )

    @field_validator("capture_sizes", "prefill_sequences")
    @classmethod
    def _numbers_of_sequences(cls, sizes: tuple[int, ...]) -> tuple[int, ...]:
        if any(size < 1 for size in sizes):
            raise ValueError(f"sizes are numbers of sequences, from 1 on, not {min(sizes)}")
        return tuple(sorted(set(sizes)))

    @field_validator("prefill_sequences")
    @classmethod
    def _some(cls, sizes: tuple[int, ...]) -> tuple[int, ...]:
        if not sizes:
            raise ValueError("give at least one number of prompts")
        return sizes

    @field_validator("graph_optimization_config")
    @classmethod
    def _known_keys(cls, config: dict[str, Any]) -> dict[str, Any]:
        mistakes = mistakes_in(config)
        if mistakes:
            raise ValueError("; ".join(mistakes))
        return config

    @model_validator(mode="before")
    @classmethod
    def _unfold(cls, given: Any) -> Any:
        """What the JSON object says, said once more as settings; it may not say otherwise than these."""
        config = given.get("graph_optimization_config") if isinstance(given, Mapping) else None
        if not isinstance(config, Mapping) or mistakes_in(config):
            return given
        meant = settings_of(config)
        for name, (key, value) in meant.items():
            if name in given and _plain(given[name]) != _plain(value):
                raise ValueError(f"{name} is {_shown(given[name])}, and {key} of graph_optimization_config is {_shown(value)}")
        return {**given, **{name: value for name, (_, value) in meant.items()}}


def _plain(value: Any) -> Any:
    """The same for every way to write it: a list is its members, in order; numbers may be text."""
    if isinstance(value, (list, tuple)):
        return sorted({int(each) if str(each).isdecimal() else each for each in value}, key=str)
    return int(value) if str(value).isdecimal() else value


def _shown(value: Any) -> str:
    return ", ".join(str(each) for each in value) if isinstance(value, (list, tuple)) else str(value)


NEEDS_CUDA = Rule(
    id="cuda-graphs-need-cuda",
    when=(Condition("chosen.graph_backend", "==", "cuda"), Condition("device.kind", "!=", "cuda")),
    reason="the graph backend cuda needs a CUDA device, and the model runs on {device.kind}",
    remedies=(EAGERLY, Remedy("run on a CUDA device: --device cuda, where there is one")),
)

FULL_WITH_CHUNKS = Rule(
    id="full-graphs-with-chunked-prefill",
    when=(
        Condition(f"{OURS}scope", "==", "full"),
        Condition("scheduler.splits_prompts", "==", True),
        Condition("chosen.scheduler", "!=", None),
    ),
    reason="the scheduler {chosen.scheduler} may compute a prompt over several steps, and a recorded step of prompts attends "
    "to nothing before the step",
    remedies=(DECODE_SCOPE, MIXED_SCOPE, Remedy("compute prompts whole: --scheduler whole, and drop --enable-chunked-prefill")),
)

FULL_WITH_PREFIXES = Rule(
    id="full-graphs-with-prefix-caching",
    when=(Condition(f"{OURS}scope", "==", "full"), Condition("chosen.cache_policy", "!=", "private")),
    reason="under the cache policy {chosen.cache_policy} a prompt may begin in cached pages, and a recorded step of prompts "
    "attends to nothing before the step",
    remedies=(DECODE_SCOPE, MIXED_SCOPE, Remedy("share no KV pages: --no-enable-prefix-caching", {"cache_policy": "private"})),
)

WITH_RANKS = Rule(
    id="cuda-graphs-with-tensor-parallel",
    when=(Condition("chosen.graph_backend", "==", "cuda"), Condition("parallel.ranks", ">", 1)),
    reason="graphs are recorded for one CUDA device, and {parallel.ranks} ranks share the model",
    remedies=(Remedy("--tensor-parallel-size 1", {"tensor_parallel.size": 1}), EAGERLY),
)

LEVEL = Rule(
    id="graph-opt-level-without-effect",
    when=(Condition(f"{OURS}graph_opt_level", ">", 0),),
    reason="graph_opt_level {settings.graph_cuda.graph_opt_level} has no effect: the operations of a step are fused by hand, "
    "and no graph of them is compiled",
    remedies=(Remedy("graph_opt_level 0", {"graph_cuda.graph_opt_level": 0, "graph_cuda.graph_optimization_config": {}}),),
    severity="warning",
)


def _without_effect(key: str, reason: str) -> Rule:
    return Rule(
        id=f"graph-config-{key.replace('_', '-')}",
        when=(Condition(f"{OURS}graph_optimization_config", "contains", key),),
        reason=f"{key} of graph_optimization_config has no effect: {reason}",
        remedies=(Remedy(f"drop {key}"),),
        severity="warning",
    )


def _of_prompts(key: str) -> Rule:
    return Rule(
        id=f"graph-config-{key.replace('_', '-')}",
        when=(Condition(f"{OURS}graph_optimization_config", "contains", key), Condition(f"{OURS}scope", "!=", "full")),
        reason=f"{key} of graph_optimization_config has no effect: steps of whole prompts are recorded in full scope alone",
        remedies=(Remedy(f"drop {key}"), Remedy("--graph-cuda-scope full", {"graph_cuda.scope": "full"})),
        severity="warning",
    )


RULES = (
    NEEDS_CUDA,
    FULL_WITH_CHUNKS,
    FULL_WITH_PREFIXES,
    WITH_RANKS,
    LEVEL,
    *(_without_effect(key, reason) for key, reason in WITHOUT_EFFECT.items()),
    _of_prompts("cudagraph_capture_sizes_prefill"),
    _of_prompts("max_capture_shape_prefill"),
)


def sizes_of(section: GraphSettings, settings: Mapping[str, Any]) -> Sizes:
    sequences = settings["max_num_seqs"]
    decode, budget = decode_sizes(section.capture_sizes, section.default_sizes, sequences), settings["max_num_batched_tokens"]
    if section.scope == "full":
        return Sizes(decode, prompt_sizes(min(section.prefill_tokens, budget), section.prefill_sequences, sequences))
    if section.scope == "mixed":
        return Sizes(decode, mixed=mixed_sizes(min(section.mixed_tokens, budget), sequences))
    return Sizes(decode)


GRAPH_BYTES = Fact("memory.graph_bytes", int, "estimate of what CUDA graphs take beside all else; None where there are none")
OF_ALL = 128 << 20  # kernels in the device's memory, workspaces of its libraries: seen on an H100
OF_EACH = 4 << 20  # what the driver keeps of a graph, and its share of the pool


@hookimpl
def register_rules() -> Iterable[RulesOffer]:
    def derive(facts: Mapping[str, Any]) -> Mapping[str, Any]:
        if facts["chosen.graph_backend"] != "cuda" or facts["model.vocab"] is None:
            return {}
        given = {name: facts[OURS + name] for name in GraphSettings.model_fields if facts[OURS + name] is not None}
        settings = {name: facts[f"settings.{name}"] for name in ("max_num_seqs", "max_num_batched_tokens")}
        shapes = sizes_of(GraphSettings.model_validate(given), settings).shapes
        logits = max(shape.sequences for shape in shapes) * facts["model.vocab"] * 4  # the others' lie in the same place
        return {GRAPH_BYTES.name: OF_ALL + 2 * len(shapes) * OF_EACH + logits}  # each also for drawn tokens

    yield RulesOffer(name="cuda", summary="what the recorded steps take", facts=(GRAPH_BYTES,), derive=derive)


@hookimpl
def register_graph_backends() -> Iterable[GraphBackendOffer]:
    def create(context: Context) -> GraphBackend:
        from graph_cuda.cuda import TorchCuda
        from graph_cuda.graphs import CudaGraphs

        section: GraphSettings = context.section
        return CudaGraphs(
            sizes_of(section, context.settings),
            TorchCuda(),
            lazily=section.capture == "lazy",
            warmups=section.warmups,
            shared_pool=section.shared_pool,
        )

    yield GraphBackendOffer(
        name="cuda",
        summary="records steps of fixed sizes as CUDA graphs and replays them",
        frameworks=frozenset({"torch"}),
        create=create,
        settings=GraphSettings,
        rules=RULES,
        aliases=(
            Alias("record steps as CUDA graphs", flag="--use-cudagraph", chooses="cuda"),
            Alias(
                "FastDeploy's JSON object about graphs",
                flag="--graph-optimization-config",
                sets="graph_optimization_config",
                chooses="cuda",
                asks=CHOOSES,
            ),
        ),
    )
