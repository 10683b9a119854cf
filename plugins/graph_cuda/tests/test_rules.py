"""What cannot be composed with CUDA graphs, and FastDeploy's ways of asking for them."""

from core import testing
from core.compose.probe import DeviceProbe, Gpu

GIB = 1 << 30
CARD = DeviceProbe("a CPU", 8, ("avx2",), 64 * GIB, 60 * GIB, (Gpu("a card", 9.0, 80 * GIB, 79 * GIB),) * 2)


class TestRules(testing.RulesContract):
    plugin = "graph_cuda"
    violating = {
        "cuda-graphs-need-cuda": {"device": "cpu"},
        "full-graphs-with-chunked-prefill": {"graph_cuda.scope": "full", "scheduler": "chunked"},
        "full-graphs-with-prefix-caching": {"graph_cuda.scope": "full", "cache_policy": "prefix"},
        "cuda-graphs-with-tensor-parallel": {"tensor_parallel.size": 2},
        "graph-opt-level-without-effect": {"graph_cuda.graph_optimization_config": {"graph_opt_level": 1}},
        "graph-config-full-cuda-graph": {"graph_cuda.graph_optimization_config": {"full_cuda_graph": True}},
        "graph-config-cudagraph-splitting-ops": {"graph_cuda.graph_optimization_config": {"cudagraph_splitting_ops": []}},
        "graph-config-cudagraph-copy-inputs": {"graph_cuda.graph_optimization_config": {"cudagraph_copy_inputs": True}},
        "graph-config-cudagraph-only-prefill": {"graph_cuda.graph_optimization_config": {"cudagraph_only_prefill": True}},
        "graph-config-draft-model-use-cudagraph": {"graph_cuda.graph_optimization_config": {"draft_model_use_cudagraph": True}},
        "graph-config-sot-warmup-sizes": {"graph_cuda.graph_optimization_config": {"sot_warmup_sizes": [1, 2]}},
        "graph-config-cudagraph-capture-sizes-prefill": {
            "graph_cuda.graph_optimization_config": {"cudagraph_capture_sizes_prefill": [1, 2]}
        },
        "graph-config-max-capture-shape-prefill": {"graph_cuda.graph_optimization_config": {"max_capture_shape_prefill": 256}},
    }

    def machine(self, rule):
        return CARD
