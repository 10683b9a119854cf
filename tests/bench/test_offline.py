import io
import json
from dataclasses import replace

import psutil
import pytest
from rich.console import Console

from core.bench import comparison, files, offline
from core.bench.busy import busy
from core.bench.child import Child
from core.bench.command import main, show
from core.bench.plot import draw
from core.bench.report import OURS, Agreement, Measured, Options, Report, Row
from core.compose import compose
from core.errors import ExitCode, Problem, UserError

THEIRS, OTHERS = "transformers", "llama.cpp"


class Fake:
    """A contestant with known speeds that continues each prompt by counting on from its last token."""

    def __init__(self, first, per_token, differs_at=None):
        self.first, self.per_token, self.differs_at = first, per_token, differs_at
        self.asked = []

    def ask(self, **content):
        self.asked.append(content)
        if content["do"] == "next_token":
            return {
                "likeliest": [
                    [[token, -0.1 * token * self.first] for token in range(content["top"])] for _ in content["prompts"]
                ]
            }
        length, prompts = content["length"], content["prompts"]
        rows = [[prompt[-1] + step for step in range(length)] for prompt in prompts]
        if self.differs_at is not None:
            for row in rows:
                row[self.differs_at :] = [-1] * (length - self.differs_at)
        rest = len(prompts) * (length - 1)
        return {"first": self.first, "rest": self.per_token * (length - 1), "rest_tokens": rest, "token_ids": rows}


def measured(options, children, vocab):
    speeds = offline.Speeds(options, children)
    agreement = offline._measure(options, children, vocab, speeds)
    return speeds.rows(), agreement


OPTIONS = Options(batches=(1, 4), input_len=3, output_len=11, prefill=0, repeat=2, against=(THEIRS,))


def test_speeds_and_agreement_come_of_the_answers():
    ours, theirs = Fake(0.5, 0.01), Fake(1.0, 0.04, differs_at=5)
    options = Options(batches=(1, 4), input_len=3, output_len=10, prefill=20, repeat=3, against=(THEIRS,))
    rows, agreement = measured(options, {OURS: ours, THEIRS: theirs}, vocab=1000)
    found = {row.name: row for row in rows}
    assert list(found) == ["decode, batch 1", "decode, batch 4", "prefill of 20"]
    assert found["decode, batch 4"].measured[OURS].values == pytest.approx([400.0] * 3)
    assert found["decode, batch 4"].ratios == {THEIRS: pytest.approx(4.0)}
    assert found["prefill of 20"].measured[THEIRS].median == pytest.approx(20.0)
    assert found["prefill of 20"].ratios[THEIRS] == pytest.approx(2.0)
    assert agreement[THEIRS].same_tokens == 0.5
    assert agreement[THEIRS].same_first == (4, 4)
    assert agreement[THEIRS].most_apart == pytest.approx(0.1 * 19 * 0.5)


def test_every_peer_has_a_ratio_and_an_agreement_of_its_own():
    children = {OURS: Fake(0.5, 0.01), THEIRS: Fake(1.0, 0.04, differs_at=0), OTHERS: Fake(1.0, 0.02)}
    rows, agreement = measured(OPTIONS, children, vocab=1000)
    assert rows[0].ratios == {THEIRS: pytest.approx(4.0), OTHERS: pytest.approx(2.0)}
    assert (agreement[THEIRS].same_tokens, agreement[OTHERS].same_tokens) == (0.0, 1.0)


def test_what_neighbours_change_is_found():
    class Moved(Fake):
        def ask(self, **content):
            answer = super().ask(**content)
            if len(content["prompts"]) > 1:
                answer["likeliest"][2][5][1] += 0.25
            return answer

    assert offline._company(Fake(1, 1), OPTIONS, vocab=50) == 0
    assert offline._company(Moved(1, 1), OPTIONS, vocab=50) == pytest.approx(0.25)


def test_both_are_asked_the_same_and_a_prompt_is_never_asked_twice():
    ours, theirs = Fake(1, 1), Fake(1, 1)
    measured(OPTIONS, {OURS: ours, THEIRS: theirs}, vocab=10**6)
    assert ours.asked == theirs.asked
    prompts = [tuple(prompt) for asked in ours.asked for prompt in asked["prompts"]]
    assert len(set(prompts)) == len(prompts)
    assert [len(asked["prompts"]) for asked in ours.asked] == [1, 4] * 3 + [4]


def test_the_two_take_turns_in_being_first():
    order = []

    class Noting(Fake):
        def ask(self, **content):
            order.append(self.first)
            return super().ask(**content)

    options = Options(batches=(1,), output_len=2, prefill=0, repeat=2, against=(THEIRS,))
    measured(options, {OURS: Noting(1, 1), THEIRS: Noting(2, 1)}, vocab=9)
    assert order[:6] == [2, 1, 1, 2, 2, 1]


def test_alone_there_is_nothing_to_agree_with():
    rows, agreement = measured(OPTIONS, {OURS: Fake(1, 1)}, vocab=9)
    assert agreement == {}
    assert [row.ratios for row in rows] == [{}, {}]


def test_less_is_better_for_seconds():
    row = Row("start", "s", {OURS: Measured((1.0, 2.0, 4.0)), THEIRS: Measured((6.0,))}, more_is_better=False)
    assert row.ratios == {THEIRS: 3.0}


def test_the_users_own_flags_win():
    argv = offline._argv(Options(threads=2, compose=("--max-model-len=4096", "--plugins", "quant_wint8")))
    assert argv == [
        *("--model", "random:ernie-4.5-0.3b", "--dtype", "bfloat16", "--threads", "2", "--max-num-seqs", "8"),
        *("--max-model-len=4096", "--plugins", "quant_wint8"),
    ]


def report():
    rows = (
        Row("decode, batch 1", "tok/s", {OURS: Measured((40.0, 44.0, 41.5)), THEIRS: Measured((20.0, 21.0, 20.75))}),
        Row("start", "s", {OURS: Measured((2.5,)), THEIRS: Measured((5.0,))}, more_is_better=False),
    )
    agreement = Agreement(0.975, 0.0125, (3, 4))
    versions = {OURS: {"composed of": "a b"}, THEIRS: {"torch": "2"}}
    machine = {"cpu": "a processor", "cores": 2, "load_before": 1.25}
    return Report(Options(threads=2, against=(THEIRS,)), rows, {THEIRS: agreement}, 0.0, versions, machine)


def test_the_table():
    written = io.StringIO()
    show(report(), Console(file=written, width=120))
    text = written.getvalue()
    assert "random:ernie-4.5-0.3b, bfloat16, prompts of 128, 64 tokens out\na processor, 2 cores, 2 threads\n" in text
    assert "the machine was not idle: load 1.2 before the first run" in text
    line = next(line for line in text.splitlines() if "decode, batch 1" in line)
    assert [cell.strip() for cell in line.split("│")[1:-1]] == [
        "decode, batch 1, tok/s",
        "41.5 (40.0 to 44.0)",
        "20.8 (20.0 to 21.0)",
        "2.00x",
    ]
    assert (
        "with transformers: greedy tokens alike until a sequence parts: 97.5%; same likeliest next token on 3 of 4 prompts; "
        "its rivals' log-probabilities at most 0.013 apart"
    ) in text.replace("\n", " ").replace("  ", " ")


def test_the_json_has_everything():
    content = json.loads(report().as_json())
    assert content["rows"][0]["ratios"] == {THEIRS: 2.0}
    assert content["rows"][0]["median"] == {OURS: 41.5, THEIRS: 20.75}
    assert content["rows"][0]["measured"][OURS]["values"] == [40.0, 44.0, 41.5]
    assert content["options"]["batches"] == [1, 8]
    assert content["agreement"][THEIRS]["same_first"] == [3, 4]


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--batch=1,x", "argument --batch: 'x' is no whole number of at least 1"),
        ("--output-len=1", "argument --output-len: '1' is no whole number of at least 2"),
        ("--against=vllm", "argument --against: 'vllm' is none of transformers, llama.cpp"),
    ],
)
def test_a_wrong_argument_is_told(argument, message, capsys):
    with pytest.raises(SystemExit) as ended:
        main([argument])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_a_plot_has_a_bar_for_each(tmp_path):
    file = tmp_path / "speeds.png"
    draw(report(), file)
    assert file.read_bytes().startswith(b"\x89PNG")


def test_a_child_that_dies_is_told():
    with pytest.raises(UserError) as refused:
        Child(THEIRS, {"no such": "option"}, threads=1)
    assert str(refused.value) == (
        "the benchmark's transformers process ended with exit code 1\n  remedy: read what it wrote above"
    )
    assert refused.value.exit_code == 1


def test_neighbours_take_cores_during_the_block_only():
    with busy(2):
        mine = psutil.Process().children()
        neighbours = [child for child in mine if "while True" in " ".join(child.cmdline())]
        assert len(neighbours) == 2
        assert all(len(neighbour.cpu_affinity()) == 1 for neighbour in neighbours)
    assert not any(neighbour.is_running() for neighbour in neighbours)


def test_what_a_quantization_costs_is_measured_on_a_model_that_was_named_or_has_weights(monkeypatch):
    def found(model="random:tiny", quality="", *flags):
        options = Options(model=model, quality=quality, threads=1, compose=flags)
        return offline._comparison(options, compose(offline._argv(options)))

    assert found() is None, "nothing is quantized"
    monkeypatch.setattr(offline, "DEMO", "elsewhere")
    assert found("random:tiny", "", "--quantization", "wint8") is None, "nothing could be learnt of random weights"
    packed, unpacked = found("random:tiny", "random:tiny", "--quantization", "wint8", "--max-model-len", "2048")
    assert unpacked.chosen("quantizer") is None
    of_tiny = comparison.compared(packed, unpacked, 256)
    assert of_tiny.model == "random:tiny"
    assert 0 < of_tiny.kl < 0.01


WIDE = "groups of 128 weights do not divide the hidden width 64"


def test_a_default_comparison_that_is_refused_is_told_and_one_that_was_named_refuses(tmp_path):
    def pack(model):
        return compose(["--model", model, "--quantization", "wint4"]), None

    unsaid = comparison.prepared("random:tiny", False, pack)
    assert (unsaid.model, unsaid.why) == ("random:tiny", WIDE)
    assert unsaid.remedies[:2] == ("--quality MODEL: compare on another", "--quant-wint4-pad: fill each row up with zeros")
    with pytest.raises(UserError, match=WIDE):
        comparison.prepared("random:tiny", True, pack)
    told = replace(report(), unsaid=unsaid)
    written = io.StringIO()
    show(told, Console(file=written, width=80))
    assert (
        f"\nnothing is said about quality on random:tiny: {WIDE}; remedy: --quality MODEL: compare on another, or "
        in written.getvalue()
    )
    assert json.loads(told.as_json())["unsaid"]["why"] == WIDE


def test_a_model_that_is_packed_by_itself_is_no_reference():
    packed = compose(["--model", "random:tiny", "--quantization", "wint8"])
    unsaid = comparison.prepared("a folder", False, lambda model: (packed, packed))
    assert unsaid.why == "a folder is packed by itself: there are no unpacked weights beside it"


@pytest.mark.parametrize(
    ("argv", "missing", "said"),
    [
        (
            ["--json", "/no/where/x.json"],
            None,
            "/no/where/x.json cannot be written: there is no folder /no/where\n  set by: --json",
        ),
        (["--json", "."], None, ". cannot be written: it is a folder\n  set by: --json"),
        (
            ["--plot", "x.txt"],
            None,
            "x.txt is no picture's name\n  set by: --plot\n  remedy: end it in one of .png, .svg, .pdf",
        ),
        (["--plot", "x.png"], "matplotlib", "a plot needs matplotlib\n  set by: --plot"),
        (["--against", "transformers"], "transformers", "transformers is not installed\n  set by: --against transformers"),
        (["--against", "llama.cpp"], "llama_cpp", "llama-cpp-python is not installed\n  set by: --against llama.cpp"),
        (["--against", "backend:torchy"], None, "no installed plugin offers the compute backend 'torchy'"),
        (["--quantization", "wint4", "--quant-wint4-group-size", "32", "--quality", "no/folder/here"], None, "no/folder/here"),
    ],
)
def test_what_could_fail_afterwards_is_refused_before_anything_starts(argv, missing, said, capsys, monkeypatch):
    def nobody(*_):
        raise AssertionError("a process was started")

    monkeypatch.setattr(offline, "Child", nobody)
    for module in (offline, files):
        monkeypatch.setattr(module, "find_spec", lambda name: None if name == missing else True)
    assert main(["--model", "random:tiny", *argv]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(("lives", "rows"), [(0, None), (5, ["decode, batch 1", "start"])])
def test_a_contestant_that_fails_in_the_midst_takes_no_figures_along(lives, rows, capsys, monkeypatch, tmp_path):
    class Mortal(Fake):
        versions, start_seconds, asks = {}, 1.0, 0

        def __init__(self, name, setup, threads):
            super().__init__(1.0, 0.01)

        def ask(self, **content):
            self.asks += 1
            if self.asks > lives:
                raise UserError(Problem("it died"), exit_code=ExitCode.FAILED)
            return super().ask(**content)

        def close(self):
            pass

    monkeypatch.setattr(offline, "Child", Mortal)
    file = tmp_path / "report.json"
    picture = tmp_path / "report.png"
    argv = ["--model=random:tiny", "--batch=1", "--repeat=9", "--prefill=0", "--json", str(file), "--plot", str(picture)]
    assert main(argv) == 1
    said = capsys.readouterr()
    assert "dovetail: error: it died\n" in said.err
    if rows is None:
        assert "nothing had been measured by then" in said.err
        return
    content = json.loads(file.read_text())
    assert [row["name"] for row in content["rows"]] == rows
    assert len(content["rows"][0]["measured"][OURS]["values"]) == 4
    assert content["ended_by"]["what"] == "it died"
    assert "the measuring ended early" in said.out
    assert picture.exists()
