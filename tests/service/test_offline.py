"""The LLM class, over a fake engine."""

import subprocess
import sys

import pytest

import core.compose
from core.errors import RequestError
from core.interfaces.frontend import ModelCard, TextDelta, TokenInfo
from core.text.local import Continuation, LocalService
from frontends.offline import LLM, Logprob, SamplingParams
from frontends.offline import llm as llm_module
from tests.service.fake_engine import REFUSED, VOCAB, FakeEngine, LetterTokenizer


class Template:
    def render(self, messages, *, add_generation_prompt=True, **kwargs):
        if not messages or "content" not in messages[0]:
            raise RequestError("a message has no content", param="messages")
        return (
            "".join(message["content"] for message in messages) + kwargs.get("end", "") + ("" if add_generation_prompt else "Z")
        )


@pytest.fixture
def asked():
    return []


@pytest.fixture
def engine():
    return FakeEngine()


@pytest.fixture
def llm(monkeypatch, asked, engine):
    template = Template()

    def compose(argv, *, overrides):
        asked.append((argv, overrides))
        return overrides

    def open_local(plan):
        chat = None if plan.get("chat_template") == "none" else template
        card = ModelCard("fake", ("fake",), 10_000, VOCAB, created=0, defaults={"top_p": 0.7})
        return LocalService(engine, LetterTokenizer(), chat, card)

    monkeypatch.setattr(core.compose, "compose", compose, raising=False)
    monkeypatch.setattr(llm_module, "open_local", open_local)
    with LLM("demo", block_size=16) as llm:
        yield llm


FEW = SamplingParams(max_tokens=2)


def texts(outputs):
    return [[part.text for part in output.outputs] for output in outputs]


def test_settings_go_to_composition_by_their_names(llm, asked):
    assert asked == [([], {"model": "demo", "block_size": 16})]


def test_every_way_to_give_prompts(llm):
    for one in ("AB", {"prompt": "AB"}, {"prompt_token_ids": [0, 1]}, [0, 1]):
        [output] = llm.generate(one, FEW)
        assert (output.prompt_token_ids, output.outputs[0].text, output.finished) == ([0, 1], "CD", True)
        assert output.prompt == (None if one == [0, 1] or "prompt_token_ids" in one else "AB")
    many = ["AB", {"prompt_token_ids": [4]}, [10, 11]]
    assert texts(llm.generate(many, FEW)) == [["CD"], ["FG"], ["MN"]]
    assert texts(llm.generate([[0], [10]], FEW)) == [["BC"], ["LM"]]
    assert llm.generate([], FEW) == []


def test_one_params_for_all_or_one_for_each(llm):
    outputs = llm.generate(["A", "A"], [SamplingParams(max_tokens=1), SamplingParams(n=2, max_tokens=3)])
    assert texts(outputs) == [["B"], ["BCD", "BCD"]]
    assert [part.index for part in outputs[1].outputs] == [0, 1]
    assert texts(llm.generate("A", sampling_params=FEW)) == [["BC"]]
    with pytest.raises(RequestError, match="2 prompts, but 1 params: give one for all, or one for each"):
        llm.generate(["A", "B"], [FEW])


def test_without_params_the_checkpoint_s_defaults_hold(llm):
    assert llm.get_default_sampling_params() == SamplingParams(top_p=0.7)
    assert llm.generate("A")[0].outputs[0].text == "BCDEFGHIJKLMNOPQ"


def test_what_an_output_tells(llm):
    first, second = llm.generate(["A", "A"], SamplingParams(max_tokens=2, stop_token_ids=(5,)))
    assert (first.request_id, second.request_id) == ("0", "1")
    assert first.num_cached_tokens == 3
    part = first.outputs[0]
    assert (part.index, part.token_ids, part.finish_reason, part.stop_reason) == (0, [1, 2], "length", None)
    assert (part.logprobs, part.cumulative_logprob, part.error) == (None, None, "")
    stopped = llm.generate("A", SamplingParams(stop="D"))[0].outputs[0]
    assert (stopped.text, stopped.finish_reason, stopped.stop_reason) == ("BC", "stop", "D")


def test_logprobs_are_a_dict_for_each_token(llm):
    part = llm.generate("A", SamplingParams(max_tokens=2, logprobs=2))[0].outputs[0]
    # The fake engine always says: the chosen token was the second likeliest, the token after it the likeliest.
    assert part.logprobs == [
        {1: Logprob(-0.5, 2, "B"), 2: Logprob(-0.25, 1, "C")},
        {2: Logprob(-0.5, 2, "C"), 3: Logprob(-0.25, 1, "D")},
    ]
    assert [next(iter(found)) for found in part.logprobs] == part.token_ids
    assert part.cumulative_logprob == -1.0
    part = llm.generate("A", SamplingParams(max_tokens=1, logprobs=0))[0].outputs[0]
    assert part.logprobs == [{1: Logprob(-0.5, 2, "B")}]


def test_logprobs_are_gathered_without_copying_those_before():
    info = TokenInfo(token_id=1, text="a", bytes=b"a", logprob=-1.0, rank=0, top=(), text_offset=0)
    delta = TextDelta(
        index=0, text="a", token_ids=(1,), logprobs=(info,), finish_reason=None, num_prompt_tokens=1, num_generated_tokens=1
    )
    part = Continuation(0)
    part.take(delta)
    first = part.logprobs
    part.take(delta)
    assert part.logprobs is first
    assert part.logprobs == [info, info]


def test_chat_with_one_conversation_or_many(llm):
    one = [{"role": "user", "content": "A"}, {"role": "user", "content": "B"}]
    [output] = llm.chat(one, FEW)
    assert (output.prompt, output.outputs[0].text) == ("AB", "CD")
    assert texts(llm.chat([one, one[:1]], FEW)) == [["CD"], ["BC"]]
    assert llm.chat(one, FEW, add_generation_prompt=False)[0].prompt == "ABZ"
    assert llm.chat(one, FEW, chat_template_kwargs={"end": "E"})[0].prompt == "ABE"
    with pytest.raises(RequestError, match="prompt 1: a message has no content"):
        llm.chat([one, [{"role": "user"}]], FEW)


def test_chat_without_a_template(llm):
    llm._service.chat_template = None
    with pytest.raises(RequestError, match=r"model 'fake' has no chat template: set chat_template, or use generate\(\)"):
        llm.chat([{"role": "user", "content": "A"}])


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        (["A", ""], "prompt 1: the prompt is empty: give at least one token"),
        (
            ["A", {"prompt_token_ids": [1000]}],
            "prompt 1: 1000 is not a token id of this model: ids are whole numbers in [0, 1000)",
        ),
        (["A", 3.5], "prompt 1: a prompt is a string or a list of token ids, not float"),
        (
            [{"text": "A"}],
            'prompt 0: a mapping must have "prompt" or "prompt_token_ids", and nothing else; this one has \'text\'',
        ),
        ([{}], 'prompt 0: a mapping must have "prompt" or "prompt_token_ids", and nothing else; this one has nothing'),
    ],
)
def test_a_wrong_prompt_is_named_before_any_has_run(llm, engine, prompts, message):
    with pytest.raises(RequestError) as caught:
        llm.generate(prompts, FEW)
    assert caught.value.message == message
    assert engine.steps == 0


def test_a_progress_bar(llm, capsys):
    llm.generate(["A"] * 3, FEW, use_tqdm=True)
    shown = capsys.readouterr()
    assert "3/3" in shown.err
    assert shown.out == ""


def test_embeddings_have_length_one(llm):
    text, ids = llm.embed(["AB", [5, 6]])
    assert (text.prompt, text.prompt_token_ids, ids.prompt) == ("AB", [0, 1], None)
    assert text.embedding == pytest.approx([0.6, 0.8])
    assert llm.embed("AB", pooling="mean")[0].embedding == pytest.approx([0.8, 0.6])
    with pytest.raises(RequestError, match="prompt 1: nobody wants this"):
        llm.embed(["AB", [REFUSED]])


def test_tokenizer_and_stats(llm):
    tokenizer = llm.get_tokenizer()
    assert tokenizer.decode(tokenizer.encode("HELLO")) == "HELLO"
    llm.generate("A", FEW)
    assert llm.stats().requests_finished == {"length": 1}


def test_shutdown_can_be_called_twice_and_ends_it(llm, engine):
    llm.shutdown()
    llm.shutdown()
    assert engine.closed
    with pytest.raises(RuntimeError, match="this LLM has been shut down: make a new one"):
        llm.generate("A")


def test_an_llm_that_was_never_made_can_be_deleted(monkeypatch):
    def refuse(argv, *, overrides):
        raise RuntimeError("no")

    monkeypatch.setattr(core.compose, "compose", refuse, raising=False)
    with pytest.raises(RuntimeError, match="no"):
        LLM("demo")
    LLM.__new__(LLM).__del__()


def test_importing_it_imports_nothing_heavy():
    code = "import sys, frontends.offline; print(sorted({'torch', 'fastapi', 'zmq', 'transformers'} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"
