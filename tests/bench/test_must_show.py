"""What this server promises on a CPU, beside transformers. Wants two cores that nobody else uses."""

import pytest

from core.bench.offline import run
from core.bench.report import Options

THEM = "transformers"


@pytest.mark.perf
@pytest.mark.timeout(900)
def test_decode_is_half_as_fast_again_and_prefill_no_slower():
    report = run(Options(model="random:ernie-4.5-0.3b", dtype="bfloat16", threads=2, output_len=32, repeat=1, against=(THEM,)))
    assert report.agreement[THEM].same_first[0] >= 3
    assert report.agreement[THEM].most_apart < 0.25
    ratios = {row.name: row.ratios[THEM] for row in report.rows}
    assert ratios["decode, batch 1"] >= 1.5, ratios
    assert ratios["decode, batch 8"] >= 1.5, ratios
    assert ratios["prefill of 512"] >= 1.0, ratios
