"""The core's own rules: those that hold whatever the features. A plugin brings its own with its offer."""

from __future__ import annotations

from collections.abc import Iterator

from core.compose.settings import KIND_SETTINGS
from core.interfaces.rules import Condition, FactRef, Remedy, Rule
from core.offers import HEAD_QUANTIZER


def _one_of_a_kind() -> Iterator[Rule]:
    for kind, setting in KIND_SETTINGS.items():
        if kind == HEAD_QUANTIZER:  # naming a plugin does not choose it
            continue
        title = kind.replace("_", " ")
        yield Rule(
            id=f"two-{kind.replace('_', '-')}s".replace("ys", "ies"),
            when=(Condition(f"named.{kind}.count", ">", 1),),
            reason=f"one {title} can be used, and the named plugins offer {{named.{kind}.count}}: {{named.{kind}}}",
            remedies=(
                Remedy(
                    f"say which: --{setting.replace('_', '-')} {{named.{kind}.first}}",
                    {setting: FactRef(f"named.{kind}.first")},
                ),
                Remedy("name only one of these plugins"),
            ),
        )


CORE_RULES: tuple[Rule, ...] = (
    *_one_of_a_kind(),
    Rule(
        id="plugin-named-twice",
        when=(Condition("plugins.repeated", "!=", ()),),
        reason="named more than once: {plugins.repeated}",
        remedies=(Remedy("name each plugin once: --plugins {plugins.named}", {"plugins": FactRef("plugins.named")}),),
    ),
    Rule(
        id="head-packed-otherwise",
        when=(
            Condition("model.head_packed_by", "!=", None),
            Condition("settings.head_quantization", "!=", FactRef("model.head_packed_by")),
        ),
        reason="the head of {model.name} is packed already, by {model.head_packed_by}",
        remedies=(
            Remedy("--head-quantization auto", {"head_quantization": "auto"}),
            Remedy("choose the model that was packed, and pack it otherwise"),
        ),
    ),
    Rule(
        id="head-of-a-format-that-rounds-activations",
        when=(
            Condition("head_quantizer.rounds_activations", "==", True),
            Condition("settings.head_quantization", "!=", FactRef("settings.quantization")),
        ),
        reason="{settings.head_quantization} rounds activations as well as weights: it packs no head beside others' layers",
        remedies=(
            Remedy("--head-quantization auto", {"head_quantization": "auto"}),
            Remedy("--quantization {settings.head_quantization}", {"quantization": FactRef("settings.head_quantization")}),
        ),
    ),
    Rule(
        id="section-of-an-unloaded-plugin",
        when=(Condition("sections.unloaded", "!=", ()),),
        reason="settings are given for {sections.unloaded}, which is installed but not chosen",
        remedies=(
            Remedy("add it: --plugins {sections.unloaded}", {"plugins+": FactRef("sections.unloaded")}),
            Remedy("drop these settings"),
        ),
    ),
    Rule(
        id="max-model-len-beyond-positions",
        when=(Condition("settings.max_model_len", ">", FactRef("model.max_positions")),),
        reason="max_model_len {settings.max_model_len} is beyond the {model.max_positions} positions of {model.name}",
        remedies=(Remedy("--max-model-len {model.max_positions}", {"max_model_len": FactRef("model.max_positions")}),),
    ),
    Rule(
        id="step-smaller-than-batch",
        when=(Condition("settings.max_num_batched_tokens", "<", FactRef("settings.max_num_seqs")),),
        reason="a step of {settings.max_num_batched_tokens} tokens cannot give {settings.max_num_seqs} sequences a token each",
        remedies=(
            Remedy(
                "--max-num-batched-tokens {settings.max_num_seqs}", {"max_num_batched_tokens": FactRef("settings.max_num_seqs")}
            ),
            Remedy(
                "--max-num-seqs {settings.max_num_batched_tokens}", {"max_num_seqs": FactRef("settings.max_num_batched_tokens")}
            ),
        ),
    ),
    Rule(
        id="step-larger-than-everything",
        when=(Condition("settings.max_num_batched_tokens", ">", FactRef("limits.max_batched_tokens")),),
        reason="a step of {settings.max_num_batched_tokens} tokens never fills: max_model_len {settings.max_model_len} "
        "times max_num_seqs {settings.max_num_seqs} is {limits.max_batched_tokens}",
        remedies=(
            Remedy(
                "--max-num-batched-tokens {limits.max_batched_tokens}",
                {"max_num_batched_tokens": FactRef("limits.max_batched_tokens")},
            ),
        ),
    ),
    Rule(
        id="step-shorter-than-a-prompt",
        when=(
            Condition("scheduler.splits_prompts", "==", False),
            Condition("settings.max_num_batched_tokens", "<", FactRef("settings.max_model_len")),
        ),
        reason="the scheduler {chosen.scheduler} computes a prompt in one step, and a step of "
        "{settings.max_num_batched_tokens} tokens cannot hold one of max_model_len {settings.max_model_len}",
        remedies=(
            Remedy(
                "--max-num-batched-tokens {settings.max_model_len}",
                {"max_num_batched_tokens": FactRef("settings.max_model_len")},
            ),
            Remedy(
                "--max-model-len {settings.max_num_batched_tokens}",
                {"max_model_len": FactRef("settings.max_num_batched_tokens")},
            ),
            Remedy(
                "choose a scheduler that splits prompts: --scheduler {scheduler.splitting}",
                {"scheduler": FactRef("scheduler.splitting")},
            ),
        ),
    ),
    Rule(
        id="no-cuda-device",
        when=(Condition("device.kind", "==", "cuda"), Condition("device.count", "==", 0)),
        reason="device is cuda, and this machine shows no CUDA device",
        remedies=(
            Remedy("--device cpu", {"device": "cpu"}),
            Remedy("check the driver (nvidia-smi) and CUDA_VISIBLE_DEVICES"),
        ),
    ),
    Rule(
        id="framework-missing",
        when=(Condition("compute.missing_modules", "!=", ()),),
        reason="the compute backend {chosen.compute_backend} needs modules that are not installed: {compute.missing_modules}",
        remedies=(Remedy("pip install '{compute.package}'"), Remedy("choose another compute backend")),
    ),
    Rule(
        id="device-the-backend-lacks",
        when=(Condition("device.kind", "not in", FactRef("compute.devices")),),
        reason="the compute backend {chosen.compute_backend} runs on {compute.devices}, not on {device.kind}",
        remedies=(
            Remedy("--device {compute.device}", {"device": FactRef("compute.device")}),
            Remedy("choose another compute backend"),
        ),
    ),
    Rule(
        id="number-format-the-backend-lacks",
        when=(Condition("settings.dtype", "not in", FactRef("compute.dtypes")),),
        reason="on {device.kind} the compute backend {chosen.compute_backend} computes in {compute.dtypes}, "
        "not in {settings.dtype}",
        remedies=(
            Remedy("--dtype {compute.best_dtype}", {"dtype": FactRef("compute.best_dtype")}),
            Remedy("choose another compute backend"),
        ),
    ),
    Rule(
        id="sampler-of-another-framework",
        when=(
            Condition("compute.framework", "not in", FactRef("sampler.frameworks")),
            Condition("sampler.between", "==", None),
        ),
        reason="the sampler {chosen.sampler} takes logits of {sampler.frameworks}, and the compute backend "
        "{chosen.compute_backend} gives those of {compute.framework}",
        remedies=(
            Remedy("--sampler {sampler.fitting}", {"sampler": FactRef("sampler.fitting")}),
            Remedy("choose a compute backend of {sampler.frameworks}"),
        ),
    ),
    Rule(
        id="graph-of-another-framework",
        when=(Condition("compute.framework", "not in", FactRef("graph_backend.frameworks")),),
        reason="the graph backend {chosen.graph_backend} captures steps of {graph_backend.frameworks}, and the compute backend "
        "{chosen.compute_backend} runs on {compute.framework}",
        remedies=(
            Remedy("--graph {graph_backend.fitting}", {"graph": FactRef("graph_backend.fitting")}),
            Remedy("choose a compute backend of {graph_backend.frameworks}"),
        ),
    ),
    Rule(
        id="ranks-of-another-framework",
        when=(
            Condition("parallel.ranks", ">", 1),
            Condition("compute.framework", "not in", FactRef("parallel.frameworks")),
        ),
        reason="the parallelism {chosen.parallelism} sums arrays of {parallel.frameworks}, and the compute backend "
        "{chosen.compute_backend} runs on {compute.framework}",
        remedies=(
            Remedy("--parallelism none", {"parallelism": "none"}),
            Remedy("choose a compute backend of {parallel.frameworks}"),
        ),
    ),
    Rule(
        id="backend-that-does-not-split",
        when=(Condition("parallel.ranks", ">", 1), Condition("compute.splits", "==", False)),
        reason="the compute backend {chosen.compute_backend} cannot share a model among {parallel.ranks} ranks",
        remedies=(
            Remedy("--parallelism none", {"parallelism": "none"}),
            Remedy("choose another compute backend"),
        ),
    ),
    Rule(
        id="model-larger-than-memory",
        when=(Condition("memory.weights_bytes", ">", FactRef("memory.budget_bytes")),),
        reason="the weights of {model.name} take {memory.weights_bytes} in {compute.dtype}, and "
        "{memory.budget_bytes} of {device.kind} memory may be used",
        remedies=(
            Remedy("--dtype bfloat16 halves them", {"dtype": FactRef("memory.smaller_dtype")}),
            Remedy("choose a smaller model, a packed format (--quantization), or a machine with more free memory"),
        ),
    ),
    Rule(
        id="request-larger-than-memory",
        when=(
            Condition("memory.weights_bytes", "<=", FactRef("memory.budget_bytes")),
            Condition("memory.one_request_bytes", ">", FactRef("memory.budget_bytes")),
        ),
        reason="{model.name} and one request of max_model_len {settings.max_model_len} take {memory.one_request_bytes}, "
        "and {memory.budget_bytes} of {device.kind} memory may be used",
        remedies=(
            Remedy("--max-model-len {memory.fitting_model_len}", {"max_model_len": FactRef("memory.fitting_model_len")}),
            Remedy("lower --max-num-batched-tokens or --max-num-seqs, or free memory"),
        ),
    ),
    Rule(
        id="cache-larger-than-memory",
        when=(
            Condition("memory.total_bytes", ">", FactRef("memory.budget_bytes")),
            Condition("memory.one_request_bytes", "<=", FactRef("memory.budget_bytes")),
        ),
        reason="{kv.num_pages} KV pages take {memory.kv_bytes}; with the weights that is {memory.total_bytes}, and "
        "{memory.budget_bytes} of {device.kind} memory may be used",
        remedies=(
            Remedy("--kv-cache-memory {memory.fitting_kv_gib}", {"kv_cache_memory": FactRef("memory.fitting_kv_gib")}),
            Remedy(
                "--num-gpu-blocks-override {memory.fitting_pages}", {"num_gpu_blocks_override": FactRef("memory.fitting_pages")}
            ),
        ),
    ),
    Rule(
        id="cache-sized-twice",
        when=(
            Condition("settings.kv_cache_memory", "!=", None),
            Condition("settings.num_gpu_blocks_override", "!=", None),
        ),
        reason="the KV pages are said to be {settings.num_gpu_blocks_override}, and to fill {settings.kv_cache_memory} GiB",
        remedies=(
            Remedy("drop --kv-cache-memory", {"kv_cache_memory": None}),
            Remedy("drop --num-gpu-blocks-override", {"num_gpu_blocks_override": None}),
        ),
    ),
    Rule(
        id="cpu-cache-on-cuda",
        when=(Condition("device.kind", "==", "cuda"), Condition("settings.kv_cache_memory", "!=", None)),
        reason="kv_cache_memory is for a CPU's KV pages; those of a CUDA device fill what gpu_memory_utilization leaves",
        remedies=(
            Remedy("drop it, and lower --gpu-memory-utilization if need be", {"kv_cache_memory": None}),
            Remedy("say how many pages: --num-gpu-blocks-override"),
        ),
    ),
    Rule(
        id="cache-smaller-than-a-request",
        when=(Condition("kv.num_pages", "<", FactRef("kv.pages_per_request")),),
        reason="{kv.num_pages} KV pages hold {kv.capacity_tokens} tokens, and one request of max_model_len "
        "{settings.max_model_len} needs {kv.pages_per_request} pages",
        remedies=(
            Remedy("--max-model-len {kv.capacity_model_len}", {"max_model_len": FactRef("kv.capacity_model_len")}),
            Remedy(
                "--num-gpu-blocks-override {kv.pages_per_request}", {"num_gpu_blocks_override": FactRef("kv.pages_per_request")}
            ),
        ),
    ),
)
