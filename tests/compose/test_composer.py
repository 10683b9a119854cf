"""What a page is told of the composition: nothing secret, nothing but what a launch would say."""

import json

import pytest

from core.compose import compose
from core.compose.composer import PlanComposer
from core.errors import RequestError
from tests.compose.fakes import CPU

H800 = "H800 80G"


@pytest.fixture(scope="module")
def composer():
    argv = ["--model", "random:tiny", "--api-key", "me=s3cret", "--max-num-seqs", "4"]
    return PlanComposer(compose(argv, env={}, probe=CPU))


def asked(composer, machine=H800, count=2, neighbours=False, **settings):
    return composer.judge({"settings": settings, "machine": machine, "count": count, "neighbours": neighbours})


def test_the_plan_with_origins_and_without_secrets(composer):
    plan = composer.plan()
    text = json.dumps(plan)
    assert "s3cret" not in text
    [choice] = [each for each in plan["choices"] if each["kind"] == "sampler"]
    assert (choice["name"], choice["plugin"], choice["origin"]) == ("standard", "sampler_standard", "default")
    [choice] = [each for each in plan["choices"] if each["kind"] == "quantizer"]
    assert (choice["name"], choice["origin"]) == ("none", "default")
    [setting] = [each for each in plan["settings"] if each["name"] == "max_num_seqs"]
    assert setting == {"name": "max_num_seqs", "value": "4", "origin": "--max-num-seqs", "why": ""}
    [key] = [each for each in plan["sections"] if each["name"] == "openai_http.api_key"]
    assert (key["value"], key["origin"]) == ("secret", "--api-key")


def test_cuda_graphs_with_tensor_parallelism_are_refused_by_their_rule(composer):
    answer = asked(composer, **{"graph": "cuda", "tensor_parallel.size": 2})
    assert not answer["ok"]
    [problem] = answer["problems"]
    assert (problem["rule"], problem["severity"]) == ("cuda-graphs-with-tensor-parallel", "error")
    assert problem["what"] == "graphs are recorded for one CUDA device, and 2 ranks share the model"
    assert problem["where"] == "--graph, --tensor-parallel-size"
    assert [each["set"] for each in problem["remedies"]] == [{"tensor_parallel.size": 1}, {"graph": None}]
    assert answer["command"] == "dovetail serve --model random:tiny --graph cuda --tensor-parallel-size 2"


def test_what_would_be_refused_beside_what_is_chosen(composer):
    answer = asked(composer, neighbours=True, **{"tensor_parallel.size": 2})
    assert answer["ok"]
    assert answer["neighbours"]["graph"]["cuda"] == ["cuda-graphs-with-tensor-parallel"]
    assert "eager" not in answer["neighbours"]["graph"]
    here = asked(composer, machine="here", count=1, neighbours=True)
    assert here["ok"]
    assert here["neighbours"]["graph"] == {"cuda": ["cuda-graphs-need-cuda"]}
    with pytest.raises(RequestError, match=r"^count is to be one of 1 on this machine"):
        asked(composer, machine="here", count=2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "/etc/passwd"}, "'model' is no setting that can be tried here"),
        ({"openai_http.port": 80}, "'openai_http.port' is no setting that can be tried here"),
        ({"graph": "--config=x"}, "graph is to be one of auto, cuda, eager"),
        ({"max_num_seqs": "--config"}, "max_num_seqs is to be a number"),
        ({"max_num_seqs": True}, "max_num_seqs is to be a number"),
    ],
)
def test_only_words_of_the_list_are_judged(composer, settings, message):
    with pytest.raises(RequestError) as refused:
        asked(composer, **settings)
    assert refused.value.message == message


def test_an_impossible_number_is_told_as_a_launch_tells_it(composer):
    [problem] = asked(composer, max_num_seqs=0)["problems"]
    assert problem["what"] == "max_num_seqs = '0': input should be greater than or equal to 1"
    assert problem["where"] == "--max-num-seqs"


def test_every_word_says_what_it_is(composer):
    words = composer.words()
    assert [each["id"] for each in words["machines"]][:2] == ["here", H800]
    assert all(each["description"] and each["flag"].startswith("--") for each in words["settings"])
    assert {"front_end", "page", "model", "openai_http.port"}.isdisjoint(each["key"] for each in words["settings"])


@pytest.mark.parametrize("flags", [["--no-web"], ["--page", "none"], ["--without", "web"]])
def test_the_page_can_be_left_out(flags):
    assert compose(["--model", "random:tiny", *flags], env={}, probe=CPU).chosen("page") is None


def test_the_page_is_there_by_default():
    plan = compose(["--model", "random:tiny"], env={}, probe=CPU)
    assert plan.chosen("page").origin == "default"


@pytest.mark.parametrize("number", [1e308, float("inf")])
def test_a_number_beyond_all_memory_is_refused(composer, number):
    [problem] = asked(composer, machine="here", count=1, kv_cache_memory=number)["problems"]
    assert problem["what"].endswith("input should be less than or equal to 1048576")
