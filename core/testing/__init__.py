"""The contract kit: inherit a class, say how to make your thing, and get the tests every implementation of its kind passes.

::

    # tests/test_ternary.py
    from core.testing import QuantizerContract
    from quant_ternary.pack import Ternary

    class TestTernary(QuantizerContract):
        max_error = 0.5
        unfit_in_features = (100,)

        def make(self):
            return Ternary(group_size=64)

Each contract says in its docstring what a subclass has to give and what it may give. The tests themselves are not yours to
change: a subclass that redefines or removes one is refused when it is defined. Where an implementation departs from its
contract knowingly, it says so, and the departure is tested to be real::

    class TestTernary(QuantizerContract):
        xfail = {"test_zeros_stay_zero": "the format has no zero: the smallest value is +-scale/2"}

The kit needs pytest, and numpy as everything here; it imports torch only where a contract's own subject is torch's.
"""

from __future__ import annotations

try:
    import pytest
except ModuleNotFoundError as missing:
    raise ModuleNotFoundError(
        "core.testing needs pytest: pip install 'dovetail-serve[dev]', or pip install pytest"
    ) from missing

# Before the modules are imported: their plain asserts then explain themselves in a failure.
pytest.register_assert_rewrite(
    *(
        f"core.testing.{module}"
        for module in (
            "blocks",
            "cache",
            "compute",
            "contract",
            "drafts",
            "frontend",
            "grammar",
            "graph",
            "model",
            "page",
            "parallel",
            "parsers",
            "plugin",
            "quantizer",
            "rules",
            "sampler",
            "scheduler",
        )
    )
)

from core.testing.blocks import BlockPolicyContract  # noqa: E402 - see above
from core.testing.cache import CachePolicyContract  # noqa: E402
from core.testing.compute import ComputeBackendContract  # noqa: E402
from core.testing.contract import Contract  # noqa: E402
from core.testing.drafts import DraftProposerContract  # noqa: E402
from core.testing.frontend import FrontEndContract  # noqa: E402
from core.testing.grammar import GrammarBackendContract  # noqa: E402
from core.testing.graph import GraphBackendContract  # noqa: E402
from core.testing.model import CheckpointFormatContract, ModelContract  # noqa: E402
from core.testing.page import PageContract  # noqa: E402
from core.testing.parallel import ParallelismContract  # noqa: E402
from core.testing.parsers import ReasoningParserContract, ToolParserContract  # noqa: E402
from core.testing.plugin import PluginContract  # noqa: E402
from core.testing.quantizer import QuantizerContract  # noqa: E402
from core.testing.rules import RulesContract  # noqa: E402
from core.testing.sampler import SamplerContract  # noqa: E402
from core.testing.scheduler import SchedulerContract  # noqa: E402

__all__ = [
    "BlockPolicyContract",
    "CachePolicyContract",
    "CheckpointFormatContract",
    "ComputeBackendContract",
    "Contract",
    "DraftProposerContract",
    "FrontEndContract",
    "GrammarBackendContract",
    "GraphBackendContract",
    "ModelContract",
    "PageContract",
    "ParallelismContract",
    "PluginContract",
    "QuantizerContract",
    "ReasoningParserContract",
    "RulesContract",
    "SamplerContract",
    "SchedulerContract",
    "ToolParserContract",
]
