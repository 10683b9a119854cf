from pathlib import Path

import numpy as np
import torch
from sampler_top_nsigma.plugin import TopNSigmaSettings
from sampler_top_nsigma.sample import TopNSigma

from core.testing import PluginContract, RulesContract, SamplerContract
from core.testing.inputs import sampling_rows


class TestPlugin(PluginContract):
    plugin = "sampler_top_nsigma"
    readme = Path(__file__).parents[1]


class TestRules(RulesContract):
    plugin = "sampler_top_nsigma"
    violating = {"top-nsigma-keeps-nearly-all": {"sampler_top_nsigma.n_sigma": 9.0}}


class TestTopNSigma(SamplerContract):
    n_sigma = 1.0

    def make(self):
        return TopNSigma(self.n_sigma)

    def probabilities(self, logits, *, temperature, top_k, top_p, min_p):
        weights = np.exp((logits - logits.max()) / temperature)
        weights[logits < logits.max() - self.n_sigma * logits.std()] = 0
        weights[weights < min_p * weights.max()] = 0
        order = np.argsort(-weights, kind="stable")
        sorted_weights = weights[order]
        if top_k:
            sorted_weights[top_k:] = 0
        before = np.cumsum(sorted_weights) - sorted_weights
        sorted_weights[before >= top_p * sorted_weights.sum()] = 0
        weights[order] = sorted_weights
        return weights / weights.sum()


class TestAWideThreshold(TestTopNSigma):
    n_sigma = 3.0


def test_the_kept_set_does_not_depend_on_the_temperature():
    random = np.random.default_rng(0)
    logits = torch.from_numpy(random.standard_normal((1, 2000)).astype(np.float32))
    logits[0, :5] += 6
    sampler = TopNSigma(1.0)
    kept = set(sampler.kept(logits.double()).nonzero()[:, 1].tolist())
    assert kept <= {0, 1, 2, 3, 4}
    for temperature in (0.5, 1.0, 10.0, 100.0):
        rows = sampling_rows(500, temperature=temperature, positions=range(500))
        drawn = set(sampler.sample(logits.expand(500, -1).clone(), rows).tolist())
        assert drawn <= kept
    assert drawn == kept, "at temperature 100 all kept tokens are about equally likely"


def test_banned_tokens_do_not_widen_the_threshold():
    logits = torch.tensor([[4.0, 3.9, 0.0, -1.0, 0.5]])
    banned = logits.clone()
    banned[0, 3] = -torch.inf
    assert TopNSigma(1.0).kept(logits.double()).tolist() == [[True, True, False, False, False]]
    assert TopNSigma(1.0).kept(banned.double()).tolist() == [[True, True, False, False, False]]


def test_the_setting_has_its_documented_default():
    assert TopNSigmaSettings().n_sigma == 1.0
