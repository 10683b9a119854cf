"""The core's own settings. Plugins bring their sections; ``configuration`` says where each value came from."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from core.offers import Alias

PREFIX = "DOVETAIL_"

KIND_SETTINGS: dict[str, str] = {
    "compute_backend": "backend",
    "front_end": "front_end",
    "scheduler": "scheduler",
    "sampler": "sampler",
    "cache_policy": "cache_policy",
    "block_policy": "block_policy",
    "graph_backend": "graph",
    "quantizer": "quantization",
    "head_quantizer": "head_quantization",
    "parallelism": "parallelism",
    "draft_proposer": "speculation",
    "grammar_backend": "grammar",
    "tool_parser": "tool_call_parser",
    "reasoning_parser": "reasoning_parser",
    "page": "page",
}
"""Kind of offer -> the setting that names the one to use."""

CORE_ALIASES: tuple[Alias, ...] = (
    Alias("the hub to fetch from, as FastDeploy spells it", env="FD_MODEL_SOURCE", sets="model_source"),
    Alias("folder for fetched models, as FastDeploy spells it", env="FD_MODEL_CACHE", sets="model_cache"),
)


class CoreSettings(BaseModel, extra="forbid", frozen=True, validate_default=True):
    """Top-level keys of the TOML file, ``DOVETAIL_NAME``, ``--name``; the offline ``LLM`` takes them as keyword arguments.

    A field that may say "auto", or that is left unset, is decided in the open: the kinds of offers in ``core.compose.choose``,
    all others in ``core.compose.automatic``. --explain shows what and why.
    """

    plugins: tuple[str, ...] = Field(
        (), description="plugins to compose, by name; the core's defaults fill the kinds nobody names"
    )
    without: tuple[str, ...] = Field((), description="plugins to leave out, even if they are installed or a default")
    model: str = Field(
        "demo",
        min_length=1,
        description="a local folder or GGUF file, a name on a model hub, random:SHAPE, or demo (real English, fetched once)",
    )
    served_model_name: tuple[str, ...] = Field((), description="names that requests may use; default: the model as given")
    revision: str | None = Field(None, description="branch, tag or commit on the model hub")
    model_source: Literal["huggingface", "modelscope", "aistudio"] = Field(
        "huggingface", description="the hub a name that is no local folder is fetched from"
    )
    model_cache: str | None = Field(None, description="folder for fetched models; default: the user's cache folder")
    tokenizer: str | None = Field(None, description="a folder, or a name on the hub, of another tokenizer than the model's own")
    chat_template: str | None = Field(None, description="a Jinja file, or the template itself; default: the checkpoint's own")
    backend: str = Field("auto", description="compute backend")
    sampler: str = Field("auto", description="how tokens are drawn")
    scheduler: str = Field("auto", description="scheduling policy")
    cache_policy: str = Field("auto", description="which KV pages are shared and kept")
    block_policy: str = Field("auto", description="how KV pages are divided between prompts and what is generated")
    graph: str = Field("auto", description="how steps are launched")
    speculation: str = Field("auto", description="how coming tokens are guessed, to check several at once; none for not at all")
    grammar: str = Field("auto", description="what keeps outputs to a form that requests ask for; none for nothing")
    tool_call_parser: str = Field(
        "auto", description="how the model writes calls of tools; default: as its chat template does, if a parser knows it"
    )
    reasoning_parser: str = Field(
        "auto", description="how the model marks its reasoning; default: as its chat template does, if a parser knows it"
    )
    front_end: str = Field("auto", description="the door requests come through")
    page: str = Field("auto", description="what browsers are shown by the front end; none for nothing")
    quantization: str = Field("auto", description="packed weight format; none for the checkpoint's own")
    head_quantization: str = Field(
        "auto",
        description="the quantizer that packs the output head, whoever packs the layers; none for nobody; left out, that of "
        "the layers does as its own settings say",
    )
    parallelism: str = Field("auto", description="how several processes share a model; none for one process")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where the model runs")
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(
        "auto", description="number format of weights and KV cache"
    )
    threads: int = Field(
        0,
        ge=0,
        le=1024,
        description="CPU threads of the compute backend, in each process that shares a model; 0 is one per physical core "
        "available, divided among these processes",
    )
    max_model_len: int | None = Field(
        None, ge=16, description="longest prompt plus output, tokens; default: the model's positions, at most 32768"
    )
    max_num_seqs: int | None = Field(
        None,
        ge=1,
        le=4096,
        description="requests that run at the same time; default: 128, or a step's token budget if that is smaller",
    )
    max_num_batched_tokens: int | None = Field(
        None,
        ge=1,
        description="token budget of one step; default: 8192, or max_model_len where that is longer and prompts are not split",
    )
    max_waiting: int = Field(2048, ge=1, description="requests that may wait; beyond it a request is refused with 429")
    block_size: int = Field(64, ge=1, le=1024, description="tokens in one KV page")
    num_gpu_blocks_override: int | None = Field(None, ge=1, description="KV pages, instead of sizing them from memory")
    gpu_memory_utilization: float = Field(0.9, gt=0.0, le=1.0, description="share of a CUDA device's memory that may be used")
    kv_cache_memory: float | None = Field(
        None,
        gt=0.0,
        le=2.0**20,
        description="GiB for KV pages on a CPU; default: what all requests need, at most a quarter of free memory",
    )
    seed: int = Field(0, ge=0, description="seed of requests that bring none is drawn from this; and of random: weights")
    engine_restarts: int = Field(
        0, ge=0, description="how often a dead engine process is started again before the server exits"
    )
    step_timeout: float = Field(
        60.0,
        ge=0.0,
        le=1e6,
        description="seconds a step may take until /health says 503 and the log what runs; ten times as long for the first "
        "sixteen, in which kernels are compiled; 0: any step may take for ever",
    )
    drain_timeout: float = Field(30.0, ge=0.0, description="seconds running requests may take to finish after SIGTERM")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="of the logger dovetail")
    log_format: Literal["text", "json"] = Field("text", description="of the log: lines to read, or a JSON object a line")
