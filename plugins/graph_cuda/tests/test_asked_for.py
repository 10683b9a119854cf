"""The ways of asking for CUDA graphs, FastDeploy's among them; what they come to, and what is refused."""

import json
from functools import partial

import pytest

from core.compose import compose
from core.compose.probe import DeviceProbe, Gpu
from core.errors import UserError
from graph_cuda.plugin import GraphSettings, sizes_of

GIB = 1 << 30
PROBE = DeviceProbe("a CPU", 8, ("avx2",), 64 * GIB, 60 * GIB, (Gpu("a card", 9.0, 80 * GIB, 79 * GIB),)).to_json()


def plan_of(*argv, model="random:tiny", **config):
    given = ["--graph-optimization-config", json.dumps(config)] if config else []
    return compose(["--model", model, *argv, *given], env={"DOVETAIL_DEVICE_PROBE": PROBE})


def graph_of(plan):
    return next((choice.name, choice.origin) for choice in plan.choices if choice.kind == "graph_backend")


@pytest.mark.parametrize(
    ("argv", "origin"),
    [
        (("--use-cudagraph",), "--use-cudagraph"),
        (("--plugins", "graph_cuda"), "--plugins"),
        (("--graph", "cuda"), "--graph"),
        (("--graph-optimization-config", "{}"), "--graph-optimization-config"),
        (("--graph-optimization-config", '{"use_cudagraph": true}'), "--graph-optimization-config"),
    ],
)
def test_five_ways_to_choose_it(argv, origin):
    assert graph_of(plan_of(*argv)) == ("cuda", origin)


def test_a_table_in_a_file_chooses_it_too(tmp_path):
    file = tmp_path / "served.toml"
    file.write_text("[graph_cuda]\ngraph_optimization_config = { use_cudagraph = true, cudagraph_capture_sizes = [4, 2] }\n")
    plan = plan_of("--config", str(file))
    assert graph_of(plan) == ("cuda", f"{file}:2")
    assert plan.sections["graph_cuda"]["capture_sizes"] == (2, 4)


def test_false_is_eager_and_nothing_is_loaded():
    plan = plan_of(use_cudagraph=False, graph_opt_level=0, cudagraph_capture_sizes=[1, 2])
    assert graph_of(plan) == ("eager", "default")
    assert "graph_cuda" not in plan.plugins
    assert plan.warnings == ()


def test_a_config_given_later_goes_before_that_of_a_file(tmp_path):
    file = tmp_path / "served.toml"
    file.write_text("graph_optimization_config = { use_cudagraph = false }\n")
    assert graph_of(plan_of("--config", str(file))) == ("eager", "default")
    assert graph_of(plan_of("--config", str(file), use_cudagraph=True)) == ("cuda", "--graph-optimization-config")
    file.write_text("graph_optimization_config = { use_cudagraph = true }\n")
    assert graph_of(plan_of("--config", str(file))) == ("cuda", f"{file}:1")
    assert graph_of(plan_of("--config", str(file), use_cudagraph=False)) == ("eager", "default")


def test_keys_that_mean_something_are_settings():
    plan = plan_of(
        "--graph-cuda-scope",
        "full",
        use_cudagraph=True,
        graph_opt_level=0,
        cudagraph_capture_sizes=[8, 1, 4],
        cudagraph_capture_sizes_prefill=[2, 1],
        max_capture_shape_prefill=256,
        cudagraph_num_of_warmups=3,
        use_unique_memory_pool=False,
    )
    section = plan.sections["graph_cuda"]
    assert section["capture_sizes"] == (1, 4, 8)
    assert section["prefill_sequences"] == (1, 2)
    assert section["prefill_tokens"] == 256
    assert section["warmups"] == 3
    assert section["shared_pool"] is False
    assert plan.warnings == ()


def test_keys_that_mean_nothing_are_told():
    plan = plan_of(
        use_cudagraph=True, graph_opt_level=2, full_cuda_graph=False, sot_warmup_sizes=[1], max_capture_shape_prefill=9
    )
    assert [warning.what for warning in plan.warnings] == [
        "graph_opt_level 2 has no effect: the operations of a step are fused by hand, and no graph of them is compiled",
        "full_cuda_graph of graph_optimization_config has no effect: a step is always recorded whole, attention included, "
        "and never in pieces",
        "sot_warmup_sizes of graph_optimization_config has no effect: no Python is traced",
        "max_capture_shape_prefill of graph_optimization_config has no effect: steps of whole prompts are recorded in "
        "full scope alone",
    ]
    assert {warning.where for warning in plan.warnings[1:3]} == {"--graph-optimization-config"}


def refused(*argv, **config):
    with pytest.raises(UserError) as error:
        plan_of(*argv, **config)
    return [(problem.what, problem.where) for problem in error.value.problems]


def test_the_flag_and_the_config_may_not_contradict_each_other():
    assert refused("--use-cudagraph", use_cudagraph=False) == [
        ("graph is said to be 'cuda' and not 'cuda'", "--use-cudagraph, --graph-optimization-config")
    ]


def test_the_config_and_a_setting_may_not_contradict_each_other():
    assert refused("--graph-cuda-capture-sizes", "1,2", cudagraph_capture_sizes=[1, 4]) == [
        (
            "graph_cuda: capture_sizes is 1, 2, and cudagraph_capture_sizes of graph_optimization_config is 1, 4",
            "--graph-optimization-config, --graph-cuda-capture-sizes",
        )
    ]
    plan = plan_of("--graph-cuda-capture-sizes", "4,1", cudagraph_capture_sizes=[1, 4])
    assert plan.sections["graph_cuda"]["capture_sizes"] == (1, 4)


@pytest.mark.parametrize(
    ("config", "what"),
    [
        ({"cudagraph_capture_size": [1]}, "there is no key 'cudagraph_capture_size'; did you mean 'cudagraph_capture_sizes'?"),
        ({"cudagraph_capture_sizes": []}, "cudagraph_capture_sizes is a list of one or more whole numbers from 1 on, not []"),
        ({"cudagraph_capture_sizes": [0]}, "cudagraph_capture_sizes is a list of one or more whole numbers from 1 on, not [0]"),
        ({"graph_opt_level": 3}, "graph_opt_level is 0, 1 or 2, not 3"),
        ({"use_cudagraph": "yes"}, "use_cudagraph is true or false, not 'yes'"),
        ({"cudagraph_num_of_warmups": 0}, "cudagraph_num_of_warmups is a whole number from 1 on, not 0"),
    ],
)
def test_a_config_that_cannot_be_meant_is_refused(config, what):
    shown = json.dumps(config).replace('"', "'")
    assert refused(**config) == [(f"graph_cuda.graph_optimization_config = {shown}: {what}", "--graph-optimization-config")]


def test_every_contradiction_is_told_at_once():
    found = refused(
        "--use-cudagraph",
        "--device",
        "cpu",
        "--graph-cuda-scope",
        "full",
        "--enable-chunked-prefill",
        "--enable-prefix-caching",
        "--tensor-parallel-size",
        "2",
    )
    assert [what for what, _ in found] == [
        "the graph backend cuda needs a CUDA device, and the model runs on cpu",
        "the scheduler chunked may compute a prompt over several steps, and a recorded step of prompts attends to nothing "
        "before the step",
        "under the cache policy prefix a prompt may begin in cached pages, and a recorded step of prompts attends to nothing "
        "before the step",
        "graphs are recorded for one CUDA device, and 2 ranks share the model",
    ]
    assert [where for _, where in found] == [
        "--use-cudagraph, --device",
        "--graph-cuda-scope, --enable-chunked-prefill",
        "--graph-cuda-scope, --enable-prefix-caching",
        "--use-cudagraph, --tensor-parallel-size",
    ]


def test_plain_torch_cannot_be_recorded():
    (told,) = refused("--use-cudagraph", "--torch-kernels", "reference")
    assert told == (
        "the graph backend cuda records steps of fixed shapes, and plain torch sizes what it launches by what is in a step",
        "auto of device, --use-cudagraph, --torch-kernels",
    )


def test_what_graphs_take_is_estimated_by_their_sizes():
    """All have their logits in one place, 4 bytes for each row of the largest and token of the vocabulary."""
    asked = partial(plan_of, "--use-cudagraph", model="random:ernie-4.5-0.3b")
    few = asked("--graph-cuda-capture-sizes", "1,8").facts["memory.graph_bytes"]
    assert few == (128 << 20) + 4 * (4 << 20) + 8 * 103424 * 4
    assert 280 << 20 < asked().facts["memory.graph_bytes"] < 320 << 20
    full = asked("--graph-cuda-scope", "full").facts["memory.graph_bytes"]
    assert full > asked().facts["memory.graph_bytes"] + 2 * 24 * (4 << 20) - 1
    assert "memory.graph_bytes" not in plan_of(model="random:ernie-4.5-0.3b").facts


def test_the_sizes_that_are_recorded_where_none_are_given():
    def recorded(*argv):
        plan = plan_of("--use-cudagraph", "--max-num-seqs", "20", *argv)
        section = GraphSettings.model_validate(plan.sections["graph_cuda"])
        return tuple(shape.sequences for shape in sizes_of(section, plan.settings).shapes)

    assert recorded() == (1, 2, 3, 4, 5, 6, 7, 8, 16, 20)
    assert recorded("--graph-cuda-default-sizes", "fastdeploy") == (1, 2, 4, 8, 16, 20)
