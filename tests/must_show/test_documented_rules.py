"""The rules that FastDeploy's page and arguments state: told all at once, each way out is one, and our page says the same."""

import re
from pathlib import Path

import pytest

from core.compose import compose
from core.compose.composition import attempt
from core.compose.first_pass import first_pass
from core.compose.probe import DeviceProbe, Gpu
from core.errors import UserError
from core.plugin_manager import PluginManager
from core.testing.rules import applied

GIB = 1 << 30
ERNIE = "random:ernie-4.5-0.3b"
PAGE = (Path(__file__).parents[2] / "docs" / "compatibility.md").read_text()
RULES_PAGE = (Path(__file__).parents[2] / "docs" / "plugins" / "facts.md").read_text()
INSTALLED = PluginManager.discover()


def machine(name="", capability=0.0, gib=0, count=0):
    cards = (Gpu(name, capability, gib * GIB, gib * GIB - GIB // 2),) * count
    return DeviceProbe("a CPU", 16, ("avx2",), 256 * GIB, 240 * GIB, cards)


CPU = machine()
HOPPERS = machine("NVIDIA H800", 9.0, 80, 2)
AMPERE = machine("NVIDIA A30", 8.0, 24, 1)

# rule -> flags that break it, as FastDeploy spells them where it has them; and where
DOCUMENTED = {
    "cuda-graphs-with-tensor-parallel": (["--use-cudagraph", "--tensor-parallel-size", "2"], HOPPERS),
    "full-graphs-with-chunked-prefill": (
        ["--use-cudagraph", "--graph-cuda-scope", "full", "--enable-chunked-prefill"],
        HOPPERS,
    ),
    "full-graphs-with-prefix-caching": (["--use-cudagraph", "--graph-cuda-scope", "full", "--enable-prefix-caching"], HOPPERS),
    "cuda-graphs-need-cuda": (["--use-cudagraph"], CPU),
    "fp8-capability": (["--quantization", "block_wise_fp8"], AMPERE),
    "fp8-on-a-cpu": (["--quantization", "block_wise_fp8"], CPU),
    "swap-space-without-prefix-caching": (["--swap-space", "50"], HOPPERS),
    "partial-prefills-without-chunked-prefill": (["--max-num-partial-prefills", "4"], HOPPERS),
    "step-shorter-than-a-prompt": (
        ["--max-num-batched-tokens", "2048", "--max-model-len", "32768", "--no-enable-chunked-prefill"],
        HOPPERS,
    ),
    "step-smaller-than-batch": (
        ["--max-num-batched-tokens", "64", "--max-num-seqs", "128", "--enable-chunked-prefill"],
        HOPPERS,
    ),
    "tensor-parallel-heads": (["--tensor-parallel-size", "3"], machine("NVIDIA H800", 9.0, 80, 4)),
    "tensor-parallel-devices": (["--tensor-parallel-size", "4"], HOPPERS),
    "wint4-groups-do-not-divide-hidden": (["--quantization", "wint4", "--model", "random:tiny"], HOPPERS),
    "kv-cache-ratio-without-partition": (["--kv-cache-ratio", "0.75"], HOPPERS),
    "swap-space-beyond-memory": (["--enable-prefix-caching", "--swap-space", "500"], HOPPERS),
    "max-model-len-beyond-positions": (["--max-model-len", "200000"], HOPPERS),
}
WARNINGS = {"kv-cache-ratio-without-partition", "swap-space-beyond-memory"}


def composed(argv, probe, overrides=None):
    model = [] if "--model" in argv else ["--model", ERNIE]
    return attempt(first_pass([*model, *argv], {}, overrides), INSTALLED, probe)


@pytest.mark.parametrize("rule", DOCUMENTED)
def test_each_is_told_with_its_origins_and_its_ways_out(rule):
    argv, probe = DOCUMENTED[rule]
    composition = composed(argv, probe)
    [violation] = [each for each in composition.violations if each.id == rule]
    assert (composition.plan is None) is (rule not in WARNINGS)
    assert violation.remedies
    flags = {word for word in argv if word.startswith("--")}
    typed = ", ".join(violation.origins)
    assert not violation.origins or any(flag in typed for flag in flags) or "auto of device" in typed
    assert f"### {rule}\n" in RULES_PAGE


@pytest.mark.parametrize("rule", DOCUMENTED)
def test_each_way_out_that_can_be_typed_is_one(rule):
    argv, probe = DOCUMENTED[rule]
    before = composed(argv, probe)
    [violation] = [each for each in before.violations if each.id == rule]
    known = {each.id for each in before.violations}
    for remedy in violation.remedies:
        if remedy.set:
            after = composed(*without_what_is_set(argv, remedy, probe))
            found = {each.id for each in after.violations if each.rule.severity == "error"}
            assert rule not in {each.id for each in after.violations}, remedy.text
            assert found <= known, remedy.text


def without_what_is_set(argv, remedy, probe):
    """The same command with a remedy followed: by keyword, above the flags; a flag whose plugin is dropped is dropped."""
    tables = {}
    plugins = []
    for key, value in applied(remedy, {"plugins": []}).items():
        name, dot, setting = key.partition(".")
        if dot:
            tables.setdefault(name, {})[setting] = value
        elif key == "plugins":
            plugins = list(value)
        else:
            tables[key] = value
    dropped = remedy.set.get("plugins-", ())
    argv = [word for word in argv if not ("graph_cuda" in dropped and word == "--use-cudagraph")]
    if "graph_cuda" in dropped and "--graph-cuda-scope" in argv:
        at = argv.index("--graph-cuda-scope")
        argv = argv[:at] + argv[at + 2 :]
    if "scheduler" in tables:
        argv = [word for word in argv if word != "--no-enable-chunked-prefill"]
    if tables.get("cache_policy") == "private":
        argv = [word for word in argv if word != "--enable-prefix-caching"]
    return argv, probe, {**tables, **({"plugins": plugins} if plugins else {})}


def test_all_that_is_wrong_with_a_command_is_told_at_once():
    command = """--quantization block_wise_fp8 --use-cudagraph --graph-cuda-scope full --enable-prefix-caching
    --enable-chunked-prefill --tensor-parallel-size 3 --max-num-batched-tokens 64 --max-num-seqs 128"""
    with pytest.raises(UserError) as error:
        compose(["--model", ERNIE, "--device", "cpu", *command.split()], env={}, probe=CPU, manager=INSTALLED)
    texts = [str(problem) for problem in error.value.problems]
    reasons = {text.splitlines()[0]: text for text in texts}
    for reason in (
        "a step of 64 tokens cannot give 128 sequences a token each",
        "the graph backend cuda needs a CUDA device, and the model runs on cpu",
        "3 ranks cannot have the same number of the 16 query heads of random:ernie-4.5-0.3b",
        "fp8 needs a CUDA device of compute capability 8.9, and this is a CPU",
    ):
        assert reason in reasons, "\n".join(texts)
    assert sum("a recorded step of prompts attends to nothing before the step" in reason for reason in reasons) == 2
    assert len(texts) >= 7
    for text in texts:
        assert "\n  set by: " in text
        assert "\n  remedy: " in text
    assert reasons["a step of 64 tokens cannot give 128 sequences a token each"] == (
        "a step of 64 tokens cannot give 128 sequences a token each\n"
        "  set by: --max-num-batched-tokens, --max-num-seqs\n"
        "  remedy: --max-num-batched-tokens 128\n"
        "  remedy: --max-num-seqs 64"
    )


# --- the page -----------------------------------------------------------------------------------------------------------

FLAGS = {
    "wint8": ["--quantization", "wint8"],
    "wint4": ["--quantization", "wint4"],
    "block_wise_fp8": ["--quantization", "block_wise_fp8"],
    "prefix caching": ["--enable-prefix-caching"],
    "swap space": ["--swap-space", "4", "--enable-prefix-caching"],
    "chunked prefill": ["--enable-chunked-prefill"],
    "several partial prefills": ["--max-num-partial-prefills", "4", "--enable-chunked-prefill"],
    "rejection sampler": ["--sampler", "rejection"],
    "CUDA graphs": ["--use-cudagraph"],
    "CUDA graphs, full scope": ["--use-cudagraph", "--graph-cuda-scope", "full"],
    "tensor parallel 2": ["--tensor-parallel-size", "2"],
}


def cells():
    """(feature, feature) -> the rules that the page has for the two of them."""
    section = PAGE.split("## Feature and feature")[1].split("##")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if re.match(r"\| \d", line)]
    titles = [row[0].split(" ", 1)[1] for row in rows]
    return {
        (titles[column], titles[number]): set(re.findall(r"\[([a-z0-9-]+)\]", rows[number][column + 1]))
        for number in range(len(rows))
        for column in range(number)
        if rows[number][column + 1] != "one or the other"
    }


def test_the_page_has_the_rules_that_a_launch_from_the_command_line_breaks():
    compared = 0
    for (one, other), said in cells().items():
        if one in FLAGS and other in FLAGS:
            composition = composed([*FLAGS[one], *FLAGS[other]], HOPPERS)
            assert {each.id for each in composition.violations} == said, (one, other)
            assert (composition.plan is None) is bool(said), (one, other)
            compared += 1
    assert compared > 40


def test_the_page_names_every_rule():
    offered = {rule.id for plugin in INSTALLED.plugins for offer in plugin.offers for rule in (*offer.rules, *offer.idle_rules)}
    missing = {rule for rule in offered if f"[{rule}]" not in PAGE and f"[`{rule}`]" not in PAGE}
    assert not missing
