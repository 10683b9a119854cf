"""The workloads of the device's benchmark, in small, on the CPU."""

import json

import pytest

from core.bench import gpu
from core.bench.workloads import Ceilings, floor_seconds, nano256, sweep, thousand
from core.interfaces.request import SamplingParams
from core.testing.inputs import tiny_spec

TINY = ["--model", "random:tiny", "--torch-kernels", "reference", "--threads", "1"]


def test_it_measures_checks_and_tells(capsys, tmp_path):
    what = "check,sweep,nano256,1000x1024/128,host"
    path = tmp_path / "found.json"
    argv = ["--what", what, "--batch", "1,4", "--scale", "0.01", "--repeat", "1", "--json", str(path)]
    assert gpu.main([*argv, *TINY]) == 0
    said = capsys.readouterr().out
    assert "beside plain torch run eagerly: 8 of 8 sequences alike" in said
    assert "host time of a decode step at batch 4, greedy, no model: " in said
    found = json.loads(path.read_text())
    assert [line["name"] for line in found["lines"]] == ["1, greedy", "4, greedy", "1, nucleus", "nano256", "1000x1024/128"]
    assert all(line["figure"] > 0 and line["share_of_floor"] > 0 for line in found["lines"])
    assert all(line["peers"] is None for line in found["lines"])  # they were measured at other sizes


def test_the_workloads_are_those_that_others_were_measured_at():
    every = [sweep("greedy", 512, 1000), nano256(1000), thousand(1000)]
    assert [(each.prompt_tokens, each.output_tokens) for each in every[::2]] == [(65_536, 131_072), (1_024_000, 128_000)]
    assert len(every[1].jobs) == 256
    assert every[1].jobs == nano256(1000).jobs
    assert [each.counted for each in every] == [131_072, every[1].output_tokens, 1_152_000]
    assert all(each.peers is not None for each in every)


def test_a_floor_reads_weights_once_a_step_and_keys_of_every_token():
    spec, ceilings = tiny_spec(), Ceilings(bytes_per_second=1000.0, flops=1e30)
    workload = sweep("greedy", 3, 50, prompt=5, output=4)
    # 3 steps behind the prompt, over 6, 7 and 8 tokens
    assert floor_seconds(workload, spec, 100, 10, ceilings, together=3) == pytest.approx((3 * 100 + 3 * 21 * 10) / 1000)
    one_by_one = floor_seconds(workload, spec, 100, 10, ceilings, together=1)
    assert one_by_one == pytest.approx((9 * 100 + 3 * 21 * 10) / 1000)


def test_what_it_does_not_know_is_refused(capsys):
    with pytest.raises(SystemExit):
        gpu.main(["--what", "swep"])
    assert "'swep' is none of check, sweep, nano256, 1000x1024/128, host, start" in capsys.readouterr().err
    assert SamplingParams(**gpu.KINDS["nucleus"]).top_p == 0.95
