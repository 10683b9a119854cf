"""Every offer of the default plugins through its contract."""

import json
import re
import urllib.request
from dataclasses import replace
from pathlib import Path

import gguf
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from core import testing
from core.compose.probe import DeviceProbe, Gpu
from core.interfaces.model import WeightName, weight_names
from core.models import random_format
from core.offers import Context
from core.testing.inputs import random_weights, tiny_spec
from core.testing.parsers import CITY
from core.testing.plugin import offers_of, plugin_module
from core.testing.recording import FixedShapes, RecordingFake

GUIDE = Path(__file__).parents[2] / "docs" / "plugins"


def offered(plugin, kind, name):
    """One offer, found as the core finds it: through its entry point."""
    return next(offer for offer in offers_of(plugin_module(plugin)) if (offer.kind, offer.name) == (kind, name))


def made(plugin, kind, name, *, settings=None, facts=None, **section):
    offer = offered(plugin, kind, name)
    return offer.create(Context(offer.settings(**section) if offer.settings else None, settings or {}, facts or {}))


# --- plain, prefill_chunked -------------------------------------------------------------------------------------------


class TestPlain(testing.PluginContract):
    plugin = "plain"


class TestPrivatePages(testing.CachePolicyContract):
    shares = False

    def make(self):
        return made("plain", "cache_policy", "private")


class TestWhole(testing.SchedulerContract):
    splits_prompts = False

    def make(self):
        return made("plain", "scheduler", "whole")


class TestEager(testing.GraphBackendContract):
    def make(self):
        return made("plain", "graph_backend", "eager")

    def backend(self):
        return torch_backend("float32")


class TestPrefillChunked(testing.PluginContract):
    plugin = "prefill_chunked"


class TestPrefillChunkedRules(testing.RulesContract):
    plugin = "prefill_chunked"
    violating = {"partial-prefills-without-chunked-prefill": {"plugins": [], "prefill_chunked.max_num_partial_prefills": 2}}


class TestChunked(testing.SchedulerContract):
    splits_prompts = True
    section: dict = {}

    def make(self):
        return made("prefill_chunked", "scheduler", "chunked", settings={"max_model_len": 4096}, **self.section)


class TestChunkedWithMorePartialPrompts(TestChunked):
    section = {"max_num_partial_prefills": 4, "max_long_partial_prefills": 2, "long_prefill_token_threshold": 100}


# --- fastdeploy_compat ------------------------------------------------------------------------------------------------


class TestFastDeployCompat(testing.PluginContract):
    plugin = "fastdeploy_compat"


# --- cache_prefix -----------------------------------------------------------------------------------------------------


class TestCachePrefix(testing.PluginContract):
    plugin = "cache_prefix"


class TestCachePrefixRules(testing.RulesContract):
    plugin = "cache_prefix"
    sound = {"cache_prefix.swap_space": 4.0}
    violating = {
        "swap-space-beyond-memory": {"cache_prefix.swap_space": 1000.0},
        "swap-space-without-prefix-caching": {"plugins": [], "cache_prefix.swap_space": 4.0},
    }


class TestPrefixPages(testing.CachePolicyContract):
    def make(self):
        return made("cache_prefix", "cache_policy", "prefix")


# --- graph_cuda -------------------------------------------------------------------------------------------------------


class TestGraphCuda(testing.PluginContract):
    plugin = "graph_cuda"


class TestCudaGraphs(testing.GraphBackendContract):
    """On a capture API that works without a device; the device itself is in the plugin's own tests."""

    tolerance = 1e-5

    def make(self):
        settings = {"max_num_seqs": 4, "max_num_batched_tokens": 64}
        graphs = made("graph_cuda", "graph_backend", "cuda", settings=settings, scope="full")
        graphs.recorder = RecordingFake()
        return graphs

    def backend(self):
        return FixedShapes("cpu", "float32", 1)


# --- kv_blocks --------------------------------------------------------------------------------------------------------


class TestKvBlocks(testing.PluginContract):
    plugin = "kv_blocks"


class TestKvBlocksRules(testing.RulesContract):
    plugin = "kv_blocks"
    sound = {"max_model_len": 64, "num_gpu_blocks_override": 8}
    violating = {
        "kv-cache-ratio-without-partition": {"block_policy": "global", "kv_blocks.kv_cache_ratio": 0.5},
        "static-decode-blocks-without-partition": {"block_policy": "global", "kv_blocks.static_decode_blocks": 1},
        "prompt-part-smaller-than-a-request": {
            "block_policy": "partitioned",
            "kv_blocks.kv_cache_ratio": 0.25,
            "max_model_len": 256,
            "num_gpu_blocks_override": 8,
        },
    }


class TestGlobal(testing.BlockPolicyContract):
    def make(self):
        return made("kv_blocks", "block_policy", "global")


class TestPartitioned(testing.BlockPolicyContract):
    section: dict = {}

    def make(self):
        return made("kv_blocks", "block_policy", "partitioned", **self.section)


class TestPartitionedInHalves(TestPartitioned):
    section = {"kv_cache_ratio": 0.5, "static_decode_blocks": 0}


# --- grammar_llguidance -----------------------------------------------------------------------------------------------


class TestGrammarLlguidance(testing.PluginContract):
    plugin = "grammar_llguidance"


class TestLlguidance(testing.GrammarBackendContract):
    def make(self):
        return made("grammar_llguidance", "grammar_backend", "llguidance")


# --- tool_parsers, reasoning_parsers --------------------------------------------------------------------------------


class TestToolParsers(testing.PluginContract):
    plugin = "tool_parsers"


TAGGED = f'<tool_call>\n{{"name": "get_weather", "arguments": {json.dumps(CITY)}}}\n</tool_call>'


class TestHermes(testing.ToolParserContract):
    examples = ((f"{TAGGED}\n{TAGGED}", ("", [("get_weather", CITY)] * 2)), (f"So: {TAGGED}", ("So:", [("get_weather", CITY)])))

    def make(self):
        return made("tool_parsers", "tool_parser", "hermes")


class TestErnieX1Calls(TestHermes):
    def make(self):
        return made("tool_parsers", "tool_parser", "ernie_x1")


class TestLlama3Json(testing.ToolParserContract):
    examples = (
        ('{"name": "get_time", "parameters": {}}; {"name": "get_time", "parameters": {}}', ("", [("get_time", {})] * 2)),
    )

    def make(self):
        return made("tool_parsers", "tool_parser", "llama3_json")


class TestPythonic(testing.ToolParserContract):
    examples = (("[get_weather(city='Ulm'), get_time()]", ("", [("get_weather", {"city": "Ulm"}), ("get_time", {})])),)

    def make(self):
        return made("tool_parsers", "tool_parser", "pythonic")


class TestReasoningParsers(testing.PluginContract):
    plugin = "reasoning_parsers"


class TestDeepSeekR1(testing.ReasoningParserContract):
    examples = (
        ("<think>\n", "One, two.\n</think>\n\nThree.", "One, two.", "Three."),
        ("", "One.</think>Three.", "One.", "Three."),
        ("<think>\n\n</think>\n\n", "Three.", "", "Three."),
    )

    def make(self):
        return made("reasoning_parsers", "reasoning_parser", "deepseek_r1")


class TestErnie45Vl(TestDeepSeekR1):
    def make(self):
        return made("reasoning_parsers", "reasoning_parser", "ernie_45_vl")


class TestErnieX1(TestDeepSeekR1):
    examples = (*TestDeepSeekR1.examples, ("", "One.\n</think>\n<response>\nThree.\n</response>\n", "One.", "Three."))

    def make(self):
        return made("reasoning_parsers", "reasoning_parser", "ernie_x1")


class TestQwen3(testing.ReasoningParserContract):
    examples = (
        ("assistant\n", "<think>One.</think>Three.", "One.", "Three."),
        ("assistant\n", "Three.", "", "Three."),
        ("assistant\n<think>\n\n</think>\n\n", "Three.", "", "Three."),
    )

    def make(self):
        return made("reasoning_parsers", "reasoning_parser", "qwen3")


# --- spec_ngram -------------------------------------------------------------------------------------------------------


class TestSpecNgram(testing.PluginContract):
    plugin = "spec_ngram"


class TestNgram(testing.DraftProposerContract):
    def make(self):
        return made("spec_ngram", "draft_proposer", "ngram")


# --- quant_wint8, quant_wint4 -----------------------------------------------------------------------------------------


class TestQuantWint8(testing.PluginContract):
    plugin = "quant_wint8"


class TestWint8(testing.QuantizerContract):
    max_error = 1 / 254
    in_features = (256, 577)

    def make(self):
        return made("quant_wint8", "quantizer", "wint8")


class TestQuantWint4(testing.PluginContract):
    plugin = "quant_wint4"


class TestWint4(testing.QuantizerContract):
    max_error = 1 / 14 * (1 + 2**-8)  # half a step, of which the largest weight of a group is seven; the scale is rounded
    group_size = 128
    in_features = (256, 640)
    unfit_in_features = (576,)

    def make(self):
        return made("quant_wint4", "quantizer", "wint4", group_size=self.group_size)


class TestWint4InSmallGroups(TestWint4):
    group_size = 32
    in_features = (256, 576)
    unfit_in_features = (80,)


class TestWint4ByRow(TestWint4):
    group_size = None
    in_features = (256, 577)
    unfit_in_features = ()

    def make(self):
        return made("quant_wint4", "quantizer", "wint4", group_size=0)


class TestWint4Searched(TestWint4):
    max_error = 0.3  # the largest of a group may be clipped

    def make(self):
        return made("quant_wint4", "quantizer", "wint4", search=True)


class TestWint4Padded(TestWint4):
    unfit_in_features = ()
    in_features = (256, 576)

    def make(self):
        return made("quant_wint4", "quantizer", "wint4", pad=True)

    def error_bound(self, weight):
        filled = -weight.shape[1] % 128
        return super().error_bound(np.pad(weight, ((0, 0), (0, filled))))[:, : weight.shape[1]]


class TestWint4Head(TestWint8):
    def make(self):
        return made("quant_wint4", "quantizer", "wint4").of_role("head")


class TestWint4Rules(testing.RulesContract):
    plugin = "quant_wint4"
    sound = {"quant_wint4.group_size": 32}
    violating = {
        "wint4-groups-do-not-divide-hidden": {"quant_wint4.group_size": 128},
        "wint4-groups-do-not-divide-attention": {"model": "random:llama-tiny", "quant_wint4.group_size": 128},
        "wint4-groups-do-not-divide-feed-forward": {"model": "random:odd"},
    }

    @pytest.fixture(autouse=True)
    def odd(self, monkeypatch):
        """A model of whose rows some have 100 weights."""
        monkeypatch.setitem(random_format.SHAPES, "odd", random_format.SHAPES["tiny"] | {"intermediate_size": 100})


# --- quant_fp8 ------------------------------------------------------------------------------------------------------


class TestQuantFp8(testing.PluginContract):
    plugin = "quant_fp8"


class TestFp8(testing.QuantizerContract):
    in_features = (256, 577)

    def make(self):
        return made("quant_fp8", "quantizer", "block_wise_fp8")

    def error_bound(self, weight):
        """Half of a step: an eighth of the power of two below the weight, or for small ones 2**-9 of the block's scale."""
        rows, columns = weight.shape
        size = np.abs(weight.astype(np.float64))
        filled = np.pad(size, ((0, -rows % 128), (0, -columns % 128)))
        largest = filled.reshape(len(filled) // 128, 128, -1, 128).max(axis=(1, 3))
        scale = np.repeat(np.repeat(largest / 448, 128, axis=0), 128, axis=1)[:rows, :columns]
        return np.maximum(size / 16, scale / 1024) * (1 + 1e-5) + 2.0**-149 * 448


class TestFp8Rules(testing.RulesContract):
    plugin = "quant_fp8"
    sound = {"quant_fp8.emulate": True}
    violating = {
        "fp8-capability": {"quant_fp8.emulate": False},
        "fp8-on-a-cpu": {"quant_fp8.emulate": False},
    }

    def machine(self, rule):
        older = (Gpu("A100", 8.0, 80 << 30, 79 << 30),) if rule == "fp8-capability" else ()
        return replace(super().machine(rule), devices=older)


# --- sampler_standard -------------------------------------------------------------------------------------------------


class TestSamplerStandard(testing.PluginContract):
    plugin = "sampler_standard"


class TestStandard(testing.SamplerContract):
    def make(self):
        return made("sampler_standard", "sampler", "standard")

    def probabilities(self, logits, *, temperature, top_k, top_p, min_p):
        weights = np.exp((logits - logits.max()) / temperature)
        weights /= weights.sum()
        order = np.argsort(-weights, kind="stable")
        ordered = weights[order]
        if top_k:
            ordered[top_k:] = 0
        ordered /= ordered.sum()
        before = np.cumsum(ordered) - ordered
        ordered[before >= top_p] = 0
        ordered[ordered < min_p * ordered[0]] = 0
        weights[order] = ordered / ordered.sum()
        return weights


# --- sampler_rejection ------------------------------------------------------------------------------------------------


class TestSamplerRejection(testing.PluginContract):
    plugin = "sampler_rejection"


class TestRejection(TestStandard):
    """It keeps what the standard sampler keeps."""

    def make(self):
        return made("sampler_rejection", "sampler", "rejection")


# --- backend_torch ----------------------------------------------------------------------------------------------------


def torch_backend(dtype):
    return made(
        "backend_torch",
        "compute_backend",
        "torch",
        settings={
            "device": "cpu",
            "dtype": dtype,
            "threads": 1,
            "max_num_seqs": 8,
            "max_model_len": 256,
            "gpu_memory_utilization": 0.9,
        },
        facts={"compute.dtype": dtype, "device.kind": "cpu", "cpu.cores": 1, "cpu.flags": ()},
    )


class TestBackendTorch(testing.PluginContract):
    plugin = "backend_torch"
    readme = GUIDE


class TestBackendPaddle(testing.PluginContract):
    """The backend itself goes through its contract where PaddlePaddle is installed: tests/compute/test_paddle.py."""

    plugin = "backend_paddle"
    readme = GUIDE


class TestTorchOnCpu(testing.ComputeBackendContract):
    def make(self, dtype):
        return torch_backend(dtype)


# --- tensor_parallel --------------------------------------------------------------------------------------------------


class TestTensorParallel(testing.PluginContract):
    plugin = "tensor_parallel"


class TestTensor(testing.ParallelismContract):
    def make(self, rank, ranks):
        facts = {"parallel.rank": rank, "device.kind": "cpu"}
        return made("tensor_parallel", "parallelism", "tensor", facts=facts, size=ranks)

    def backend(self):
        return torch_backend("float32")


class TestTensorParallelRules(testing.RulesContract):
    plugin = "tensor_parallel"
    sound = {"tensor_parallel.size": 2}
    violating = {
        "tensor-parallel-heads": {"tensor_parallel.size": 3},
        "tensor-parallel-kv-heads": {"tensor_parallel.size": 3, "model": "random:six"},
        "tensor-parallel-feed-forward": {"tensor_parallel.size": 4, "model": "random:odd"},
        "tensor-parallel-devices": {"tensor_parallel.size": 4, "device": "cuda"},
        "tensor-parallel-cores": {"tensor_parallel.size": 4},
    }

    @pytest.fixture(autouse=True)
    def shapes(self, monkeypatch):
        tiny = random_format.SHAPES["tiny"]
        six = {"num_attention_heads": 6, "intermediate_size": 384}
        monkeypatch.setitem(random_format.SHAPES, "six", tiny | six)
        monkeypatch.setitem(random_format.SHAPES, "odd", tiny | {"intermediate_size": 126})

    def machine(self, rule):
        gpus = (Gpu("a GPU", 9.0, 80 << 30, 80 << 30),) * 2 if rule == "tensor-parallel-devices" else ()
        return DeviceProbe("a CPU", 2, (), 64 << 30, 60 << 30, gpus)


# --- web --------------------------------------------------------------------------------------------------------------


class TestWeb(testing.PluginContract):
    plugin = "web"


class TestWebPage(testing.PageContract):
    def folder(self):
        return offered("web", "page", "web").folder()


# --- openai_http ------------------------------------------------------------------------------------------------------


class TestOpenaiHttp(testing.PluginContract):
    plugin = "openai_http"


class TestHttpDoor(testing.FrontEndContract):
    def make(self):
        return made("openai_http", "front_end", "openai_http", settings={"drain_timeout": 10.0}, port=self.port)

    def ready(self):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5) as answer:
            return answer.status == 200

    def ask(self, prompt):
        body = json.dumps({"model": "fake", "prompt": prompt, "max_tokens": 100}).encode()
        call = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/v1/completions", data=body, headers={"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(call, timeout=20) as answer:
            return json.load(answer)["choices"][0]["text"]


# --- decoder_models ---------------------------------------------------------------------------------------------------


class TestDecoderModels(testing.PluginContract):
    plugin = "decoder_models"
    readme = GUIDE


CONFIG = {
    "hidden_act": "silu",
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 64,
    "vocab_size": 96,
    "max_position_embeddings": 2048,
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "tie_word_embeddings": True,
}
ERNIE = {**CONFIG, "architectures": ["Ernie4_5ForCausalLM"], "use_bias": False}
LLAMA = {**CONFIG, "architectures": ["LlamaForCausalLM"], "tie_word_embeddings": False}


def hf_tensors(prefix, spec, *, transposed=False, fused=False):
    """The weights of the tiny decoder under the names of transformers, or of Paddle."""
    names = {
        "qkv": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
        "o": ["self_attn.o_proj"],
        "gate_up": ["mlp.gate_proj", "mlp.up_proj"],
        "down": ["mlp.down_proj"],
    }
    if fused:
        names |= {"qkv": ["self_attn.qkv_proj"], "gate_up": ["mlp.up_gate_proj"]}
    norms = {"input": "input_layernorm", "post": "post_attention_layernorm"}
    tensors = {}
    for weight in random_weights(spec).values():
        name, parts = weight.name, weight.parts
        if name.role == "embed":
            tensors[f"{prefix}embed_tokens.weight"] = parts[0]
        elif name.role == "head":
            if not spec.tied_head:
                tensors["lm_head.weight"] = parts[0]
        elif name.layer is None:
            tensors[f"{prefix}norm.weight"] = parts[0]
        elif name.role == "norm":
            tensors[f"{prefix}layers.{name.layer}.{norms[name.norm]}.weight"] = parts[0]
        else:
            if fused:
                parts = (np.concatenate(parts),)
            for stem, part in zip(names[name.role], parts, strict=True):
                tensors[f"{prefix}layers.{name.layer}.{stem}.weight"] = np.ascontiguousarray(part.T) if transposed else part
    return tensors


GGUF = {
    "qkv": ["attn_q", "attn_k", "attn_v"],
    "o": ["attn_output"],
    "gate_up": ["ffn_gate", "ffn_up"],
    "down": ["ffn_down"],
}


def gguf_tensors(spec):
    tensors = {}
    for weight in random_weights(spec).values():
        name = weight.name
        if name == WeightName("embed"):
            tensors["token_embd.weight"] = weight.parts[0]
        elif name.role == "norm":
            stem = "output_norm" if name.layer is None else f"blk.{name.layer}.{'attn' if name.norm == 'input' else 'ffn'}_norm"
            tensors[f"{stem}.weight"] = weight.parts[0]
        elif name.role != "head":
            for stem, part in zip(GGUF[name.role], weight.parts, strict=True):
                tensors[f"blk.{name.layer}.{stem}.weight"] = part
    return tensors


class TestErniePT(testing.ModelContract):
    config = ERNIE
    refused = ({"use_bias": True}, {"num_attention_heads": 3})

    def make(self):
        return offered("decoder_models", "model", "ernie45").family()

    def tensors(self):
        return hf_tensors("model.", tiny_spec())


class TestErniePaddle(TestErniePT):
    def tensors(self):
        return hf_tensors("ernie.", tiny_spec(), transposed=True, fused=True)


class TestErnieGguf(TestErniePT):
    def tensors(self):
        return gguf_tensors(tiny_spec())


class TestErnieUntied(TestErniePT):
    config = {**ERNIE, "tie_word_embeddings": False}

    def tensors(self):
        return hf_tensors("model.", tiny_spec(tied_head=False))


class TestLlama(testing.ModelContract):
    config = LLAMA
    refused = ({"attention_bias": True}, {"mlp_bias": True})

    def make(self):
        return offered("decoder_models", "model", "llama").family()

    def tensors(self):
        return hf_tensors("model.", tiny_spec(tied_head=False, rope_style="half"))


class TestSafetensors(testing.CheckpointFormatContract):
    def make(self):
        return offered("decoder_models", "checkpoint_format", "safetensors").create()

    def write(self, folder):
        tensors = {name: tensor.astype(ml_dtypes.bfloat16) for name, tensor in hf_tensors("model.", tiny_spec()).items()}
        (folder / "config.json").write_text(json.dumps(ERNIE))
        save_file(tensors, folder / "model.safetensors")
        return folder, tensors


class TestShardedSafetensors(TestSafetensors):
    def write(self, folder):
        tensors = hf_tensors("model.", tiny_spec())
        (folder / "config.json").write_text(json.dumps(ERNIE))
        places = {}
        for number in range(2):
            file = f"model-0000{number + 1}-of-00002.safetensors"
            shard = {name: tensors[name] for name in sorted(tensors)[number::2]}
            save_file(shard, folder / file)
            places |= dict.fromkeys(shard, file)
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
        return folder, tensors


class TestGguf(testing.CheckpointFormatContract):
    def make(self):
        return offered("decoder_models", "checkpoint_format", "gguf").create()

    def write(self, folder):
        path, spec = folder / "tiny.gguf", tiny_spec()
        tensors = gguf_tensors(spec)
        writer = gguf.GGUFWriter(path, "llama")
        writer.add_block_count(spec.num_layers)
        writer.add_embedding_length(spec.hidden)
        writer.add_feed_forward_length(spec.intermediate)
        writer.add_head_count(spec.num_heads)
        writer.add_head_count_kv(spec.num_kv_heads)
        writer.add_key_length(spec.head_dim)
        writer.add_rope_dimension_count(spec.head_dim)
        writer.add_layer_norm_rms_eps(spec.norm_eps)
        writer.add_context_length(spec.max_positions)
        writer.add_rope_freq_base(spec.rope_theta)
        writer.add_vocab_size(spec.vocab)
        writer.add_token_list([f"token{number}" for number in range(spec.vocab)])
        for name, tensor in tensors.items():
            writer.add_tensor(name, tensor)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path, tensors


class TestRandom(testing.CheckpointFormatContract):
    def make(self):
        return offered("decoder_models", "checkpoint_format", "random").create()

    def write(self, folder):
        path = Path("random:tiny")
        checkpoint = self.make().open(path)
        return path, {name: checkpoint.tensor(name) for name in checkpoint.names()}


def test_the_tiny_spec_is_what_the_configs_say():
    family = offered("decoder_models", "model", "ernie45").family()
    assert family.spec(ERNIE) == tiny_spec()
    assert offered("decoder_models", "model", "llama").family().spec(LLAMA) == replace(
        tiny_spec(), rope_style="half", tied_head=False
    )


def test_every_default_offer_goes_through_a_contract():
    """An offer added to a default plugin without a contract test fails here."""
    tested = {
        "plain": {"private", "whole", "eager"},
        "prefill_chunked": {"chunked"},
        "cache_prefix": {"prefix"},
        "graph_cuda": {"cuda"},
        "kv_blocks": {"global", "partitioned"},
        "quant_fp8": {"block_wise_fp8"},
        "quant_wint8": {"wint8"},
        "quant_wint4": {"wint4"},
        "sampler_rejection": {"rejection"},
        "sampler_standard": {"standard"},
        "spec_ngram": {"ngram"},
        "grammar_llguidance": {"llguidance"},
        "tool_parsers": {"hermes", "ernie_x1", "llama3_json", "pythonic"},
        "reasoning_parsers": {"qwen3", "deepseek_r1", "ernie_x1", "ernie_45_vl"},
        "backend_torch": {"torch"},
        "tensor_parallel": {"tensor"},
        "openai_http": {"openai_http"},
        "web": {"web"},
        "decoder_models": {"ernie45", "llama", "safetensors", "gguf", "random"},
    }
    source = Path(__file__).read_text()
    for plugin, names in tested.items():
        assert {offer.name for offer in offers_of(plugin_module(plugin)) if offer.kind != "rules"} == names
        for name in names:
            assert re.search(rf'"{plugin}",\s+"\w+",\s+"{name}"', source), f"{name} of {plugin} is not made in this file"
    assert len(list(weight_names(tiny_spec()))) == 15
